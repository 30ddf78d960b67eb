//! gatewayd <-> consensusd, on the client lane.
//!
//! Both ends keep what is unanswered: after a `Hello` of the other side, gatewayd sends its open proposals again with
//! the same [`super::command::SessionRef`] (the state machine makes them take effect once), and consensusd sends its
//! view and targets again.

use super::view::{ClusterView, NodeIdentity};
use super::{GroupId, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// gatewayd -> consensusd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToConsensus {
    /// A gatewayd incarnation attached.
    Hello {
        /// The side's epoch.
        epoch: u64,
    },
    /// Proposes a command to a group that this node should lead. Answered by [`FromConsensus::Proposed`].
    Propose {
        /// Number of the call.
        call: u64,
        /// The group.
        group: GroupId,
        /// The encoded [`super::command::Command`], without stamp.
        command: Bytes,
    },
    /// Asks for a linearizable read index of a group that this node should lead. Answered by [`FromConsensus::ReadIndex`].
    ReadIndex {
        /// Number of the call.
        call: u64,
        /// The group.
        group: GroupId,
    },
    /// An administrative request. Answered by [`FromConsensus::Admin`].
    Admin {
        /// Number of the call.
        call: u64,
        /// What is asked.
        request: AdminRequest,
    },
}

/// Administrative requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// Moves the leaderships of this node elsewhere.
    TransferLeadership {
        /// To this node; `None`: to the most advanced one.
        to: Option<NodeId>,
    },
}

/// consensusd -> gatewayd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromConsensus {
    /// A consensusd incarnation attached: open calls must be sent again.
    Hello {
        /// The side's epoch.
        epoch: u64,
    },
    /// Answers `Propose`.
    Proposed {
        /// Number of the call.
        call: u64,
        /// The encoded [`super::command::Outcome`].
        result: Result<Bytes, ConsensusError>,
    },
    /// Answers `ReadIndex`: an index that, once applied, shows every write acknowledged before the call.
    ReadIndex {
        /// Number of the call.
        call: u64,
        /// The index.
        result: Result<u64, ConsensusError>,
    },
    /// Answers `Admin`.
    Admin {
        /// Number of the call.
        call: u64,
        /// For people: what was done.
        result: Result<String, ConsensusError>,
    },
    /// The cluster as this node sees it.
    View(Box<ClusterView>),
    /// Whom to keep a connection with, and how to present oneself. Replaces the targets before.
    Targets {
        /// Presentation in the peer hello.
        me: Box<NodeIdentity>,
        /// The targets.
        targets: Vec<Target>,
    },
}

/// A peer that gatewayd keeps dialled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    /// `ip:port`.
    pub addr: String,
    /// The member that is expected there; `None` during formation.
    pub node: Option<NodeId>,
}

/// Why a proposal or a read index was not given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ConsensusError {
    /// This node does not lead the group. Nothing was proposed: the call may be sent to the leader.
    #[error("not the leader of the group")]
    NotLeader {
        /// The leader, when known.
        leader: Option<NodeId>,
    },
    /// The outcome is not known: the entry may or may not be in the log. Sending the same session reference again is safe.
    #[error("leadership was lost before the entry was committed")]
    Uncertain,
    /// No quorum answered.
    #[error("no quorum answered")]
    NoQuorum,
    /// The group has no replica here, or it is not ready yet.
    #[error("the group is not ready on this node")]
    NotReady,
    /// More is asked than the log can take: try later.
    #[error("the log is full")]
    Overloaded,
    /// Cannot be done, with the reason.
    #[error("{0}")]
    Refused(String),
    /// Some ring on the way to a quorum cannot carry it, with which and what to raise.
    #[error("{0}")]
    TooLarge(String),
}
