//! Records on the status boards.

use crate::topology::{LinkId, Role};
use crate::wire::{GroupId, RandomId};
use serde::{Deserialize, Serialize};

/// State of a daemon, as the supervisor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DaemonState {
    /// It runs and beats.
    Running,
    /// It ended, or was just started.
    Restarting,
    /// It does not beat.
    Hung,
    /// It is given up.
    Failed,
}

/// A daemon, as the supervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Which.
    pub role: Role,
    /// Its state.
    pub state: DaemonState,
    /// Its pid; 0 when it does not run.
    pub pid: u32,
    /// How often it was started by this supervisor, from 1.
    pub epoch: u64,
    /// When this incarnation started.
    pub started_unix_ms: u64,
    /// Restarts since the supervisor started.
    pub restarts: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Age of its last beat.
    pub heartbeat_age_ms: u64,
    /// How its predecessor ended.
    pub last_exit: Option<LastExit>,
}

/// How a daemon ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// When.
    pub at_unix_ms: u64,
    /// By this signal.
    pub signal: Option<i32>,
    /// With this exit code.
    pub code: Option<i32>,
    /// In words: its last ones, or what the supervisor did.
    pub reason: String,
}

/// The node as a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Start id of the supervisor.
    pub start: RandomId,
    /// Its pid.
    pub pid: u32,
    /// When it started.
    pub started_unix_ms: u64,
    /// Version of the executable.
    pub version: String,
}

/// The digest of a group's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDigest {
    /// The group.
    pub group: GroupId,
    /// The applied index that it belongs to.
    pub applied_index: u64,
    /// The digest, in hexadecimal.
    pub digest: String,
}

/// How far a shard's log was acknowledged: a successor that recovers less has lost something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The shard.
    pub shard: u16,
    /// Every unit of its log up to this one was durable.
    pub unit: u64,
}

/// A daemon's report of a link that it cannot use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptLink {
    /// Which.
    pub link: LinkId,
    /// Who wrote the bad word.
    pub blame: Role,
    /// What was found.
    pub what: String,
}

/// How full a ring is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkUsage {
    /// Which.
    pub link: LinkId,
    /// Its bytes.
    pub capacity: u64,
    /// Bytes in use.
    pub used: u64,
}
