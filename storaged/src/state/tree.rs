//! The engine behind our own door: one ordered tree with atomic batches and reads at a pinned moment.
//!
//! The raft log is its write-ahead log: a batch is durable once [`Tree::flush`] has passed it. lsm-tree's own visible
//! sequence number can show half a batch when a flush comes between, so that readers use ours, published after a whole
//! batch; and a flush rotates the memtable only between batches (SM-1).
//!
//! lsm-tree numbers its file lists from the counter that it is configured with, and a read at number S sees the newest list
//! numbered below S. Batches therefore take their numbers from that same counter (SM-4): with numbers of their own, a tree
//! that was flushed and merged more often than written showed an old list, without what was applied since.

use super::StoreError;
use lsm_tree::{AbstractTree, AnyTree, Cache, Guard, SequenceNumberCounter};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Changes of one batch: a value, or a removal.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
/// A raw key with its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// A tree on disk.
pub(super) struct Tree {
    tree: AnyTree,
    dir: PathBuf,
    /// Numbers of batches and of the engine's file lists: one sequence (SM-4).
    numbers: SequenceNumberCounter,
    /// Held while a batch is written, and while a memtable is ended.
    batch: Mutex<()>,
    /// Everything below is visible.
    visible: AtomicU64,
    /// Moments that somebody reads at, with how many do.
    pins: Mutex<BTreeMap<u64, usize>>,
    obsolete: AtomicBool,
}

impl Tree {
    /// Makes an empty tree.
    pub(super) fn create(dir: &Path, cache: Arc<Cache>) -> Result<Arc<Tree>, StoreError> {
        if dir.exists() {
            // A crash left it before the manifest named it.
            std::fs::remove_dir_all(dir)?;
        }
        Self::open_any(dir, cache)
    }

    /// Opens a tree that the manifest names.
    ///
    /// # Errors
    /// It is not there, or damaged: lsm-tree itself would answer with an empty one (SM-2).
    pub(super) fn open(dir: &Path, cache: Arc<Cache>) -> Result<Arc<Tree>, StoreError> {
        if !dir.join("current").is_file() {
            return Err(StoreError::Damaged(format!(
                "{} has no 'current' file",
                dir.display()
            )));
        }
        Self::open_any(dir, cache)
    }

    fn open_any(dir: &Path, cache: Arc<Cache>) -> Result<Arc<Tree>, StoreError> {
        let numbers = SequenceNumberCounter::new(1);
        // lsm-tree's own idea of what is visible is not used.
        let unused = SequenceNumberCounter::default();
        let tree = lsm_tree::Config::new(dir, numbers.clone(), unused)
            .use_cache(cache)
            .open()?;
        if let Some(highest) = tree.get_highest_persisted_seqno() {
            numbers.fetch_max(highest + 1);
        }
        let visible = AtomicU64::new(numbers.get());
        Ok(Arc::new(Tree {
            tree,
            dir: dir.to_owned(),
            numbers,
            batch: Mutex::new(()),
            visible,
            pins: Mutex::default(),
            obsolete: AtomicBool::new(false),
        }))
    }

    /// Applies a batch, then makes it visible. Returns its bytes.
    pub(super) fn write(&self, changes: Changes) -> u64 {
        let _batch = self.batch.lock();
        let seqno = self.numbers.next();
        let mut bytes = 0;
        for (key, value) in changes {
            bytes += (key.len() + value.as_ref().map_or(0, Vec::len) + 64) as u64;
            match value {
                Some(value) => self.tree.insert(key, value, seqno),
                None => self.tree.remove(key, seqno),
            };
        }
        self.visible.store(seqno + 1, Ordering::Release);
        bytes
    }

    /// Shows the newest file list, so that the ones before can go although nothing is written.
    fn show_files(&self) {
        // No batch is half written, so that every number given out belongs to a whole batch or to a file list.
        let _between_batches = self.batch.lock();
        self.visible.store(self.numbers.get(), Ordering::Release);
    }

    /// Reads as of now until the pin is dropped.
    pub(super) fn pin(self: &Arc<Self>) -> Pin {
        let mut pins = self.pins.lock();
        let seqno = self.visible.load(Ordering::Acquire);
        *pins.entry(seqno).or_default() += 1;
        Pin {
            tree: self.clone(),
            seqno,
        }
    }

    /// Versions below this are needed by nobody.
    fn watermark(&self) -> u64 {
        let pins = self.pins.lock();
        let visible = self.visible.load(Ordering::Acquire);
        pins.keys()
            .next()
            .map_or(visible, |oldest| (*oldest).min(visible))
            .saturating_sub(1)
    }

    /// Ends the current memtable. The caller lets no batch run meanwhile.
    pub(super) fn rotate(&self) {
        let _between_batches = self.batch.lock();
        self.tree.rotate_memtable();
    }

    /// Writes ended memtables to files. Blocks for the disk.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        let lock = self.tree.get_flush_lock();
        self.tree.flush(&lock, self.watermark())?;
        self.show_files();
        Ok(())
    }

    /// Merges files. Blocks for the disk.
    pub(super) fn compact(&self) -> Result<(), StoreError> {
        let strategy = Arc::new(lsm_tree::compaction::Leveled::default());
        self.tree.compact(strategy, self.watermark())?;
        self.show_files();
        Ok(())
    }

    /// Bytes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.tree.disk_space()
    }

    /// The directory is removed when the last user is gone.
    pub(super) fn abandon(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "an old tree stays; the next start removes it");
        }
    }
}

/// A moment of a tree.
pub(super) struct Pin {
    tree: Arc<Tree>,
    seqno: u64,
}

impl Pin {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .tree
            .tree
            .get(key, self.seqno)?
            .map(|value| value.to_vec()))
    }

    /// Pairs from `from` on, below `to` if there is one.
    pub(super) fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
    ) -> impl Iterator<Item = Result<Pair, StoreError>> + use<> {
        self.tree
            .tree
            .range((from, to), self.seqno, None)
            .map(|item| {
                let (key, value) = item.into_inner()?;
                Ok((key.to_vec(), value.to_vec()))
            })
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.tree.pins.lock();
        if let Some(count) = pins.get_mut(&self.seqno) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.seqno);
            }
        }
    }
}

/// First key after every key with this prefix; unbounded when there is none.
pub(super) fn after_prefix(prefix: &[u8]) -> Bound<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}
