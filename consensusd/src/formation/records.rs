//! What formation keeps on disk.

use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::{FIRST_DATA_GROUP, GroupId, META_GROUP, NodeId, RandomId, ReplicaId};
use serde::{Deserialize, Serialize};

/// Name of the record with the node's own identity.
pub const IDENTITY: &str = "identity";
/// Name of the record with the one acceptance.
pub const ACCEPTED: &str = "formation";

/// Who a node is, before it has a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// UUID of its data directory.
    pub incarnation: RandomId,
    /// `ip:port` that peers dial.
    pub addr: String,
    /// `ip:port` of the REST API.
    pub rest_addr: String,
}

/// A member of a formed or proposed cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Who it is.
    pub facts: Facts,
}

/// A cluster, as proposed, accepted, and formed. On disk and between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The cluster's id.
    pub cluster: RandomId,
    /// Members by name.
    pub members: Vec<Member>,
}

impl Proposal {
    /// The replica of a node in one of the first two groups. Ids of later replicas continue above (RAFT-5).
    pub fn replica(group: GroupId, node: NodeId) -> ReplicaId {
        ReplicaId(u64::from(group.0) << 32 | node.0)
    }
    /// The groups of a new cluster.
    pub fn groups() -> [(GroupId, KeyRange); 2] {
        [
            (META_GROUP, KeyRange::whole()),
            (FIRST_DATA_GROUP, KeyRange::whole()),
        ]
    }
    /// The member with this incarnation.
    pub fn member(&self, incarnation: RandomId) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| member.facts.incarnation == incarnation)
    }
}

/// The node's own record. On disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// UUID of the data directory.
    pub incarnation: RandomId,
    /// The name under which it was first started.
    pub name: String,
    /// The cluster, once formed.
    pub formed: Option<Proposal>,
}
