//! The door to the storage engine: an ordered map with numbered versions, and nothing else of what lsm-tree can do.
//!
//! lsm-tree numbers its file lists from the counter that it is configured with, and a read at number S sees the newest list
//! numbered below S. Batches therefore take their numbers from that same counter (SM-4): with numbers of their own, a tree
//! that was flushed and merged more often than written showed an old list, without what was applied since.
//! `drop_range` is not used: it brought a deleted key back in a trial.

use super::{StoreError, damage};
use crate::fault;
use crate::io::free_bytes;
use bytes::Bytes;
use lsm_tree::compaction::{Leveled, MoveDown};
use lsm_tree::{AbstractTree, AnyTree, Cache, Guard, SequenceNumberCounter};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A raw key with its value.
pub(super) type Pair = (Vec<u8>, Bytes);
/// Raw pairs in key order.
pub(super) type Pairs = Box<dyn Iterator<Item = Result<Pair, StoreError>>>;

/// The engine writes the number of a level's runs as one byte, and would name a list that nobody can read with 256 of them: each flush makes
/// one, and merges may come later than flushes. From so many on a flush merges first.
const RUNS_MAX: usize = 64;
/// Longest key that the engine takes.
pub(super) const KEY_BYTES_MAX: usize = u16::MAX as usize;

/// Free bytes that flushes and merges leave to the log, which writes go through.
const RESERVE_BYTES: u64 = 16 << 20;
/// From so many tables on the engine merges level 0.
const L0_TABLES: usize = 4;
/// Bytes that the level below it should have at most, and how many times as many each further one.
const L1_BYTES: u64 = 256 << 20;
const LEVEL_FACTOR: u64 = 10;

/// What the store needs of an engine. Versions at or above a read's number are invisible to it.
pub(super) trait Engine: Send + Sync {
    /// Gives out the next number.
    fn take_number(&self) -> u64;
    /// The number that would be given out next.
    fn next_number(&self) -> u64;
    /// Writes a version into the memtable. The key has 1 to [`KEY_BYTES_MAX`] bytes.
    fn insert(&self, key: Vec<u8>, value: &[u8], number: u64);
    /// Writes a deletion into the memtable.
    fn remove(&self, key: Vec<u8>, number: u64);
    /// The newest version below `number`. It may keep more in memory than itself: the block that it is in.
    fn get(&self, key: &[u8], number: u64) -> Result<Option<Bytes>, StoreError>;
    /// The newest versions below `number`, in key order.
    fn range(&self, from: Bound<Vec<u8>>, to: Bound<Vec<u8>>, number: u64) -> Pairs;
    /// Ends the memtable and begins a new one.
    fn rotate(&self);
    /// Writes ended memtables to files, durably; on an error they stay in memory. No read will ask below `watermark`.
    fn flush(&self, watermark: u64) -> Result<(), StoreError>;
    /// Merges files; says whether there was anything to merge. No read will ask below `watermark`.
    fn compact(&self, watermark: u64) -> Result<bool, StoreError>;
    /// Names the same files in a new list. With it go the lists that are older than the newest one below `watermark`, and the files that
    /// only they name.
    fn renew_list(&self, watermark: u64) -> Result<(), StoreError>;
    /// Bytes of its files.
    fn disk_bytes(&self) -> u64;
}

/// lsm-tree.
pub(super) struct Lsm {
    tree: AnyTree,
    numbers: SequenceNumberCounter,
    dir: PathBuf,
    /// Whether nobody knows which list of files is durable.
    unsettled: AtomicBool,
    /// Held by whoever merges; how many merges have begun.
    merging: Mutex<u64>,
    /// Free bytes of the directory's disk.
    room: fn(&Path) -> io::Result<u64>,
    /// The first damage that was met.
    damage: Arc<OnceLock<String>>,
}

/// What of a level merges depend on.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    tables: usize,
    runs: usize,
    bytes: u64,
}

/// What the next merge writes at most, if it is one of level 0: with the level below. `None`: nothing.
fn merge_bytes(levels: &[Level]) -> Option<u64> {
    let (newest, below) = levels.split_first()?;
    if newest.tables < L0_TABLES {
        return None;
    }
    let Some(first) = below.iter().position(|level| level.tables > 0) else {
        // Tables of one run do not overlap: they are moved as they are. An installed snapshot is one, of any size.
        return (newest.runs > 1).then_some(newest.bytes);
    };
    // When all levels are over their bytes, as the one that a snapshot was moved to, a new one begins above them.
    let mut depths = (0u32..).zip(&below[first..]);
    let over = depths.all(|(depth, level)| {
        level.tables == 0 || level.bytes > L1_BYTES * LEVEL_FACTOR.pow(depth)
    });
    let next = if over && first > 0 {
        0
    } else {
        below[first].bytes
    };
    Some(newest.bytes + next)
}

fn unsettled(dir: &Path, what: &str) -> StoreError {
    StoreError::Unsettled(format!("{}: {what}", dir.display()))
}

impl Lsm {
    /// Lets a test say how much room there is.
    #[cfg(test)]
    pub(super) fn with_room(mut self, room: fn(&Path) -> io::Result<u64>) -> Lsm {
        self.room = room;
        self
    }

    /// Opens what is in `dir`, or makes an empty tree there.
    ///
    /// # Errors
    /// The disk, or damage.
    pub(super) fn open(dir: &Path, cache: Arc<Cache>) -> Result<Lsm, StoreError> {
        let numbers = SequenceNumberCounter::new(1);
        // lsm-tree's own idea of what is visible is not used.
        let unused = SequenceNumberCounter::default();
        let tree = lsm_tree::Config::new(dir, numbers.clone(), unused)
            .use_cache(cache)
            .open()
            .map_err(|error| damage::told(error, dir))?;
        if let Some(highest) = tree.get_highest_persisted_seqno() {
            numbers.fetch_max(highest + 1);
        }
        let dir = dir.to_owned();
        Ok(Lsm {
            tree,
            numbers,
            dir,
            unsettled: AtomicBool::new(false),
            merging: Mutex::default(),
            room: free_bytes,
            damage: Arc::default(),
        })
    }

    /// Writes files. When that fails after the engine has named a new list of them, it still takes the one before for the
    /// present one, and would write the next list over the file that is named: nothing is written any more until the tree
    /// is opened anew.
    fn write(
        &self,
        write: impl FnOnce(&AnyTree) -> lsm_tree::Result<()>,
    ) -> Result<(), StoreError> {
        if self.unsettled.load(Ordering::Acquire) {
            return Err(unsettled(&self.dir, "an earlier write"));
        }
        let Err(error) = self.told(write(&self.tree)) else {
            return Ok(());
        };
        let held = self.tree.current_version().id();
        if damage::named(&self.dir).is_ok_and(|(named, _)| named == held) {
            return Err(error);
        }
        self.unsettled.store(true, Ordering::Release);
        // A fault of the disk is not cured by opening the tree again.
        if matches!(&error, StoreError::Io(error) if fault::is_fault(error)) {
            return Err(error);
        }
        Err(unsettled(&self.dir, &error.to_string()))
    }

    /// Whether so many bytes can be written. A full disk found on the way would leave a part of them, which holds the room that is missing.
    ///
    /// # Errors
    /// They cannot.
    fn has_room(&self, bytes: u64) -> Result<(), StoreError> {
        if (self.room)(&self.dir)? < bytes.saturating_add(RESERVE_BYTES) {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        Ok(())
    }

    fn levels(&self) -> Vec<Level> {
        let version = self.tree.current_version();
        let levels = version.iter_levels().map(|level| Level {
            tables: level.table_count(),
            runs: level.run_count(),
            bytes: level.size(),
        });
        levels.collect()
    }

    /// How many tables each level has.
    #[cfg(test)]
    pub(super) fn tables(&self) -> Vec<usize> {
        self.levels().iter().map(|level| level.tables).collect()
    }

    /// Removes what a flush or merge that has failed left of the tables numbered from `first` on. The caller keeps everybody else from making
    /// tables, and has made those that were made since.
    fn drop_partial(&self, first: u64) {
        if self.unsettled.load(Ordering::Acquire) {
            // The list that is durable may name them.
            return;
        }
        let version = self.tree.current_version();
        let named: BTreeSet<u64> = version.iter_tables().map(|table| table.id()).collect();
        for table in (first..self.tree.next_table_id()).filter(|table| !named.contains(table)) {
            // What stays the next start removes.
            let _ = std::fs::remove_file(self.dir.join("tables").join(table.to_string()));
        }
    }

    fn told<T>(&self, done: lsm_tree::Result<T>) -> Result<T, StoreError> {
        done.map_err(|error| damage::told_of(error, &self.tree, &self.dir, &self.damage))
    }
}

impl Engine for Lsm {
    fn take_number(&self) -> u64 {
        self.numbers.next()
    }

    fn next_number(&self) -> u64 {
        self.numbers.get()
    }

    fn insert(&self, key: Vec<u8>, value: &[u8], number: u64) {
        self.tree.insert(key, value, number);
    }

    fn remove(&self, key: Vec<u8>, number: u64) {
        self.tree.remove(key, number);
    }

    fn get(&self, key: &[u8], number: u64) -> Result<Option<Bytes>, StoreError> {
        let value = self.told(self.tree.get(key, number))?;
        Ok(value.map(Bytes::from_owner))
    }

    fn range(&self, from: Bound<Vec<u8>>, to: Bound<Vec<u8>>, number: u64) -> Pairs {
        let (tree, dir, first) = (self.tree.clone(), self.dir.clone(), self.damage.clone());
        Box::new(self.tree.range((from, to), number, None).map(move |item| {
            let (key, value) = item
                .into_inner()
                .map_err(|error| damage::told_of(error, &tree, &dir, &first))?;
            Ok((key.to_vec(), Bytes::from_owner(value)))
        }))
    }

    fn rotate(&self) {
        self.tree.rotate_memtable();
    }

    fn flush(&self, watermark: u64) -> Result<(), StoreError> {
        while self.tree.l0_run_count() >= RUNS_MAX {
            if !self.compact(watermark)? {
                return Err(StoreError::Refused(format!(
                    "{}: {} runs wait to be merged, and are not",
                    self.dir.display(),
                    self.tree.l0_run_count()
                )));
            }
        }
        let lock = self.tree.get_flush_lock();
        if self.tree.sealed_memtable_count() > 0 {
            self.has_room(self.tree.version_memtable_size_sum())?;
        }
        let first = self.tree.next_table_id();
        let merges = self.merging.try_lock().map(|merges| *merges);
        let done = self.write(|tree| tree.flush(&lock, watermark).map(|_| ()));
        // Tables of a merge that has ended meanwhile may be gone from the list and be read all the same.
        if done.is_err()
            && let Some(now) = self.merging.try_lock()
            && merges == Some(*now)
        {
            self.drop_partial(first);
        }
        done
    }

    fn compact(&self, watermark: u64) -> Result<bool, StoreError> {
        let mut merges = self.merging.lock();
        *merges += 1;
        if let Some(bytes) = merge_bytes(&self.levels()) {
            self.has_room(bytes)?;
        }
        let (before, first) = (self.tree.current_version().id(), self.tree.next_table_id());
        let strategy = Arc::new(Leveled::default());
        if let Err(error) = self.write(|tree| tree.compact(strategy, watermark)) {
            let _no_flush = self.tree.get_flush_lock();
            self.drop_partial(first);
            return Err(error);
        }
        Ok(self.tree.current_version().id() != before)
    }

    fn renew_list(&self, watermark: u64) -> Result<(), StoreError> {
        // Nothing is moved from an empty level to itself, and a list is made of it. Without an empty level the next flush does it.
        // Not level 0: flushes may fill it before it is moved, and their tables overlap, which those of one move must not. Below it
        // only merges put tables, and this is their thread.
        let _one = self.merging.lock();
        let version = self.tree.current_version();
        let mut levels = (0u8..).zip(version.iter_levels()).skip(1);
        let Some((empty, _)) = levels.find(|(_, level)| level.is_empty()) else {
            return Ok(());
        };
        self.write(|tree| tree.compact(Arc::new(MoveDown(empty, empty)), watermark))
    }

    fn disk_bytes(&self) -> u64 {
        self.tree.disk_space()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Runs, tables and MiB of level 0; MiB of those below that are not empty.
    fn needs(newest: (usize, usize, u64), below: &[(usize, u64)]) -> Option<u64> {
        let mut levels = [Level::default(); 7];
        let (runs, tables, mib) = newest;
        levels[0] = Level {
            tables,
            runs,
            bytes: mib * MIB,
        };
        for (at, mib) in below {
            levels[*at] = Level {
                tables: 1,
                runs: 1,
                bytes: mib * MIB,
            };
        }
        merge_bytes(&levels).map(|bytes| bytes / MIB)
    }

    #[test]
    fn a_merge_needs_room_for_what_it_writes_and_not_for_what_it_moves_or_leaves() {
        assert_eq!(needs((3, 3, 90), &[(6, 100)]), None, "it is not due");
        assert_eq!(needs((4, 4, 40), &[]), Some(40));
        assert_eq!(needs((1, 900, 9000), &[]), None, "one run is moved");
        assert_eq!(needs((4, 4, 40), &[(6, 256)]), Some(296));
        // A level above one that is too large for the only one.
        assert_eq!(needs((4, 4, 40), &[(6, 257)]), Some(40));
        assert_eq!(needs((4, 4, 40), &[(5, 30), (6, 9000)]), Some(70));
        assert_eq!(needs((4, 4, 40), &[(5, 257), (6, 2560)]), Some(297));
        assert_eq!(needs((4, 4, 40), &[(5, 257), (6, 2561)]), Some(40));
        // There is none above the first.
        assert_eq!(needs((4, 4, 40), &[(1, 257)]), Some(297));
    }
}
