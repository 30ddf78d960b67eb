//! What this node tells Prometheus: its own counters, and what the other daemons show on their boards.

use crate::core::Core;
use crate::status::{self, Boards};
use mareedb_api::v1;
use mareedb_ipc::wire::view::ClusterView;
use mareedb_ipc::{BOUNDS_US, Cell, Counted, Gauge, Histogram};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// A way that a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A command, from this gateway through consensusd and a quorum's disks to its outcome.
    Propose,
    /// A command or a read that another node carries out.
    Forward,
    /// A read index from consensusd.
    ReadIndex,
    /// A read by a reader of storaged.
    Read,
}
const HOPS: [(Hop, &str); 4] = [
    (Hop::Propose, "propose"),
    (Hop::Forward, "forward"),
    (Hop::ReadIndex, "read_index"),
    (Hop::Read, "read"),
];

/// Counters of this gateway.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    durations: Mutex<BTreeMap<&'static str, Histogram>>,
    hops: [Histogram; HOPS.len()],
}

impl Metrics {
    /// Counts a request.
    pub fn count(&self, what: &'static str, code: &'static str, took: Duration) {
        *self.requests.lock().entry((what, code)).or_default() += 1;
        self.durations.lock().entry(what).or_default().record(took);
    }

    /// Counts a way that has been taken, whatever came of it.
    pub fn hop(&self, hop: Hop, since: Instant) {
        self.hops[hop as usize].record(since.elapsed());
    }

    /// Requests so far.
    pub fn total(&self) -> u64 {
        self.requests.lock().values().sum()
    }
}

/// Text in the format that Prometheus reads.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.len() {
            0 => String::new(),
            _ => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value as f64);
    }

    fn histogram(&mut self, name: &str, label: Option<(&str, &str)>, counted: &Counted) {
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (at, count) in counted.buckets.iter().enumerate() {
            below += count;
            let bound = BOUNDS_US
                .get(at)
                .map_or("+Inf".into(), |us| (*us as f64 / 1e6).to_string());
            let labels: Vec<(&str, &str)> = label.into_iter().chain([("le", &*bound)]).collect();
            self.sample(&bucket, &labels, below as f64);
        }
        let labels: Vec<(&str, &str)> = label.into_iter().collect();
        self.sample(&format!("{name}_sum"), &labels, counted.sum_us as f64 / 1e6);
        self.sample(&format!("{name}_count"), &labels, counted.count() as f64);
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// All that this node tells.
pub fn text(core: &Core, boards: &Boards) -> String {
    let mut out = Text::default();
    requests(&mut out, &core.metrics);
    out.gauge(
        "mareedb_peers_connected",
        "Peers with a live stream.",
        core.peers().connected() as u64,
    );
    out.gauge(
        "mareedb_clock_ahead",
        "1: this node's wall clock is ahead of a majority's by more than cluster.max_clock_offset_ms.",
        u64::from(core.view().is_some_and(|view| clock_ahead(&view))),
    );
    storage(&mut out, boards);
    if let Ok(node) = status::node(core, boards) {
        daemons(&mut out, &node);
        groups(&mut out, &node);
    }
    out.0
}

fn clock_ahead(view: &ClusterView) -> bool {
    let mut members = view.members.iter();
    members.any(|member| Some(member.id) == view.me.id && member.clock_ahead)
}

fn requests(out: &mut Text, metrics: &Metrics) {
    let name = "mareedb_requests_total";
    out.family(name, "counter", "Client requests by operation and code.");
    for ((what, code), count) in &*metrics.requests.lock() {
        out.sample(name, &[("operation", what), ("code", code)], *count as f64);
    }
    let name = "mareedb_request_seconds";
    out.family(name, "histogram", "Duration of client requests.");
    for (what, histogram) in &*metrics.durations.lock() {
        out.histogram(name, Some(("operation", what)), &histogram.counted());
    }
    let name = "mareedb_hop_seconds";
    out.family(name, "histogram", "Duration of the parts of requests.");
    for (hop, label) in HOPS {
        out.histogram(
            name,
            Some(("hop", label)),
            &metrics.hops[hop as usize].counted(),
        );
    }
}

fn storage(out: &mut Text, boards: &Boards) {
    let board = |gauge| boards.storage.get(gauge);
    let gauges = [
        (
            "mareedb_data_bytes",
            "Bytes of the state machines on disk.",
            Gauge::DataBytes,
        ),
        (
            "mareedb_log_file_bytes",
            "Bytes of the files that the log takes.",
            Gauge::LogFileBytes,
        ),
        (
            "mareedb_free_bytes",
            "Free bytes of the data directory's file system.",
            Gauge::FreeBytes,
        ),
        (
            "mareedb_log_fsync_us_p50",
            "Median duration of recent log writes.",
            Gauge::FsyncUsP50,
        ),
        (
            "mareedb_log_fsync_us_p99",
            "99th percentile of recent log writes.",
            Gauge::FsyncUsP99,
        ),
        (
            "mareedb_disk_stalled",
            "1: a log write takes longer than storage.stall_limit_ms.",
            Gauge::DiskStalled,
        ),
    ];
    for (name, help, gauge) in gauges {
        out.gauge(name, help, board(gauge));
    }
    let counters = [
        (
            "mareedb_entries_applied",
            "Entries applied since the node started.",
            Gauge::Applied,
        ),
        (
            "mareedb_log_writes",
            "Log writes since the node started.",
            Gauge::Flushes,
        ),
        (
            "mareedb_log_written_bytes",
            "Bytes written to the log since the node started.",
            Gauge::LogBytes,
        ),
    ];
    for (name, help, gauge) in counters {
        // They begin anew with the shared memory, as counters may.
        out.family(name, "counter", help);
        out.sample(name, &[], board(gauge) as f64);
    }
    let name = "mareedb_log_write_seconds";
    out.family(name, "histogram", "Duration of durable log writes.");
    let counted: Counted = boards.storage.read(Cell::LogWrites).unwrap_or_default();
    out.histogram(name, None, &counted);
}

/// A metric of several things: its name, kind and help, and the value of one of them.
type Family<T> = (
    &'static str,
    &'static str,
    &'static str,
    fn(&T) -> Option<f64>,
);

fn daemons(out: &mut Text, node: &v1::NodeStatusResponse) {
    let families: [Family<v1::Daemon>; 4] = [
        (
            "mareedb_daemon_running",
            "gauge",
            "1: the daemon runs.",
            |daemon| Some(f64::from(u8::from(daemon.state == "running"))),
        ),
        (
            "mareedb_daemon_restarts_total",
            "counter",
            "Restarts since the supervisor started.",
            |daemon| Some(daemon.restarts as f64),
        ),
        (
            "mareedb_daemon_rss_bytes",
            "gauge",
            "Resident memory.",
            |daemon| Some(daemon.rss_bytes as f64),
        ),
        (
            "mareedb_daemon_heartbeat_age_seconds",
            "gauge",
            "Age of the last heartbeat.",
            |daemon| Some(daemon.heartbeat_age_ms as f64 / 1000.0),
        ),
    ];
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        for daemon in &node.daemons {
            if let Some(value) = value(daemon) {
                out.sample(name, &[("daemon", &daemon.name)], value);
            }
        }
    }
    let families: [Family<v1::Link>; 2] = [
        (
            "mareedb_ring_used_bytes",
            "gauge",
            "Bytes in a ring.",
            |link| Some(link.used_bytes as f64),
        ),
        (
            "mareedb_ring_capacity_bytes",
            "gauge",
            "Bytes that a ring holds.",
            |link| Some(link.capacity_bytes as f64),
        ),
    ];
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        // Several lanes lie between two daemons: the fullest shows.
        let mut fullest: BTreeMap<(&str, &str), f64> = BTreeMap::new();
        for link in &node.links {
            let shown = fullest.entry((&link.from, &link.to)).or_default();
            *shown = shown.max(value(link).unwrap_or(0.0));
        }
        for ((from, to), value) in fullest {
            out.sample(name, &[("from", from), ("to", to)], value);
        }
    }
}

fn groups(out: &mut Text, node: &v1::NodeStatusResponse) {
    let families: [Family<v1::LocalReplica>; 5] = [
        (
            "mareedb_raft_term",
            "gauge",
            "Term of the group.",
            |group| Some(group.term as f64),
        ),
        (
            "mareedb_raft_leader",
            "gauge",
            "1: this node leads the group.",
            |group| Some(f64::from(u8::from(group.role == "leader"))),
        ),
        (
            "mareedb_raft_durable_index",
            "gauge",
            "Last entry on this node's disk.",
            |group| group.durable_index.map(|index| index as f64),
        ),
        (
            "mareedb_raft_commit_index",
            "gauge",
            "Last committed entry known.",
            |group| group.commit_index.map(|index| index as f64),
        ),
        (
            "mareedb_raft_applied_index",
            "gauge",
            "Last applied entry.",
            |group| group.applied_index.map(|index| index as f64),
        ),
    ];
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        for group in &node.groups {
            if let Some(value) = value(group) {
                let id = group.id.to_string();
                out.sample(name, &[("group", &id)], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Calls;
    use crate::peer::Peers;
    use crate::session::Sessions;
    use crate::wake::Wake;
    use mareedb_config::Config;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::RandomId;
    use mareedb_ipc::{Lane, NodeStatus, Outbox, Role};
    use std::sync::Arc;

    /// The page for people.
    const MANUAL: &str = include_str!("../../docs/metrics.md");

    #[test]
    fn a_histogram_is_told_in_rising_buckets() {
        let metrics = Metrics::default();
        metrics.count("put", "OK", Duration::from_micros(60));
        metrics.count("put", "OK", Duration::from_secs(60));
        let mut out = Text::default();
        requests(&mut out, &metrics);
        let text = out.0;
        for line in [
            "mareedb_requests_total{operation=\"put\",code=\"OK\"} 2",
            "mareedb_request_seconds_bucket{operation=\"put\",le=\"0.00005\"} 0",
            "mareedb_request_seconds_bucket{operation=\"put\",le=\"0.0001\"} 1",
            "mareedb_request_seconds_bucket{operation=\"put\",le=\"+Inf\"} 2",
            "mareedb_request_seconds_count{operation=\"put\"} 2",
            "mareedb_hop_seconds_count{hop=\"read\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    /// What a node tells whose daemons have told nothing yet: every family is there, be there samples of it or not.
    fn told_at_first() -> String {
        let node = NodeInProcess::small("{}");
        let supervisor = NodeStatus {
            start: RandomId(1),
            pid: 1,
            started_unix_ms: 0,
            version: String::new(),
        };
        node.memory().board().put(Cell::Node, &supervisor);
        let mut own = node.attach(Role::Gateway);
        let sender = own.sender(Role::Consensus, Lane::Client);
        let outbox = Outbox::before(&sender, Arc::new(Wake::default()));
        let calls = Calls::new(outbox.clone(), vec![outbox.clone()]);
        let peers = Peers::new(own.start(), outbox.clone(), outbox);
        let core = Core::new(calls, peers, Sessions::new(), Config::default());
        let boards = Boards {
            supervisor: own.peer_board(Role::Supervisor),
            storage: own.peer_board(Role::Storage),
        };
        text(&core, &boards)
    }

    #[test]
    fn the_manual_names_every_metric_and_no_other() {
        let told = told_at_first();
        let families: BTreeMap<&str, &str> = told
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .collect();
        assert!(
            families.contains_key("mareedb_raft_term"),
            "not all is told:\n{told}"
        );
        for (name, kind) in &families {
            let row = format!("| `{name}` | {kind} |");
            assert!(
                MANUAL.lines().any(|line| line.starts_with(&row)),
                "docs/metrics.md has no row that begins with {row}"
            );
        }
        let words = MANUAL.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("mareedb_")) {
            // A histogram has three names more.
            let family = ["_bucket", "_sum", "_count"]
                .into_iter()
                .find_map(|part| word.strip_suffix(part))
                .filter(|family| families.get(family).copied() == Some("histogram"))
                .unwrap_or(word);
            assert!(
                families.contains_key(family),
                "docs/metrics.md names {word}, which no node tells"
            );
        }
    }
}
