//! Revisions: they grow in real time, and each names one version (LIN-3).
//!
//! - A write that began after another write was acknowledged, or after a read showed a revision, has a larger revision. This holds across all
//!   keys of a replication group, and for each key in any case ([`Options::revisions_grow`] says which is checked).
//! - No two acknowledged writes of a group have the same revision.
//! - A linearizable read that finds a key shows no revision below that of a write of the key that was acknowledged before.
//! - A key has one value at one revision, whoever saw it there: writers, linearizable reads, stale ones.
//! - A revision that a read shows is that of a write which may have written this value; a write whose revision nobody was told
//!   may have any, and only one: two new revisions need two such writes.

use super::source::{may_have_written, written};
use super::{Options, Within};
use crate::{Answer, Call, Consistency, History, Object, Operation, Outcome, Report};
use std::collections::HashMap;

/// The name of this checker.
pub const NAME: &str = "revisions";

/// Checks the revisions of a history.
pub fn check(history: &History, options: &Options) -> Report {
    let mut report = Report::new(NAME);
    let objects = history.by_object();
    for (object, operations) in &objects {
        if matches!(object, Object::Register(_)) {
            report.objects += 1;
            versions(*object, operations, &mut report);
            fresh(*object, operations, &mut report);
        }
        // Only these are sure to be one key.
        if options.revisions_grow == Within::Key
            && matches!(object, Object::Register(_) | Object::Counter(_))
        {
            let seen = operations.iter().copied().filter_map(Sight::of);
            ordered(&object.to_string(), seen.collect(), &mut report);
        }
    }
    report.operations = history.operations().len() as u64;
    if options.revisions_grow == Within::Group {
        let seen = history.operations().iter().filter_map(Sight::of);
        ordered("the group", seen.collect(), &mut report);
    }
    report
}

/// Somebody was told a revision: all that its order needs, small, so that those of a very long history fit in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    revision: u64,
    start_ns: u64,
    end_ns: u64,
    process: u64,
    write: bool,
}

impl Sight {
    /// What an operation was told, if it was told a revision.
    pub(crate) fn of(operation: &Operation) -> Option<Sight> {
        let write = operation.write_revision();
        let read = match &operation.outcome {
            Outcome::Ok(Answer::Value { revision, .. }) => *revision,
            _ => None,
        };
        Some(Sight {
            revision: write.or(read)?,
            start_ns: operation.start_ns,
            end_ns: operation.end_ns?,
            process: operation.process,
            write: write.is_some(),
        })
    }

    fn show(&self) -> String {
        let what = if self.write { "write" } else { "read" };
        format!(
            "the {what} of process {} from {} to {} ns (revision {})",
            self.process, self.start_ns, self.end_ns, self.revision
        )
    }
}

/// Revisions grow in real time, and each is one write's.
pub(crate) fn ordered(group: &str, mut seen: Vec<Sight>, report: &mut Report) {
    seen.sort_unstable_by_key(|sight| sight.end_ns);
    let mut writes: Vec<Sight> = seen.iter().filter(|sight| sight.write).copied().collect();
    writes.sort_unstable_by_key(|sight| sight.start_ns);
    let mut ended = seen.iter().peekable();
    let mut highest: Option<&Sight> = None;
    for write in &writes {
        while let Some(earlier) = ended.next_if(|earlier| earlier.end_ns < write.start_ns) {
            if highest.is_none_or(|highest| highest.revision < earlier.revision) {
                highest = Some(earlier);
            }
        }
        if let Some(earlier) = highest
            && earlier.revision >= write.revision
        {
            let why = format!("{} had ended before {} began", earlier.show(), write.show());
            report.violate("revision went back", group, why, &[]);
        }
    }
    writes.sort_unstable_by_key(|sight| sight.revision);
    for pair in writes.windows(2) {
        if pair[0].revision == pair[1].revision {
            let why = format!(
                "{} and {} have one revision",
                pair[0].show(),
                pair[1].show()
            );
            report.violate("revision used twice", group, why, &[]);
        }
    }
}

/// One value at one revision, and each revision a write's.
fn versions(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let mut at: HashMap<u64, (Option<&str>, &Operation)> = HashMap::new();
    // How many writes may have written a value at a revision that nobody was told. Each explains one revision (ONCE-1).
    let mut untold: HashMap<&str, u64> = HashMap::new();
    for operation in operations {
        let deleted = matches!(
            operation.outcome,
            Outcome::Ok(Answer::Deleted { deleted: true, .. })
        );
        let value = written(&operation.call).filter(|_| may_have_written(operation));
        match (operation.write_revision(), value) {
            (Some(revision), Some(value)) => {
                at.insert(revision, (Some(value), operation));
            }
            (Some(revision), None) if deleted => {
                at.insert(revision, (None, operation));
            }
            (None, Some(value)) => *untold.entry(value).or_default() += 1,
            _ => {}
        }
    }
    for operation in operations {
        let Outcome::Ok(Answer::Value {
            value: Some(value),
            revision: Some(revision),
        }) = &operation.outcome
        else {
            continue;
        };
        match at.get(revision) {
            Some((found, _)) if *found == Some(value.as_str()) => {}
            Some((found, other)) => {
                let found = found.map_or("no value".to_owned(), |found| format!("'{found}'"));
                let why = format!(
                    "at revision {revision} it has '{value}' for one and {found} for the other"
                );
                report.violate(
                    "two values at one revision",
                    object,
                    why,
                    &[operation, other],
                );
            }
            None => match untold.get_mut(value.as_str()) {
                Some(left) if *left > 0 => {
                    *left -= 1;
                    at.insert(*revision, (Some(value), operation));
                }
                Some(_) => {
                    let why = format!(
                        "it shows '{value}' at revision {revision}, and every write of '{value}' has another revision, that it \
                         was told or that a read showed: one took effect twice"
                    );
                    let mut shown = vec![*operation];
                    shown.extend(operations.iter().copied().filter(|operation| {
                        written(&operation.call) == Some(value) && may_have_written(operation)
                    }));
                    report.violate("written twice", object, why, &shown);
                }
                None => {
                    let why = format!(
                        "it shows '{value}' at revision {revision}, and no write of '{value}' can have that"
                    );
                    report.violate("revision of no write", object, why, &[operation]);
                }
            },
        }
    }
}

/// A linearizable read shows no revision older than an acknowledged write.
fn fresh(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let mut writes: Vec<(u64, u64, &Operation)> = operations
        .iter()
        .filter(|operation| may_have_written(operation))
        .filter_map(|operation| Some((operation.end_ns?, operation.write_revision()?, *operation)))
        .collect();
    writes.sort_by_key(|&(end, ..)| end);
    let mut writes = writes.into_iter().peekable();
    let mut newest: Option<(u64, &Operation)> = None;
    for operation in operations {
        while let Some((_, revision, write)) = writes.next_if(|&(end, ..)| end < operation.start_ns)
        {
            if newest.is_none_or(|(newest, _)| newest < revision) {
                newest = Some((revision, write));
            }
        }
        if let Call::Get {
            consistency: Consistency::Linearizable,
            ..
        } = operation.call
            && let Outcome::Ok(Answer::Value {
                revision: Some(revision),
                ..
            }) = operation.outcome
            && let Some((acknowledged, write)) = newest
            && revision < acknowledged
        {
            let why = format!(
                "it shows revision {revision}, though a write of revision {acknowledged} was acknowledged before it began"
            );
            report.violate("stale read", object, why, &[operation, write]);
        }
    }
}
