//! Starts a replica from what storaged has recovered: the only way in which one comes to life.

use crate::exchange::Exchange;
use crate::formation::Proposal;
use crate::frames::Route;
use crate::log_link::LogLink;
use crate::raft::log_store::LogStore;
use crate::raft::network::Factory;
use crate::raft::state_machine::StateMachine;
use crate::raft::{Place, Raft};
use mareedb_config::Config;
use mareedb_ipc::wire::storage::{KeyRange, ReplicaState, SnapshotMeta, ToStorage};
use mareedb_ipc::wire::{GroupId, NodeId, RandomId};
use openraft::SnapshotPolicy;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Entries after which a snapshot lets older ones go.
const ENTRIES_PER_SNAPSHOT: u64 = 20_000;
/// Entries kept behind a snapshot, so that a follower that was away for a moment needs none.
const ENTRIES_KEPT: u64 = 20_000;

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
    /// Generation of the log lane.
    pub generation: RandomId,
    /// The configuration.
    pub config: Config,
    /// The log lane.
    pub link: Arc<LogLink>,
    /// Questions to peers.
    pub exchange: Arc<Exchange>,
}

/// A started replica.
pub struct Started {
    /// Cluster, group, and this replica as `to`.
    pub route: Route,
    /// openraft.
    pub raft: Raft,
    /// Its log.
    pub log: LogStore,
    /// The log lane.
    pub link: Arc<LogLink>,
    /// Questions to peers.
    pub exchange: Arc<Exchange>,
}

/// Whether nothing of a group's log can be missing, so that its leader may go on without an election (RAFT-3, hazard A):
/// the vote was written over *this* link, whose ring still holds whatever storaged had not made durable.
pub fn is_clean(state: &ReplicaState, generation: RandomId) -> bool {
    state
        .vote
        .is_some_and(|(_, operation)| operation.generation == generation)
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
            empty(start.group, own, start.range)
        }
    };
    if state.replica != own {
        return Err(format!(
            "RAFT-5: {} of this node is replica {}, storage holds replica {}",
            start.group, own, state.replica
        ));
    }
    let clean = !fresh && is_clean(&state, start.generation);
    let cache = usize::try_from(start.config.storage.log_cache_bytes / 2).unwrap_or(usize::MAX);
    let log = LogStore::recovered(start.link.clone(), &state, cache);
    let machine = StateMachine::recovered(start.link.clone(), start.group, state.applied.clone());
    let election_max = start.config.cluster.election_timeout_max_ms;
    let config = openraft::Config {
        cluster_name: start.formed.cluster.to_string(),
        heartbeat_interval: start.config.cluster.heartbeat_ms,
        election_timeout_min: start.config.cluster.election_timeout_min_ms,
        election_timeout_max: election_max,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(clean),
        quorum_loss_probe_interval: Some(2 * election_max),
        backoff: "5ms 10ms 20ms 40ms 80ms 160ms 200ms".into(),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_PER_SNAPSHOT),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        max_payload_entries: 512,
        ..openraft::Config::default()
    };
    let config = Arc::new(config.validate().map_err(|error| error.to_string())?);
    let network = Factory {
        exchange: start.exchange.clone(),
        link: start.link.clone(),
        cluster: start.formed.cluster,
        group: start.group,
        from: own,
        patience: Duration::from_millis(start.config.cluster.election_timeout_min_ms),
    };
    let raft = Raft::new(own.0, config, network, log.clone(), machine)
        .await
        .map_err(|error| error.to_string())?;
    tracing::info!(group = %start.group, clean, last = ?state.last, vote = ?state.vote.map(|(vote, _)| vote), "replica recovered");
    if start.founder
        && !raft
            .is_initialized()
            .await
            .map_err(|error| error.to_string())?
    {
        let members: BTreeMap<u64, Place> = start
            .formed
            .members
            .iter()
            .map(|member| {
                (
                    Proposal::replica(start.group, member.id).0,
                    Place {
                        node: member.id,
                        name: member.facts.name.clone(),
                        addr: member.facts.addr.clone(),
                        rest_addr: member.facts.rest_addr.clone(),
                    },
                )
            })
            .collect();
        raft.initialize(members)
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
        raft,
        log,
        link: start.link,
        exchange: start.exchange,
    })
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
