//! One replica's state machine: its tree, what is applied, what of that is persisted.

use super::apply;
use super::batch::Batch;
use super::elections;
use super::engine::Pair;
use super::kept::Kept;
use super::keys::{self, BOUND_BYTES_MAX, KEY_BYTES_MAX};
use super::query::{self, Limits};
use super::records::System;
use super::tree::{Changes, Pin, Tree, after_prefix};
use super::{StoreError, StoreOptions};
use bytes::Bytes;
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest, ReadResponse};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry, SnapshotMeta};
use mareedb_ipc::wire::{GroupId, ReplicaId, Revision};
use mareedb_ipc::world::{Fault, planted};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of what is read and changed after which a batch ends: entries of a few bytes may supersede large values.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Bytes of outcomes that one call gives.
const OUTCOMES_BYTES_MAX: usize = 16 << 20;
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
    writing: Mutex<Writing>,
    /// The state of the last visible batch, changed together with the tree's visibility.
    system: RwLock<System>,
    persisted: Mutex<SnapshotMeta>,
    /// Bytes written so far, and how many of them are in files: sums that only grow, so that flushes may overlap.
    written: AtomicU64,
    flushed: AtomicU64,
    /// Held by whoever collects: versions superseded before this are gone.
    collected: Mutex<Revision>,
}

/// The first outcomes, as many as may be in memory at once; the others are asked for again.
#[derive(Default)]
struct Outcomes {
    first: Vec<(u64, Bytes)>,
    bytes: usize,
}

impl Outcomes {
    fn add(&mut self, index: u64, outcome: Bytes) {
        self.bytes += outcome.len();
        if self.bytes <= OUTCOMES_BYTES_MAX {
            self.first.push((index, outcome));
        }
    }
}

/// Held by whoever changes the tree.
pub(super) struct Writing {
    /// Whether the tree still is the replica's.
    pub(super) standing: Standing,
    kept: Kept,
    /// Whether the tree lacks something of what is kept, or the state.
    behind: bool,
}

/// Whether a tree is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the replica's state.
    InForce,
    /// A snapshot has replaced it.
    Replaced,
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
        let pin = tree.pin();
        let system = System::of(&pin, &options.first_rules)?;
        let writing = Writing {
            standing: Standing::InForce,
            kept: Kept::of(&pin)?,
            behind: false,
        };
        drop(pin);
        Ok(Replica {
            group,
            id,
            range,
            tree_number,
            tree,
            writing: Mutex::new(writing),
            persisted: Mutex::new(system.meta.clone()),
            system: RwLock::new(system),
            written: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            collected: Mutex::new(Revision(0)),
        })
    }

    pub(super) fn applied(&self) -> SnapshotMeta {
        self.system.read().meta.clone()
    }
    pub(super) fn persisted(&self) -> SnapshotMeta {
        self.persisted.lock().clone()
    }
    pub(super) fn unflushed(&self) -> u64 {
        let flushed = self.flushed.load(Ordering::Acquire);
        self.written.load(Ordering::Acquire).saturating_sub(flushed)
    }
    #[cfg(test)]
    pub(super) fn data_bytes(&self) -> u64 {
        self.system.read().data_bytes
    }
    pub(super) fn disk_bytes(&self) -> u64 {
        self.tree.disk_bytes()
    }
    pub(super) fn digest(&self) -> (u64, String) {
        let system = self.system.read();
        let index = system.meta.last_applied.map_or(0, |at| at.index);
        (index, system.digest())
    }
    /// Keeps everybody else from changing the tree, or from finding it in force after it was replaced.
    pub(super) fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock()
    }
    pub(super) fn abandon(&self) {
        self.tree.abandon();
    }

    /// Applies entries, in one batch or a few; see [`super::Store::apply`]. `None`: the tree was replaced, nothing is applied to it.
    pub(super) fn apply(
        &self,
        entries: &[LogEntry],
        results_from: u64,
    ) -> Result<Option<Vec<(u64, Bytes)>>, StoreError> {
        let mut writing = self.writing.lock();
        if writing.standing == Standing::Replaced {
            return Ok(None);
        }
        let mut outcomes = Outcomes::default();
        let mut rest = entries;
        while !rest.is_empty() {
            rest = self.apply_some(&mut writing, rest, results_from, &mut outcomes)?;
        }
        Ok(Some(outcomes.first))
    }

    /// Applies entries as one batch until it is large; gives those that are left. On an error nothing of the batch is applied.
    fn apply_some<'a>(
        &self,
        writing: &mut Writing,
        entries: &'a [LogEntry],
        results_from: u64,
        outcomes: &mut Outcomes,
    ) -> Result<&'a [LogEntry], StoreError> {
        let system = self.system.read().clone();
        let mut applied = system.meta.last_applied;
        let mut batch = Batch::new(self.tree.pin(), &writing.kept, system);
        let mut changed = false;
        let mut taken = 0;
        for entry in entries {
            if batch.bytes() > BATCH_BYTES_MAX {
                break;
            }
            taken += 1;
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
                apply::apply(&mut batch, entry, &self.range)?
            };
            if let Some(outcome) = outcome
                && index >= results_from
            {
                outcomes.add(index, outcome);
            }
        }
        if changed {
            let finished = batch.finish();
            let written = self.tree.write(finished.changes);
            // Readers take both under this lock, so that what they read fits to the index that they tell (SM-1).
            let mut shown = self.system.write();
            written.show();
            *shown = finished.system;
            drop(shown);
            for (key, value) in finished.kept {
                writing.kept.change(key, value);
            }
            writing.behind = true;
            self.written.fetch_add(finished.bytes, Ordering::AcqRel);
        }
        Ok(&entries[taken..])
    }

    /// Persists what is applied now. Blocks for the disk, not for readers or further batches.
    pub(super) fn flush(&self) -> Result<SnapshotMeta, StoreError> {
        let (meta, bytes) = {
            let mut writing = self.writing.lock();
            self.write_back(&mut writing);
            self.tree.rotate();
            (self.applied(), self.written.load(Ordering::Acquire))
        };
        self.tree.flush()?;
        self.flushed.fetch_max(bytes, Ordering::AcqRel);
        let mut persisted = self.persisted.lock();
        // Of two flushes at once the later may have come first.
        if meta.last_applied > persisted.last_applied {
            *persisted = meta;
        }
        Ok(persisted.clone())
    }

    /// Makes the tree complete (SM-8): the state, sessions and outcomes are written to it only now.
    fn write_back(&self, writing: &mut Writing) {
        if std::mem::take(&mut writing.behind) {
            let mut changes = writing.kept.write_back();
            let state = self.system.read().write();
            changes.insert(keys::SYSTEM.to_vec(), Some(state.into()));
            self.tree.write(changes).show();
        }
    }

    /// Merges files. Blocks for the disk.
    pub(super) fn merge(&self) -> Result<(), StoreError> {
        self.tree.compact()
    }

    /// Removes versions that no read may ask for any more.
    pub(super) fn collect(&self) -> Result<(), StoreError> {
        let mut collected = self.collected.lock();
        let horizon = self.system.read().oldest;
        while *collected < horizon {
            // Nobody else touches what lies behind the horizon, so that looking for it holds nobody up.
            let (old, upto) = garbage(&self.tree.pin(), *collected, horizon)?;
            let mut changes = Changes::new();
            for key in old {
                let (_, history) = keys::parse_garbage(&key)
                    .ok_or_else(|| StoreError::Damaged("a garbage key".into()))?;
                changes.insert(history.to_vec(), None);
                changes.insert(key, None);
            }
            if !changes.is_empty() {
                let writing = self.writing.lock();
                if writing.standing == Standing::Replaced {
                    return Ok(());
                }
                let bytes = self.tree.write(changes).show();
                self.written.fetch_add(bytes, Ordering::AcqRel);
            }
            *collected = upto;
        }
        Ok(())
    }

    /// Reads; never waits. What the reader did wrong is inside.
    pub(super) fn read(
        &self,
        request: &ReadRequest,
    ) -> Result<Result<ReadResponse, ReadError>, StoreError> {
        let (pin, applied, clock, oldest) = {
            let system = self.system.read();
            let applied = system.meta.last_applied.map_or(0, |at| at.index);
            // LIN-1: not before the index that the leader gave. LIN-2: what is applied is committed, whatever was asked.
            if applied < request.min_index && !planted(Fault::ReadsUnapplied) {
                return Ok(Err(ReadError::NotApplied));
            }
            (self.tree.pin(), applied, system.clock, system.oldest)
        };
        if let Err(refused) = self.check(request, clock, oldest) {
            return Ok(Err(refused));
        }
        let mut response = ReadResponse {
            items: Vec::new(),
            elections: Vec::new(),
            more: false,
            revision: revision_of(&request.query).unwrap_or(clock),
            applied_index: applied,
        };
        match &request.query {
            Query::Elections => response.elections = elections::remembered(&pin)?,
            Query::Get { key, revision } => {
                response.items.extend(query::get(&pin, key, *revision)?);
            }
            Query::Range {
                start,
                end,
                limit,
                max_bytes,
                revision,
                keys_only,
            } => {
                let limits = Limits {
                    items: *limit as usize,
                    bytes: (*max_bytes as usize).min(PAGE_BYTES_MAX),
                    keys_only: *keys_only,
                };
                (response.items, response.more) =
                    query::range(&pin, start, end, *revision, &limits)?;
            }
        }
        Ok(Ok(response))
    }

    /// Whether a read asks for what may be read here.
    fn check(
        &self,
        request: &ReadRequest,
        clock: Revision,
        oldest: Revision,
    ) -> Result<(), ReadError> {
        check_lengths(&request.query)?;
        let epoch = self.range.epoch;
        let outside = matches!(&request.query, Query::Get { key, .. } if !self.range.contains(key));
        if outside || (request.epoch != 0 && request.epoch != epoch) {
            return Err(ReadError::WrongEpoch { epoch });
        }
        match revision_of(&request.query) {
            // LIN-3: what a key is at a revision that is still to come may change.
            Some(at) if at > clock => Err(ReadError::FutureRevision { newest: clock }),
            Some(at) if at < oldest => Err(ReadError::Compacted { oldest }),
            _ => Ok(()),
        }
    }

    /// A moment for a snapshot, with what it holds.
    pub(super) fn pin(&self) -> (Pin, SnapshotMeta) {
        let mut writing = self.writing.lock();
        self.write_back(&mut writing);
        let system = self.system.read();
        (self.tree.pin(), system.meta.clone())
    }
}

/// The revision that a query asks for, if it is not the newest.
fn revision_of(query: &Query) -> Option<Revision> {
    match query {
        Query::Get { revision, .. } | Query::Range { revision, .. } => *revision,
        Query::Elections => None,
    }
}

/// Refuses keys and bounds that the engine would end the process over.
fn check_lengths(query: &Query) -> Result<(), ReadError> {
    let (bytes, max) = match query {
        Query::Get { key, .. } => (key.len(), KEY_BYTES_MAX),
        Query::Range { start, end, .. } => (start.len().max(end.len()), BOUND_BYTES_MAX),
        Query::Elections => return Ok(()),
    };
    if bytes <= max {
        return Ok(());
    }
    let (bytes, max) = (bytes as u64, max as u64);
    Err(ReadError::KeyTooLarge { bytes, max })
}

/// Garbage keys of versions superseded in `[from, horizon)`, some thousands at most, and up to where they are all.
pub(super) fn garbage(
    pin: &Pin,
    from: Revision,
    horizon: Revision,
) -> Result<(Vec<Vec<u8>>, Revision), StoreError> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut last = None;
    let start = Bound::Included(keys::garbage(from, b""));
    let end = Bound::Excluded(keys::garbage(horizon, b""));
    for pair in pin.range(start, end) {
        let (key, _) = pair?;
        let (revision, _) =
            keys::parse_garbage(&key).ok_or_else(|| StoreError::Damaged("a garbage key".into()))?;
        // Only between revisions: of a deletion and the version that it ended, neither may be gone without the other, or the
        // version would show again (SM-6).
        if keys.len() >= COLLECT_AT_ONCE && last != Some(revision) {
            return Ok((keys, revision));
        }
        last = Some(revision);
        keys.push(key);
    }
    Ok((keys, horizon))
}

/// The next raw pairs of a snapshot, from `cursor` on, and the cursor after them. One pair at least, whatever `max_bytes` says.
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
        bytes += key.len() + value.len();
        if bytes > max_bytes && !pairs.is_empty() {
            return Ok((pairs, Some(key)));
        }
        pairs.push((key, value));
    }
    Ok((pairs, None))
}
