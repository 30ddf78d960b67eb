//! The status documents: the cluster as consensusd sees it, the node as the boards show it.

use crate::core::Core;
use mareedb_api::v1;
use mareedb_api::values::{
    DaemonState, GroupKind, MemberRole, MemberStatus, NodeState, ReplicaKind, Verdict,
};
use mareedb_api::{ApiError, ErrorCode, SCHEMA_VERSION};
use mareedb_ipc::wire::view::{ClusterView, MemberView};
use mareedb_ipc::wire::{META_GROUP, NodeId};
use mareedb_ipc::{
    BoardReader, Cell, DaemonState as State, DaemonStatus, Gauge, GroupDigest, LinkUsage,
    NodeStatus, Role,
};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// A member whose lag is beyond this shows as lagging.
const LAGGING_MS: u64 = 5_000;

/// Boards of the other processes.
pub struct Boards {
    /// The supervisor's.
    pub supervisor: BoardReader,
    /// storaged's.
    pub storage: BoardReader,
}

/// `GET /v1/cluster`; never fails.
pub fn cluster(core: &Core) -> v1::ClusterStatusResponse {
    match core.view() {
        Some(view) => from_view(&view),
        None => v1::ClusterStatusResponse {
            schema_version: SCHEMA_VERSION,
            verdict: Verdict::NoQuorum.into(),
            reasons: vec![reason(
                "CONSENSUS_STARTING",
                "consensusd of this node has not told yet what it knows",
            )],
            observed_by: core.config.cluster.node_id.clone().unwrap_or_default(),
            ..v1::ClusterStatusResponse::default()
        },
    }
}

fn reason(code: &str, message: impl Into<String>) -> v1::Reason {
    v1::Reason {
        code: code.into(),
        message: message.into(),
    }
}

fn from_view(view: &ClusterView) -> v1::ClusterStatusResponse {
    let meta = view.groups.iter().find(|group| group.id == META_GROUP);
    let leader = meta.and_then(|meta| meta.leader);
    let name = |id: NodeId| {
        view.members
            .iter()
            .find(|member| member.id == id)
            .map(|member| member.name.clone())
    };
    let voters: Vec<&MemberView> = view.members.iter().filter(|member| member.voter).collect();
    // Before the groups run, membership is what was formed.
    let voters: Vec<&MemberView> = if voters.is_empty() {
        view.members.iter().collect()
    } else {
        voters
    };
    let online = voters.iter().filter(|member| member.online).count();
    // One whose disk stalls acknowledges nothing.
    let sound = |member: &&&MemberView| member.online && !member.disk_stalled;
    let sound = voters.iter().filter(sound).count();
    let quorum = voters.len() / 2 + 1;
    let lags = view
        .members
        .iter()
        .map(|member| member.lag_ms)
        .collect::<Vec<_>>();
    let mut reasons: Vec<v1::Reason> = view
        .refused
        .iter()
        .map(|refused| reason(&refused.code, &refused.message))
        .collect();
    let leaderless: Vec<String> = view
        .groups
        .iter()
        .filter(|group| group.leader.is_none() || !group.quorum_ok)
        .map(|group| group.id.to_string())
        .collect();
    let verdict = if let Some(forming) = &view.forming {
        reasons.push(reason("FORMING", &forming.message));
        Verdict::Forming
    } else if online < quorum
        || leader.is_none()
        || !leaderless.is_empty()
        || view.groups.is_empty()
    {
        if online < quorum {
            reasons.push(reason(
                "NO_QUORUM",
                format!(
                    "{online} of {} members are online, {quorum} are needed",
                    voters.len()
                ),
            ));
        } else if view.groups.is_empty() {
            reasons.push(reason("STARTING", "the replicas of this node are starting"));
        } else {
            reasons.push(reason(
                "NO_LEADER",
                format!("no leader of {}", leaderless.join(", ")),
            ));
        }
        Verdict::NoQuorum
    } else {
        for member in &view.members {
            match status(member) {
                MemberStatus::Ok => {}
                MemberStatus::Down => {
                    reasons.push(reason("MEMBER_DOWN", format!("{} is down", member.name)))
                }
                other => reasons.push(reason(
                    "MEMBER_BEHIND",
                    format!("{} is {other}", member.name),
                )),
            }
            if member.online && member.disk_stalled {
                reasons.push(reason(
                    "DISK_STALL",
                    format!(
                        "the disk of {} has not completed a write for longer than storage.stall_limit_ms: it leads nothing until it does",
                        member.name
                    ),
                ));
            }
        }
        for member in &view.members {
            if member.online && member.clock_ahead {
                reasons.push(reason(
                    "CLOCK_AHEAD",
                    format!(
                        "the clock of {} is ahead of a majority's by more than cluster.max_clock_offset_ms: it leads nothing until it is set right",
                        member.name
                    ),
                ));
            }
        }
        if reasons.is_empty() {
            Verdict::Healthy
        } else {
            Verdict::Degraded
        }
    };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    v1::ClusterStatusResponse {
        schema_version: SCHEMA_VERSION,
        cluster_id: view.me.cluster.map(|id| id.to_string()),
        verdict: verdict.into(),
        reasons,
        leader: leader.and_then(name),
        term: meta.map_or(0, |meta| meta.term),
        members_total: count(view.members.len()),
        members_online: count(view.members.iter().filter(|member| member.online).count()),
        quorum: count(quorum),
        failures_tolerated: count(sound.saturating_sub(quorum)),
        replication_lag_ms_max: lags.iter().flatten().max().copied(),
        bft_mode: false,
        members: view
            .members
            .iter()
            .map(|member| member_status(member, leader))
            .collect(),
        groups: view
            .groups
            .iter()
            .map(|group| group_status(view, group))
            .collect(),
        observed_by: view.me.name.clone(),
    }
}

fn status(member: &MemberView) -> MemberStatus {
    if !member.online {
        MemberStatus::Down
    } else if member.lag_ms.is_some_and(|lag| lag > LAGGING_MS) {
        MemberStatus::Lagging
    } else {
        MemberStatus::Ok
    }
}

fn member_status(member: &MemberView, leader: Option<NodeId>) -> v1::Member {
    let role = if leader == Some(member.id) {
        MemberRole::Leader
    } else if member.voter || leader.is_none() {
        MemberRole::Follower
    } else {
        MemberRole::Learner
    };
    v1::Member {
        name: member.name.clone(),
        id: member.id.0,
        addr: member.addr.clone(),
        rest_addr: member.rest_addr.clone(),
        role: role.into(),
        status: status(member).into(),
        lag_ms: member.lag_ms,
        last_contact_ms: member.last_contact_ms,
        version: member.version.clone(),
    }
}

fn group_status(view: &ClusterView, group: &mareedb_ipc::wire::view::GroupView) -> v1::Group {
    let name = |id: NodeId| {
        view.members
            .iter()
            .find(|member| member.id == id)
            .map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let kind = if group.id.is_meta() {
        GroupKind::Meta
    } else {
        GroupKind::Data
    };
    v1::Group {
        id: u64::from(group.id.0),
        kind: kind.into(),
        start: group.range.start.clone(),
        end: group.range.end.clone(),
        epoch: group.range.epoch,
        leader: group.leader.map(name),
        term: group.term,
        commit_index: group
            .local
            .as_ref()
            .and_then(|local| local.committed)
            .map(|at| at.index),
        replicas: group
            .replicas
            .iter()
            .map(|(id, node, voter)| v1::Replica {
                id: id.0,
                node: name(*node),
                kind: if *voter {
                    ReplicaKind::Voter
                } else {
                    ReplicaKind::Learner
                }
                .into(),
            })
            .collect(),
    }
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// `GET /v1/node`.
///
/// # Errors
/// NOT_READY: the supervisor has not shown anything yet.
pub fn node(core: &Core, boards: &Boards) -> Result<v1::NodeStatusResponse, ApiError> {
    let node: NodeStatus = boards.supervisor.read(Cell::Node).ok_or_else(|| {
        ApiError::new(
            ErrorCode::NotReady,
            "the supervisor's board shows nothing yet",
        )
    })?;
    let now = now_ms();
    let view = core.view();
    let view = view.as_deref();
    let daemons: Vec<DaemonStatus> = Role::DAEMONS
        .iter()
        .filter_map(|role| boards.supervisor.read(Cell::Daemon(*role)))
        .collect();
    let all_run = daemons.iter().all(|daemon| daemon.state == State::Running);
    let state = match view {
        None => NodeState::Starting,
        Some(view) if view.refused.is_some() => NodeState::Refused,
        Some(view) if view.forming.is_some() => NodeState::Forming,
        Some(view) if !view.ready => NodeState::Starting,
        Some(_) if !all_run => NodeState::Degraded,
        Some(_) => NodeState::Serving,
    };
    let links: Vec<LinkUsage> = boards.supervisor.read(Cell::Links).unwrap_or_default();
    let digests: Vec<GroupDigest> = boards.storage.read(Cell::Digests).unwrap_or_default();
    let digests: BTreeMap<_, _> = digests
        .into_iter()
        .map(|digest| (digest.group, digest))
        .collect();
    let gauge = |gauge| boards.storage.get(gauge);
    Ok(v1::NodeStatusResponse {
        schema_version: SCHEMA_VERSION,
        name: view.map_or_else(
            || core.config.cluster.node_id.clone().unwrap_or_default(),
            |view| view.me.name.clone(),
        ),
        id: view.and_then(|view| view.me.id).map(|id| id.0),
        incarnation: view
            .map(|view| view.me.incarnation.to_string())
            .unwrap_or_default(),
        cluster_id: view
            .and_then(|view| view.me.cluster)
            .map(|id| id.to_string()),
        version: node.version,
        state: state.into(),
        uptime_ms: now.saturating_sub(node.started_unix_ms),
        daemons: daemons
            .into_iter()
            .map(|daemon| daemon_status(daemon, now))
            .collect(),
        links: links
            .into_iter()
            .map(|usage| v1::Link {
                from: usage.link.from.to_string(),
                to: usage.link.to.to_string(),
                capacity_bytes: usage.capacity,
                used_bytes: usage.used,
            })
            .collect(),
        groups: view
            .iter()
            .flat_map(|view| &view.groups)
            .filter_map(|group| {
                let local = group.local.as_ref()?;
                let digest = digests.get(&group.id);
                Some(v1::LocalReplica {
                    id: u64::from(group.id.0),
                    role: local.role.clone(),
                    term: group.term,
                    durable_index: local.durable.map(|at| at.index),
                    commit_index: local.committed.map(|at| at.index),
                    applied_index: digest
                        .map(|digest| digest.applied_index)
                        .or(local.applied.map(|at| at.index)),
                    digest: digest
                        .map(|digest| digest.digest.clone())
                        .unwrap_or_default(),
                })
            })
            .collect(),
        disk: Some(v1::Disk {
            data_bytes: gauge(Gauge::DataBytes),
            free_bytes: gauge(Gauge::FreeBytes),
            fsync_us_p50: gauge(Gauge::FsyncUsP50),
            fsync_us_p99: gauge(Gauge::FsyncUsP99),
        }),
    })
}

fn daemon_status(daemon: DaemonStatus, now: u64) -> v1::Daemon {
    let state = match daemon.state {
        State::Running => DaemonState::Running,
        State::Restarting => DaemonState::Restarting,
        State::Hung => DaemonState::Hung,
        State::Failed => DaemonState::Failed,
    };
    v1::Daemon {
        name: daemon.role.to_string(),
        state: state.into(),
        pid: daemon.pid,
        epoch: daemon.epoch,
        uptime_ms: now.saturating_sub(daemon.started_unix_ms),
        restarts: daemon.restarts,
        rss_bytes: daemon.rss_bytes,
        heartbeat_age_ms: daemon.heartbeat_age_ms,
        last_exit: daemon.last_exit.map(|exit| v1::LastExit {
            at_unix_ms: exit.at_unix_ms,
            signal: exit.signal,
            code: exit.code,
            reason: exit.reason,
        }),
    }
}
