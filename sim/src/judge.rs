//! What clients saw, held against what was promised to them, by the checkers that judge real clusters, too.

use crate::cluster::Cluster;
use mareedb_history::check::{Options, all, bank, committed, counter, revisions};
use mareedb_history::{History, Operation};

/// Positions that the search for an order of one key's operations visits. Beyond them nothing is said of the key; the values
/// that clients write are all different, so that it is seldom reached.
const POSITIONS_MAX: usize = 300_000;
/// Operations that a breach shows.
const SHOWN: usize = 6;

/// Judges the whole history. Gives the objects that nothing can be said of, and why.
pub fn judge(cluster: &Cluster) -> Vec<String> {
    let operations = cluster.history.borrow().clone();
    let history = match History::new(operations) {
        Ok(history) => history,
        Err(error) => {
            cluster.violated("HISTORY", error.to_string());
            return Vec::new();
        }
    };
    let options = Options {
        positions_max: POSITIONS_MAX,
        ..Options::default()
    };
    let mut undecided = Vec::new();
    for report in all(&history, &options) {
        for open in &report.undecided {
            undecided.push(format!("{}: {}", open.object, open.why));
        }
        for violation in report.violations {
            let shown: Vec<String> = violation.operations.iter().take(SHOWN).map(show).collect();
            let what = format!(
                "{}, {}: {}\n  {}",
                violation.anomaly,
                violation.object,
                violation.explanation,
                shown.join("\n  ")
            );
            cluster.violated(id(report.checker, &violation.anomaly), what);
        }
    }
    undecided
}

/// Which promise a checker has found broken.
fn id(checker: &str, anomaly: &str) -> &'static str {
    match checker {
        _ if anomaly == "written twice" => "ONCE-1",
        counter::NAME => "ONCE-1",
        bank::NAME => "TXN-1",
        committed::NAME => "LIN-2",
        revisions::NAME => "LIN-3",
        _ => "LIN-1",
    }
}

fn show(operation: &Operation) -> String {
    let seconds = |ns: u64| format!("{:.6}", ns as f64 / 1e9);
    let end = operation.end_ns.map_or("never".into(), seconds);
    format!(
        "client{} from {} to {end}: {:?} -> {:?}",
        operation.process,
        seconds(operation.start_ns),
        operation.call,
        operation.outcome
    )
}
