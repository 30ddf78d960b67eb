//! openraft behind our own doors: its types, and how they are told in the words of [`mareedb_ipc::wire`].
//!
//! openraft's node id is a *replica id*, allocated per placement and never reused (RAFT-5); its node payload says where
//! the replica lives. `leader_id_std` gives at most one leader a term (RAFT-1). That what is committed stays on later leaders
//! (RAFT-7) is openraft's, over logs that keep DUR-1 and RAFT-2.

mod append_stream;
pub mod behind;
pub mod log_store;
mod marks;
pub mod network;
pub mod state_machine;

use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, LogEntry};
use mareedb_ipc::wire::{self, LogPosition, NodeId, ReplicaId};
use openraft::EntryPayload;
use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::vote::RaftVote;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// A stamped command, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub Bytes);
impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// An encoded outcome; empty for entries without a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply(pub Bytes);
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Where a replica lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// `ip:port` that peers dial.
    pub addr: String,
    /// `ip:port` of the REST API.
    pub rest_addr: String,
}

/// Nowhere: openraft's own tests of log stores make up memberships without places.
impl Default for Place {
    fn default() -> Self {
        Place {
            node: NodeId(0),
            name: String::new(),
            addr: String::new(),
            rest_addr: String::new(),
        }
    }
}

openraft::declare_raft_types!(
    /// The types that we give to openraft.
    pub C:
        D = Payload,
        R = Reply,
        NodeId = u64,
        Node = Place,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::rt::Runtime,
);

/// A running group.
pub type Raft = openraft::Raft<C, state_machine::StateMachine>;
/// A membership.
pub type Membership = openraft::Membership<u64, Place>;

/// The node that leads a group, as far as its replica here knows.
pub fn leader_node(raft: &Raft) -> Option<NodeId> {
    use openraft::async_runtime::WatchReceiver;
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let leader = metrics.current_leader?;
    metrics
        .membership_config
        .get_node(&leader)
        .map(|place| place.node)
}

/// A log id in wire's words.
pub fn position(id: &LogIdOf<C>) -> LogPosition {
    LogPosition {
        term: id.leader_id.term,
        index: id.index,
    }
}

/// A log position in openraft's words.
pub fn log_id(position: LogPosition) -> LogIdOf<C> {
    LogIdOf::<C>::new_term_index(position.term, position.index)
}

/// A vote in wire's words.
pub fn to_wire_vote(vote: &VoteOf<C>) -> wire::Vote {
    let leader = RaftVote::leader_id(vote);
    wire::Vote {
        term: leader.term,
        voted_for: Some(ReplicaId(leader.voted_for)),
        committed: RaftVote::is_committed(vote),
    }
}

/// A vote in openraft's words; `None` for one that names no candidate, which openraft does not know.
pub fn from_wire_vote(vote: &wire::Vote) -> Option<VoteOf<C>> {
    let ReplicaId(candidate) = vote.voted_for?;
    Some(if vote.committed {
        VoteOf::<C>::new_committed(vote.term, candidate)
    } else {
        VoteOf::<C>::new(vote.term, candidate)
    })
}

/// An entry in wire's words.
pub fn to_wire_entry(entry: &EntryOf<C>) -> LogEntry {
    let body = match &entry.payload {
        EntryPayload::Blank => EntryBody::Blank,
        EntryPayload::Normal(payload) => EntryBody::Normal(payload.0.clone()),
        EntryPayload::Membership(membership) => {
            EntryBody::Membership(encode_membership(membership))
        }
    };
    LogEntry {
        position: position(&entry.log_id),
        body,
    }
}

/// An entry in openraft's words.
///
/// # Errors
/// A membership that this version cannot decode.
pub fn from_wire_entry(entry: LogEntry) -> io::Result<EntryOf<C>> {
    let payload = match entry.body {
        EntryBody::Blank => EntryPayload::Blank,
        EntryBody::Normal(bytes) => EntryPayload::Normal(Payload(bytes)),
        EntryBody::Membership(bytes) => EntryPayload::Membership(decode_membership(&bytes)?),
    };
    Ok(openraft::Entry {
        log_id: log_id(entry.position),
        payload,
    })
}

/// A membership as bytes, for log entries and snapshots.
pub fn encode_membership(membership: &Membership) -> Bytes {
    wire::encode(membership).into()
}

/// The opposite of [`encode_membership`].
///
/// # Errors
/// The bytes are none.
pub fn decode_membership(bytes: &[u8]) -> io::Result<Membership> {
    wire::decode(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn votes_entries_and_memberships_come_back() {
        for vote in [VoteOf::<C>::new(3, 7), VoteOf::<C>::new_committed(4, 8)] {
            assert_eq!(from_wire_vote(&to_wire_vote(&vote)), Some(vote));
        }
        let place = Place {
            node: NodeId(1),
            name: "node1".into(),
            addr: "127.0.0.1:7001".into(),
            rest_addr: "127.0.0.1:8080".into(),
        };
        let membership = Membership::new(
            vec![BTreeSet::from([1])],
            BTreeMap::from([(1, place.clone()), (2, place)]),
        )
        .unwrap();
        let at = LogPosition { term: 2, index: 9 };
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(Payload(Bytes::from_static(b"x"))),
            EntryPayload::Membership(membership),
        ] {
            let entry: EntryOf<C> = openraft::Entry {
                log_id: log_id(at),
                payload,
            };
            assert_eq!(from_wire_entry(to_wire_entry(&entry)).unwrap(), entry);
        }
    }
}
