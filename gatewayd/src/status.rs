//! The status documents: the cluster as consensusd sees it, the node as the boards show it.

use crate::core::Core;
use mareedb_api::v1;
use mareedb_api::values::{
    DaemonState, GroupKind, MemberRole, MemberStatus, NodeState, ReplicaKind, Verdict,
};
use mareedb_api::{ApiError, ErrorCode, SCHEMA_VERSION};
use mareedb_ipc::wire::view::{ClusterView, GroupView, MemberView};
use mareedb_ipc::wire::{META_GROUP, NodeId};
use mareedb_ipc::world::wall_ms;
use mareedb_ipc::{
    BoardReader, Cell, DaemonState as State, DaemonStatus, Gauge, GroupDigest, LinkUsage,
    NodeStatus, Role,
};

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
            reasons: vec![reason("CONSENSUS_STARTING", core.not_ready().message)],
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

/// The members whose agreement counts.
struct Voters {
    total: usize,
    online: usize,
    /// Those that can acknowledge: one whose disk stalls acknowledges nothing.
    sound: usize,
}

impl Voters {
    fn of(view: &ClusterView) -> Voters {
        // Before the groups run, membership is what was formed.
        let all = !view.members.iter().any(|member| member.voter);
        let voters = view.members.iter().filter(|member| all || member.voter);
        let online = voters.clone().filter(|member| member.online);
        let sound = online.clone().filter(|member| !member.disk_stalled);
        Voters {
            total: voters.count(),
            online: online.count(),
            sound: sound.count(),
        }
    }

    fn quorum(&self) -> usize {
        self.total / 2 + 1
    }
}

fn from_view(view: &ClusterView) -> v1::ClusterStatusResponse {
    let meta = view.group(META_GROUP);
    let leader = meta.and_then(|meta| meta.leader);
    let voters = Voters::of(view);
    let (verdict, reasons) = verdict(view, &voters);
    let online = view.members.iter().filter(|member| member.online).count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    v1::ClusterStatusResponse {
        schema_version: SCHEMA_VERSION,
        cluster_id: view.me.cluster.map(|id| id.to_string()),
        verdict: verdict.into(),
        reasons,
        leader: leader
            .and_then(|leader| view.member(leader))
            .map(|member| member.name.clone()),
        term: meta.map_or(0, |meta| meta.term),
        members_total: count(view.members.len()),
        members_online: count(online),
        quorum: count(voters.quorum()),
        failures_tolerated: count(voters.sound.saturating_sub(voters.quorum())),
        replication_lag_ms_max: view.members.iter().filter_map(|member| member.lag_ms).max(),
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

/// How the cluster is, and why it is not healthy.
fn verdict(view: &ClusterView, voters: &Voters) -> (Verdict, Vec<v1::Reason>) {
    let refused = view.refused.iter();
    let mut reasons: Vec<v1::Reason> = refused
        .map(|refused| reason(&refused.code, &refused.message))
        .collect();
    if let Some(forming) = &view.forming {
        reasons.push(reason("FORMING", &forming.message));
        return (Verdict::Forming, reasons);
    }
    if let Some(why) = unled(view, voters) {
        reasons.push(why);
        return (Verdict::NoQuorum, reasons);
    }
    reasons.extend(view.members.iter().flat_map(problems));
    if reasons.is_empty() {
        (Verdict::Healthy, reasons)
    } else {
        (Verdict::Degraded, reasons)
    }
}

/// Why writes and linearizable reads are not possible, if they are not.
fn unled(view: &ClusterView, voters: &Voters) -> Option<v1::Reason> {
    let (online, total, quorum) = (voters.online, voters.total, voters.quorum());
    let leaderless: Vec<String> = view
        .groups
        .iter()
        .filter(|group| group.leader.is_none() || !group.quorum_ok)
        .map(|group| group.id.to_string())
        .collect();
    let meta_leader = view.group(META_GROUP).and_then(|meta| meta.leader);
    if online < quorum {
        let what = format!("{online} of {total} members are online, {quorum} are needed");
        Some(reason("NO_QUORUM", what))
    } else if view.groups.is_empty() {
        let what = "the replicas of this node are starting";
        Some(reason("STARTING", what))
    } else if meta_leader.is_none() || !leaderless.is_empty() {
        let what = format!("no leader of {}", leaderless.join(", "));
        Some(reason("NO_LEADER", what))
    } else {
        None
    }
}

/// What is wrong with a member.
fn problems(member: &MemberView) -> Vec<v1::Reason> {
    let name = &member.name;
    let mut problems = match status(member) {
        MemberStatus::Ok => Vec::new(),
        MemberStatus::Down => vec![reason("MEMBER_DOWN", format!("{name} is down"))],
        other => vec![reason("MEMBER_BEHIND", format!("{name} is {other}"))],
    };
    if member.online && member.disk_stalled {
        problems.push(reason(
            "DISK_STALL",
            format!(
                "the disk of {name} has not completed a write for longer than storage.stall_limit_ms: it leads nothing until it does"
            ),
        ));
    }
    if member.online && member.clock_ahead {
        problems.push(reason(
            "CLOCK_AHEAD",
            format!(
                "the clock of {name} is ahead of a majority's by more than cluster.max_clock_offset_ms: it leads nothing until it is set right"
            ),
        ));
    }
    problems
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

fn group_status(view: &ClusterView, group: &GroupView) -> v1::Group {
    let name = |id: NodeId| match view.member(id) {
        Some(member) => member.name.clone(),
        None => id.to_string(),
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
    let now = wall_ms();
    let view = core.view();
    let view = view.as_deref();
    let daemons: Vec<DaemonStatus> = Role::DAEMONS
        .iter()
        .filter_map(|role| boards.supervisor.read(Cell::Daemon(*role)))
        .collect();
    let links: Vec<LinkUsage> = boards.supervisor.read(Cell::Links).unwrap_or_default();
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
        state: node_state(view, &daemons).into(),
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
        groups: view.map_or_else(Vec::new, |view| replicas(view, boards)),
        disk: Some(v1::Disk {
            data_bytes: gauge(Gauge::DataBytes),
            free_bytes: gauge(Gauge::FreeBytes),
            fsync_us_p50: gauge(Gauge::FsyncUsP50),
            fsync_us_p99: gauge(Gauge::FsyncUsP99),
        }),
    })
}

fn node_state(view: Option<&ClusterView>, daemons: &[DaemonStatus]) -> NodeState {
    let all_run = daemons.iter().all(|daemon| daemon.state == State::Running);
    match view {
        None => NodeState::Starting,
        Some(view) if view.refused.is_some() => NodeState::Refused,
        Some(view) if view.forming.is_some() => NodeState::Forming,
        Some(view) if !view.ready => NodeState::Starting,
        Some(_) if !all_run => NodeState::Degraded,
        Some(_) => NodeState::Serving,
    }
}

/// The node's replicas. storaged's word on what is applied goes before consensusd's, since the digest belongs to it.
fn replicas(view: &ClusterView, boards: &Boards) -> Vec<v1::LocalReplica> {
    let digests: Vec<GroupDigest> = boards.storage.read(Cell::Digests).unwrap_or_default();
    let replica = |group: &GroupView| {
        let local = group.local.as_ref()?;
        let digest = digests.iter().find(|digest| digest.group == group.id);
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
    };
    view.groups.iter().filter_map(replica).collect()
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
