//! Results: a JSON line a round, and the table that a file of them comes to.

use crate::fault;
use crate::gaps::Happened;
use crate::judge::Finding;
use crate::round::Plan;
use crate::schedule::{Manner, Schedule};
use mareedb_history::Report;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

/// A round's line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// How faults followed each other: `alone`, `pairs` or `storm`.
    pub manner: String,
    /// Seconds of load.
    pub load_s: u64,
    /// Clients of a node.
    #[serde(default = "few")]
    pub clients: u8,
    /// Faults that took place, by name.
    pub faults: BTreeMap<String, u64>,
    /// Operations by outcome.
    pub ops: BTreeMap<String, u64>,
    /// Operations that were judged, each counted once.
    pub checked: u64,
    /// Objects of which nothing can be said.
    pub undecided: u64,
    /// Longest times without an acknowledged write through a healthy node, in ms, for each fault that was alone.
    pub gaps_ms: BTreeMap<String, Vec<u64>>,
    /// From the last fault's end until every node served again, in ms.
    pub heal_ms: u64,
    /// Ends of daemons by exit code, as `storaged 76`.
    #[serde(default)]
    pub ends: BTreeMap<String, u64>,
    /// What was broken: names of promises.
    pub violations: Vec<String>,
}

/// Of lines that do not say it.
const fn few() -> u8 {
    4
}

impl Line {
    /// A line without judgement.
    pub fn new(plan: &Plan, nodes: usize, schedule: &Schedule, happened: &[Happened]) -> Line {
        let mut faults = BTreeMap::new();
        for fault in happened {
            *faults.entry(fault.kind.to_owned()).or_insert(0) += 1;
        }
        let manner = match schedule.manner {
            Manner::Alone => "alone",
            Manner::Pairs => "pairs",
            Manner::Storm => "storm",
        };
        Line {
            seed: plan.seed,
            nodes,
            manner: manner.to_owned(),
            load_s: plan.load.as_secs(),
            clients: plan.clients,
            faults,
            ops: BTreeMap::new(),
            checked: 0,
            undecided: 0,
            gaps_ms: BTreeMap::new(),
            heal_ms: 0,
            ends: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    /// Adds a gap.
    pub fn gap(&mut self, kind: &str, gap_ms: u64) {
        self.gaps_ms
            .entry(kind.to_owned())
            .or_default()
            .push(gap_ms);
    }

    /// Counts an operation.
    pub fn count(&mut self, outcome: &str) {
        *self.ops.entry(outcome.to_owned()).or_insert(0) += 1;
    }

    /// Counts the end of a daemon.
    pub fn end(&mut self, daemon: &str, code: i32) {
        *self.ends.entry(format!("{daemon} {code}")).or_insert(0) += 1;
    }

    /// Takes in what the judges say.
    pub fn judged(&mut self, reports: &[Report], heal_ms: u64, findings: &[Finding]) {
        // Some checkers look at operations that others have looked at, too.
        self.checked = self.ops.values().sum();
        self.undecided = reports.iter().map(|report| report.undecided_total).sum();
        self.heal_ms = heal_ms;
        self.violations = findings
            .iter()
            .map(|finding| finding.promise.clone())
            .collect();
        self.violations.sort_unstable();
        self.violations.dedup();
    }
}

/// Appends a line to a file.
///
/// # Errors
/// The file cannot be written.
pub fn append(path: &Path, line: &Line) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = File::options().create(true).append(true).open(path)?;
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    file.write_all(text.as_bytes())
}

/// Reads a file of lines.
///
/// # Errors
/// It cannot be read, or a line is none of ours.
pub fn read(path: &Path) -> Result<Vec<Line>, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(at, line)| {
            serde_json::from_str(line)
                .map_err(|error| format!("{} line {}: {error}", path.display(), at + 1))
        })
        .collect()
}

/// The table fault, count, gaps, result, and the sums, as Markdown.
pub fn summary(lines: &[Line]) -> String {
    let mut text = String::new();
    let ops: u64 = lines.iter().map(|line| line.checked).sum();
    let faults: u64 = lines.iter().flat_map(|line| line.faults.values()).sum();
    let load_s: u64 = lines.iter().map(|line| line.load_s).sum();
    let violated = lines.iter().filter(|line| !line.violations.is_empty());
    let undecided: u64 = lines.iter().map(|line| line.undecided).sum();
    let _ = writeln!(
        text,
        "{} rounds, {:.2} hours under load, {faults} faults, {ops} operations checked, {undecided} objects undecided, {} rounds with a violation.\n",
        lines.len(),
        load_s as f64 / 3600.0,
        violated.count()
    );
    text.push_str(
        "| fault | times | alone | gap p50 ms | p99 ms | max ms | limit ms | beyond | rounds | with a violation |\n",
    );
    text.push_str("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    let mut names: Vec<&String> = lines.iter().flat_map(|line| line.faults.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let with: Vec<&Line> = lines
            .iter()
            .filter(|line| line.faults.contains_key(name))
            .collect();
        let times: u64 = with.iter().filter_map(|line| line.faults.get(name)).sum();
        let mut gaps: Vec<u64> = with
            .iter()
            .filter_map(|line| line.gaps_ms.get(name))
            .flatten()
            .copied()
            .collect();
        gaps.sort_unstable();
        let quantile = |of: usize| match gaps.len() {
            0 => "-".to_owned(),
            count => gaps[(count * of).div_ceil(1000).saturating_sub(1)].to_string(),
        };
        let limit = fault::of(name).and_then(|fault| fault.reach.gap_limit_ms());
        let beyond = limit.map(|limit| gaps.iter().filter(|gap| **gap > limit).count());
        let or_none =
            |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let bad = with.iter().filter(|line| !line.violations.is_empty());
        let _ = writeln!(
            text,
            "| `{name}` | {times} | {} | {} | {} | {} | {} | {} | {} | {} |",
            gaps.len(),
            quantile(500),
            quantile(990),
            quantile(1000),
            or_none(limit),
            or_none(beyond.map(|count| count as u64)),
            with.len(),
            bad.count()
        );
    }
    let sums = |key: &str| -> u64 { lines.iter().filter_map(|line| line.ops.get(key)).sum() };
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for (end, times) in lines.iter().flat_map(|line| &line.ends) {
        *ends.entry(end).or_default() += times;
    }
    if !ends.is_empty() {
        let ends: Vec<String> = ends
            .iter()
            .map(|(end, times)| format!("{end}: {times}"))
            .collect();
        let _ = writeln!(text, "\nEnds of daemons by exit code: {}.", ends.join(", "));
    }
    let _ = writeln!(
        text,
        "\nOperations: {} done, {} certainly without effect, {} with an unknown outcome.",
        sums("ok"),
        sums("failed"),
        sums("unknown")
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seed: u64, gaps: &[u64], violations: &[&str]) -> Line {
        Line {
            seed,
            nodes: 3,
            manner: "alone".into(),
            load_s: 36,
            clients: 4,
            faults: BTreeMap::from([("node-kill".into(), gaps.len() as u64 + 1)]),
            ops: BTreeMap::from([("ok".into(), 1000), ("unknown".into(), 5)]),
            checked: 1005,
            undecided: 0,
            gaps_ms: BTreeMap::from([("node-kill".into(), gaps.to_vec())]),
            heal_ms: 12,
            ends: BTreeMap::from([("storaged 76".into(), 2)]),
            violations: violations.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    #[test]
    fn lines_are_appended_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/results.jsonl");
        let lines = [line(1, &[5], &[]), line(2, &[6, 7], &["DET-1"])];
        for line in &lines {
            append(&path, line).unwrap();
        }
        assert_eq!(read(&path).unwrap(), lines);
        std::fs::write(&path, "{}\n").unwrap();
        assert!(read(&path).unwrap_err().contains("line 1"));
    }

    #[test]
    fn the_table_has_a_row_a_fault() {
        let gaps: Vec<u64> = (1..=100).collect();
        let text = summary(&[line(1, &gaps, &[]), line(2, &[200], &["DET-1"])]);
        assert!(
            text.contains("| `node-kill` | 103 | 101 | 51 | 100 | 200 | 2500 | 0 | 2 | 1 |"),
            "{text}"
        );
        assert!(text.contains("2 rounds, 0.02 hours"), "{text}");
        assert!(text.contains("2010 operations checked"), "{text}");
        assert!(text.contains("storaged 76: 4."), "{text}");
    }
}
