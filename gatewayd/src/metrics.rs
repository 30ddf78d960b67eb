//! What this node tells Prometheus: its own counters, and what the other daemons show on their boards.

use crate::core::Core;
use crate::status::{self, Boards};
use mareedb_api::v1;
use mareedb_api::values::{DaemonState, MemberRole};
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
// A hop's histogram is found by its number.
const _: () = {
    let mut at = 0;
    while at < HOPS.len() {
        assert!(HOPS[at].0 as usize == at);
        at += 1;
    }
};

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

    /// Counts a request by its answer and how long that took; `code` says the error's.
    pub async fn counted<T, E>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, E>>,
        code: impl FnOnce(&E) -> &'static str,
    ) -> Result<T, E> {
        let began = Instant::now();
        let answer = answer.await;
        let code = match &answer {
            Ok(_) => "OK",
            Err(error) => code(error),
        };
        self.count(what, code, began.elapsed());
        answer
    }

    /// Counts a way that has been taken, whatever came of it.
    pub fn hop(&self, hop: Hop, since: Instant) {
        self.hops[hop as usize].record(since.elapsed());
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
    let name = "mareedb_answers_refused_total";
    out.family(name, "counter", "Answers that found no room.");
    out.sample(name, &[], core.answers.refused() as f64);
    out.gauge(
        "mareedb_peers_connected",
        "Peers with a live stream.",
        core.peers().connected() as u64,
    );
    let view = core.view();
    let view = view.as_deref();
    out.gauge(
        "mareedb_clock_ahead",
        "1: this node's wall clock is ahead of a majority's by more than cluster.max_clock_offset_ms.",
        u64::from(view.is_some_and(clock_ahead)),
    );
    storage(&mut out, boards);
    if let Ok(node) = status::node(core, boards) {
        daemons(&mut out, &node);
        rings(&mut out, &node);
        groups(&mut out, &node, view);
    }
    out.0
}

fn clock_ahead(view: &ClusterView) -> bool {
    let own = view.me.id.and_then(|id| view.member(id));
    own.is_some_and(|member| member.clock_ahead)
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
            |daemon| Some(flag(daemon.state == DaemonState::Running.as_str())),
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
}

fn rings(out: &mut Text, node: &v1::NodeStatusResponse) {
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
    let shown = fullest(&node.links);
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        for ((from, to), link) in &shown {
            if let Some(value) = value(link) {
                out.sample(name, &[("from", from), ("to", to)], value);
            }
        }
    }
}

/// The ring that shows for two daemons, between which several lanes lie: the fullest by its size, of equally full ones the largest.
fn fullest(links: &[v1::Link]) -> BTreeMap<(&str, &str), &v1::Link> {
    // Used / capacity of two rings, compared without dividing.
    let share = |of: &v1::Link, beside: &v1::Link| {
        u128::from(of.used_bytes) * u128::from(beside.capacity_bytes)
    };
    let mut shown: BTreeMap<(&str, &str), &v1::Link> = BTreeMap::new();
    for link in links {
        let best = shown.entry((&link.from, &link.to)).or_insert(link);
        let (this, other) = (share(link, best), share(best, link));
        if (this, link.capacity_bytes) > (other, best.capacity_bytes) {
            *best = link;
        }
    }
    shown
}

/// A replica of this node, and whether it leads.
type Shown<'a> = (&'a v1::LocalReplica, bool);

fn groups(out: &mut Text, node: &v1::NodeStatusResponse, view: Option<&ClusterView>) {
    let families: [Family<Shown<'_>>; 5] = [
        (
            "mareedb_raft_term",
            "gauge",
            "Term of the group.",
            |(group, _)| Some(group.term as f64),
        ),
        (
            "mareedb_raft_leader",
            "gauge",
            "1: this node leads the group, and a quorum follows.",
            |(_, leads)| Some(flag(*leads)),
        ),
        (
            "mareedb_raft_durable_index",
            "gauge",
            "Last entry on this node's disk.",
            |(group, _)| group.durable_index.map(|index| index as f64),
        ),
        (
            "mareedb_raft_commit_index",
            "gauge",
            "Last committed entry known.",
            |(group, _)| group.commit_index.map(|index| index as f64),
        ),
        (
            "mareedb_raft_applied_index",
            "gauge",
            "Last applied entry.",
            |(group, _)| group.applied_index.map(|index| index as f64),
        ),
    ];
    let replicas = node.groups.iter();
    let replicas: Vec<Shown<'_>> = replicas
        .map(|replica| (replica, view.is_some_and(|view| leads(view, replica))))
        .collect();
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        for shown in &replicas {
            if let Some(value) = value(shown) {
                let id = shown.0.id.to_string();
                out.sample(name, &[("group", &id)], value);
            }
        }
    }
}

/// Whether a replica of this node leads. One that is cut off goes on to call itself leader; the view does not, once no quorum
/// has answered it for a lease.
fn leads(view: &ClusterView, replica: &v1::LocalReplica) -> bool {
    let mut groups = view.groups.iter();
    let group = groups.find(|group| u64::from(group.id.0) == replica.id);
    let leader = group.and_then(|group| group.leader);
    replica.role == MemberRole::Leader.as_str() && leader.is_some() && leader == view.me.id
}

/// A yes or no as a number.
fn flag(yes: bool) -> f64 {
    f64::from(u8::from(yes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::Calls;
    use crate::peer::Peers;
    use crate::session::Sessions;
    use mareedb_config::Config;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::storage::KeyRange;
    use mareedb_ipc::wire::view::{GroupView, NodeIdentity};
    use mareedb_ipc::wire::{FIRST_DATA_GROUP, NodeId, RandomId};
    use mareedb_ipc::{Lane, NodeStatus, Outbox, Role};

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

    #[test]
    fn a_leader_that_no_quorum_follows_is_told_as_none() {
        let me = NodeIdentity {
            name: "node1".into(),
            id: Some(NodeId(1)),
            incarnation: RandomId(1),
            cluster: Some(RandomId(2)),
            addr: "a".into(),
            rest_addr: "b".into(),
            version: String::new(),
        };
        let group = GroupView {
            id: FIRST_DATA_GROUP,
            range: KeyRange::whole(),
            replicas: Vec::new(),
            leader: me.id,
            quorum_ok: true,
            term: 3,
            local: None,
        };
        let mut view = ClusterView {
            me,
            ready: true,
            forming: None,
            refused: None,
            members: Vec::new(),
            groups: vec![group],
        };
        let node = v1::NodeStatusResponse {
            groups: vec![v1::LocalReplica {
                id: FIRST_DATA_GROUP.0.into(),
                role: MemberRole::Leader.into(),
                ..v1::LocalReplica::default()
            }],
            ..v1::NodeStatusResponse::default()
        };
        let told = |view: Option<&ClusterView>| {
            let mut out = Text::default();
            groups(&mut out, &node, view);
            let mut lines = out.0.lines();
            let line = lines.find(|line| line.starts_with("mareedb_raft_leader{"));
            line.expect("a sample").to_owned()
        };
        assert_eq!(told(Some(&view)), "mareedb_raft_leader{group=\"1\"} 1");
        // Its replica still has the role.
        view.groups[0].leader = None;
        view.groups[0].quorum_ok = false;
        assert_eq!(told(Some(&view)), "mareedb_raft_leader{group=\"1\"} 0");
        assert_eq!(told(None), "mareedb_raft_leader{group=\"1\"} 0");
    }

    #[test]
    fn of_several_rings_both_numbers_are_those_of_the_fullest() {
        let link = |used_bytes, capacity_bytes| v1::Link {
            from: "gatewayd".into(),
            to: "consensusd".into(),
            capacity_bytes,
            used_bytes,
        };
        let cases = [
            (vec![link(60, 100), link(200, 1_000)], (60, 100)),
            (vec![link(200, 1_000), link(60, 100)], (60, 100)),
            (vec![link(0, 100), link(0, 1_000), link(0, 10)], (0, 1_000)),
        ];
        for (links, (used, capacity)) in cases {
            let node = v1::NodeStatusResponse {
                links,
                ..v1::NodeStatusResponse::default()
            };
            let mut out = Text::default();
            rings(&mut out, &node);
            for (name, value) in [("used", used), ("capacity", capacity)] {
                let labels = "{from=\"gatewayd\",to=\"consensusd\"}";
                let line = format!("mareedb_ring_{name}_bytes{labels} {value}\n");
                assert!(out.0.contains(&line), "{line} is not in\n{}", out.0);
            }
        }
    }

    /// What a node tells that has refused one answer, and whose daemons have told nothing yet: every family is there, be there samples of it
    /// or not.
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
        let outbox = Outbox::before(&sender, || {});
        let calls = Calls::new(outbox.clone(), vec![outbox.clone()]);
        let peers = Peers::new(own.start(), outbox.clone(), outbox);
        let core = Core::new(calls, peers, Sessions::new(), Config::default());
        core.answers.refuse();
        let boards = Boards {
            supervisor: own.peer_board(Role::Supervisor),
            storage: own.peer_board(Role::Storage),
        };
        text(&core, &boards)
    }

    #[test]
    fn answers_that_found_no_room_are_counted_apart_from_their_requests() {
        let told = told_at_first();
        let mut lines = told.lines();
        assert!(lines.any(|line| line == "mareedb_answers_refused_total 1"));
        assert!(!told.contains("mareedb_requests_total{"));
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
