//! Stale reads and reads of the past show committed state only (LIN-2).
//!
//! For each key, what such a read shows was written by an operation that did not fail and had begun before the read ended. A
//! read at a revision shows nothing newer than that, and misses no version up to it that is known: by a write that was told its
//! revision, or by any read that showed it, for a key has one value at one revision for ever (LIN-3). Only a deletion whose
//! revision nobody was told excuses that nothing is shown, and only if it had begun before the read ended and lies after all
//! moments at which the version is known to have been there. That two reads never show different values at one revision,
//! whatever their consistency, is the promise of [`revisions`](super::revisions); that stale reads of sets, counters and banks
//! show a moment is judged with these.
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

/// A version of a key, or the moment of its deletion.
struct Known<'a> {
    revision: u64,
    /// Up to this revision nothing came after it.
    until: u64,
    /// Who told.
    operation: &'a Operation,
}

impl Known<'_> {
    /// What an operation tells of the key.
    fn of(operation: &Operation) -> Option<Known<'_>> {
        let (revision, until) = match (&operation.call, &operation.outcome) {
            (
                Call::Get { consistency, .. },
                Outcome::Ok(Answer::Value {
                    revision: Some(revision),
                    ..
                }),
            ) => match consistency {
                // One that shows the future says nothing, and is a violation.
                Consistency::At(at) if at < revision => return None,
                Consistency::At(at) => (*revision, *at),
                Consistency::Linearizable | Consistency::Stale => (*revision, *revision),
            },
            _ if changed(operation) => {
                let revision = operation.write_revision()?;
                (revision, revision)
            }
            _ => return None,
        };
        Some(Known {
            revision,
            until,
            operation,
        })
    }
}

/// All that is known of a key's versions, by revision, each once: who wrote it before who saw it, with the latest moment at which it
/// was seen.
fn versions<'a>(operations: &[&'a Operation]) -> Vec<Known<'a>> {
    let mut known: Vec<Known<'_>> = operations
        .iter()
        .filter_map(|operation| Known::of(operation))
        .collect();
    known.sort_by_key(|known| (known.revision, known.operation.call.is_read()));
    known.dedup_by(|later, kept| {
        let same = later.revision == kept.revision;
        if same {
            kept.until = kept.until.max(later.until);
        }
        same
    });
    known
}

/// When the first deletion began that may have any revision.
fn untold_deletion(operations: &[&Operation]) -> Option<u64> {
    let untold = operations.iter().filter(|operation| {
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
    untold.map(|operation| operation.start_ns).min()
}

fn one(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let mut known: HashMap<&str, u64> = HashMap::new();
    let versions = versions(operations);
    let untold_deletion = untold_deletion(operations);
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
                &versions,
                untold_deletion,
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
    versions: &[Known<'_>],
    untold_deletion: Option<u64>,
    report: &mut Report,
) {
    if let Some(shown) = shown
        && shown > at
    {
        let why = format!("read at revision {at}, it shows revision {shown}");
        return report.violate("read of the future", object, why, &[read]);
    }
    let until = versions.partition_point(|known| known.revision <= at);
    let Some(newest) = until.checked_sub(1).and_then(|last| versions.get(last)) else {
        return;
    };
    let deleted = matches!(newest.operation.call, Call::Delete { .. });
    let missed = match shown {
        Some(shown) => shown < newest.revision,
        None => {
            let gone = newest.until < at
                && untold_deletion.is_some_and(|start| read.end_ns.is_none_or(|end| start <= end));
            !deleted && !gone
        }
    };
    if missed {
        let what = shown.map_or("nothing".to_owned(), |shown| format!("revision {shown}"));
        let why = format!(
            "read at revision {at}, it shows {what} and misses what was written at revision {}",
            newest.revision
        );
        report.violate("missed write", object, why, &[read, newest.operation]);
    } else if deleted && shown == Some(newest.revision) {
        let why = format!(
            "it shows a value at revision {}, which is a deletion",
            newest.revision
        );
        report.violate("deleted value", object, why, &[read, newest.operation]);
    }
}
