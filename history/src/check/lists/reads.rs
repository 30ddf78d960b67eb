//! What the reads of lists say by themselves, and the order of versions that follows from them.

use crate::{Answer, Call, Micro, Object, Operation, Outcome, Report};
use std::collections::{HashMap, HashSet};

/// A transaction, by its place among the operations that are judged.
pub(super) type Txn = usize;

/// One append.
#[derive(Clone, Copy)]
pub(super) struct Append {
    pub(super) txn: Txn,
    /// Whether the same transaction appends to the list again.
    pub(super) more_follow: bool,
}

/// A read of a list as it was before the reading transaction.
pub(super) struct Read<'a> {
    pub(super) txn: Txn,
    pub(super) elements: &'a [u64],
    /// Whether the transaction also appends to the list.
    pub(super) updates: bool,
}

/// One list.
#[derive(Default)]
pub(super) struct List<'a> {
    pub(super) name: &'a str,
    pub(super) appends: HashMap<u64, Append>,
    pub(super) reads: Vec<Read<'a>>,
    /// The longest that was read: the order of versions, as far as anybody saw it.
    pub(super) order: &'a [u64],
}

/// All that was seen.
pub(super) struct Observed<'a> {
    pub(super) lists: Vec<List<'a>>,
    /// Whether each transaction certainly took place.
    pub(super) committed: Vec<bool>,
}

impl<'a> Observed<'a> {
    /// Collects appends and reads and reports what is wrong with single reads; `None` if nothing can be said.
    pub(super) fn new(operations: &[&'a Operation], report: &mut Report) -> Option<Observed<'a>> {
        let mut names: HashMap<&'a str, usize> = HashMap::new();
        let mut lists: Vec<List<'a>> = Vec::new();
        for (txn, operation) in operations.iter().enumerate() {
            let Call::Lists(steps) = &operation.call else {
                continue;
            };
            for (at, step) in steps.iter().enumerate() {
                let (Micro::Append { key, .. } | Micro::Read { key }) = step;
                let list = *names.entry(key).or_insert_with(|| {
                    lists.push(List {
                        name: key,
                        ..List::default()
                    });
                    lists.len() - 1
                });
                if let Micro::Append { element, .. } = step {
                    let more_follow = steps[at + 1..].iter().any(
                        |later| matches!(later, Micro::Append { key: other, .. } if other == key),
                    );
                    let append = Append { txn, more_follow };
                    if lists[list].appends.insert(*element, append).is_some() {
                        let why = format!("clients appended {element} to '{key}' twice");
                        report.undecided(Object::Lists, why);
                        return None;
                    }
                }
            }
        }
        for (txn, operation) in operations.iter().enumerate() {
            collect(txn, operation, &names, &mut lists, report);
        }
        let mut committed: Vec<bool> = operations
            .iter()
            .map(|operation| matches!(operation.outcome, Outcome::Ok(_)))
            .collect();
        for list in &mut lists {
            order(list, operations, report);
            for element in list.order {
                if let Some(append) = list.appends.get(element) {
                    committed[append.txn] |=
                        matches!(operations[append.txn].outcome, Outcome::Unknown(_));
                }
            }
        }
        Some(Observed { lists, committed })
    }
}

/// Takes in the reads of one transaction, each list as it was before the transaction.
fn collect<'a>(
    txn: Txn,
    operation: &'a Operation,
    names: &HashMap<&'a str, usize>,
    lists: &mut [List<'a>],
    report: &mut Report,
) {
    let (Call::Lists(steps), Outcome::Ok(Answer::Lists { results, .. })) =
        (&operation.call, &operation.outcome)
    else {
        return;
    };
    let mut own: HashMap<&str, Vec<u64>> = HashMap::new();
    let mut before: HashMap<&str, &[u64]> = HashMap::new();
    for (step, result) in steps.iter().zip(results) {
        let key = match step {
            Micro::Append { key, element } => {
                own.entry(key).or_default().push(*element);
                continue;
            }
            Micro::Read { key } => key.as_str(),
        };
        let Some(elements) = result else { continue };
        let appended = own.get(key).map_or(&[][..], Vec::as_slice);
        let Some(earlier) = elements.strip_suffix(appended) else {
            let why = format!("it appended {appended:?} to '{key}', then read {elements:?}");
            report.violate("internal", Object::Lists, why, &[operation]);
            continue;
        };
        match before.insert(key, earlier) {
            Some(first) if first != earlier => {
                let why = format!("within one transaction '{key}' was {first:?}, then {earlier:?}");
                report.violate("internal", Object::Lists, why, &[operation]);
            }
            Some(_) => {}
            None => {
                let updates = steps
                    .iter()
                    .any(|step| matches!(step, Micro::Append { key: other, .. } if other == key));
                lists[names[key]].reads.push(Read {
                    txn,
                    elements: earlier,
                    updates,
                });
            }
        }
    }
}

/// Judges the reads of one list and takes the longest as the order of its versions.
fn order<'a>(list: &mut List<'a>, operations: &[&'a Operation], report: &mut Report) {
    let Some(longest) = list.reads.iter().max_by_key(|read| read.elements.len()) else {
        return;
    };
    let (reader, order) = (longest.txn, longest.elements);
    list.order = order;
    sources(list, order, reader, operations, report);
    let mut strange: HashSet<usize> = HashSet::new();
    let mut updates: HashMap<usize, Txn> = HashMap::new();
    for (at, read) in list.reads.iter().enumerate() {
        if !order.starts_with(read.elements) {
            strange.insert(at);
            let same = order
                .iter()
                .zip(read.elements)
                .take_while(|(a, b)| a == b)
                .count();
            let why = format!(
                "after the first {same} elements of '{}' one read has {:?} and the other {:?}",
                list.name,
                read.elements.get(same),
                order.get(same)
            );
            let shown = [operations[read.txn], operations[reader]];
            report.violate("incompatible order", Object::Lists, why, &shown);
            sources(list, read.elements, read.txn, operations, report);
            continue;
        }
        intermediate(list, read, operations, report);
        if read.updates
            && let Some(other) = updates.insert(read.elements.len(), read.txn)
        {
            let why = format!(
                "both read '{}' when it had {} elements, and both appended to it",
                list.name,
                read.elements.len()
            );
            let shown = [operations[other], operations[read.txn]];
            report.violate("lost update", Object::Lists, why, &shown);
        }
    }
    let mut at = 0;
    list.reads.retain(|_| {
        at += 1;
        !strange.contains(&(at - 1))
    });
}

/// Every element of a list was appended once, by a transaction that did not fail.
fn sources(
    list: &List<'_>,
    elements: &[u64],
    reader: Txn,
    operations: &[&Operation],
    report: &mut Report,
) {
    let mut seen = HashSet::new();
    for element in elements {
        if !seen.insert(element) {
            let why = format!("{element} is in '{}' twice", list.name);
            report.violate("duplicate", Object::Lists, why, &[operations[reader]]);
        }
        match list.appends.get(element) {
            None => {
                let why = format!("{element} is in '{}' and nobody appended it", list.name);
                let shown = [operations[reader]];
                report.violate("element from nowhere", Object::Lists, why, &shown);
            }
            Some(append) if matches!(operations[append.txn].outcome, Outcome::Failed(_)) => {
                let why = format!("{element} is in '{}', whose append failed", list.name);
                let shown = [operations[reader], operations[append.txn]];
                report.violate("dirty read (G1a)", Object::Lists, why, &shown);
            }
            Some(_) => {}
        }
    }
}

/// No read ends between two appends of one transaction.
fn intermediate(list: &List<'_>, read: &Read<'_>, operations: &[&Operation], report: &mut Report) {
    if let Some(last) = read.elements.last()
        && let Some(append) = list.appends.get(last)
        && append.more_follow
        && append.txn != read.txn
    {
        let why = format!(
            "'{}' was read with {last} at its end, to which the same transaction appended more",
            list.name
        );
        let shown = [operations[read.txn], operations[append.txn]];
        report.violate("intermediate read (G1b)", Object::Lists, why, &shown);
    }
}
