//! After the faults: whether the cluster lives again, its replicas agree, and what clients saw is what is promised.

use crate::bed::{Bed, Exit};
use crate::fault;
use crate::gaps::Happened;
use mareedb_bench::load::number;
use mareedb_history::check::{Options, all};
use mareedb_history::{History, Report};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A healed cluster is healthy, serves through every node, and agrees within this. A machine under load is slow; a hang is for ever.
pub const HEAL_LIMIT: Duration = Duration::from_secs(60);

/// A fault of the network begins and ends that much around what the runner notes.
const SLACK_MS: u64 = 500;

/// Exit codes after which nobody starts a node again: somebody has to act first.
const FINAL: [i32; 6] = [64, 71, 77, 78, 81, 82];
/// A word between two daemons that nobody of the program has written.
const LINK_CORRUPT: i32 = 76;
/// Ends of daemons that no fault explains: a broken invariant; arguments, rights and configuration that were good before; damage of
/// what was durable.
const NEVER: [i32; 6] = [64, 70, 77, 78, 81, 82];

/// What a violated promise is called, with evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// An invariant's id of docs/invariants.md, or a checker's name.
    pub promise: String,
    /// What was seen.
    pub evidence: String,
}

impl Finding {
    /// A promise, and what was seen.
    pub fn new(promise: impl Into<String>, evidence: impl Into<String>) -> Finding {
        Finding {
            promise: promise.into(),
            evidence: evidence.into(),
        }
    }
}

/// LIVE-4: waits until all is well again, and a write is acknowledged through each node. Returns the time that it took.
///
/// # Errors
/// It is not, within [`HEAL_LIMIT`].
pub async fn alive(bed: &Bed, label: &str) -> Result<Duration, Finding> {
    let began = Instant::now();
    let lost = |why: String| Finding::new("LIVE-4", why);
    bed.await_healthy(HEAL_LIMIT).await.map_err(lost)?;
    for at in 0..bed.count() {
        let mut client = bed.node(at).client();
        let key = format!("{label}%2Falive{at}");
        loop {
            let last = match client.put(&key, b"yes").await {
                Ok(answer) if answer.status == 200 => break,
                Ok(answer) => String::from_utf8_lossy(&answer.body).into_owned(),
                Err(broken) => broken.to_string(),
            };
            if began.elapsed() > HEAL_LIMIT {
                let why = format!(
                    "no write through node{} of a healed cluster: {last}",
                    at + 1
                );
                return Err(lost(why));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(began.elapsed())
}

/// DET-1: waits until all replicas have applied as much, and holds equal applied indexes to equal digests.
///
/// # Errors
/// Two replicas differ, or they do not come to the same index within [`HEAL_LIMIT`].
pub async fn replicas_agree(bed: &Bed) -> Result<(), Finding> {
    let end = Instant::now() + HEAL_LIMIT;
    let mut known: BTreeMap<(u64, u64), (String, usize)> = BTreeMap::new();
    loop {
        let mut indexes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for at in 0..bed.count() {
            let Some(status) = bed.ask(at, "/v1/node").await else {
                continue;
            };
            for group in status["groups"].as_array().into_iter().flatten() {
                let (Some(id), Some(index), Some(digest)) = (
                    number(&group["id"]),
                    number(&group["applied_index"]),
                    group["digest"].as_str().filter(|digest| !digest.is_empty()),
                ) else {
                    continue;
                };
                indexes.entry(id).or_default().push(index);
                let (other, of) = known
                    .entry((id, index))
                    .or_insert_with(|| (digest.to_owned(), at));
                if other != digest {
                    let why = format!(
                        "group {id} at applied index {index}: {other} on node{}, {digest} on node{}",
                        *of + 1,
                        at + 1
                    );
                    return Err(Finding::new("DET-1", why));
                }
            }
        }
        let together = |indexes: &Vec<u64>| {
            indexes.len() == bed.count() && indexes.iter().all(|index| *index == indexes[0])
        };
        if indexes.len() >= 2 && indexes.values().all(together) {
            return Ok(());
        }
        if Instant::now() > end {
            let why = format!("applied indexes never agree: {indexes:?}");
            return Err(Finding::new("LIVE-4", why));
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Who leads each term of each group, as far as anybody has said.
#[derive(Debug, Default)]
pub(crate) struct Leaders(BTreeMap<(u64, u64), String>);

impl Leaders {
    /// RAFT-1: whoever names a leader of a term names the same one.
    pub(crate) fn add(&mut self, group: u64, term: u64, leader: &str) -> Option<Finding> {
        let known = self
            .0
            .entry((group, term))
            .or_insert_with(|| leader.to_owned());
        (known != leader).then(|| {
            let why = format!("group {group}, term {term}: {known} and {leader} lead");
            Finding::new("RAFT-1", why)
        })
    }

    /// Takes in a list that a node tells; `group` is what it calls a group's number.
    pub(crate) fn told(&mut self, items: &Value, group: &str) -> Vec<Finding> {
        let items = items.as_array().into_iter().flatten();
        items
            .filter_map(|item| {
                let (group, term) = (number(&item[group])?, number(&item["term"])?);
                self.add(group, term, item["leader"].as_str()?)
            })
            .collect()
    }
}

/// RAFT-1, over all elections that any node remembers.
pub async fn one_leader_a_term(bed: &Bed) -> Vec<Finding> {
    let mut leaders = Leaders::default();
    let mut findings = Vec::new();
    for at in 0..bed.count() {
        if let Some(told) = bed.ask(at, "/v1/cluster/elections").await {
            findings.extend(leaders.told(&told["items"], "group"));
        }
    }
    findings
}

/// LIVE-1, LIVE-2: nobody could write after a fault for longer than neighbours on the machine explain.
pub fn gap(after: &Happened, gap_ms: u64) -> Option<Finding> {
    let kind = after.kind;
    let (promise, most_ms) = fault::of(kind)?.reach.gap_alarm_ms()?;
    (gap_ms > most_ms).then(|| {
        let began_ms = after.began_ms;
        let why = format!("{kind} at {began_ms} ms: nobody could write for {gap_ms} ms");
        Finding::new(promise, why)
    })
}

/// Ends of nodes that no fault explains.
pub fn exits(exits: &[Exit]) -> Vec<Finding> {
    exits
        .iter()
        .filter(|exit| match exit.code {
            Some(code) if FINAL.contains(&code) => true,
            // A port or the directory is still held by what was killed a moment ago: systemd tries again. So it does after a crash loop,
            // which faults that meet can make.
            Some(69 | 75 | 80) => false,
            // A failed disk among them: a fault may have asked for it.
            _ => !exit.expected,
        })
        .map(|exit| {
            let how = match exit.code {
                Some(code) => format!("exit code {code}"),
                None => "a signal".to_owned(),
            };
            Finding::new("EXIT", format!("node{} ended by {how}", exit.node + 1))
        })
        .collect()
}

/// SUP-1: refused connections to nodes of which no process has ended, while no fault refuses them.
pub fn refusals(refused: &[(usize, u64)], ended: &[Exit], happened: &[Happened]) -> Vec<Finding> {
    let excused = |node: usize, at_ms: u64| {
        ended.iter().any(|exit| exit.node == node)
            || happened.iter().any(|fault| {
                let from = fault.began_ms.saturating_sub(SLACK_MS);
                let until = fault.ended_ms + SLACK_MS;
                fault.kind == "net-refuse" && (from..until).contains(&at_ms)
            })
    };
    refused
        .iter()
        .filter(|(node, at_ms)| !excused(*node, *at_ms))
        .map(|(node, at_ms)| {
            let why = format!("node{} refused a connection at {at_ms} ms", node + 1);
            Finding::new("SUP-1", why)
        })
        .collect()
}

/// Ends of daemons since the last look: the node, the daemon, the exit code.
pub type Ends = Vec<(usize, String, i32)>;

/// What the supervisor says of a daemon that ended by itself.
fn end_of_daemon(line: &str) -> Option<(String, i32)> {
    let (before, after) = line.split_once(" ended: exit code ")?;
    let daemon = before.rsplit(' ').next()?;
    let code = after.split(' ').next()?.parse().ok()?;
    Some((daemon.to_owned(), code))
}

/// Broken invariants in what a node has written to its log, and how its daemons have ended. `spoilt`: the memory that they share was.
fn ends_in(text: &str, node: &str, spoilt: bool) -> (Vec<Finding>, Vec<(String, i32)>) {
    let explained = |code: i32| match code {
        LINK_CORRUPT => spoilt,
        code => !NEVER.contains(&code),
    };
    let (mut findings, mut ends) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if line.contains("panicked at") {
            findings.push(Finding::new("PANIC", format!("{node}: {line}")));
        }
        if let Some((daemon, code)) = end_of_daemon(line) {
            if !explained(code) {
                findings.push(Finding::new("ENDS", format!("{node}: {line}")));
            }
            ends.push((daemon, code));
        }
    }
    (findings, ends)
}

/// Where the look at each log has ended.
#[derive(Debug, Default)]
pub struct LogMarks {
    seen: BTreeMap<String, u64>,
    /// A bit a node whose shared memory was spoilt in the last round: it may be found in this one.
    spoilt: u64,
}

impl LogMarks {
    /// Broken invariants in what nodes have written to their logs since the last look, and how their daemons have ended.
    pub fn broken_invariants(&mut self, bed: &Bed, happened: &[Happened]) -> (Vec<Finding>, Ends) {
        self.look_at(&bed.logs(), happened)
    }

    fn look_at(
        &mut self,
        logs: &[(String, PathBuf)],
        happened: &[Happened],
    ) -> (Vec<Finding>, Ends) {
        let mut findings = Vec::new();
        let mut ends = Ends::new();
        let spoilt = happened
            .iter()
            .filter(|fault| fault.kind == "ring-corrupt")
            .fold(0, |spoilt, fault| spoilt | fault.victims);
        for (node, (name, path)) in logs.iter().enumerate() {
            let mark = self.seen.entry(name.clone()).or_insert(0);
            let mut text = Vec::new();
            let read = File::open(path).and_then(|mut file| {
                file.seek(SeekFrom::Start(*mark))?;
                file.read_to_end(&mut text)
            });
            if read.is_err() {
                continue;
            }
            *mark += text.len() as u64;
            let spoilt_here = (spoilt | self.spoilt) & (1 << node) != 0;
            let (broken, ended) = ends_in(&String::from_utf8_lossy(&text), name, spoilt_here);
            findings.extend(broken);
            ends.extend(ended.into_iter().map(|(daemon, code)| (node, daemon, code)));
        }
        self.spoilt = spoilt;
        (findings, ends)
    }

    /// Logs that have grown beyond `bytes` are emptied: what a passed round has written is of no interest.
    pub fn empty_large(&mut self, bed: &Bed, bytes: u64) {
        for (name, path) in bed.logs() {
            let file = File::options().write(true).open(path);
            // Nodes append, so what comes next stands at the beginning.
            if let Ok(file) = file
                && file.metadata().is_ok_and(|data| data.len() > bytes)
                && file.set_len(0).is_ok()
            {
                self.seen.insert(name, 0);
            }
        }
    }
}

/// Holds a history to what is promised.
pub fn history(history: &History) -> Vec<Report> {
    all(history, &Options::default())
}

/// The violations of reports.
pub fn violations(reports: &[Report]) -> Vec<Finding> {
    let broken = reports.iter().flat_map(|report| {
        report.violations.iter().map(|violation| {
            let evidence = serde_json::to_string(violation).unwrap_or_else(|e| e.to_string());
            Finding::new(report.checker, evidence)
        })
    });
    // A wrong history is the likeliest to be too much for a checker.
    let undecided = reports
        .iter()
        .filter(|report| report.undecided_total > 0)
        .map(|report| {
            let why = format!("{} objects of {}", report.undecided_total, report.checker);
            Finding::new("UNDECIDED", why)
        });
    broken.chain(undecided).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;

    fn struck(kind: &'static str, node: usize) -> Happened {
        Happened {
            kind,
            node,
            victims: 1 << node,
            began_ms: 5_000,
            ended_ms: 6_000,
        }
    }

    #[test]
    fn raft_1_whoever_names_another_leader_of_a_term_is_found() {
        let mut leaders = Leaders::default();
        assert_eq!(leaders.add(1, 7, "node1"), None);
        assert_eq!(leaders.add(1, 7, "node1"), None);
        assert_eq!(leaders.add(1, 8, "node2"), None, "another term");
        assert_eq!(leaders.add(0, 7, "node2"), None, "another group");
        let items = json!([
            {"group": 1, "term": "8", "leader": "node2"},
            {"group": 1, "term": 9},
            {"group": "1", "term": 7, "leader": "node3"},
        ]);
        let found = leaders.told(&items, "group");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].promise, "RAFT-1");
        assert!(
            found[0].evidence.contains("node1 and node3"),
            "{}",
            found[0].evidence
        );
    }

    #[test]
    fn a_gap_is_held_to_what_the_fault_takes_away() {
        for (kind, gap_ms, promise) in [
            ("kill-storaged", 2_000, None),
            ("kill-storaged", 2_001, Some("LIVE-1")),
            ("node-kill", 5_000, None),
            ("node-kill", 5_001, Some("LIVE-2")),
            ("all-kill", 60_000, None),
        ] {
            let found = gap(&struck(kind, 0), gap_ms).map(|finding| finding.promise);
            assert_eq!(found.as_deref(), promise, "{kind}: {gap_ms} ms");
        }
    }

    #[test]
    fn a_daemons_end_is_a_finding_unless_it_is_explained() {
        let found = |code: i32, spoilt: bool| {
            let text = format!("a word\nstoraged ended: exit code {code} (why): x\n");
            let (findings, ends) = ends_in(&text, "node1", spoilt);
            assert_eq!(ends, [("storaged".to_owned(), code)]);
            findings.len()
        };
        for code in NEVER {
            assert_eq!(found(code, true), 1, "{code}");
        }
        assert_eq!((found(76, false), found(76, true)), (1, 0));
        assert_eq!((found(74, false), found(83, false)), (0, 0));
        let (panics, ends) = ends_in("thread 'shard-0' panicked at x.rs:1:2:\n", "node1", false);
        assert_eq!(panics[0].promise, "PANIC");
        assert!(ends.is_empty());
    }

    #[test]
    fn a_log_is_looked_at_once_and_a_spoilt_word_explains_two_rounds() {
        let dir = tempfile::tempdir().unwrap();
        let logs = ["node1", "node2"].map(|name| (name.to_owned(), dir.path().join(name)));
        let end = |node: usize, code: i32| {
            let mut file = File::options()
                .create(true)
                .append(true)
                .open(&logs[node].1)
                .unwrap();
            writeln!(file, "storaged ended: exit code {code} (why): x").unwrap();
        };
        let mut marks = LogMarks::default();
        let mut look = |happened: &[Happened]| {
            let (found, ends) = marks.look_at(&logs, happened);
            (found.len(), ends.len())
        };
        end(0, 70);
        assert_eq!(look(&[]), (1, 1));
        assert_eq!(look(&[]), (0, 0), "it was told");
        end(0, 76);
        end(1, 76);
        assert_eq!(look(&[struck("ring-corrupt", 1)]), (1, 2), "of node2");
        end(1, 76);
        assert_eq!(look(&[]), (0, 1), "the round after");
        end(1, 76);
        assert_eq!(look(&[]), (1, 1));
    }

    #[test]
    fn a_nodes_end_is_a_finding_unless_it_is_explained() {
        for (code, expected, found) in [
            (None, true, 0),
            (None, false, 1),
            (Some(70), true, 0),
            (Some(70), false, 1),
            (Some(69), false, 0),
            (Some(80), false, 0),
            // Nobody starts it again, whatever has struck it.
            (Some(81), true, 1),
        ] {
            let exit = Exit {
                node: 0,
                code,
                expected,
            };
            assert_eq!(exits(&[exit]).len(), found, "{code:?}, {expected}");
        }
    }

    #[test]
    fn a_daemons_end_is_read_from_the_supervisors_words() {
        let line = "supervisor[7] 2026-01-01T00:00:00Z ERROR mareedb_supervisor::node: storaged ended: exit code 70 (a broken invariant): \
                    RAFT-2 child=storaged child_pid=9";
        assert_eq!(end_of_daemon(line), Some(("storaged".into(), 70)));
        assert_eq!(end_of_daemon("storaged ended: signal 9 (SIGKILL)"), None);
    }

    #[test]
    fn a_refused_connection_is_a_finding_unless_the_node_was_down() {
        let gone = Exit {
            node: 1,
            code: None,
            expected: true,
        };
        let refused = [(0, 1_000), (1, 1_000), (2, 5_500)];
        let found = refusals(&refused, &[gone], &[struck("net-refuse", 0)]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].evidence.contains("node1 "), "{found:?}");
    }
}
