//! What consensusd knows of the cluster, for gatewayd: routing, status, whom to keep connections with.

use super::storage::KeyRange;
use super::{GroupId, LogPosition, NodeId, RandomId, ReplicaId};
use serde::{Deserialize, Serialize};

/// The node as it presents itself to peers and clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Name.
    pub name: String,
    /// Internal id; `None` until the cluster is formed.
    pub id: Option<NodeId>,
    /// UUID of the data directory.
    pub incarnation: RandomId,
    /// Cluster id; `None` until the cluster is formed.
    pub cluster: Option<RandomId>,
    /// `ip:port` that peers dial.
    pub addr: String,
    /// `ip:port` of the REST API.
    pub rest_addr: String,
    /// Version of the executable.
    pub version: String,
}

/// The state of the cluster as this node sees it. Sent whole on each change, and at least every 200 ms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Who this node is.
    pub me: NodeIdentity,
    /// Whether the node's replicas are restored and serve.
    pub ready: bool,
    /// Present until the cluster is formed.
    pub forming: Option<Forming>,
    /// Why this node refuses to take part, if it does: an operator must act.
    pub refused: Option<Reason>,
    /// Members, in order of their id.
    pub members: Vec<MemberView>,
    /// Groups.
    pub groups: Vec<GroupView>,
}

impl ClusterView {
    /// The member with this id.
    pub fn member(&self, id: NodeId) -> Option<&MemberView> {
        self.members.iter().find(|member| member.id == id)
    }

    /// The member with this name.
    pub fn member_named(&self, name: &str) -> Option<&MemberView> {
        self.members.iter().find(|member| member.name == name)
    }

    /// The group with this id.
    pub fn group(&self, id: GroupId) -> Option<&GroupView> {
        self.groups.iter().find(|group| group.id == id)
    }
}

/// The state of formation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forming {
    /// What is awaited, for people.
    pub message: String,
    /// Addresses or names that did not answer yet.
    pub awaited: Vec<String>,
}

/// A reason with a code, for status and errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Code in capitals, see docs/errors.md.
    pub code: String,
    /// What, why, and the way out.
    pub message: String,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Internal id.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// `ip:port` that peers dial.
    pub addr: String,
    /// `ip:port` of the REST API.
    pub rest_addr: String,
    /// Version it last told; empty when unknown.
    pub version: String,
    /// Whether it votes in the meta group.
    pub voter: bool,
    /// Whether it is reachable: a heartbeat or an answer came within the liveness limit.
    pub online: bool,
    /// Whether its disk has not completed a write for longer than its `storage.stall_limit_ms`.
    pub disk_stalled: bool,
    /// Whether its wall clock is ahead of a majority's by more than `cluster.max_clock_offset_ms`.
    pub clock_ahead: bool,
    /// Milliseconds since the last message from it; `None`: never. 0 for this node.
    pub last_contact_ms: Option<u64>,
    /// Age of the oldest entry, over all groups, that it has not matched; `None` when the leader is not known.
    pub lag_ms: Option<u64>,
}

/// A replication group as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// The group.
    pub id: GroupId,
    /// Its range.
    pub range: KeyRange,
    /// Its replicas: id, node, whether it votes.
    pub replicas: Vec<(ReplicaId, NodeId, bool)>,
    /// The leader's node, as far as known and not contradicted.
    pub leader: Option<NodeId>,
    /// Whether the leader, when it is this node, reached a quorum within the lease.
    pub quorum_ok: bool,
    /// Term.
    pub term: u64,
    /// This node's replica.
    pub local: Option<LocalReplica>,
}

/// This node's replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalReplica {
    /// Its id.
    pub replica: ReplicaId,
    /// `leader`, `follower`, `candidate` or `learner`.
    pub role: String,
    /// Last durable entry.
    pub durable: Option<LogPosition>,
    /// Last committed entry known.
    pub committed: Option<LogPosition>,
    /// Last applied entry.
    pub applied: Option<LogPosition>,
}
