//! openraft's log over the log lane.
//!
//! - RAFT-6: `append` publishes to the ring *before* the tail cache shows the entries, so that nothing is replicated that
//!   could be lost with this process.
//! - `get_log_state` shows durable entries only: it is asked once, of the state that storaged has recovered.
//! - Only `save_vote` waits for the disk. Callbacks of appends stay open while storaged is down; openraft never hears of
//!   a storage error for that.

use super::marks::Marks;
use super::{
    C, encode_membership, from_wire_entry, from_wire_vote, log_id, position, to_wire_entry,
    to_wire_vote,
};
use crate::exchange::Exchange;
use crate::log_link::{Done, LogLink};
use crate::planted::{Fault, planted};
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::storage::{
    LogEntry, ReplicaState, StorageAnswer, StorageRequest, ToStorage,
};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes after which an answer of the log is cut.
const READ_BYTES_MAX: u32 = 1 << 20;
/// Bytes of entries in one append operation, and in one request to a peer; what is above is sent in several. One entry
/// always goes, so that a larger one is never stuck.
const BATCH_BYTES_MAX: usize = mareedb_config::bounds::BATCH_BYTES_MAX;

/// What an entry has beside its payload, here and in messages: its place, lengths, allocations.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The log of a group.
#[derive(Clone)]
pub struct LogStore {
    group: GroupId,
    link: Arc<LogLink>,
    inner: Arc<Mutex<Inner>>,
    cache_bytes_max: usize,
    batch_bytes_max: usize,
    /// Who knows what peers take.
    exchange: Option<Arc<Exchange>>,
}

struct Inner {
    purged: Option<LogIdOf<C>>,
    last: Option<LogIdOf<C>>,
    vote: Option<VoteOf<C>>,
    committed: Option<LogIdOf<C>>,
    /// The newest entries, contiguous up to `last`.
    tail: VecDeque<(EntryOf<C>, usize)>,
    tail_bytes: usize,
    marks: Marks,
    /// Index after the last entry that is known to be durable. A cut gives a new one: what is under way from before it
    /// says nothing of the entries that come after it.
    durable: Arc<AtomicU64>,
}

impl LogStore {
    /// The log as storaged has recovered it. A batch of entries fits the log lane, and a peer frame of so many bytes.
    pub fn recovered(
        link: Arc<LogLink>,
        state: &ReplicaState,
        cache_bytes_max: usize,
        peer_message_max: usize,
    ) -> LogStore {
        let next = state.last.map_or(0, |last| last.index + 1);
        let first = state.purged.map_or(0, |purged| purged.index + 1);
        LogStore {
            group: state.group,
            // Half of what a message may have: entries cost less here than there.
            batch_bytes_max: BATCH_BYTES_MAX
                .min(link.message_max() / 2)
                .min(peer_message_max / 2),
            link,
            inner: Arc::new(Mutex::new(Inner {
                purged: state.purged.map(log_id),
                last: state.last.map(log_id),
                vote: state
                    .vote
                    .as_ref()
                    .and_then(|(vote, _)| from_wire_vote(vote)),
                committed: state.committed.map(log_id),
                tail: VecDeque::new(),
                tail_bytes: 0,
                marks: Marks::recovered(first, next),
                durable: Arc::new(AtomicU64::new(next)),
            })),
            cache_bytes_max,
            exchange: None,
        }
    }

    /// What goes to peers fits the rings of the smallest, too.
    pub fn within_peers(self, exchange: Arc<Exchange>) -> LogStore {
        LogStore {
            exchange: Some(exchange),
            ..self
        }
    }

    /// Bytes of entries that go to a peer in one request, unless one entry alone is larger.
    fn sent_bytes_max(&self) -> usize {
        let largest = self
            .exchange
            .as_ref()
            .map(|all| all.takes().largest().bytes);
        // Half of it: entries cost less here than there.
        let taken = largest.map_or(usize::MAX, |bytes| bytes / 2);
        self.batch_bytes_max.min(taken)
    }

    /// The last entry, durable or not.
    pub fn last(&self) -> Option<LogIdOf<C>> {
        self.inner.lock().last
    }

    /// The last entry that is known to be durable. Its term is known while it is in the cache or the last of all.
    pub fn durable(&self) -> Option<LogIdOf<C>> {
        let inner = self.inner.lock();
        let last = inner.last?;
        let next = inner.durable.load(Ordering::Relaxed);
        if next > last.index {
            return Some(last);
        }
        let index = next.checked_sub(1)?;
        inner
            .cached(index, next)
            .first()
            .map(|entry| entry.log_id)
            .or(inner.purged.filter(|purged| purged.index == index))
    }

    /// About how many bytes the log's entries have.
    pub fn held(&self) -> u64 {
        self.inner.lock().marks.held()
    }

    /// How many entries the log has.
    pub fn entries(&self) -> u64 {
        let inner = self.inner.lock();
        let next = inner.last.map_or(0, |last| last.index + 1);
        next.saturating_sub(inner.first())
    }

    /// The largest index that can be purged so that at most about `bytes` of the log stay; `None`: it holds no more.
    pub fn beyond(&self, bytes: u64) -> Option<u64> {
        let inner = self.inner.lock();
        let first = inner.first();
        inner.marks.beyond(bytes).filter(|upto| *upto >= first)
    }

    /// The largest index that can be purged so that so many entries stay; `None`: it has no more.
    pub fn beyond_entries(&self, entries: u64) -> Option<u64> {
        let inner = self.inner.lock();
        let upto = inner.last?.index.checked_sub(entries)?;
        Some(upto).filter(|upto| *upto >= inner.first())
    }
}

/// Bytes of an entry. Nothing is copied for it, except of a membership, which is rare.
fn cost(entry: &EntryOf<C>) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(payload) => payload.0.len(),
        EntryPayload::Membership(membership) => encode_membership(membership).len(),
    };
    ENTRY_OVERHEAD_BYTES + payload
}

/// The same of one in wire's words.
fn wire_cost(entry: &LogEntry) -> usize {
    ENTRY_OVERHEAD_BYTES + entry.body.payload_bytes()
}

impl Inner {
    /// Index of the first entry, or of the next one if there is none.
    fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// Index of the first cached entry; one past the last when none is cached.
    fn cached_from(&self) -> u64 {
        self.tail.front().map_or_else(
            || self.last.map_or(0, |last| last.index + 1),
            |(entry, _)| entry.log_id.index,
        )
    }

    fn cached_with_sizes(&self, from: u64, to: u64) -> impl Iterator<Item = &(EntryOf<C>, usize)> {
        let first = self.cached_from();
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let take = usize::try_from(to.saturating_sub(from.max(first))).unwrap_or(usize::MAX);
        self.tail.iter().skip(skip).take(take)
    }

    fn cached(&self, from: u64, to: u64) -> Vec<EntryOf<C>> {
        self.cached_with_sizes(from, to)
            .map(|(entry, _)| entry.clone())
            .collect()
    }

    /// Shows an entry that is in the ring.
    fn show(&mut self, group: GroupId, entry: EntryOf<C>, size: usize, cache_bytes_max: usize) {
        // RAFT-2: the log has no holes.
        let expected = self.last.map_or(0, |last| last.index + 1);
        assert_eq!(entry.log_id.index, expected, "RAFT-2: {group} has a hole");
        self.marks.append(expected, size as u64);
        self.last = Some(entry.log_id);
        self.tail_bytes += size;
        self.tail.push_back((entry, size));
        while self.tail_bytes > cache_bytes_max && self.tail.len() > 1 {
            let dropped = self.tail.pop_front().map_or(0, |(_, size)| size);
            self.tail_bytes -= dropped;
        }
    }
}

impl LogStore {
    /// Entries `[from, to)`, as far as they exist, ending before `bytes_max` is passed but not before one entry.
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<EntryOf<C>>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        loop {
            // Looked at anew after each answer: meanwhile the cache may have let go of more, or the log was cut.
            let (cached_from, end) = {
                let inner = self.inner.lock();
                next = next.max(inner.first());
                let end = to.min(inner.last.map_or(0, |last| last.index + 1));
                let cached_from = inner.cached_from();
                if next >= cached_from {
                    for (entry, size) in inner.cached_with_sizes(next, end) {
                        if !entries.is_empty() && bytes + size > bytes_max {
                            break;
                        }
                        bytes += size;
                        entries.push(entry.clone());
                    }
                    return Ok(entries);
                }
                (cached_from, end)
            };
            if next >= end {
                return Ok(entries);
            }
            // What the cache no longer has comes from storaged, which has had it in the ring since before it left.
            let answer = self
                .link
                .request(StorageRequest::ReadLog {
                    group: self.group,
                    from: next,
                    to: end.min(cached_from),
                    max_bytes: u32::try_from(self.batch_bytes_max).unwrap_or(READ_BYTES_MAX),
                })
                .await;
            let read = match answer {
                StorageAnswer::Log { entries } => entries,
                StorageAnswer::Failed { message } => return Err(io::Error::other(message)),
                other => return Err(io::Error::other(format!("unexpected answer {other:?}"))),
            };
            if read.is_empty() {
                return Err(io::Error::other(format!(
                    "{}: entries {next}..{end} are not in the log",
                    self.group
                )));
            }
            for entry in read {
                let size = wire_cost(&entry);
                if !entries.is_empty() && bytes + size > bytes_max {
                    return Ok(entries);
                }
                if entry.position.index != next {
                    return Err(io::Error::other(format!(
                        "{}: asked for entry {next}, storaged gave {}",
                        self.group, entry.position
                    )));
                }
                bytes += size;
                next += 1;
                entries.push(from_wire_entry(entry)?);
            }
        }
    }
}

fn bounds(range: impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<C> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<C>>, io::Error> {
        let (from, to) = bounds(range);
        self.read(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<EntryOf<C>>, io::Error> {
        // What goes to a peer fits a frame.
        self.read(start, end, self.sent_bytes_max()).await
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<C>>, io::Error> {
        Ok(self.inner.lock().vote)
    }
}

impl RaftLogStorage<C> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<C>, io::Error> {
        let inner = self.inner.lock();
        Ok(LogState {
            last_purged_log_id: inner.purged,
            last_log_id: inner.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<C>) -> Result<(), io::Error> {
        let operation = ToStorage::SaveVote {
            group: self.group,
            vote: to_wire_vote(vote),
        };
        if planted(Fault::VoteNotAwaited) {
            self.link.send(&operation, Done::Nobody).await;
        } else {
            self.link.durable(&operation).await;
        }
        self.inner.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        self.inner.lock().committed = committed;
        let operation = ToStorage::SaveCommitted {
            group: self.group,
            committed: committed.as_ref().map(position),
        };
        self.link.send(&operation, Done::Nobody).await;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogIdOf<C>>, io::Error> {
        Ok(self.inner.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut callback = Some(callback);
        let mut entries = entries.into_iter().peekable();
        loop {
            let mut batch = Vec::new();
            let mut shown = Vec::new();
            let mut bytes = 0;
            while let Some(entry) = entries.next() {
                let wire = to_wire_entry(&entry);
                let size = wire_cost(&wire);
                bytes += size;
                batch.push(wire);
                shown.push((entry, size));
                let next = entries.peek().map(cost);
                if next.is_some_and(|next| bytes + next > self.batch_bytes_max) {
                    break;
                }
            }
            let next = shown.last().map(|(entry, _)| entry.log_id.index + 1);
            let last_batch = entries.peek().is_none();
            let done = match (last_batch, next, callback.take()) {
                (true, Some(next), Some(callback)) => {
                    Done::Append(callback, self.inner.lock().durable.clone(), next)
                }
                (true, None, Some(callback)) => {
                    // Nothing to append.
                    callback.io_completed(Ok(()));
                    return Ok(());
                }
                (_, _, kept) => {
                    callback = kept;
                    Done::Nobody
                }
            };
            let done = match done {
                Done::Append(callback, ..) if planted(Fault::AppendNotAwaited) => {
                    callback.io_completed(Ok(()));
                    Done::Nobody
                }
                done => done,
            };
            let operation = ToStorage::Append {
                group: self.group,
                entries: batch,
            };
            self.link.send(&operation, done).await;
            // RAFT-6: only now.
            let mut inner = self.inner.lock();
            for (entry, size) in shown {
                inner.show(self.group, entry, size, self.cache_bytes_max);
            }
            if last_batch {
                return Ok(());
            }
        }
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        if self.last().map(|own| own.index) <= last.map(|last| last.index) {
            // Nothing lies beyond; the log's end stays what it is.
            return Ok(());
        }
        let committed = self.inner.lock().committed;
        assert!(
            committed.map(|at| at.index) <= last.map(|last| last.index),
            "RAFT-7: {} is cut after {last:?}, {committed:?} is committed",
            self.group
        );
        let operation = ToStorage::Truncate {
            group: self.group,
            last: last.as_ref().map(position),
        };
        if !planted(Fault::TruncationIgnored) {
            self.link.send(&operation, Done::Nobody).await;
        }
        let mut inner = self.inner.lock();
        let keep = last.map_or(0, |last| last.index + 1);
        while inner
            .tail
            .back()
            .is_some_and(|(entry, _)| entry.log_id.index >= keep)
        {
            let dropped = inner.tail.pop_back().map_or(0, |(_, size)| size);
            inner.tail_bytes -= dropped;
        }
        inner.marks.cut(keep);
        inner.last = last;
        let durable = inner.durable.load(Ordering::Relaxed).min(keep);
        inner.durable = Arc::new(AtomicU64::new(durable));
        Ok(())
    }

    async fn purge(&mut self, upto: LogIdOf<C>) -> Result<(), io::Error> {
        let operation = ToStorage::Purge {
            group: self.group,
            upto: position(&upto),
        };
        self.link.send(&operation, Done::Nobody).await;
        let mut inner = self.inner.lock();
        while inner
            .tail
            .front()
            .is_some_and(|(entry, _)| entry.log_id.index <= upto.index)
        {
            let dropped = inner.tail.pop_front().map_or(0, |(_, size)| size);
            inner.tail_bytes -= dropped;
        }
        inner.marks.purge(upto.index + 1);
        inner.purged = Some(upto);
        inner.durable.fetch_max(upto.index + 1, Ordering::Relaxed);
        if inner.last.is_none_or(|last| last.index < upto.index) {
            inner.last = Some(upto);
        }
        Ok(())
    }
}

/// What the entries of a request cost in the log.
pub fn request_bytes(entries: &[EntryOf<C>]) -> usize {
    entries.iter().map(cost).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::storage::{KeyRange, SnapshotMeta};
    use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, ReplicaId};
    use mareedb_ipc::{Lane, Role};
    use std::panic::AssertUnwindSafe;

    #[tokio::test]
    async fn raft_7_what_is_committed_is_not_cut_off() {
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let sender = consensus.sender(Role::Storage, Lane::Log(0));
        let at = |index| LogPosition { term: 1, index };
        let nothing = SnapshotMeta {
            last_applied: None,
            membership: None,
        };
        let state = ReplicaState {
            group: FIRST_DATA_GROUP,
            replica: ReplicaId(1),
            range: KeyRange::whole(),
            vote: None,
            purged: None,
            last: Some(at(5)),
            committed: Some(at(3)),
            applied: nothing.clone(),
            persisted: nothing,
        };
        let link = LogLink::new(sender, Arc::default());
        let mut log = LogStore::recovered(link, &state, 1 << 20, 1 << 20);
        log.truncate_after(Some(log_id(at(3)))).await.unwrap();
        assert_eq!(log.last(), Some(log_id(at(3))));
        let cut = AssertUnwindSafe(log.truncate_after(Some(log_id(at(2))))).catch_unwind();
        let panic = cut.await.expect_err("it is committed");
        let said = panic.downcast_ref::<String>().expect("words");
        assert!(said.starts_with("RAFT-7"), "{said}");
    }
}
