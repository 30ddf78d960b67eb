//! Starts a replica from what storaged has recovered: the only way in which one comes to life.

use crate::exchange::Exchange;
use crate::formation::{Member, Proposal};
use crate::frames::Route;
use crate::log_link::LogLink;
use crate::planted::{Fault, planted};
use crate::raft::behind::Behind;
use crate::raft::log_store::LogStore;
use crate::raft::network::Factory;
use crate::raft::state_machine::StateMachine;
use crate::raft::{Place, Raft};
use crate::reads::Restored;
use crate::tenure::Tenure;
use mareedb_config::Config;
use mareedb_ipc::wire::storage::{KeyRange, ReplicaState, SnapshotMeta, ToStorage};
use mareedb_ipc::wire::{GroupId, LogPosition, NodeId, RandomId};
use openraft::SnapshotPolicy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Entries after which a snapshot covers them.
const ENTRIES_PER_SNAPSHOT: u64 = 20_000;
/// Entries of one request to a peer; small ones reach this before their bytes reach the log's own bound.
const ENTRIES_PER_REQUEST_MAX: u64 = 512;
/// Pauses between tries of a peer that does not answer. Short: it may be back in a moment.
const BACKOFF: &str = "5ms 10ms 20ms 40ms 80ms 160ms 200ms";

/// What a replica is started from.
pub struct Start {
    /// The group.
    pub group: GroupId,
    /// Its range.
    pub range: KeyRange,
    /// This node.
    pub me: NodeId,
    /// The cluster.
    pub formed: Proposal,
    /// Whether this node initializes new groups.
    pub founder: bool,
    /// What storaged holds; `None`: nothing.
    pub state: Option<ReplicaState>,
    /// Generation of the log lane's ring, as storaged has it.
    pub generation: RandomId,
    /// Whether nothing has happened that makes what storaged holds doubtful: no I/O error, no storage error of this group.
    pub sound: bool,
    /// The configuration.
    pub config: Config,
    /// The log lane.
    pub link: Arc<LogLink>,
    /// Questions to peers.
    pub exchange: Arc<Exchange>,
}

/// A started replica.
pub struct Started {
    /// Cluster, group, and this replica as `to`; `from` is not looked at.
    pub route: Route,
    /// Its range.
    pub range: KeyRange,
    /// openraft.
    pub raft: Raft,
    /// Its log.
    pub log: LogStore,
    /// For whom the log is kept while this replica leads.
    pub behind: Behind,
    /// The leadership that it was restored with.
    pub restored: Option<Restored>,
    /// The last entry that storaged had applied.
    pub applied: Option<LogPosition>,
    /// The log lane.
    pub link: Arc<LogLink>,
    /// What this incarnation asks of storaged.
    pub tenure: Tenure,
    /// Questions to peers.
    pub exchange: Arc<Exchange>,
}

/// Whether nothing of a group's log can be missing, so that its leader may go on without an election (RAFT-3, hazard A):
/// the vote was written over *this* link, whose ring still holds whatever storaged had not made durable, and storaged has
/// made all of that durable before it told the state.
///
/// `here` and `there` are the generations of the ring as this side and storaged have it.
pub fn is_clean(state: &ReplicaState, here: RandomId, there: RandomId, sound: bool) -> bool {
    if planted(Fault::RestoreAlways) {
        return true;
    }
    sound
        && here == there
        && state
            .vote
            .is_some_and(|(_, operation)| operation.generation == here)
}

/// The leadership that openraft restores from this state, if it is allowed to.
fn restored(state: &ReplicaState, clean: bool) -> Option<Restored> {
    let (vote, _) = state.vote.filter(|_| clean)?;
    (vote.committed && vote.voted_for == Some(state.replica)).then(|| Restored {
        term: vote.term,
        last: state.last.map_or(0, |last| last.index),
    })
}

/// Starts it; a founder initializes the group if nobody has.
///
/// # Errors
/// openraft refuses, which ends the process.
pub async fn start_replica(start: Start) -> Result<Started, String> {
    let own = Proposal::replica(start.group, start.me);
    let fresh = start.state.is_none();
    let state = match start.state {
        Some(state) => state,
        None => {
            start
                .link
                .durable(&ToStorage::CreateReplica {
                    group: start.group,
                    replica: own,
                    range: start.range.clone(),
                })
                .await;
            empty(start.group, own, start.range.clone())
        }
    };
    if state.replica != own {
        return Err(format!(
            "RAFT-5: {} of this node is replica {}, storage holds replica {}",
            start.group, own, state.replica
        ));
    }
    let here = start.link.generation();
    let clean = !fresh && is_clean(&state, here, start.generation, start.sound);
    let restored = restored(&state, clean);
    let cache = usize::try_from(start.config.storage.log_cache_bytes / 2).unwrap_or(usize::MAX);
    let peer = start.exchange.message_max();
    let log = LogStore::recovered(start.link.clone(), &state, cache, peer)
        .within_peers(start.exchange.clone());
    let tenure = Tenure::new(start.link.clone());
    let machine = StateMachine::recovered(tenure.clone(), start.group, state.applied.clone());
    let config = raft_config(&start.config, start.formed.cluster, clean)?;
    let behind = Behind::default();
    let network = Factory {
        exchange: start.exchange.clone(),
        link: start.link.clone(),
        cluster: start.formed.cluster,
        group: start.group,
        from: own,
        patience: Duration::from_millis(start.config.cluster.election_timeout_min_ms),
        behind: behind.clone(),
    };
    let raft = Raft::new(own.0, Arc::new(config), network, log.clone(), machine)
        .await
        .map_err(|error| error.to_string())?;
    tracing::info!(group = %start.group, clean, ?restored, last = ?state.last, vote = ?state.vote.map(|(vote, _)| vote), "replica recovered");
    if start.founder
        && !raft
            .is_initialized()
            .await
            .map_err(|error| error.to_string())?
    {
        raft.initialize(members(&start.formed, start.group))
            .await
            .map_err(|error| error.to_string())?;
    }
    Ok(Started {
        route: Route {
            cluster: start.formed.cluster,
            group: start.group,
            from: own,
            to: own,
        },
        range: start.range,
        raft,
        log,
        behind,
        restored,
        applied: state.applied.last_applied,
        link: start.link,
        tenure,
        exchange: start.exchange,
    })
}

/// How openraft runs a group here.
fn raft_config(
    config: &Config,
    cluster: RandomId,
    clean: bool,
) -> Result<openraft::Config, String> {
    let times = &config.cluster;
    let raft = openraft::Config {
        cluster_name: cluster.to_string(),
        heartbeat_interval: times.heartbeat_ms,
        election_timeout_min: times.election_timeout_min_ms,
        election_timeout_max: times.election_timeout_max_ms,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(clean),
        quorum_loss_probe_interval: Some(2 * times.election_timeout_max_ms),
        backoff: BACKOFF.into(),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_PER_SNAPSHOT),
        // What may go is up to the host, which knows whom the log is kept for.
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: ENTRIES_PER_REQUEST_MAX,
        ..openraft::Config::default()
    };
    raft.validate().map_err(|error| error.to_string())
}

/// The first members of a group: a replica on each node of the cluster.
fn members(formed: &Proposal, group: GroupId) -> BTreeMap<u64, Place> {
    let on = |member: &Member| {
        let place = Place {
            node: member.id,
            name: member.facts.name.clone(),
            addr: member.facts.addr.clone(),
            rest_addr: member.facts.rest_addr.clone(),
        };
        (Proposal::replica(group, member.id).0, place)
    };
    formed.members.iter().map(on).collect()
}

fn empty(group: GroupId, replica: mareedb_ipc::wire::ReplicaId, range: KeyRange) -> ReplicaState {
    let nothing = SnapshotMeta {
        last_applied: None,
        membership: None,
    };
    ReplicaState {
        group,
        replica,
        range,
        vote: None,
        purged: None,
        last: None,
        committed: None,
        applied: nothing.clone(),
        persisted: nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::{LogPosition, OperationId, ReplicaId, Vote};

    /// RAFT-3
    #[test]
    fn leadership_is_restored_only_over_the_link_that_carried_the_vote() {
        let (here, other) = (RandomId(1), RandomId(2));
        let mut state = empty(GroupId(1), ReplicaId(7), KeyRange::whole());
        assert!(!is_clean(&state, here, here, true), "no vote");
        let mut vote = Vote {
            term: 3,
            voted_for: Some(ReplicaId(7)),
            committed: true,
        };
        let id = |generation| OperationId {
            generation,
            position: 9,
        };
        state.last = Some(LogPosition { term: 3, index: 5 });
        state.vote = Some((vote, id(here)));
        assert!(is_clean(&state, here, here, true));
        assert!(!is_clean(&state, here, here, false), "an I/O error");
        assert!(!is_clean(&state, other, other, true), "a replaced link");
        assert!(!is_clean(&state, here, other, true), "two links");
        assert_eq!(restored(&state, false), None);
        let whole = Restored { term: 3, last: 5 };
        assert_eq!(restored(&state, true), Some(whole));
        vote.voted_for = Some(ReplicaId(8));
        state.vote = Some((vote, id(here)));
        assert_eq!(restored(&state, true), None, "a follower");
    }
}
