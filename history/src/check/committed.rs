//! Stale reads and reads of the past show committed state only.
//!
//! For each key, what such a read shows was written by an operation that did not fail and had begun before the read ended. A
//! read at a revision shows nothing newer than that, and misses no acknowledged write up to it. That two reads never show
//! different values at one revision, whatever their consistency, is the promise of [`revisions`](super::revisions); that stale reads of
//! sets, counters and banks show a moment is judged with these.
//!
//! Not promised, because the contract does not: that the stale reads of one client go forward only. It may ask another node.

use super::source::{may_have_written, source};
use crate::{Answer, Call, Consistency, History, Object, Operation, Outcome, Report};
use std::collections::HashMap;

/// The name of this checker.
pub const NAME: &str = "committed";

/// Checks all stale reads and reads of the past of a history.
pub fn check(history: &History) -> Report {
    let mut report = Report::new(NAME);
    for (object, operations) in history.by_object() {
        if matches!(object, Object::Register(_)) {
            report.objects += 1;
            one(object, &operations, &mut report);
        }
    }
    report
}

fn one(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let mut known: HashMap<&str, u64> = HashMap::new();
    let mut acknowledged: Vec<(u64, &Operation)> = operations
        .iter()
        .filter(|operation| changed(operation))
        .filter_map(|operation| Some((operation.write_revision()?, *operation)))
        .collect();
    acknowledged.sort_by_key(|&(revision, _)| revision);
    let unknown_delete = operations.iter().any(|operation| {
        matches!(operation.call, Call::Delete { .. })
            && (matches!(operation.outcome, Outcome::Unknown(_))
                || matches!(
                    operation.outcome,
                    Outcome::Ok(Answer::Deleted {
                        deleted: true,
                        revision: None
                    })
                ))
    });
    for operation in operations {
        let (Call::Get { consistency, .. }, Outcome::Ok(Answer::Value { value, revision })) =
            (&operation.call, &operation.outcome)
        else {
            continue;
        };
        if *consistency == Consistency::Linearizable {
            continue;
        }
        report.operations += 1;
        if let Some(text) = value {
            // Once a value was surely being written at some moment, it was at any later one.
            let end = operation.end_ns.unwrap_or(u64::MAX);
            if known.get(text.as_str()).is_none_or(|&since| since > end) {
                match source(text, operation, operations) {
                    super::source::Source::Possible(writers) => {
                        let since = writers.iter().map(|writer| writer.start_ns).min();
                        known.insert(text, since.unwrap_or(end));
                    }
                    impossible => {
                        impossible.violate(object, text, operation, report);
                        continue;
                    }
                }
            }
        }
        if let Consistency::At(at) = consistency {
            past(
                object,
                (operation, *at, *revision),
                &acknowledged,
                unknown_delete,
                report,
            );
        }
    }
}

/// Whether an acknowledged operation certainly changed the key.
fn changed(operation: &Operation) -> bool {
    match &operation.outcome {
        Outcome::Ok(Answer::Deleted { deleted, .. }) => *deleted,
        Outcome::Ok(_) => !operation.call.is_read() && may_have_written(operation),
        Outcome::Failed(_) | Outcome::Unknown(_) => false,
    }
}

/// A read at a revision shows the newest version that is not newer.
fn past(
    object: Object<'_>,
    (read, at, shown): (&Operation, u64, Option<u64>),
    acknowledged: &[(u64, &Operation)],
    unknown_delete: bool,
    report: &mut Report,
) {
    if let Some(shown) = shown
        && shown > at
    {
        let why = format!("read at revision {at}, it shows revision {shown}");
        return report.violate("read of the future", object, why, &[read]);
    }
    let until = acknowledged.partition_point(|&(revision, _)| revision <= at);
    let Some(&(newest, write)) = until.checked_sub(1).and_then(|last| acknowledged.get(last))
    else {
        return;
    };
    let deleted = matches!(write.call, Call::Delete { .. });
    let missed = match shown {
        Some(shown) => shown < newest,
        None => !deleted && !unknown_delete,
    };
    if missed {
        let what = shown.map_or("nothing".to_owned(), |shown| format!("revision {shown}"));
        let why = format!(
            "read at revision {at}, it shows {what} and misses the write of revision {newest}"
        );
        report.violate("missed write", object, why, &[read, write]);
    } else if deleted && shown == Some(newest) {
        let why = format!("it shows a value at revision {newest}, which is a deletion");
        report.violate("deleted value", object, why, &[read, write]);
    }
}
