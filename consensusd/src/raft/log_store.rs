//! openraft's log over the log lane.
//!
//! - RAFT-6: `append` publishes to the ring *before* the tail cache shows the entries, so that nothing is replicated that
//!   could be lost with this process.
//! - `get_log_state` shows durable entries only: it is asked once, of the state that storaged has recovered.
//! - Only `save_vote` waits for the disk. Callbacks of appends stay open while storaged is down; openraft never hears of
//!   a storage error for that.

use super::{C, from_wire_entry, from_wire_vote, log_id, position, to_wire_entry, to_wire_vote};
use crate::exchange::Exchange;
use crate::log_link::{Done, LogLink};
use crate::planted::{Fault, planted};
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::storage::{
    LogEntry, ReplicaState, StorageAnswer, StorageRequest, ToStorage,
};
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, OptionalSend, RaftLogReader};
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
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A recovered entry counts as so many bytes.
const RECOVERED_ENTRY_BYTES: u64 = 2 << 10;
/// Bytes between two marks of the log's size.
const MARK_BYTES: u64 = 256 << 10;

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
    /// How many bytes the log had before an index, coarsely: what retention goes by.
    marks: VecDeque<(u64, u64)>,
    /// Bytes appended since the start.
    written: u64,
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
        // Unknown are the sizes of recovered entries: each counts as a rather large one, so that retention errs early.
        let recovered = next.saturating_sub(first) * RECOVERED_ENTRY_BYTES;
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
                marks: recovered_marks(first, next),
                written: recovered,
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
        let inner = self.inner.lock();
        let before = inner.marks.front().map_or(0, |(_, before)| *before);
        inner.written - before
    }

    /// The largest index that can be purged so that at most about `bytes` of the log stay; `None`: it holds no more.
    pub fn beyond(&self, bytes: u64) -> Option<u64> {
        let inner = self.inner.lock();
        let first = inner.purged.map_or(0, |purged| purged.index + 1);
        let limit = inner.written.checked_sub(bytes)?;
        let (index, _) = inner
            .marks
            .iter()
            .rev()
            .find(|(_, before)| *before <= limit)?;
        index.checked_sub(1).filter(|upto| *upto >= first)
    }
}

/// Marks of a log with these entries.
fn recovered_marks(first: u64, next: u64) -> VecDeque<(u64, u64)> {
    let step = usize::try_from(MARK_BYTES / RECOVERED_ENTRY_BYTES).unwrap_or(usize::MAX);
    (first..next)
        .step_by(step)
        .chain([next])
        .map(|index| (index, (index - first) * RECOVERED_ENTRY_BYTES))
        .collect()
}

fn cost(entry: &LogEntry) -> usize {
    use mareedb_ipc::wire::storage::EntryBody;
    64 + match &entry.body {
        EntryBody::Blank => 0,
        EntryBody::Normal(bytes) | EntryBody::Membership(bytes) => bytes.len(),
    }
}

impl Inner {
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
        let bytes = size as u64;
        if self
            .marks
            .back()
            .is_none_or(|(_, before)| self.written - before >= MARK_BYTES)
        {
            self.marks.push_back((expected, self.written));
        }
        self.written += bytes;
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
                next = next.max(inner.purged.map_or(0, |purged| purged.index + 1));
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
                let size = cost(&entry);
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
                let size = cost(&wire);
                bytes += size;
                batch.push(wire);
                shown.push((entry, size));
                let next = entries.peek().map(|next| cost(&to_wire_entry(next)));
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
        while inner.marks.back().is_some_and(|(index, _)| *index > keep) {
            inner.marks.pop_back();
        }
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
        // The mark before the first entry stays, so that the size is known.
        while inner
            .marks
            .get(1)
            .is_some_and(|(index, _)| *index <= upto.index + 1)
        {
            inner.marks.pop_front();
        }
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
    entries
        .iter()
        .map(|entry| cost(&to_wire_entry(entry)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that is restarted often must bound its log all the same.
    #[test]
    fn a_recovered_log_can_be_purged_in_parts() {
        let marks = recovered_marks(10, 1_010);
        assert_eq!(marks.front(), Some(&(10, 0)));
        assert_eq!(marks.back(), Some(&(1_010, 1_000 * RECOVERED_ENTRY_BYTES)));
        let apart = |(a, b): (&(u64, u64), &(u64, u64))| b.1 - a.1;
        assert!(
            marks
                .iter()
                .zip(marks.iter().skip(1))
                .map(apart)
                .all(|bytes| bytes <= MARK_BYTES)
        );
        assert_eq!(recovered_marks(5, 5), VecDeque::from([(5, 0)]));
    }
}
