//! The schema of `maree-db.toml`. The doc comments are the manual: docs/config.md is generated from them.
//!
//! Names carry their unit (`_ms`, `_bytes`, `_max`). Every limit of the node is a setting here.

use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node as a process: where it keeps its data, where it listens.
    pub server: Server,
    /// The cluster that the node belongs to.
    pub cluster: Cluster,
    /// Logs, state machines, memory.
    pub storage: Storage,
    /// Shared-memory rings between the daemons.
    pub ipc: Ipc,
    /// What a request may ask for.
    pub limits: Limits,
    /// The node's own log output.
    pub log: Log,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Directory of all data; one node owns it at a time.
    pub data_dir: String,
    /// Address that both ports listen on.
    pub listen_addr: String,
    /// Port of the REST API and the dashboard.
    pub rest_port: u16,
    /// Address that peers and clients reach this node by. Without it: a specific `listen_addr`, else the entry of
    /// `peers` that is this machine's, else the source address toward the peers when it is the same for all. On loopback only if
    /// all peers are there.
    pub advertise_addr: Option<String>,
    /// A daemon without a heartbeat for so long is killed and restarted.
    pub hang_limit_ms: u64,
    /// How long a graceful stop may take before what is left is killed; above 20,000 the unit's `TimeoutStopSec` has to grow with it.
    pub stop_limit_ms: u64,
}
impl Default for Server {
    fn default() -> Self {
        Server {
            data_dir: "/var/lib/mareedb".into(),
            listen_addr: "0.0.0.0".into(),
            rest_port: 8080,
            advertise_addr: None,
            hang_limit_ms: 1000,
            stop_limit_ms: 10_000,
        }
    }
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Whether the node is part of a cluster of several nodes. Absent or false: a cluster of this node alone.
    pub enabled: bool,
    /// The node's name in the cluster; without it the host name.
    pub node_id: Option<String>,
    /// `host:port` of the other nodes' `consensus_port`, the same for all who dial them; this node itself may be listed or not. Only
    /// with `enabled`.
    pub peers: Vec<String>,
    /// Port of gRPC and of the peers; 0, any free one, only for a node alone.
    pub consensus_port: u16,
    /// The smallest number of nodes that form a cluster; in this version each member has a replica of each partition.
    pub replication_factor: u32,
    /// Byzantine fault tolerance; not available in this version.
    pub bft_mode: bool,
    /// Discovery by mDNS; not available in this version.
    pub auto_discover: bool,
    /// Interval of a leader's heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest time without a leader before an election.
    pub election_timeout_min_ms: u64,
    /// Longest time without a leader before an election; also the leader's lease.
    pub election_timeout_max_ms: u64,
    /// A node whose wall clock is ahead of a majority's by more than this leads nothing (`CLOCK_AHEAD`).
    pub max_clock_offset_ms: u64,
}
impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            enabled: false,
            node_id: None,
            peers: Vec::new(),
            consensus_port: 7001,
            replication_factor: 3,
            bft_mode: false,
            auto_discover: false,
            heartbeat_ms: 100,
            election_timeout_min_ms: 500,
            election_timeout_max_ms: 1000,
            max_clock_offset_ms: 500,
        }
    }
}

/// `[storage]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Storage shards, each with a log of its own: 0 or 1, since in this version a node holds one data group.
    pub shards: u32,
    /// Reader threads; each serves reads of all groups.
    pub readers: u32,
    /// Size of a log segment; segments are pre-written and recycled.
    pub segment_bytes: u64,
    /// Bytes of log files kept per shard before snapshots let older entries go; never more than some 40,000 entries. What a member
    /// lacks that gets a snapshot, until it has got no further for 30 s after it has it, or that acknowledges more slowly than others
    /// write, the leader keeps until its log has 32 times these bytes, or as much as there is data if that is more, or 2,000,000
    /// entries, of which each takes storaged some 150 bytes of memory; and, beyond these bytes, only while its files leave as much
    /// of the disk free as they take.
    pub log_retain_bytes: u64,
    /// Recent log entries kept in memory, per daemon that caches them.
    pub log_cache_bytes: u64,
    /// Applied bytes that may be missing in the tree files; replayed from the log after a crash.
    pub unflushed_bytes_max: u64,
    /// Block cache of the state machines.
    pub cache_bytes: u64,
    /// How long older versions of keys are kept for reads of the past, in logged time; an eighth longer at most. At least 1,000, and
    /// longer than the scans that are to reach their end beside writes: their pages are read at one revision.
    pub history_ms: u64,
    /// Data bytes beyond which commands that grow the store are refused; 0: no quota.
    pub quota_bytes: u64,
    /// A flush that takes longer marks the disk as stalled.
    pub stall_limit_ms: u64,
}
impl Default for Storage {
    fn default() -> Self {
        Storage {
            shards: 0,
            readers: 1,
            segment_bytes: 16 << 20,
            log_retain_bytes: 32 << 20,
            log_cache_bytes: 16 << 20,
            unflushed_bytes_max: 8 << 20,
            cache_bytes: 32 << 20,
            history_ms: 300_000,
            quota_bytes: 0,
            stall_limit_ms: 500,
        }
    }
}

/// `[ipc]`: capacities are powers of two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ipc {
    /// Each ring of the log lane between consensusd and a storage shard.
    pub log_ring_bytes: u64,
    /// Each ring of the client lane between gatewayd and consensusd.
    pub client_ring_bytes: u64,
    /// Each ring of the peer lane between gatewayd and consensusd.
    pub peer_ring_bytes: u64,
    /// Each ring of the bulk lane between gatewayd and consensusd. A quarter has to take the largest key with its value that is stored.
    pub bulk_ring_bytes: u64,
    /// Each ring between gatewayd and a reader thread. A quarter has to take the largest key with its value that is stored.
    pub read_ring_bytes: u64,
}
impl Default for Ipc {
    fn default() -> Self {
        Ipc {
            log_ring_bytes: 16 << 20,
            client_ring_bytes: 16 << 20,
            peer_ring_bytes: 16 << 20,
            bulk_ring_bytes: 8 << 20,
            read_ring_bytes: 16 << 20,
        }
    }
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Longest key; 32,000 at most.
    pub key_bytes_max: u64,
    /// Largest value of a request; larger ones that are stored already stay, and ask for rings as large as before.
    pub value_bytes_max: u64,
    /// Largest request, all keys and values together.
    pub request_bytes_max: u64,
    /// Most operations in a transaction.
    pub txn_operations_max: u64,
    /// Most items in one page of a scan.
    pub page_items_max: u64,
    /// Most bytes in one page of a scan.
    pub page_bytes_max: u64,
    /// Client requests in flight on a node; more get OVERLOADED.
    pub requests_in_flight_max: u64,
    /// While even the quickest request takes longer, and four times longer than on a quiet node, fewer are served at once and more get OVERLOADED; 0: never.
    pub queueing_target_ms: u64,
    /// Open client connections on a node, per port.
    pub connections_max: u64,
    /// Longest `timeout_ms` that a client may ask for; at least 5,000, which clients ask for by default. A client that takes nothing of an answer for as long is given up.
    pub timeout_ms_max: u64,
    /// Live idempotency keys; beyond them new keyed requests get OVERLOADED.
    pub idempotency_keys_max: u64,
    /// How long an idempotency key is kept, in logged time; at least twice `timeout_ms_max`.
    pub idempotency_ttl_ms: u64,
    /// How long an unused gateway session is kept, in logged time; at least twice `timeout_ms_max`.
    pub session_ttl_ms: u64,
}
impl Default for Limits {
    fn default() -> Self {
        Limits {
            key_bytes_max: 4 << 10,
            value_bytes_max: 1536 << 10,
            request_bytes_max: 2 << 20,
            txn_operations_max: 128,
            page_items_max: 10_000,
            page_bytes_max: 1 << 20,
            requests_in_flight_max: 4096,
            queueing_target_ms: 100,
            connections_max: 4096,
            timeout_ms_max: 60_000,
            idempotency_keys_max: 1_000_000,
            idempotency_ttl_ms: 300_000,
            session_ttl_ms: 600_000,
        }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `off`, or a filter such as `info,mareedb_consensusd=debug`; at most 1,024 bytes.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}
impl Default for Log {
    fn default() -> Self {
        Log {
            level: "info".into(),
            format: "text".into(),
        }
    }
}
