//! Document of `GET /v1/node`.

use super::number::Decimal;
use crate::v1;
use serde::{Deserialize, Serialize};

/// The node that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// 1; raised when a field changes its meaning.
    pub schema_version: u32,
    /// Name.
    pub name: String,
    /// Internal id; null until the cluster is formed.
    pub id: Option<Decimal>,
    /// UUID of the data directory, 32 hexadecimal digits.
    pub incarnation: String,
    /// 32 hexadecimal digits; null until the cluster is formed.
    pub cluster_id: Option<String>,
    /// Version of the executable.
    pub version: String,
    /// One of [`crate::values::NodeState`].
    pub state: String,
    /// Time since the supervisor started.
    pub uptime_ms: u64,
    /// The three daemons.
    pub daemons: Vec<Daemon>,
    /// The rings between them.
    pub links: Vec<Link>,
    /// The node's replicas.
    pub groups: Vec<LocalReplica>,
    /// The node's disk.
    pub disk: Disk,
}

/// A daemon of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// `gatewayd`, `consensusd` or `storaged`.
    pub name: String,
    /// One of [`crate::values::DaemonState`].
    pub state: String,
    /// Process id; 0 while it does not run.
    pub pid: u32,
    /// Number of its starts under this supervisor.
    pub epoch: u64,
    /// Time since its last start.
    pub uptime_ms: u64,
    /// Number of its restarts under this supervisor.
    pub restarts: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Time since its last heartbeat.
    pub heartbeat_age_ms: u64,
    /// Its last exit; null when there was none.
    pub last_exit: Option<LastExit>,
}

/// How a daemon ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Exit code that it gave.
    pub code: Option<i32>,
    /// Its last words.
    pub reason: String,
}

/// One direction of a link between two daemons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Daemon that writes.
    pub from: String,
    /// Daemon that reads.
    pub to: String,
    /// Size of the ring.
    pub capacity_bytes: u64,
    /// Bytes written and not yet released.
    pub used_bytes: u64,
}

/// The node's replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalReplica {
    /// Group.
    pub id: Decimal,
    /// `leader`, `follower`, `candidate` or `learner`.
    pub role: String,
    /// Term.
    pub term: Decimal,
    /// Last durable entry; null when there is none.
    pub durable_index: Option<Decimal>,
    /// Last committed entry known; null when there is none.
    pub commit_index: Option<Decimal>,
    /// Last applied entry; null when there is none.
    pub applied_index: Option<Decimal>,
    /// Hash over the replica's state, the same on all replicas at the same applied index; empty when not known.
    pub digest: String,
}

/// The node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Bytes of the state machines on the disk, without the log.
    pub data_bytes: u64,
    /// Bytes free on its file system.
    pub free_bytes: u64,
    /// Median time of a flush.
    pub fsync_us_p50: u64,
    /// 99th percentile of a flush's time.
    pub fsync_us_p99: u64,
}

impl From<&v1::NodeStatusResponse> for NodeStatus {
    fn from(status: &v1::NodeStatusResponse) -> Self {
        NodeStatus {
            schema_version: status.schema_version,
            name: status.name.clone(),
            id: status.id.map(Decimal),
            incarnation: status.incarnation.clone(),
            cluster_id: status.cluster_id.clone(),
            version: status.version.clone(),
            state: status.state.clone(),
            uptime_ms: status.uptime_ms,
            daemons: status.daemons.iter().map(Daemon::from).collect(),
            links: status.links.iter().map(Link::from).collect(),
            groups: status.groups.iter().map(LocalReplica::from).collect(),
            disk: status.disk.as_ref().map(Disk::from).unwrap_or_default(),
        }
    }
}

impl From<&v1::Daemon> for Daemon {
    fn from(daemon: &v1::Daemon) -> Self {
        Daemon {
            name: daemon.name.clone(),
            state: daemon.state.clone(),
            pid: daemon.pid,
            epoch: daemon.epoch,
            uptime_ms: daemon.uptime_ms,
            restarts: daemon.restarts,
            rss_bytes: daemon.rss_bytes,
            heartbeat_age_ms: daemon.heartbeat_age_ms,
            last_exit: daemon.last_exit.as_ref().map(|exit| LastExit {
                at_unix_ms: exit.at_unix_ms,
                signal: exit.signal,
                code: exit.code,
                reason: exit.reason.clone(),
            }),
        }
    }
}

impl From<&v1::Link> for Link {
    fn from(link: &v1::Link) -> Self {
        Link {
            from: link.from.clone(),
            to: link.to.clone(),
            capacity_bytes: link.capacity_bytes,
            used_bytes: link.used_bytes,
        }
    }
}

impl From<&v1::LocalReplica> for LocalReplica {
    fn from(replica: &v1::LocalReplica) -> Self {
        LocalReplica {
            id: Decimal(replica.id),
            role: replica.role.clone(),
            term: Decimal(replica.term),
            durable_index: replica.durable_index.map(Decimal),
            commit_index: replica.commit_index.map(Decimal),
            applied_index: replica.applied_index.map(Decimal),
            digest: replica.digest.clone(),
        }
    }
}

impl From<&v1::Disk> for Disk {
    fn from(disk: &v1::Disk) -> Self {
        Disk {
            data_bytes: disk.data_bytes,
            free_bytes: disk.free_bytes,
            fsync_us_p50: disk.fsync_us_p50,
            fsync_us_p99: disk.fsync_us_p99,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_status_has_the_shape_of_the_contract() {
        let status = v1::NodeStatusResponse {
            schema_version: 1,
            name: "node1".into(),
            id: Some(1),
            incarnation: "f".repeat(32),
            cluster_id: None,
            version: "0.1.0".into(),
            state: "serving".into(),
            uptime_ms: 5,
            daemons: vec![v1::Daemon {
                name: "storaged".into(),
                state: "running".into(),
                pid: 42,
                epoch: 2,
                uptime_ms: 4,
                restarts: 1,
                rss_bytes: 4096,
                heartbeat_age_ms: 3,
                last_exit: Some(v1::LastExit {
                    at_unix_ms: 1,
                    signal: Some(9),
                    code: None,
                    reason: "killed".into(),
                }),
            }],
            links: vec![v1::Link {
                from: "gatewayd".into(),
                to: "consensusd".into(),
                capacity_bytes: 1 << 24,
                used_bytes: 7,
            }],
            groups: vec![v1::LocalReplica {
                id: 0,
                role: "leader".into(),
                term: 3,
                durable_index: Some(9),
                commit_index: Some(8),
                applied_index: None,
                digest: "ab".into(),
            }],
            disk: Some(v1::Disk {
                data_bytes: 1,
                free_bytes: 2,
                fsync_us_p50: 3,
                fsync_us_p99: 4,
            }),
        };
        let document = NodeStatus::from(&status);
        let json = serde_json::to_value(&document).unwrap();
        assert_eq!(
            json,
            json!({"schema_version": 1, "name": "node1", "id": "1", "incarnation": "f".repeat(32),
                "cluster_id": null, "version": "0.1.0", "state": "serving", "uptime_ms": 5,
                "daemons": [{"name": "storaged", "state": "running", "pid": 42, "epoch": 2, "uptime_ms": 4,
                    "restarts": 1, "rss_bytes": 4096, "heartbeat_age_ms": 3,
                    "last_exit": {"at_unix_ms": 1, "signal": 9, "code": null, "reason": "killed"}}],
                "links": [{"from": "gatewayd", "to": "consensusd", "capacity_bytes": 16_777_216, "used_bytes": 7}],
                "groups": [{"id": "0", "role": "leader", "term": "3", "durable_index": "9", "commit_index": "8",
                    "applied_index": null, "digest": "ab"}],
                "disk": {"data_bytes": 1, "free_bytes": 2, "fsync_us_p50": 3, "fsync_us_p99": 4}})
        );
        assert_eq!(
            serde_json::from_value::<NodeStatus>(json).unwrap(),
            document
        );
    }
}
