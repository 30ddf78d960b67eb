//! openraft's log over the log lane.
//!
//! - RAFT-6: `append` publishes to the ring *before* the tail cache shows the entries, so that nothing is replicated that
//!   could be lost with this process.
//! - `get_log_state` shows durable entries only: it is asked once, of the state that storaged has recovered.
//! - Only `save_vote` waits for the disk. Callbacks of appends stay open while storaged is down; openraft never hears of
//!   a storage error for that.

use super::{C, from_wire_entry, from_wire_vote, log_id, position, to_wire_entry, to_wire_vote};
use crate::log_link::{Done, LogLink};
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

/// Bytes after which an answer of the log is cut.
const READ_BYTES_MAX: u32 = 1 << 20;
/// Bytes of one append operation; a batch above is sent in several.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// The log of a group.
#[derive(Clone)]
pub struct LogStore {
    group: GroupId,
    link: Arc<LogLink>,
    inner: Arc<Mutex<Inner>>,
    cache_bytes_max: usize,
}

struct Inner {
    purged: Option<LogIdOf<C>>,
    last: Option<LogIdOf<C>>,
    vote: Option<VoteOf<C>>,
    committed: Option<LogIdOf<C>>,
    /// The newest entries, contiguous up to `last`.
    tail: VecDeque<(EntryOf<C>, usize)>,
    tail_bytes: usize,
}

impl LogStore {
    /// The log as storaged has recovered it.
    pub fn recovered(link: Arc<LogLink>, state: &ReplicaState, cache_bytes_max: usize) -> LogStore {
        LogStore {
            group: state.group,
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
            })),
            cache_bytes_max,
        }
    }

    /// Position of the last entry, durable or not.
    pub fn last(&self) -> Option<LogIdOf<C>> {
        self.inner.lock().last
    }
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

    fn cached(&self, from: u64, to: u64) -> Vec<EntryOf<C>> {
        let first = self.cached_from();
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        let take = usize::try_from(to.saturating_sub(from.max(first))).unwrap_or(usize::MAX);
        self.tail
            .iter()
            .skip(skip)
            .take(take)
            .map(|(entry, _)| entry.clone())
            .collect()
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
        let (mut from, to) = bounds(range);
        let (cached_from, to) = {
            let inner = self.inner.lock();
            let next = inner.last.map_or(0, |last| last.index + 1);
            from = from.max(inner.purged.map_or(0, |purged| purged.index + 1));
            (inner.cached_from(), to.min(next))
        };
        let mut entries = Vec::new();
        // What the cache no longer has comes from storaged, which has had it in the ring since before it left.
        while from < to.min(cached_from) {
            let answer = self
                .link
                .request(StorageRequest::ReadLog {
                    group: self.group,
                    from,
                    to: to.min(cached_from),
                    max_bytes: READ_BYTES_MAX,
                })
                .await;
            let read = match answer {
                StorageAnswer::Log { entries } => entries,
                StorageAnswer::Failed { message } => return Err(io::Error::other(message)),
                other => return Err(io::Error::other(format!("unexpected answer {other:?}"))),
            };
            let Some(last) = read.last() else {
                return Err(io::Error::other(format!(
                    "{}: entries {from}..{to} are not in the log",
                    self.group
                )));
            };
            from = last.position.index + 1;
            for entry in read {
                entries.push(from_wire_entry(entry)?);
            }
        }
        entries.extend(self.inner.lock().cached(from, to));
        Ok(entries)
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
        self.link.durable(&operation).await;
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
            while bytes < APPEND_BYTES_MAX {
                let Some(entry) = entries.next() else { break };
                let wire = to_wire_entry(&entry);
                let size = cost(&wire);
                bytes += size;
                batch.push(wire);
                shown.push((entry, size));
            }
            let last_batch = entries.peek().is_none();
            let done = match (last_batch, callback.take()) {
                (true, Some(callback)) => Done::Append(callback),
                (_, kept) => {
                    callback = kept;
                    Done::Nobody
                }
            };
            let operation = ToStorage::Append {
                group: self.group,
                entries: batch,
            };
            self.link.send(&operation, done).await;
            let mut inner = self.inner.lock();
            for (entry, size) in shown {
                // RAFT-2: the log has no holes.
                let expected = inner.last.map_or(0, |last| last.index + 1);
                assert_eq!(
                    entry.log_id.index, expected,
                    "RAFT-2: {} has a hole",
                    self.group
                );
                inner.last = Some(entry.log_id);
                inner.tail_bytes += size;
                inner.tail.push_back((entry, size));
            }
            while inner.tail_bytes > self.cache_bytes_max && inner.tail.len() > 1 {
                let dropped = inner.tail.pop_front().map_or(0, |(_, size)| size);
                inner.tail_bytes -= dropped;
            }
            if last_batch {
                return Ok(());
            }
        }
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        let operation = ToStorage::Truncate {
            group: self.group,
            last: last.as_ref().map(position),
        };
        self.link.send(&operation, Done::Nobody).await;
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
        inner.last = last;
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
        inner.purged = Some(upto);
        if inner.last.is_none_or(|last| last.index < upto.index) {
            inner.last = Some(upto);
        }
        Ok(())
    }
}
