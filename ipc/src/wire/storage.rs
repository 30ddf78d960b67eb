//! consensusd <-> storaged, on a shard's log lane.
//!
//! The consensusd -> storaged ring is one ordered stream of operations. Its head is published only past operations that
//! are **durable** (or need no durability: requests), so the head is the acknowledgement: an append whose record ends at
//! position P is durable once `head >= P`. Requests carry a number; storaged answers them on the other ring. After
//! [`FromStorage::Up`] consensusd sends again every request that has no answer; all requests are idempotent.

use super::{GroupId, LogPosition, OperationId, RandomId, ReplicaId, Vote};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What an entry of a raft log carries. On disk and between nodes: variants are only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryBody {
    /// A new leader's blank entry.
    Blank,
    /// A stamped command (see [`super::command`]).
    Normal(Bytes),
    /// A membership: bytes that only consensusd understands.
    Membership(Bytes),
}
impl EntryBody {
    /// Bytes of what it carries.
    pub fn payload_bytes(&self) -> usize {
        match self {
            EntryBody::Blank => 0,
            EntryBody::Normal(bytes) | EntryBody::Membership(bytes) => bytes.len(),
        }
    }
}

/// One entry of a raft log. On disk and between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Its place.
    pub position: LogPosition,
    /// What it carries.
    pub body: EntryBody,
}

/// consensusd -> storaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToStorage {
    /// A consensusd incarnation attached. storaged finishes every earlier operation in the ring, then answers with
    /// [`FromStorage::Bootstrapped`] carrying the same epoch and number.
    Hello {
        /// The side's epoch.
        epoch: u64,
        /// Which Hello of this incarnation it is: it says another one for the state at a later moment.
        number: u64,
    },
    /// Creates an empty replica; creating an existing one with the same replica id changes nothing. Durable.
    CreateReplica {
        /// The group.
        group: GroupId,
        /// The replica's id.
        replica: ReplicaId,
        /// Its key range.
        range: KeyRange,
    },
    /// Writes a group's vote. Durable.
    SaveVote {
        /// The group.
        group: GroupId,
        /// The vote.
        vote: Vote,
    },
    /// Appends entries; the first follows the log's last entry, or truncation has gone before. Durable.
    Append {
        /// The group.
        group: GroupId,
        /// The entries, contiguous.
        entries: Vec<LogEntry>,
    },
    /// Drops every entry after `last` (`None`: all). Durable.
    Truncate {
        /// The group.
        group: GroupId,
        /// The last entry kept.
        last: Option<LogPosition>,
    },
    /// Forgets entries up to and including `upto`. Durable. Beyond the persisted applied position it is an error that
    /// ends storaged (invariant STO-PURGE).
    Purge {
        /// The group.
        group: GroupId,
        /// The last entry forgotten.
        upto: LogPosition,
    },
    /// Notes a commit position. The one operation whose acknowledgement promises nothing: it is worth no write of its own,
    /// and becomes durable with the next operation, or after a quiet moment.
    SaveCommitted {
        /// The group.
        group: GroupId,
        /// The position.
        committed: Option<LogPosition>,
    },
    /// Writes a small record of the node itself (identity, formation); whole-value replacement. Durable.
    SaveNodeRecord {
        /// The record.
        record: NodeRecord,
    },
    /// A request that is answered.
    Request {
        /// Number of the request.
        request: u64,
        /// What is asked.
        body: StorageRequest,
    },
}

/// A part of the key space, `[start, end)`; an empty `end` is the end of the key space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// First key beyond; empty: no bound.
    pub end: Bytes,
    /// Epoch of the descriptor, from 1.
    pub epoch: u64,
}
impl KeyRange {
    /// The whole key space in its first epoch.
    pub fn whole() -> Self {
        KeyRange {
            start: Bytes::new(),
            end: Bytes::new(),
            epoch: 1,
        }
    }
    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }
}

/// A named record of the node, kept by storaged for consensusd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name, for example `identity` or `formation`.
    pub name: String,
    /// Its bytes, which only consensusd understands.
    pub value: Bytes,
}

/// Requests with an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageRequest {
    /// Applies committed entries up to and including `upto`. Entries below are applied once whatever is asked.
    Apply {
        /// The group.
        group: GroupId,
        /// First index whose outcome is wanted; `u64::MAX`: none.
        results_from: u64,
        /// Last entry to apply.
        upto: LogPosition,
    },
    /// Reads log entries `[from, to)`, stopping after `max_bytes` but never before one entry.
    ReadLog {
        /// The group.
        group: GroupId,
        /// First index.
        from: u64,
        /// First index not wanted.
        to: u64,
        /// Bytes after which the answer stops.
        max_bytes: u32,
    },
    /// Flushes the state machine and says what that persisted.
    BuildSnapshot {
        /// The group.
        group: GroupId,
    },
    /// What a snapshot would hold that needs no flush: the persisted state. `None` when nothing is persisted yet.
    CurrentSnapshot {
        /// The group.
        group: GroupId,
    },
    /// Opens a snapshot for reading at a pinned sequence number.
    OpenSnapshot {
        /// The group.
        group: GroupId,
    },
    /// Reads the next chunk.
    ReadSnapshot {
        /// Handle from `OpenSnapshot`.
        snapshot: RandomId,
        /// `next` of the chunk before; empty at first.
        cursor: Bytes,
        /// Bytes after which the chunk ends.
        max_bytes: u32,
    },
    /// Releases an opened snapshot.
    CloseSnapshot {
        /// Handle.
        snapshot: RandomId,
    },
    /// Starts to receive a snapshot into a new tree generation; a started one of the same id begins anew.
    BeginInstall {
        /// The group.
        group: GroupId,
        /// Id of the transfer.
        install: RandomId,
    },
    /// The next chunk, in order.
    InstallChunk {
        /// Id of the transfer.
        install: RandomId,
        /// Number of the chunk, from 0; a repeated one is answered and ignored.
        number: u64,
        /// The chunk's items.
        chunk: SnapshotChunk,
    },
    /// Makes the received tree the replica's state, by one manifest record. Durable when answered.
    FinishInstall {
        /// The group.
        group: GroupId,
        /// Id of the transfer.
        install: RandomId,
        /// What the snapshot holds.
        meta: SnapshotMeta,
    },
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Last applied entry; `None`: nothing was.
    pub last_applied: Option<LogPosition>,
    /// The membership in force: where its entry stands, and its bytes.
    pub membership: Option<(LogPosition, Bytes)>,
}

/// A run of a snapshot's raw tree entries, in key order. Between nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// Raw keys and values of the tree.
    pub entries: Vec<(Bytes, Bytes)>,
    /// Cursor of the next chunk; `None`: this was the last.
    pub next: Option<Bytes>,
}

/// storaged -> consensusd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromStorage {
    /// A storaged incarnation attached: requests without an answer must be sent again.
    Up {
        /// The side's epoch.
        epoch: u64,
    },
    /// Answers [`ToStorage::Hello`].
    Bootstrapped {
        /// The epoch of the Hello that is answered.
        epoch: u64,
        /// Its number.
        number: u64,
        /// Generation of the log lane's ring.
        generation: RandomId,
        /// The shard's replicas.
        replicas: Vec<ReplicaState>,
        /// All node records (shard 0 only).
        records: Vec<NodeRecord>,
    },
    /// Answers a request.
    Answer {
        /// Number of the request.
        request: u64,
        /// The answer.
        body: StorageAnswer,
    },
}

/// The durable state of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaState {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its range.
    pub range: KeyRange,
    /// Its vote, with the operation that wrote it.
    pub vote: Option<(Vote, OperationId)>,
    /// Last entry purged.
    pub purged: Option<LogPosition>,
    /// Last entry of the log; equals `purged` when the log is empty.
    pub last: Option<LogPosition>,
    /// Last commit position noted.
    pub committed: Option<LogPosition>,
    /// What the state machine holds at this moment.
    pub applied: SnapshotMeta,
    /// What of it is persisted in tree files.
    pub persisted: SnapshotMeta,
}

/// Answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StorageAnswer {
    /// Of `Apply`: outcomes of normal entries from `results_from` on: index and encoded [`super::command::Outcome`].
    Applied {
        /// What is applied now.
        applied: LogPosition,
        /// Outcomes by index, ascending.
        outcomes: Vec<(u64, Bytes)>,
    },
    /// Of `ReadLog`.
    Log {
        /// Entries, contiguous from the first asked; fewer when the log ends or `max_bytes` is reached.
        entries: Vec<LogEntry>,
    },
    /// Of `BuildSnapshot` and `FinishInstall`.
    Snapshot(SnapshotMeta),
    /// Of `CurrentSnapshot`.
    MaybeSnapshot(Option<SnapshotMeta>),
    /// Of `OpenSnapshot`.
    Opened {
        /// Handle for reading.
        snapshot: RandomId,
        /// What it holds.
        meta: SnapshotMeta,
    },
    /// Of `ReadSnapshot`.
    Chunk(SnapshotChunk),
    /// Of `CloseSnapshot`, `BeginInstall`, `InstallChunk`.
    Done,
    /// The request failed; nothing changed.
    Failed {
        /// Why.
        message: String,
    },
}
