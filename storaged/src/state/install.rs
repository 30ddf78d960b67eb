//! Snapshots on their way out and in. A received one is a tree of its own, which one manifest record makes the replica's
//! (SM-7): a crash before that record leaves a directory that the next start removes, and the state as it was.
//!
//! What comes in is another node's word: keys in order, records that this version writes, inside the range, and, at the end,
//! the digest, the bytes and the counts that the state record claims.

use super::manifest::Manifest;
use super::records::{self, System, Version};
use super::replica::{Replica, Standing, chunk};
use super::tree::{Changes, Pin, Tree};
use super::{Store, StoreError, batch, engine, tree_dir};
use crate::fault;
use bytes::Bytes;
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::storage::{KeyRange, SnapshotChunk, SnapshotMeta};
use mareedb_ipc::wire::{GroupId, RandomId};
use mareedb_ipc::world::{Fault, now, planted};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many received bytes wait in memory for a file, at first.
const FLUSH_BYTES_MIN: u64 = 8 << 20;
/// At most; the engine may hold as many that are in a file since.
const FLUSH_BYTES_MAX: u64 = 64 << 20;
/// In between such a part of what has come: for each new file the engine compares all of them with one another.
const FLUSH_PART: u64 = 64;
/// A snapshot or transfer that nobody asked about for so long has lost its owner: consensusd died in the middle of it.
pub(super) const IDLE: Duration = Duration::from_secs(600);

/// An opened snapshot.
pub(super) struct Opened {
    pin: Pin,
    used: Mutex<Instant>,
}

/// What a state record says of the pairs beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counted {
    digest: u128,
    data_bytes: u64,
    idempotent: u64,
    elections: u64,
}

/// A snapshot that is being received.
pub(super) struct Receiving {
    group: GroupId,
    range: KeyRange,
    tree_number: u64,
    tree: Arc<Tree>,
    next: u64,
    last_key: Vec<u8>,
    /// Counted from what came.
    counted: Counted,
    /// Whether the last chunk has come.
    whole: bool,
    bytes: u64,
    /// Those of them that are in no file yet.
    waiting_bytes: u64,
    used: Instant,
}

/// With so many bytes in memory a file is written.
fn flush_at(received: u64) -> u64 {
    (received / FLUSH_PART).clamp(FLUSH_BYTES_MIN, FLUSH_BYTES_MAX)
}

impl Receiving {
    /// Takes the next chunk. Of a repeated one only what was refused before is tried again.
    ///
    /// What is wrong with the snapshot, and a full disk, its sender is told with the last chunk: an installation that fails ends the group.
    fn take(&mut self, number: u64, chunk: &SnapshotChunk) -> Result<(), StoreError> {
        self.used = now();
        if number > self.next {
            return Err(StoreError::Refused(format!(
                "chunk {number} came, chunk {} is due",
                self.next
            )));
        }
        if number == self.next {
            // What there was no room for before: memory does not take the rest.
            self.flush_due()?;
            self.add(chunk)?;
        }
        if self.whole {
            self.check()?;
        }
        self.flush_due()
    }

    fn add(&mut self, chunk: &SnapshotChunk) -> Result<(), StoreError> {
        // All of it is looked at before any of it is written.
        let mut last_key = self.last_key.clone();
        let mut counted = self.counted.clone();
        let mut changes = Changes::new();
        for (key, value) in &chunk.entries {
            if planted(Fault::SnapshotWithoutSessions) && matches!(key[..], [b'o' | b'r', ..]) {
                continue;
            }
            if key[..] <= last_key[..] {
                return Err(hostile("keys are not in order"));
            }
            count(&mut counted, key, value, &self.range)?;
            last_key = key.to_vec();
            changes.insert(key.to_vec(), Some(value.clone()));
        }
        if !changes.is_empty() {
            let bytes = self.tree.write(changes).show();
            self.bytes += bytes;
            self.waiting_bytes += bytes;
        }
        (self.last_key, self.counted) = (last_key, counted);
        self.next += 1;
        self.whole = chunk.next.is_none();
        Ok(())
    }

    fn flush_due(&mut self) -> Result<(), StoreError> {
        if self.whole || self.waiting_bytes >= flush_at(self.bytes) {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.waiting_bytes > 0 {
            self.tree.rotate();
            self.tree.flush()?;
            self.waiting_bytes = 0;
        }
        Ok(())
    }

    /// Whether what came is what its state record describes; gives that record.
    fn check(&self) -> Result<System, StoreError> {
        let system = System::of(&self.tree.pin(), &Rules::default())?;
        let claimed = Counted {
            digest: system.digest,
            data_bytes: system.data_bytes,
            idempotent: system.idempotent,
            elections: system.elections,
        };
        let last = system.meta.last_applied;
        if last.is_some_and(|at| at.index == u64::MAX) {
            return Err(hostile("no entry could follow it"));
        }
        // DET-1, SM-5, and that nothing is left out (SM-8).
        if claimed != self.counted && !planted(Fault::SnapshotWithoutSessions) {
            return Err(hostile("it is not the state that its record describes"));
        }
        Ok(system)
    }

    /// Checks that all is there, and makes it durable.
    fn complete(&mut self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        let system = self.check()?;
        if system.meta != *meta {
            return Err(StoreError::Refused(format!(
                "the received state is at {:?}, its description says {:?}",
                system.meta.last_applied, meta.last_applied
            )));
        }
        self.flush()?;
        // As long as no table overlaps another one they are moved to where the engine keeps them. The first flush of the replica makes one
        // that does, and from then on all of them would have to be written once more.
        match self.tree.compact() {
            Err(StoreError::Io(error)) if fault::is_full(&error) => Ok(()),
            done => done,
        }
    }
}

fn hostile(what: &str) -> StoreError {
    StoreError::Refused(format!("DET-1: a snapshot that no replica has: {what}"))
}

/// Adds a received pair to what was counted so far.
fn count(
    counted: &mut Counted,
    key: &[u8],
    value: &[u8],
    range: &KeyRange,
) -> Result<(), StoreError> {
    if key.len() > engine::KEY_BYTES_MAX || !records::is_record(key, value) {
        return Err(hostile("a pair is no record"));
    }
    match key[0] {
        b'd' => {
            if !range.contains(&key[1..]) {
                return Err(hostile("a key outside the range"));
            }
            let version: Version = records::read(value)?;
            let bytes = key.len() - 1 + version.value.map_or(0, |value| value.len());
            counted.data_bytes = counted.data_bytes.saturating_add(bytes as u64);
        }
        b'i' => counted.idempotent += 1,
        b'v' => counted.elections += 1,
        _ => {}
    }
    if batch::counts(key) {
        counted.digest = counted.digest.wrapping_add(batch::hash(key, value));
    }
    Ok(())
}

impl Store {
    /// Pins the present for a snapshot.
    ///
    /// # Errors
    /// No such replica.
    pub fn open_snapshot(&self, group: GroupId) -> Result<(RandomId, SnapshotMeta), StoreError> {
        let (pin, meta) = self.replica(group)?.pin();
        let id = RandomId::draw();
        let used = Mutex::new(now());
        let opened = Arc::new(Opened { pin, used });
        self.0.opened.lock().insert(id, opened);
        Ok((id, meta))
    }

    /// The chunk at `cursor`; empty: the first.
    ///
    /// # Errors
    /// It is not open, or the disk.
    pub fn read_snapshot(
        &self,
        id: RandomId,
        cursor: &[u8],
        max_bytes: u32,
    ) -> Result<SnapshotChunk, StoreError> {
        if cursor.len() > engine::KEY_BYTES_MAX {
            return Err(StoreError::Refused("a cursor that no chunk gives".into()));
        }
        let opened = self
            .0
            .opened
            .lock()
            .get(&id)
            .cloned()
            .ok_or_else(|| StoreError::Refused(format!("snapshot {id} is not open")))?;
        *opened.used.lock() = now();
        let (pairs, next) = self.noted(chunk(&opened.pin, cursor, max_bytes as usize))?;
        Ok(SnapshotChunk {
            entries: pairs
                .into_iter()
                .map(|(key, value)| (key.into(), value))
                .collect(),
            next: next.map(Bytes::from),
        })
    }

    /// Releases a snapshot.
    pub fn close_snapshot(&self, id: RandomId) {
        self.0.opened.lock().remove(&id);
    }

    /// Begins to receive a snapshot; one of the same id begins anew, and another one for the group is dropped.
    ///
    /// # Errors
    /// No such replica, or the disk.
    pub fn begin_install(&self, group: GroupId, install: RandomId) -> Result<(), StoreError> {
        let range = self.replica(group)?.range.clone();
        self.drop_transfers(|id, received| id == install || received.group == group);
        let number = {
            let mut manifest = self.0.manifest.lock();
            let mut next = manifest.clone();
            let number = next.take_number()?;
            self.0.replace(&mut manifest, next)?;
            number
        };
        let tree = Tree::create(&tree_dir(&self.0.options.dir, number), self.0.cache.clone())?;
        let receiving = Receiving {
            group,
            range,
            tree_number: number,
            tree,
            next: 0,
            last_key: Vec::new(),
            counted: Counted::default(),
            whole: false,
            bytes: 0,
            waiting_bytes: 0,
            used: now(),
        };
        let receiving = Arc::new(Mutex::new(receiving));
        self.0.receiving.lock().insert(install, receiving);
        Ok(())
    }

    /// Takes a chunk, in order; a repeated one changes nothing.
    ///
    /// # Errors
    /// It was not begun, a gap, what no replica would send, or the disk; then the chunk is to come again, if it is to be taken. The last
    /// one is refused, too, when the snapshot as a whole is not what it says of itself.
    pub fn install_chunk(
        &self,
        install: RandomId,
        number: u64,
        chunk: &SnapshotChunk,
    ) -> Result<(), StoreError> {
        let receiving = self
            .0
            .receiving
            .lock()
            .get(&install)
            .cloned()
            .ok_or_else(|| not_begun(install))?;
        receiving.lock().take(number, chunk)
    }

    /// Makes the received state the replica's, unless the replica is there already. Gives what is durable when it returns,
    /// which is `meta` or later. Repeating it after success changes nothing.
    ///
    /// # Errors
    /// It was not begun, is not what `meta` says, or the disk; then nothing changed, and the transfer is over. After
    /// [`StoreError::Unsettled`] nobody knows whether it is in force.
    pub fn finish_install(
        &self,
        group: GroupId,
        install: RandomId,
        meta: &SnapshotMeta,
    ) -> Result<SnapshotMeta, StoreError> {
        let old = self.replica(group)?;
        let received = self.0.receiving.lock().remove(&install);
        // The answer to a first call may have been lost, and the whole transfer have come again: a state never goes back.
        if old.applied().last_applied >= meta.last_applied {
            if let Some(received) = received {
                received.lock().tree.abandon();
            }
            return self.reached(group, meta);
        }
        let received = received.ok_or_else(|| not_begun(install))?;
        let mut received = received.lock();
        let done = if received.group == group {
            received.complete(meta)
        } else {
            Err(StoreError::Refused(format!(
                "transfer {install} is for {}",
                received.group
            )))
        };
        if let Err(error) = done {
            received.tree.abandon();
            return Err(match error {
                // What of a tree is durable that no manifest names is nothing to anybody.
                StoreError::Unsettled(what) => StoreError::Refused(what),
                other => other,
            });
        }
        match self.put_in_force(&old, &received, meta) {
            Ok(true) => {}
            Ok(false) => {
                received.tree.abandon();
                return self.reached(group, meta);
            }
            Err(error) => {
                // A crash may leave either tree in force then; else the old one is.
                if !matches!(error, StoreError::Unsettled(_)) {
                    received.tree.abandon();
                }
                return Err(error);
            }
        }
        self.tell();
        tracing::info!(%group, tree = received.tree_number, before = old.tree_number, "snapshot installed");
        Ok(meta.clone())
    }

    /// What is durable of a replica that has applied as much as `meta` says. A disk is asked for room only if that is less: after an
    /// installation whose answer was lost it is not.
    fn reached(&self, group: GroupId, meta: &SnapshotMeta) -> Result<SnapshotMeta, StoreError> {
        self.0.settled()?;
        let persisted = self.replica(group)?.persisted();
        if persisted.last_applied >= meta.last_applied {
            return Ok(persisted);
        }
        self.flush(group)
    }

    /// SM-7: one manifest record. When it fails nobody knows which tree it names, so that both stay. `false`: the old tree got
    /// as far by itself.
    fn put_in_force(
        &self,
        old: &Replica,
        received: &Receiving,
        meta: &SnapshotMeta,
    ) -> Result<bool, StoreError> {
        let replica = Replica::new(
            old.group,
            old.id,
            old.range.clone(),
            received.tree_number,
            received.tree.clone(),
            &self.0.options,
        )?;
        let mut manifest = self.0.manifest.lock();
        // From here on nothing is applied to the old tree any more.
        let mut standing = old.writing();
        if old.applied().last_applied >= meta.last_applied {
            return Ok(false);
        }
        let mut next: Manifest = manifest.clone();
        for listed in &mut next.replicas {
            if listed.group == old.group {
                listed.tree = received.tree_number;
            }
        }
        self.0.replace(&mut manifest, next)?;
        let replica = Arc::new(replica);
        self.0.replicas.write().insert(old.group, replica);
        standing.standing = Standing::Replaced;
        old.abandon();
        Ok(true)
    }

    fn drop_transfers(&self, which: impl Fn(RandomId, &Receiving) -> bool) {
        // One that is taking a chunk at this moment is waited for, not overlooked.
        self.0.receiving.lock().retain(|id, received| {
            let received = received.lock();
            let drop = which(*id, &received);
            if drop {
                received.tree.abandon();
            }
            !drop
        });
    }

    /// Drops snapshots and transfers whose owner has not been heard of for `limit`: an opened snapshot keeps every version
    /// since its moment from being forgotten.
    pub(super) fn drop_idle(&self, limit: Duration) {
        self.0
            .opened
            .lock()
            .retain(|_, opened| now().saturating_duration_since(*opened.used.lock()) < limit);
        self.drop_transfers(|_, received| now().saturating_duration_since(received.used) >= limit);
    }
}

fn not_begun(install: RandomId) -> StoreError {
    StoreError::Refused(format!("transfer {install} was not begun"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_snapshot_makes_larger_files() {
        assert_eq!(flush_at(0), 8 << 20);
        assert_eq!(flush_at(512 << 20), 8 << 20);
        assert_eq!(flush_at(1 << 30), 16 << 20);
        assert_eq!(flush_at(4 << 30), 64 << 20);
        assert_eq!(flush_at(1 << 40), 64 << 20);
    }
}
