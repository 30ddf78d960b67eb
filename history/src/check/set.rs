//! Sets: nothing acknowledged is lost (DUR-1), nothing comes from nowhere, and all reads lie on one line of growth.
//!
//! Nothing is ever taken from a set, so its states are a chain. For each set:
//! - a read has no element twice, none that nobody added, none whose add failed, none whose add began after the read ended;
//! - a linearizable read has every element whose add was acknowledged before the read began, and every element that some
//!   read had which ended before it began;
//! - a read that has an element has every one whose add was acknowledged before that element's add began: a stale read,
//!   too, shows a moment;
//! - of two reads one has all that the other has.

use crate::{Answer, Call, Consistency, History, Object, Operation, Outcome, Report};
use std::collections::HashMap;

/// The name of this checker.
pub const NAME: &str = "set";

struct Read<'a> {
    operation: &'a Operation,
    /// Sorted, each once.
    elements: Vec<u64>,
    linearizable: bool,
}

/// Checks all sets of a history.
pub fn check(history: &History) -> Report {
    let mut report = Report::new(NAME);
    for (object, operations) in history.by_object() {
        if matches!(object, Object::Set(_)) {
            report.objects += 1;
            report.operations += operations.len() as u64;
            one(object, &operations, &mut report);
        }
    }
    report
}

fn one(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let mut adds: HashMap<u64, &Operation> = HashMap::new();
    let mut acknowledged: Vec<(u64, u64)> = Vec::new();
    let mut reads: Vec<Read<'_>> = Vec::new();
    for operation in operations {
        match (&operation.call, &operation.outcome) {
            (Call::SetAdd { element, .. }, outcome) => {
                if adds.insert(*element, operation).is_some() {
                    return report.undecided(object, format!("clients added {element} twice"));
                }
                if let (Outcome::Ok(_), Some(end)) = (outcome, operation.end_ns) {
                    acknowledged.push((end, *element));
                }
            }
            (
                Call::SetRead { consistency, .. },
                Outcome::Ok(Answer::Set {
                    elements: unordered,
                }),
            ) => {
                let mut elements = unordered.clone();
                elements.sort_unstable();
                if let Some(pair) = elements.windows(2).find(|pair| pair[0] == pair[1]) {
                    let why = format!("{} is in the set twice", pair[0]);
                    report.violate("duplicate", object, why, &[operation]);
                    elements.dedup();
                }
                reads.push(Read {
                    operation,
                    elements,
                    linearizable: *consistency == Consistency::Linearizable,
                });
            }
            _ => {}
        }
    }
    acknowledged.sort_unstable();
    for read in &reads {
        sources(object, read, &adds, report);
        losses(object, read, &adds, &acknowledged, report);
    }
    forks(object, &mut reads, report);
    vanished(object, &reads, report);
}

/// Every element of a read was added by an operation that may have done so.
fn sources(
    object: Object<'_>,
    read: &Read<'_>,
    adds: &HashMap<u64, &Operation>,
    report: &mut Report,
) {
    for element in &read.elements {
        let Some(add) = adds.get(element) else {
            let why = format!("{element} is in the set and nobody ever added it");
            report.violate("element from nowhere", object, why, &[read.operation]);
            continue;
        };
        if matches!(add.outcome, Outcome::Failed(_)) {
            let why = format!("{element} is in the set, whose add failed");
            report.violate("dirty read", object, why, &[read.operation, add]);
        } else if read.operation.end_ns.is_some_and(|end| add.start_ns > end) {
            let why = format!("{element} is in the set before its add began");
            report.violate("read of the future", object, why, &[read.operation, add]);
        }
    }
}

/// A read has what was acknowledged before it, or before something that it has.
fn losses(
    object: Object<'_>,
    read: &Read<'_>,
    adds: &HashMap<u64, &Operation>,
    acknowledged: &[(u64, u64)],
    report: &mut Report,
) {
    let newest = read
        .elements
        .iter()
        .filter_map(|element| adds.get(element))
        .max_by_key(|add| add.start_ns);
    let began = read.linearizable.then_some(read.operation.start_ns);
    let moment = began.max(newest.map(|add| add.start_ns));
    let Some(moment) = moment else {
        return;
    };
    let due = &acknowledged[..acknowledged.partition_point(|&(end, _)| end < moment)];
    let missing = |element: &u64| read.elements.binary_search(element).is_err();
    let mut lost = due.iter().filter(|(_, element)| missing(element));
    let Some((_, element)) = lost.next() else {
        return;
    };
    let more = match lost.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let mut operations = vec![read.operation, adds[element]];
    let why = match newest {
        Some(newest) if began < Some(moment) => {
            operations.push(newest);
            format!(
                "{element}{more} is not in the set, though its add was acknowledged before the add of something that is began"
            )
        }
        _ => format!(
            "{element}{more} is not in the set, though its add was acknowledged before the read began"
        ),
    };
    report.violate("lost element", object, why, &operations);
}

/// Of two reads one has all that the other has.
fn forks(object: Object<'_>, reads: &mut [Read<'_>], report: &mut Report) {
    reads.sort_by_key(|read| (read.elements.len(), read.operation.start_ns));
    for pair in reads.windows(2) {
        let [small, large] = pair else { continue };
        if let Some(element) = first_missing(&small.elements, &large.elements) {
            let other = first_missing(&large.elements, &small.elements);
            let why = match other {
                Some(other) => format!(
                    "one read has {element} without {other}, the other {other} without {element}"
                ),
                None => format!("{element} is in one read and not in the other, which is as large"),
            };
            report.violate("fork", object, why, &[small.operation, large.operation]);
        }
    }
}

/// What one read had, each later linearizable one has. With all reads on one line it is enough to compare sizes.
fn vanished(object: Object<'_>, reads: &[Read<'_>], report: &mut Report) {
    let mut by_end: Vec<&Read<'_>> = reads.iter().collect();
    by_end.sort_by_key(|read| read.operation.end_ns);
    let mut by_start: Vec<&Read<'_>> = reads.iter().filter(|read| read.linearizable).collect();
    by_start.sort_by_key(|read| read.operation.start_ns);
    let mut ended = by_end.into_iter().peekable();
    let mut largest: Option<&Read<'_>> = None;
    for read in by_start {
        while let Some(earlier) =
            ended.next_if(|earlier| earlier.operation.end_ns < Some(read.operation.start_ns))
        {
            if largest.is_none_or(|largest| largest.elements.len() < earlier.elements.len()) {
                largest = Some(earlier);
            }
        }
        if let Some(earlier) = largest
            && let Some(element) = first_missing(&earlier.elements, &read.elements)
        {
            let why = format!("{element} was in an earlier read and is not in a later one");
            let operations = [earlier.operation, read.operation];
            report.violate("vanished element", object, why, &operations);
        }
    }
}

/// The first element of one sorted list that is not in the other.
fn first_missing(of: &[u64], from: &[u64]) -> Option<u64> {
    let mut rest = from.iter().peekable();
    of.iter()
        .find(|&element| {
            while rest.next_if(|&other| other < element).is_some() {}
            rest.next_if_eq(&element).is_none()
        })
        .copied()
}
