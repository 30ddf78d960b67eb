//! The cluster as this node sees it, for the gateway.

use crate::formation::Formation;
use crate::peers::{Ages, Peers};
use crate::raft::{C, Place, position};
use crate::replica::Replica;
use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::view::{
    ClusterView, GroupView, LocalReplica, MemberView, NodeIdentity, Reason,
};
use mareedb_ipc::wire::{GroupId, META_GROUP, NodeId, ReplicaId};
use openraft::Instant;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use std::collections::BTreeMap;

/// What the view is made of.
pub struct Sources<'a> {
    /// Who this node is.
    pub me: NodeIdentity,
    /// State of formation.
    pub formation: Option<&'a Formation>,
    /// Why this node does not take part at all.
    pub refused: Option<&'a Reason>,
    /// Replicas with their ranges.
    pub replicas: &'a BTreeMap<GroupId, (Replica, KeyRange)>,
    /// Peers.
    pub peers: &'a Peers,
    /// Ages of log entries.
    pub ages: &'a Ages,
    /// Whether all replicas are started.
    pub ready: bool,
    /// Whether this node's disk stalls.
    pub disk_stalled: bool,
    /// Whether this node's wall clock is ahead of a majority's.
    pub clock_ahead: bool,
    /// A leader whose last quorum is older than this is none.
    pub lease_ms: u64,
    /// Monotone milliseconds.
    pub now: u64,
}

/// Metrics of a replica.
pub fn metrics(replica: &Replica) -> RaftMetrics<C> {
    replica.raft().metrics().borrow_watched().clone()
}

/// Lags of all nodes over the groups that this node leads.
pub fn lags(
    replicas: &BTreeMap<GroupId, (Replica, KeyRange)>,
    ages: &Ages,
    now: u64,
) -> Vec<(NodeId, u64)> {
    let mut lags: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (group, (replica, _)) in replicas {
        let metrics = metrics(replica);
        let Some(replication) = &metrics.replication else {
            continue;
        };
        for (target, matched) in replication {
            if let Some(place) = metrics.membership_config.get_node(target) {
                let lag = ages.lag(*group, matched.as_ref().map(|id| id.index), now);
                let most = lags.entry(place.node).or_default();
                *most = lag.max(*most);
            }
        }
    }
    lags.into_iter().collect()
}

/// Builds the view.
pub fn view(sources: &Sources<'_>) -> ClusterView {
    let groups: Vec<GroupView> = sources
        .replicas
        .iter()
        .map(|(id, (replica, range))| group(sources, *id, replica, range))
        .collect();
    let voters: Vec<NodeId> = groups
        .iter()
        .find(|group| group.id == META_GROUP)
        .map(|group| {
            group
                .replicas
                .iter()
                .filter(|(_, _, voter)| *voter)
                .map(|(_, node, _)| *node)
                .collect()
        })
        .unwrap_or_default();
    let formed = sources.formation.and_then(Formation::formed);
    let members = formed
        .map(|formed| {
            formed
                .members
                .iter()
                .map(|member| member_view(sources, member, &voters))
                .collect()
        })
        .unwrap_or_default();
    ClusterView {
        me: sources.me.clone(),
        ready: sources.ready && groups.iter().all(|group| group.leader.is_some()),
        forming: sources.formation.and_then(Formation::forming),
        refused: sources
            .refused
            .or_else(|| sources.formation.and_then(Formation::refused))
            .cloned(),
        members,
        groups,
    }
}

fn member_view(
    sources: &Sources<'_>,
    member: &crate::formation::Member,
    voters: &[NodeId],
) -> MemberView {
    let own = Some(member.id) == sources.me.id;
    let now = sources.now;
    let peer = sources.peers.get(&member.facts.addr);
    let version = match peer.and_then(|peer| peer.hello.as_ref()) {
        _ if own => sources.me.version.clone(),
        Some(hello) => hello.identity.version.clone(),
        None => String::new(),
    };
    MemberView {
        id: member.id,
        name: member.facts.name.clone(),
        addr: member.facts.addr.clone(),
        rest_addr: member.facts.rest_addr.clone(),
        version,
        voter: voters.contains(&member.id),
        online: own || sources.peers.online(&member.facts.addr, now),
        disk_stalled: if own {
            sources.disk_stalled
        } else {
            sources.peers.stalled(&member.facts.addr, now)
        },
        clock_ahead: if own {
            sources.clock_ahead
        } else {
            sources.peers.clock_ahead(&member.facts.addr)
        },
        last_contact_ms: if own {
            Some(0)
        } else {
            sources.peers.silence(&member.facts.addr, now)
        },
        lag_ms: sources.peers.lag(member.id, now),
    }
}

/// Whether a member is there and its disk writes, so that it can acknowledge.
fn sound(sources: &Sources<'_>, place: &Place) -> bool {
    let (peers, now) = (sources.peers, sources.now);
    if Some(place.node) == sources.me.id {
        !sources.disk_stalled
    } else {
        peers.online(&place.addr, now) && !peers.stalled(&place.addr, now)
    }
}

fn group(sources: &Sources<'_>, id: GroupId, replica: &Replica, range: &KeyRange) -> GroupView {
    let metrics = metrics(replica);
    let membership = &metrics.membership_config;
    let voters: Vec<u64> = membership.voter_ids().collect();
    let replicas = membership
        .nodes()
        .map(|(replica, place)| (ReplicaId(*replica), place.node, voters.contains(replica)))
        .collect();
    let (leading, term) = replica.leading(&metrics);
    // Of a later leader it may have heard while its own disk keeps it from following.
    let leads = metrics.state == ServerState::Leader && term == metrics.current_term;
    // An isolated leader still calls itself leader: the last quorum tells.
    let quorum_ok = if leads {
        metrics
            .last_quorum_acked
            .is_some_and(|at| at.elapsed().as_millis() < u128::from(sources.lease_ms))
            || voters.len() <= 1
    } else {
        true
    };
    // A leader that this replica cannot follow yet leads only if others can.
    let follows = (leading, term) == (metrics.current_leader, metrics.current_term);
    let followed = follows || {
        let places = voters.iter().filter_map(|voter| membership.get_node(voter));
        places.filter(|place| sound(sources, place)).count() > voters.len() / 2
    };
    let leader = leading
        .filter(|_| followed)
        .and_then(|leader| membership.get_node(&leader))
        .filter(|place| {
            Some(place.node) == sources.me.id || sources.peers.online(&place.addr, sources.now)
        })
        .map(|place| place.node)
        .filter(|_| quorum_ok);
    let role = match metrics.state {
        ServerState::Leader if leads => "leader",
        ServerState::Leader => "follower",
        ServerState::Candidate => "candidate",
        ServerState::Follower => "follower",
        _ => "learner",
    };
    GroupView {
        id,
        range: range.clone(),
        replicas,
        leader,
        quorum_ok: quorum_ok && leader.is_some(),
        term,
        local: Some(LocalReplica {
            replica: replica.id(),
            role: role.into(),
            durable: replica.log().durable().as_ref().map(position),
            committed: metrics.local_committed.as_ref().map(position),
            applied: metrics.last_applied.as_ref().map(position),
        }),
    }
}
