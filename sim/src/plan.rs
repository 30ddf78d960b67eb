//! What a seed's cluster is like, and what happens to it: drawn once, so that each seed stresses something else.

use crate::rng::Rng;
use mareedb_config::Config;
use mareedb_ipc::{RingSizes, Topology};
use std::path::Path;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One daemon of a node is killed; the rings stay.
    Daemon,
    /// Two daemons or all three of a node, at once or shortly after each other.
    Daemons,
    /// A whole node: the supervisor too, so that the rings are gone.
    Node,
    /// Most nodes, or all.
    Nodes,
    /// The links between consensusd and storaged are replaced, and both restarted.
    Links,
    /// A daemon gets no time for a while.
    Stop,
    /// The cluster falls into two parts.
    Halves,
    /// One direction between two nodes is cut.
    OneWay,
    /// The leader is cut off.
    Isolated,
    /// The leader is cut off, and the others' consensusd forget what they promised it.
    Deposed,
    /// The next election is followed at once by the death of most nodes.
    Ambush,
    /// consensusd dies, and storaged as soon as it has told the next one what it holds.
    Startled,
    /// A node's network comes and goes.
    Flapping,
    /// A direction is slow.
    Slow,
    /// Connections are reset.
    Reset,
    /// A node's disk stalls.
    Stall,
    /// A wall clock jumps.
    Clock,
    /// Leadership is handed over.
    Transfer,
    /// A node's disk fails: it is lost for the rest of the run.
    Failure,
    /// A bit rots on the disk of a node that is then restarted: it may be lost for the rest of the run.
    Rot,
    /// A node's disk is full for a while.
    Full,
}

/// All of them, with how often they are drawn.
const KINDS: [(Kind, u64); 21] = [
    (Kind::Daemon, 12),
    (Kind::Daemons, 6),
    (Kind::Node, 8),
    (Kind::Nodes, 3),
    (Kind::Links, 3),
    (Kind::Stop, 6),
    (Kind::Halves, 4),
    (Kind::OneWay, 4),
    (Kind::Isolated, 5),
    (Kind::Deposed, 5),
    (Kind::Ambush, 3),
    (Kind::Startled, 3),
    (Kind::Flapping, 2),
    (Kind::Slow, 4),
    (Kind::Reset, 4),
    (Kind::Stall, 5),
    (Kind::Clock, 3),
    (Kind::Transfer, 4),
    (Kind::Failure, 1),
    (Kind::Rot, 1),
    (Kind::Full, 2),
];

/// A seed's plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// Seconds with faults.
    pub faulty_s: u64,
    /// Mean time between faults, in milliseconds.
    pub gap_ms: u64,
    /// Kinds of faults, each as often as it is drawn.
    pub kinds: Vec<Kind>,
    /// Clients.
    pub clients: usize,
    /// Mean time between a client's operations, in milliseconds.
    pub think_ms: u64,
    /// Clients that share a session, so that it has as many requests under way.
    pub crew: usize,
    /// Keys.
    pub keys: usize,
    /// Bytes of a value, beside what tells it from others.
    pub value_bytes: usize,
    /// Heartbeat, shortest election timeout, longest one which is also the lease, in milliseconds.
    pub timing_ms: (u64, u64, u64),
    /// Mean time of a frame on its way, in microseconds.
    pub delay_us: u64,
    /// Mean time of a durable write, in microseconds.
    pub write_us: u64,
    /// How fast each node's clock runs, in millionths.
    pub drift_ppm: Vec<i64>,
    /// Bytes of each other ring: much smaller than a node takes, so that they are full now and then.
    pub ring_bytes: u64,
    /// Bytes of the log lane's rings; a part of a snapshot must fit a quarter, as in every legal configuration.
    pub log_bytes: u64,
    /// Bytes of the bulk lane's rings, in the same way.
    pub bulk_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Bytes of log that are kept.
    pub retain_bytes: u64,
    /// Bytes of log that each daemon caches.
    pub cache_bytes: u64,
    /// Whether time and tasks alone decide: no faults at all.
    pub calm: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut rng = Rng::new(seed, 10);
        let nodes = if rng.chance(750) { 3 } else { 5 };
        // A few kinds at a time find more than all of them always.
        let share = *rng.pick(&[200, 400, 700, 1000]);
        let mut kinds = Vec::new();
        for (kind, weight) in KINDS {
            if rng.chance(share) {
                kinds.extend(std::iter::repeat_n(
                    kind,
                    usize::try_from(weight).expect("a small number"),
                ));
            }
        }
        if kinds.is_empty() {
            kinds = vec![Kind::Daemon, Kind::Node];
        }
        let wild = rng.chance(300);
        let drift = if wild { 50_000 } else { 200 };
        Plan {
            nodes,
            faulty_s: rng.within(20..90),
            gap_ms: *rng.pick(&[300, 1_000, 3_000, 6_000]),
            kinds,
            clients: rng.index(4) + 2,
            think_ms: *rng.pick(&[40, 150, 500, 1_500]),
            keys: rng.index(5) + 2,
            value_bytes: *rng.pick(&[0, 0, 100, 2_000]),
            // As configured by default; quick; a lease that outlasts most elections.
            timing_ms: *rng.pick(&[(100, 500, 1000), (50, 200, 400), (100, 300, 2000)]),
            delay_us: *rng.pick(&[50, 200, 1_000, 10_000]),
            write_us: *rng.pick(&[50, 300, 2_000, 15_000]),
            drift_ppm: (0..nodes)
                .map(|_| rng.below(2 * drift + 1).cast_signed() - drift.cast_signed())
                .collect(),
            ring_bytes: *rng.pick(&[32 << 10, 64 << 10, 256 << 10]),
            log_bytes: *rng.pick(&[512 << 10, 1 << 20]),
            bulk_bytes: *rng.pick(&[512 << 10, 1 << 20]),
            segment_bytes: *rng.pick(&[512 << 10, 1 << 20]),
            retain_bytes: *rng.pick(&[48 << 10, 256 << 10, 8 << 20]),
            cache_bytes: *rng.pick(&[2 << 10, 64 << 10, 4 << 20]),
            calm: rng.chance(20),
            crew: *rng.pick(&[1, 1, 2, 3]),
        }
    }

    /// The rings of a node.
    pub fn topology(&self) -> Topology {
        let ring = self.ring_bytes;
        Topology {
            shards: 1,
            readers: 1,
            sizes: RingSizes {
                log: self.log_bytes,
                client: ring,
                peer: ring,
                bulk: self.bulk_bytes,
                read: 4096,
            },
        }
    }

    /// A node's configuration.
    pub fn config(&self, node: usize, dir: &Path) -> Config {
        let mut config = Config::default();
        config.server.advertise_addr = Some(host(node));
        config.server.data_dir = dir.display().to_string();
        config.cluster.enabled = true;
        config.cluster.node_id = Some(format!("node{}", node + 1));
        config.cluster.peers = (0..self.nodes).map(addr).collect();
        (
            config.cluster.heartbeat_ms,
            config.cluster.election_timeout_min_ms,
            config.cluster.election_timeout_max_ms,
        ) = self.timing_ms;
        config.storage.segment_bytes = self.segment_bytes;
        config.storage.log_retain_bytes = self.retain_bytes;
        config.storage.log_cache_bytes = self.cache_bytes;
        config.storage.unflushed_bytes_max = 1 << 20;
        config.storage.cache_bytes = 1 << 20;
        config.ipc.log_ring_bytes = self.log_bytes;
        config.ipc.client_ring_bytes = self.ring_bytes;
        config.ipc.peer_ring_bytes = self.ring_bytes;
        config.ipc.bulk_ring_bytes = self.bulk_bytes;
        config
    }
}

fn host(node: usize) -> String {
    format!("127.0.0.{}", node + 1)
}

/// Where a node is dialled.
pub fn addr(node: usize) -> String {
    format!("{}:7001", host(node))
}
