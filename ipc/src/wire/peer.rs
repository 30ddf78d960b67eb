//! Peer traffic: consensusd's frames to other nodes, carried by gatewayd.
//!
//! gatewayd keeps one outgoing stream to each target; what a node has to say to a peer, questions and answers alike,
//! goes out on the stream that it dialled itself, in order. A lost stream loses what was in flight: the frames' owner
//! (consensusd) asks again or treats it as a network error. Peer-lane frames go first; bulk-lane frames have a
//! connection of their own.

use super::view::NodeIdentity;
use super::{NodeId, RandomId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// consensusd -> gatewayd, on the peer and bulk lanes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerOut {
    /// Sends a frame to the target with this address; without a live stream it is dropped and
    /// [`PeerIn::Unsent`] tells so.
    Frame {
        /// `ip:port` of a target.
        addr: String,
        /// The frame, which only consensusd understands.
        frame: Bytes,
    },
}

/// gatewayd -> consensusd, on the peer and bulk lanes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerIn {
    /// A frame came in.
    Frame {
        /// Who sent it, from the hello of its stream.
        from: Box<PeerHello>,
        /// The frame.
        frame: Bytes,
    },
    /// The outgoing stream to a target is up; the peer's hello answered ours.
    Up {
        /// `ip:port` of the target.
        addr: String,
        /// The peer.
        peer: Box<PeerHello>,
    },
    /// The outgoing stream to a target is down, or could not be made. Told once a state change, and again when `why` changes; on the peer lane
    /// [`DownReason::Refused`] is told at every attempt, since frames that come late take the evidence back.
    Down {
        /// `ip:port` of the target.
        addr: String,
        /// Why.
        why: DownReason,
    },
    /// A frame was dropped since its stream is down or full.
    Unsent {
        /// `ip:port` of the target.
        addr: String,
    },
}

/// Which of the two streams to a peer, and of the two lanes to gatewayd, a frame takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The peer lane.
    Peer,
    /// The bulk lane: snapshots.
    Bulk,
}

/// Why an outgoing stream is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownReason {
    /// The connection was refused: nobody listens, strong evidence that the whole node is gone.
    Refused,
    /// It was closed or reset.
    Closed,
    /// It could not be reached in time.
    Unreachable,
    /// The peer refused us: wrong protocol version or wrong cluster.
    Rejected,
}

/// The first frame on each stream, in both directions. Between nodes: fields are only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// Version of the peer protocol.
    pub protocol: u32,
    /// Start id of the sender's supervisor: a new one means that the node was down.
    pub start: RandomId,
    /// The sender.
    pub identity: NodeIdentity,
    /// Whom the sender believes to talk to; `None` during formation.
    pub expected: Option<NodeId>,
}

/// Version of the peer protocol that this executable speaks.
pub const PEER_PROTOCOL: u32 = 4;
