//! One replica's state machine: its tree, what is applied, what of that is persisted.

use super::apply::{self, Rules};
use super::batch::Batch;
use super::keys;
use super::query::{self, Limits};
use super::records::{self, System};
use super::tree::{Pair, Pin, Tree, after_prefix};
use super::{StoreError, StoreOptions};
use bytes::Bytes;
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest, ReadResponse};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry, SnapshotMeta};
use mareedb_ipc::wire::{GroupId, ReplicaId, Revision};
use parking_lot::{Mutex, RwLock};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Superseded versions that one round of collection removes.
const COLLECT_AT_ONCE: usize = 4096;
/// Bytes of one page of a range read, whatever was asked.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// A replica.
pub(super) struct Replica {
    pub(super) group: GroupId,
    pub(super) id: ReplicaId,
    pub(super) range: KeyRange,
    pub(super) tree_number: u64,
    tree: Arc<Tree>,
    /// Held by whoever changes the tree.
    writing: Mutex<()>,
    /// The state of the last visible batch, changed together with the tree's visibility.
    system: RwLock<System>,
    persisted: Mutex<SnapshotMeta>,
    unflushed: AtomicU64,
    rules: Rules,
    history_ms: u64,
}

impl Replica {
    pub(super) fn new(
        group: GroupId,
        id: ReplicaId,
        range: KeyRange,
        tree_number: u64,
        tree: Arc<Tree>,
        options: &StoreOptions,
    ) -> Result<Replica, StoreError> {
        let system: System = match tree.pin().get(keys::SYSTEM)? {
            Some(bytes) => records::read(&bytes)?,
            None => System::default(),
        };
        Ok(Replica {
            group,
            id,
            range,
            tree_number,
            tree,
            writing: Mutex::new(()),
            persisted: Mutex::new(system.meta.clone()),
            system: RwLock::new(system),
            unflushed: AtomicU64::new(0),
            rules: options.rules(),
            history_ms: options.history_ms,
        })
    }

    pub(super) fn applied(&self) -> SnapshotMeta {
        self.system.read().meta.clone()
    }
    pub(super) fn persisted(&self) -> SnapshotMeta {
        self.persisted.lock().clone()
    }
    pub(super) fn unflushed(&self) -> u64 {
        self.unflushed.load(Ordering::Relaxed)
    }
    pub(super) fn disk_bytes(&self) -> u64 {
        self.tree.disk_bytes()
    }
    pub(super) fn digest(&self) -> (u64, String) {
        let system = self.system.read();
        let index = system.meta.last_applied.map_or(0, |at| at.index);
        // The clock belongs to what replicas agree on.
        let digest = system.digest.wrapping_add(u128::from(system.clock.0));
        (index, format!("{digest:032x}"))
    }
    pub(super) fn abandon(&self) {
        self.tree.abandon();
    }

    /// Applies entries as one batch; see [`super::Store::apply`].
    pub(super) fn apply(
        &self,
        entries: &[LogEntry],
        results_from: u64,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let _writing = self.writing.lock();
        let system = self.system.read().clone();
        let mut applied = system.meta.last_applied;
        let mut batch = Batch::new(self.tree.pin(), system);
        let mut outcomes = Vec::new();
        let mut changed = false;
        for entry in entries {
            let index = entry.position.index;
            let outcome = if applied.is_some_and(|applied| index <= applied.index) {
                if index < results_from {
                    continue;
                }
                apply::remembered(&batch, entry)?
            } else {
                // SM-3: entries are applied in order, without a hole.
                let expected = applied.map_or(0, |applied| applied.index + 1);
                if index != expected {
                    return Err(StoreError::Hole {
                        group: self.group,
                        expected,
                        found: index,
                    });
                }
                applied = Some(entry.position);
                changed = true;
                apply::apply(&mut batch, entry, &self.range, &self.rules)?
            };
            if let Some(outcome) = outcome
                && index >= results_from
            {
                outcomes.push((index, outcome));
            }
        }
        if changed {
            let (changes, system) = batch.finish();
            // Readers take both under this lock, so that what they read fits to the index that they tell (SM-1).
            let mut shown = self.system.write();
            let bytes = self.tree.write(changes);
            *shown = system;
            drop(shown);
            self.unflushed.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(outcomes)
    }

    /// Persists what is applied now. Blocks for the disk, not for readers or further batches.
    pub(super) fn flush(&self) -> Result<SnapshotMeta, StoreError> {
        let (meta, bytes) = {
            let _writing = self.writing.lock();
            self.tree.rotate();
            (self.applied(), self.unflushed.load(Ordering::Relaxed))
        };
        self.tree.flush()?;
        let mut persisted = self.persisted.lock();
        // Of two flushes at once the later may have come first.
        if meta.last_applied > persisted.last_applied {
            *persisted = meta;
            self.unflushed.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(persisted.clone())
    }

    fn horizon(&self, clock: Revision) -> Revision {
        Revision::from_unix_ms(clock.unix_ms().saturating_sub(self.history_ms))
    }

    /// Removes versions that no read may ask for any more, then merges files. Blocks for the disk.
    pub(super) fn maintain(&self) -> Result<(), StoreError> {
        loop {
            let _writing = self.writing.lock();
            let system = self.system.read().clone();
            let horizon = self.horizon(system.clock);
            let mut batch = Batch::new(self.tree.pin(), system);
            let end = Bound::Excluded(keys::garbage(horizon, b""));
            let old = batch.range(b"g".to_vec(), end, COLLECT_AT_ONCE)?;
            let count = old.len();
            for (key, _) in old {
                let (_, history) = keys::parse_garbage(&key)
                    .ok_or_else(|| StoreError::Damaged("a garbage key".into()))?;
                batch.remove(history.to_vec())?;
                batch.remove(key)?;
            }
            if count == 0 {
                break;
            }
            let (changes, system) = batch.finish();
            let mut shown = self.system.write();
            let bytes = self.tree.write(changes);
            *shown = system;
            drop(shown);
            self.unflushed.fetch_add(bytes, Ordering::Relaxed);
            if count < COLLECT_AT_ONCE {
                break;
            }
        }
        self.tree.compact()
    }

    /// Reads; never waits.
    pub(super) fn read(&self, request: &ReadRequest) -> Result<ReadResponse, ReadError> {
        let (pin, applied, clock) = {
            let system = self.system.read();
            let applied = system.meta.last_applied.map_or(0, |at| at.index);
            (self.tree.pin(), applied, system.clock)
        };
        if applied < request.min_index {
            return Err(ReadError::NotApplied);
        }
        let wrong = ReadError::WrongEpoch {
            epoch: self.range.epoch,
        };
        if request.epoch != 0 && request.epoch != self.range.epoch {
            return Err(wrong);
        }
        let storage = |error: StoreError| ReadError::Storage(error.to_string());
        let at = match &request.query {
            Query::Get { revision, .. } | Query::Range { revision, .. } => *revision,
        };
        if let Some(at) = at {
            if at > clock {
                return Err(ReadError::FutureRevision { newest: clock });
            }
            let oldest = self.horizon(clock);
            if at < oldest {
                return Err(ReadError::Compacted { oldest });
            }
        }
        let (items, more) = match &request.query {
            Query::Get { key, .. } => {
                if !self.range.contains(key) {
                    return Err(wrong);
                }
                let item = query::get(&pin, key, at).map_err(storage)?;
                (item.into_iter().collect(), false)
            }
            Query::Range {
                start,
                end,
                limit,
                max_bytes,
                keys_only,
                ..
            } => {
                let limits = Limits {
                    items: *limit as usize,
                    bytes: (*max_bytes as usize).min(PAGE_BYTES_MAX),
                    keys_only: *keys_only,
                };
                query::range(&pin, start, end, at, &limits).map_err(storage)?
            }
        };
        Ok(ReadResponse {
            items,
            more,
            revision: at.unwrap_or(clock),
            applied_index: applied,
        })
    }

    /// A moment for a snapshot, with what it holds.
    pub(super) fn pin(&self) -> (Pin, SnapshotMeta) {
        let system = self.system.read();
        (self.tree.pin(), system.meta.clone())
    }
}

/// The next raw pairs of a snapshot, from `cursor` on, and the cursor after them.
pub(super) fn chunk(
    pin: &Pin,
    cursor: &[u8],
    max_bytes: usize,
) -> Result<(Vec<Pair>, Option<Vec<u8>>), StoreError> {
    let mut pairs = Vec::new();
    let mut bytes = 0;
    let to = after_prefix(&[]);
    for pair in pin.range(Bound::Included(cursor.to_vec()), to) {
        let (key, value) = pair?;
        if bytes >= max_bytes {
            return Ok((pairs, Some(key)));
        }
        bytes += key.len() + value.len();
        pairs.push((key, value));
    }
    Ok((pairs, None))
}
