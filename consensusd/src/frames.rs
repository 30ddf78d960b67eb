//! What consensusd says to other nodes' consensusd, inside the frames that gatewayd carries.
//!
//! Format: postcard, docs/formats/peer-frames.md; variants are only added at the end. Hostile bytes give an error.

use crate::offsets::Held;
use crate::raft::C;
use bytes::Bytes;
use mareedb_ipc::wire::storage::{SnapshotChunk, SnapshotMeta};
use mareedb_ipc::wire::{GroupId, NodeId, RandomId, ReplicaId};
use openraft::alias::{LogIdOf, VoteOf};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

/// A frame.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Frame {
    /// Says that the sender lives, and which incarnation of its consensusd it is.
    Ping {
        /// Drawn at each start of consensusd: what was asked of another one will not be answered.
        incarnation: u64,
        /// What only a leader of the meta group knows.
        report: Option<LeaderReport>,
    },
    /// Part of the formation of a cluster.
    Formation(Bytes),
    /// A question to a replica.
    Ask {
        /// Cluster and replicas.
        route: Route,
        /// Number of the call, for the answer.
        call: u64,
        /// What is asked.
        ask: Ask,
    },
    /// The answer.
    Answer {
        /// Cluster and replicas; the sender is who was asked.
        route: Route,
        /// Number of the call.
        call: u64,
        /// What is answered.
        answer: Answer,
    },
    /// Beside each ping while the sender's disk stalls: nobody is to hand leadership to it.
    DiskStalled,
    /// The sender's wall clock.
    Clock {
        /// What it says, in milliseconds since 1970.
        wall_ms: u64,
        /// What the receiver's said when the sender was last told, and for how long it has held that.
        back: Option<Held>,
        /// Whether the sender knows its own to be ahead of a majority's: nobody is to hand leadership to it.
        ahead: bool,
    },
    /// Beside each ping: what may be given to the sender.
    Takes {
        /// Whether leadership may be handed to it: not while it is about to stop, its disk stalls or its storaged is away.
        leadership: bool,
        /// Bytes of the largest command that its rings carry.
        command_bytes: u64,
    },
}

/// What the meta group's leader tells all others, so that each of them can show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderReport {
    /// Its term.
    pub term: u64,
    /// Age in milliseconds of the oldest entry that each node has not matched, over all groups.
    pub lags: Vec<(NodeId, u64)>,
}

/// Between which replicas a frame goes. A mismatch is refused: FORM-2, RAFT-5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The cluster.
    pub cluster: RandomId,
    /// The group.
    pub group: GroupId,
    /// The sender's replica.
    pub from: ReplicaId,
    /// The receiver's replica.
    pub to: ReplicaId,
}
impl Route {
    /// The way of an answer.
    pub fn back(self) -> Route {
        Route {
            from: self.to,
            to: self.from,
            ..self
        }
    }
}

/// Requests of a stream without an answer: sender and receiver hold to it. More wait in the sender's openraft, not in rings and queues.
pub(crate) const OPEN_MAX: usize = 64;

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Appends entries, outside of a stream: heartbeats.
    Append(AppendEntriesRequest<C>),
    /// The next request of a stream. A gap, a repetition, or one too many without an answer ends the stream.
    Stream {
        /// The stream.
        stream: u64,
        /// Number of the request within it, from 0.
        sequence: u64,
        /// The entries.
        request: AppendEntriesRequest<C>,
    },
    /// Asks for a vote.
    Vote(VoteRequest<C>),
    /// Asks whether a vote would be granted.
    PreVote(VoteRequest<C>),
    /// Hands leadership over.
    Transfer {
        /// The leader's vote.
        from: VoteOf<C>,
        /// The new leader.
        to: u64,
        /// What the new leader's log must hold.
        last: Option<LogIdOf<C>>,
    },
    /// A part of a snapshot; the last one has `meta`.
    Snapshot {
        /// Id of the transfer.
        install: RandomId,
        /// Number of the part, from 0.
        number: u64,
        /// Entries of the tree.
        chunk: SnapshotChunk,
        /// The leader's vote and what the snapshot holds, on the last part.
        finish: Option<(VoteOf<C>, SnapshotMeta)>,
    },
    /// Asks whether the receiver, too, has evidence that the leader's node is gone. Changes nothing.
    LeaderGone {
        /// The leader.
        leader: ReplicaId,
        /// Its term.
        term: u64,
    },
    /// Asks for a vote by that evidence: a receiver that has it looks past the lease.
    Succession(VoteRequest<C>),
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Of `Append`.
    Append(AppendEntriesResponse<C>),
    /// Of `Stream`.
    Stream(Result<Option<LogIdOf<C>>, StreamAppendError<C>>),
    /// Of `Vote` and `PreVote`.
    Vote(VoteResponse<C>),
    /// Of `Transfer`.
    Transfer(TransferLeaderResponse<C>),
    /// Of a `Snapshot` part that is not the last.
    Taken,
    /// Of the last part: the receiver's vote.
    Installed(VoteOf<C>),
    /// The question was not put to the replica.
    Refused(String),
    /// Of `LeaderGone`.
    LeaderGone {
        /// Whether it has.
        confirmed: bool,
        /// The last entry of its log.
        last: Option<LogIdOf<C>>,
        /// Whether nothing but a longer log speaks for somebody else.
        fit: bool,
        /// Name of its node.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::{decode, encode};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hostile_frames_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Frame>(&bytes);
        }
    }

    #[test]
    fn a_question_comes_back() {
        let frame = Frame::Ask {
            route: Route {
                cluster: RandomId(1),
                group: GroupId(1),
                from: ReplicaId(2),
                to: ReplicaId(3),
            },
            call: 9,
            ask: Ask::Vote(VoteRequest::new(VoteOf::<C>::new(3, 2), None)),
        };
        let bytes = encode(&frame);
        assert_eq!(
            encode(&decode::<Frame>(&bytes).unwrap()),
            bytes,
            "the encoding is stable"
        );
        for cut in 0..bytes.len() {
            assert!(decode::<Frame>(&bytes[..cut]).is_err());
        }
    }
}
