//! The cluster as this node sees it, for the gateway.

use crate::formation::Formation;
use crate::peers::{Ages, Peers};
use crate::raft::{C, Place, position};
use crate::replica::Replica;
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
    /// Replicas.
    pub replicas: &'a BTreeMap<GroupId, Replica>,
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
pub fn lags(replicas: &BTreeMap<GroupId, Replica>, ages: &Ages, now: u64) -> Vec<(NodeId, u64)> {
    let mut lags: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (group, replica) in replicas {
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
        .map(|(id, replica)| group(sources, *id, replica))
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

/// Whether this replica follows the leader that it shows, with its term: openraft knows it, too, and nobody has only been heard of.
fn follows(shown: (Option<u64>, u64), known: (Option<u64>, u64)) -> bool {
    shown == known
}

/// Whether a leader leads. One that this replica follows does. One that it has only heard of does if a majority of the voters is sound, and
/// so can follow.
fn followed(sources: &Sources<'_>, follows: bool, voters: &[Option<&Place>]) -> bool {
    let able = voters.iter().flatten();
    follows || able.filter(|place| sound(sources, place)).count() > voters.len() / 2
}

fn group(sources: &Sources<'_>, id: GroupId, replica: &Replica) -> GroupView {
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
    let known = (metrics.current_leader, metrics.current_term);
    let follows = follows((leading, term), known);
    let places: Vec<Option<&Place>> = voters
        .iter()
        .map(|voter| membership.get_node(voter))
        .collect();
    let leader = leading
        .filter(|_| followed(sources, follows, &places))
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
        range: replica.range().clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use Seen::{Dead, Sound, Stalled};
    use mareedb_ipc::wire::RandomId;
    use mareedb_ipc::wire::peer::{PEER_PROTOCOL, PeerHello};

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Seen {
        Sound,
        Stalled,
        Dead,
    }

    fn place(node: u64) -> Place {
        Place {
            node: NodeId(node),
            addr: format!("node{node}"),
            ..Place::default()
        }
    }

    fn identity(node: u64) -> NodeIdentity {
        let place = place(node);
        NodeIdentity {
            name: place.name,
            id: Some(place.node),
            incarnation: RandomId(1),
            cluster: None,
            addr: place.addr,
            rest_addr: place.rest_addr,
            version: String::new(),
        }
    }

    /// [`followed`] on node 1, which sees nodes 2, 3 and so on like this.
    fn followed_when(follows: bool, own: Seen, others: &[Seen]) -> bool {
        let now = 10_000;
        let mut peers = Peers::default();
        let mut places = vec![place(1)];
        for (seen, node) in others.iter().zip(2..) {
            let place = place(node);
            let hello = PeerHello {
                protocol: PEER_PROTOCOL,
                start: RandomId(1),
                identity: identity(node),
                expected: None,
            };
            if *seen != Dead {
                peers.heard(&place.addr, &hello, now);
            }
            if *seen == Stalled {
                peers.stalls(&place.addr, now);
            }
            places.push(place);
        }
        let (replicas, ages) = (BTreeMap::new(), Ages::default());
        let sources = Sources {
            me: identity(1),
            formation: None,
            refused: None,
            replicas: &replicas,
            peers: &peers,
            ages: &ages,
            ready: true,
            disk_stalled: own == Stalled,
            clock_ahead: false,
            lease_ms: 1_000,
            now,
        };
        let voters: Vec<Option<&Place>> = places.iter().map(Some).collect();
        followed(&sources, follows, &voters)
    }

    #[test]
    fn who_is_only_heard_of_is_not_followed() {
        assert!(follows((Some(7), 3), (Some(7), 3)));
        assert!(!follows((Some(7), 3), (None, 3)), "in the same term");
        assert!(!follows((Some(7), 3), (Some(5), 2)));
        assert!(!follows((Some(7), 3), (Some(7), 2)));
    }

    /// Node 2 is the leader.
    #[test]
    fn a_leader_that_is_only_heard_of_leads_if_a_majority_can_follow() {
        let cases: [(Seen, &[Seen], bool); 8] = [
            // Its disk stalls, and a single node is left that could acknowledge.
            (Sound, &[Stalled, Dead], false),
            (Sound, &[Stalled, Sound], true),
            (Sound, &[Stalled, Stalled], false),
            // It is this node's own disk that stalls.
            (Stalled, &[Sound, Dead], false),
            (Stalled, &[Sound, Sound], true),
            // Half of the voters are no majority.
            (Sound, &[Sound, Dead, Dead], false),
            (Sound, &[Sound, Sound, Dead, Dead], true),
            (Sound, &[], true),
        ];
        for (number, (own, others, expected)) in cases.into_iter().enumerate() {
            let found = followed_when(false, own, others);
            assert_eq!(found, expected, "case {number}");
            assert!(
                followed_when(true, own, others),
                "case {number}: it follows"
            );
        }
    }
}
