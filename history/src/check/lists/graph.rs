//! The dependencies between transactions.

use super::reads::{List, Observed, Txn};
use crate::{Operation, Outcome};
use std::collections::{BTreeMap, HashMap};

/// Why one transaction comes after another. The numbers are bits of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// It appended later to the same list.
    Ww = 1,
    /// It read what the other appended.
    Wr = 2,
    /// It appended what the other did not see yet.
    Rw = 4,
    /// The same client asked for it later.
    Process = 8,
    /// It began after the other was acknowledged.
    Realtime = 16,
}

/// A dependency.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub(super) to: Txn,
    pub(super) kind: Kind,
    /// The list that tells it, and the element that the later transaction appended or read last; nothing for the orders of time.
    pub(super) list: usize,
    pub(super) element: u64,
}

/// All dependencies, by the transaction from which they go out.
pub(super) struct Graph {
    edges: Vec<Edge>,
    /// Where the edges of each transaction begin, and after the last one the end of all.
    begins: Vec<usize>,
}

impl Graph {
    pub(super) fn new(operations: &[&Operation], observed: &Observed<'_>) -> Graph {
        let mut pairs: Vec<(Txn, Edge)> = Vec::new();
        for (index, list) in observed.lists.iter().enumerate() {
            depend(index, list, observed, &mut pairs);
        }
        processes(operations, observed, &mut pairs);
        real_time(operations, observed, &mut pairs);
        pairs.retain(|(from, edge)| *from != edge.to);
        pairs.sort_by_key(|(from, edge)| (*from, edge.kind, edge.to));
        let mut begins = vec![0; operations.len() + 1];
        for (from, _) in &pairs {
            begins[from + 1] += 1;
        }
        for index in 1..begins.len() {
            begins[index] += begins[index - 1];
        }
        Graph {
            edges: pairs.into_iter().map(|(_, edge)| edge).collect(),
            begins,
        }
    }

    /// The dependencies that go out from a transaction.
    pub(super) fn from(&self, txn: Txn) -> &[Edge] {
        &self.edges[self.begins[txn]..self.begins[txn + 1]]
    }

    /// How many transactions there are.
    pub(super) fn len(&self) -> usize {
        self.begins.len() - 1
    }
}

/// What one list tells.
fn depend(index: usize, list: &List<'_>, observed: &Observed<'_>, pairs: &mut Vec<(Txn, Edge)>) {
    let edge = |to, kind, element| Edge {
        to,
        kind,
        list: index,
        element,
    };
    let writer = |element: &u64| {
        list.appends
            .get(element)
            .map(|append| append.txn)
            .filter(|txn| observed.committed[*txn])
    };
    // Appends that took place and that nobody saw come after all that anybody saw.
    let mut unseen: Vec<(Txn, u64)> = list
        .appends
        .iter()
        .filter(|(_, append)| observed.committed[append.txn])
        .map(|(element, append)| (append.txn, *element))
        .collect();
    let seen: std::collections::HashSet<&u64> = list.order.iter().collect();
    unseen.retain(|(_, element)| !seen.contains(element));
    unseen.sort_unstable();
    for pair in list.order.windows(2) {
        if let (Some(from), Some(to)) = (writer(&pair[0]), writer(&pair[1])) {
            pairs.push((from, edge(to, Kind::Ww, pair[1])));
        }
    }
    if let Some(from) = list.order.last().and_then(writer) {
        for (to, element) in &unseen {
            pairs.push((from, edge(*to, Kind::Ww, *element)));
        }
    }
    for read in &list.reads {
        if let Some(last) = read.elements.last()
            && let Some(from) = writer(last)
        {
            pairs.push((from, edge(read.txn, Kind::Wr, *last)));
        }
        match list.order.get(read.elements.len()) {
            Some(next) => {
                if let Some(to) = writer(next) {
                    pairs.push((read.txn, edge(to, Kind::Rw, *next)));
                }
            }
            None => {
                for (to, element) in &unseen {
                    pairs.push((read.txn, edge(*to, Kind::Rw, *element)));
                }
            }
        }
    }
}

fn in_time(to: Txn, kind: Kind) -> Edge {
    Edge {
        to,
        kind,
        list: 0,
        element: 0,
    }
}

/// A client's transactions follow each other; one of unknown outcome may come later than its place.
fn processes(operations: &[&Operation], observed: &Observed<'_>, pairs: &mut Vec<(Txn, Edge)>) {
    let mut last: HashMap<u64, Txn> = HashMap::new();
    for (txn, operation) in operations.iter().enumerate() {
        if !observed.committed[txn] {
            continue;
        }
        if let Some(from) = last.get(&operation.process) {
            pairs.push((*from, in_time(txn, Kind::Process)));
        }
        if matches!(operation.outcome, Outcome::Ok(_)) {
            last.insert(operation.process, txn);
        }
    }
}

/// What began after an acknowledgement comes after it. Only edges that do not follow from others are kept: those from the acknowledged
/// transactions that no other one lies wholly behind.
fn real_time(operations: &[&Operation], observed: &Observed<'_>, pairs: &mut Vec<(Txn, Edge)>) {
    let mut by_end: Vec<(u64, Txn)> = operations
        .iter()
        .enumerate()
        .filter(|(txn, _)| observed.committed[*txn])
        .filter_map(|(txn, operation)| Some((operation.done_ns()?, txn)))
        .collect();
    by_end.sort_unstable();
    let mut by_end = by_end.into_iter().peekable();
    // The last acknowledged transactions, by when they were acknowledged: those that none of them lies behind.
    let mut frontier: BTreeMap<(u64, Txn), ()> = BTreeMap::new();
    for (txn, operation) in operations.iter().enumerate() {
        if !observed.committed[txn] {
            continue;
        }
        while let Some((end, ended)) = by_end.next_if(|(end, _)| *end < operation.start_ns) {
            let start = operations[ended].start_ns;
            frontier = frontier.split_off(&(start, 0));
            frontier.insert((end, ended), ());
        }
        for (_, from) in frontier.keys() {
            pairs.push((*from, in_time(txn, Kind::Realtime)));
        }
    }
}
