//! Reads of a replica's state machine: gatewayd asks a reader thread of storaged.

use super::command::{Election, Item};
use super::{GroupId, Revision};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A call of gatewayd to a reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadCall {
    /// Number of the call; the reply carries it.
    pub call: u64,
    /// How long somebody waits for the reply, from when the call was sent: so long the reader may wait for `min_index` to be
    /// applied, and after it the call is not carried out any more.
    pub wait_ms: u32,
    /// What is read.
    pub read: ReadRequest,
}

/// gatewayd -> storaged, on a reader's ring: a call with the time at which it was sent. A reader that is behind, or was born after it,
/// knows from that what nobody waits for any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentReadCall {
    /// When, in microseconds of the machine's monotonic clock, which its processes share.
    pub sent_us: u64,
    /// The call.
    pub call: ReadCall,
}

impl SentReadCall {
    /// The call, sent at this moment.
    pub fn now(call: ReadCall) -> SentReadCall {
        SentReadCall {
            sent_us: machine_us(),
            call,
        }
    }

    /// How much longer somebody waits for the reply.
    pub fn left(&self) -> Duration {
        let wait = Duration::from_millis(u64::from(self.call.wait_ms));
        let age = Duration::from_micros(machine_us().saturating_sub(self.sent_us));
        wait.saturating_sub(age)
    }
}

/// Not the clock of a simulation: in one, nobody calls a reader.
fn machine_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC is always there");
    u64::try_from(Duration::from(now).as_micros()).unwrap_or(u64::MAX)
}

/// storaged -> gatewayd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadReply {
    /// A new reader incarnation is up: calls without a reply must be sent again.
    Up {
        /// The side's epoch.
        epoch: u64,
    },
    /// The reply to a call.
    Reply {
        /// Number of the call.
        call: u64,
        /// What was read.
        result: Result<ReadResponse, ReadError>,
    },
}

/// A read of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// The group.
    pub group: GroupId,
    /// The range epoch that the reader routed by; 0: any.
    pub epoch: u64,
    /// The read waits until this index is applied; 0: whatever is there.
    pub min_index: u64,
    /// What is read.
    pub query: Query,
}

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// One key.
    Get {
        /// The key.
        key: Bytes,
        /// As of this revision; `None`: the newest.
        revision: Option<Revision>,
    },
    /// A range in key order.
    Range {
        /// First key.
        start: Bytes,
        /// First key beyond; empty: to the end of the key space.
        end: Bytes,
        /// At most so many items.
        limit: u32,
        /// At most so many bytes of keys and values, but at least one item.
        max_bytes: u32,
        /// As of this revision; `None`: the newest.
        revision: Option<Revision>,
        /// Leave the values out.
        keys_only: bool,
    },
    /// The elections that the group remembers.
    Elections,
}

/// What a read gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadResponse {
    /// The items, in key order; at most one for `Get`.
    pub items: Vec<Item>,
    /// Of `Elections`: newest first, and when each was.
    pub elections: Vec<(Revision, Election)>,
    /// Whether a limit cut the answer.
    pub more: bool,
    /// The revision that was read: the asked one, else the group's last at the time.
    pub revision: Revision,
    /// The applied index that was read at.
    pub applied_index: u64,
}

/// Why a read gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ReadError {
    /// The group has no replica here.
    #[error("group {0} has no replica on this node")]
    NoReplica(GroupId),
    /// The range epoch has passed, or the key lies outside the range.
    #[error("range epoch {epoch} is in force")]
    WrongEpoch {
        /// The epoch in force.
        epoch: u64,
    },
    /// The asked revision is older than the history kept.
    #[error("revision is compacted; the oldest kept is {oldest}")]
    Compacted {
        /// The oldest revision that can be read.
        oldest: Revision,
    },
    /// The asked revision lies in the future.
    #[error("revision is not reached yet; the newest is {newest}")]
    FutureRevision {
        /// The newest revision.
        newest: Revision,
    },
    /// `min_index` was not applied, or the call not come to, within `wait_ms`.
    #[error("index not applied in time")]
    NotApplied,
    /// The disk or the tree failed.
    #[error("storage: {0}")]
    Storage(String),
    /// A key, or a bound of a range, is longer than any that can be there.
    #[error("a key of {bytes} bytes, at most {max}")]
    KeyTooLarge {
        /// Its bytes.
        bytes: u64,
        /// Most bytes.
        max: u64,
    },
}
