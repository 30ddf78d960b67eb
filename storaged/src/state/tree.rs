//! One replica's tree: atomic batches, and reads at a pinned moment.
//!
//! The raft log is its write-ahead log: a batch is durable once [`Tree::flush`] has passed it. The engine's own visible number
//! can show half a batch when a flush comes between, so that readers use ours, published after a whole batch; and a memtable
//! is ended only between batches (SM-1).

use super::engine::{Engine, Lsm, Pair};
use super::{StoreError, damage};
use crate::io::sync_dir;
use bytes::Bytes;
use lsm_tree::Cache;
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A key's new value, or its removal.
pub(super) type Change = (Vec<u8>, Option<Bytes>);
/// Changes of one batch.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Bytes that a change takes in memory, about.
pub(super) fn weight(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len) + 64) as u64
}

/// A tree on disk.
pub(super) struct Tree {
    engine: Box<dyn Engine>,
    dir: PathBuf,
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
        let made = Lsm::open(dir, cache).and_then(|lsm| {
            // The engine syncs what is in the directory, not its name; a manifest that names it must not come first (SM-2).
            if let Some(parent) = dir.parent() {
                sync_dir(parent)?;
            }
            Ok(Self::over(Box::new(lsm), dir))
        });
        if made.is_err() {
            // Nothing names it. What cannot be removed now the next start removes.
            let _ = std::fs::remove_dir_all(dir);
        }
        made
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
        damage::check_list(dir)?;
        // A predecessor may have been killed between a change and its sync. What is seen here is told as persisted, and files
        // that it does not name are removed: a crash of the machine must not take it back after that.
        for synced in [&dir.join("tables"), dir] {
            if synced.is_dir() {
                sync_dir(synced)?;
            }
        }
        Ok(Self::over(Box::new(Lsm::open(dir, cache)?), dir))
    }

    /// A tree over an engine whose files are in `dir`.
    pub(super) fn over(engine: Box<dyn Engine>, dir: &Path) -> Arc<Tree> {
        let visible = AtomicU64::new(engine.next_number());
        Arc::new(Tree {
            engine,
            dir: dir.to_owned(),
            batch: Mutex::new(()),
            visible,
            pins: Mutex::default(),
            obsolete: AtomicBool::new(false),
        })
    }

    /// Writes a batch, which nobody sees before [`Written::show`].
    pub(super) fn write(&self, changes: impl IntoIterator<Item = Change>) -> Written<'_> {
        let batch = self.batch.lock();
        let number = self.engine.take_number();
        let visible = self.visible.load(Ordering::Acquire);
        assert!(
            number >= visible,
            "SM-4: batch {number} where readers see all below {visible}"
        );
        let mut bytes = 0;
        for (key, value) in changes {
            bytes += weight(&key, value.as_deref());
            match value {
                Some(value) => self.engine.insert(key, &value, number),
                None => self.engine.remove(key, number),
            }
        }
        Written {
            tree: self,
            number,
            bytes,
            _batch: batch,
        }
    }

    /// Reads as of now until the pin is dropped.
    pub(super) fn pin(self: &Arc<Self>) -> Pin {
        let mut pins = self.pins.lock();
        let number = self.visible.load(Ordering::Acquire);
        *pins.entry(number).or_default() += 1;
        Pin {
            tree: self.clone(),
            number,
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

    /// Shows the newest file list, so that the ones before can go although nothing is written.
    fn show_files(&self) {
        // No batch is half written, so that every number given out belongs to a whole batch or to a file list.
        let _between_batches = self.batch.lock();
        self.visible
            .store(self.engine.next_number(), Ordering::Release);
    }

    /// Ends the current memtable, between batches.
    pub(super) fn rotate(&self) {
        let _between_batches = self.batch.lock();
        self.engine.rotate();
    }

    /// Writes ended memtables to files. Blocks for the disk.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        let done = self.engine.flush(self.watermark());
        self.show_files();
        done
    }

    /// Merges files, and lets those go that were merged unless a read still needs them. Blocks for the disk.
    pub(super) fn compact(&self) -> Result<(), StoreError> {
        let merged = self.engine.compact(self.watermark());
        self.show_files();
        if !merged? {
            return Ok(());
        }
        // The engine frees what no read can reach when it makes its next list, which an idle tree would not. The merge's own list
        // must be below the moment that readers see by then: a number between them puts it there.
        {
            let _between_batches = self.batch.lock();
            self.engine.take_number();
        }
        self.show_files();
        let renewed = self.engine.renew_list(self.watermark());
        self.show_files();
        renewed
    }

    #[cfg(test)]
    pub(super) fn visible(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    /// Bytes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
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

/// A batch in the memtable that is not visible yet; no other begins before it is.
#[must_use = "a batch that is never shown comes to light with the next one"]
pub(super) struct Written<'a> {
    tree: &'a Tree,
    number: u64,
    bytes: u64,
    _batch: MutexGuard<'a, ()>,
}

impl Written<'_> {
    /// Makes it visible. Returns its bytes.
    pub(super) fn show(self) -> u64 {
        self.tree.visible.store(self.number + 1, Ordering::Release);
        self.bytes
    }
}

/// A moment of a tree.
pub(super) struct Pin {
    tree: Arc<Tree>,
    number: u64,
}

impl Pin {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.tree.engine.get(key, self.number)
    }

    /// Pairs from `from` on, below `to` if there is one; to be used up before the pin is dropped.
    pub(super) fn range(
        &self,
        from: Bound<Vec<u8>>,
        to: Bound<Vec<u8>>,
    ) -> impl Iterator<Item = Result<Pair, StoreError>> + '_ {
        self.tree.engine.range(from, to, self.number)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.tree.pins.lock();
        if let Some(count) = pins.get_mut(&self.number) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.number);
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
