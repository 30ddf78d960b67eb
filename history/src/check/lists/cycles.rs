//! Cycles of dependencies: strongly connected components by Tarjan's algorithm, and in each a short cycle of the simplest kind.

use super::graph::{Edge, Graph, Kind};
use super::reads::{Observed, Txn};
use crate::report::KEPT_MAX;
use crate::{Object, Operation, Report};
use std::collections::{HashMap, VecDeque};

/// How many edges are walked in one component in search of a cycle with a single `rw`. Beyond that any cycle is shown and
/// named after the dependencies it has, which stays true.
const STEPS_MAX: usize = 20_000_000;

const WW: u8 = Kind::Ww as u8;
const WR: u8 = Kind::Wr as u8;
const RW: u8 = Kind::Rw as u8;

/// What may be used beside what lists tell, from the least to the most.
const TIMES: [u8; 3] = [
    0,
    Kind::Process as u8,
    Kind::Process as u8 | Kind::Realtime as u8,
];

/// A cycle: each transaction with the dependency to the next one, and from the last to the first.
type Cycle = Vec<(Txn, Edge)>;

/// Reports a cycle of each strongly connected component.
pub(super) fn find(
    graph: &Graph,
    operations: &[&Operation],
    observed: &Observed<'_>,
    report: &mut Report,
) {
    let everything: Vec<Txn> = (0..graph.len()).collect();
    let all = WW | WR | RW | TIMES[2];
    let components = components(graph, &everything, all, |_| true);
    for (count, component) in components.into_iter().enumerate() {
        if count >= KEPT_MAX {
            // Their cycles would not be shown; they are counted all the same.
            report.violate("cycle", Object::Lists, String::new(), &[]);
            continue;
        }
        if let Some(cycle) = simplest(graph, &component) {
            tell(&cycle, operations, observed, report);
        }
    }
}

/// The simplest kind of cycle that a component has.
fn simplest(graph: &Graph, component: &[Txn]) -> Option<Cycle> {
    let member: HashMap<Txn, ()> = component.iter().map(|txn| (*txn, ())).collect();
    let inside = |txn: Txn| member.contains_key(&txn);
    let mut steps = 0;
    for time in TIMES {
        for mask in [WW | time, WW | WR | time] {
            if let Some(cycle) = any(graph, component, mask, inside) {
                return Some(cycle);
            }
        }
        if let Some(cycle) = single(graph, component, WW | WR | time, inside, &mut steps) {
            return Some(cycle);
        }
        if let Some(cycle) = any(graph, component, WW | WR | RW | time, inside) {
            return Some(cycle);
        }
    }
    None
}

/// A short cycle of the dependencies in `mask`, if there is one.
fn any(graph: &Graph, within: &[Txn], mask: u8, inside: impl Fn(Txn) -> bool) -> Option<Cycle> {
    let component = components(graph, within, mask, &inside)
        .into_iter()
        .next()?;
    let member: HashMap<Txn, ()> = component.iter().map(|txn| (*txn, ())).collect();
    // A few starts, evenly spread: the shortest cycle of all would take a search from each.
    let stride = component.len().div_ceil(16);
    component
        .iter()
        .step_by(stride)
        .filter_map(|start| {
            let inside = |txn: Txn| member.contains_key(&txn);
            path(graph, *start, *start, mask, inside, &mut 0)
        })
        .min_by_key(Vec::len)
}

/// A cycle with exactly one `rw`, its other dependencies in `mask`.
fn single(
    graph: &Graph,
    component: &[Txn],
    mask: u8,
    inside: impl Fn(Txn) -> bool,
    steps: &mut usize,
) -> Option<Cycle> {
    for from in component {
        for edge in graph.from(*from) {
            if edge.kind != Kind::Rw || !inside(edge.to) {
                continue;
            }
            if *steps >= STEPS_MAX {
                return None;
            }
            if let Some(mut back) = path(graph, edge.to, *from, mask, &inside, steps) {
                back.insert(0, (*from, *edge));
                return Some(back);
            }
        }
    }
    None
}

/// A shortest way from one transaction to another over at least one dependency.
fn path(
    graph: &Graph,
    from: Txn,
    to: Txn,
    mask: u8,
    inside: impl Fn(Txn) -> bool,
    steps: &mut usize,
) -> Option<Cycle> {
    let mut came: HashMap<Txn, (Txn, Edge)> = HashMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(txn) = queue.pop_front() {
        for edge in graph.from(txn) {
            *steps += 1;
            if edge.kind as u8 & mask == 0 || !inside(edge.to) || came.contains_key(&edge.to) {
                continue;
            }
            came.insert(edge.to, (txn, *edge));
            if edge.to == to {
                let mut way = Vec::new();
                let mut at = to;
                loop {
                    let (before, edge) = came[&at];
                    way.push((before, edge));
                    at = before;
                    if at == from {
                        break;
                    }
                }
                way.reverse();
                return Some(way);
            }
            queue.push_back(edge.to);
        }
    }
    None
}

/// The strongly connected components with more than one member, by Tarjan's algorithm without recursion.
fn components(
    graph: &Graph,
    within: &[Txn],
    mask: u8,
    inside: impl Fn(Txn) -> bool,
) -> Vec<Vec<Txn>> {
    const UNSEEN: usize = usize::MAX;
    #[derive(Clone, Copy)]
    struct Mark {
        index: usize,
        low: usize,
        on_stack: bool,
    }
    let mut marks: HashMap<Txn, Mark> = HashMap::with_capacity(within.len());
    let mark = |marks: &HashMap<Txn, Mark>, txn: Txn| marks.get(&txn).map_or(UNSEEN, |m| m.index);
    let mut count = 0;
    let mut stack: Vec<Txn> = Vec::new();
    let mut found = Vec::new();
    for root in within {
        if mark(&marks, *root) != UNSEEN {
            continue;
        }
        let mut work: Vec<(Txn, usize)> = vec![(*root, 0)];
        while let Some((txn, next)) = work.last_mut() {
            let txn = *txn;
            if *next == 0 && mark(&marks, txn) == UNSEEN {
                let new = Mark {
                    index: count,
                    low: count,
                    on_stack: true,
                };
                marks.insert(txn, new);
                count += 1;
                stack.push(txn);
            }
            let edges = graph.from(txn);
            if let Some(edge) = edges.get(*next) {
                *next += 1;
                if edge.kind as u8 & mask == 0 || !inside(edge.to) {
                    continue;
                }
                match marks.get(&edge.to).copied() {
                    None => work.push((edge.to, 0)),
                    Some(other) if other.on_stack => {
                        if let Some(own) = marks.get_mut(&txn) {
                            own.low = own.low.min(other.index);
                        }
                    }
                    Some(_) => {}
                }
                continue;
            }
            work.pop();
            let own = marks[&txn];
            if let Some((parent, _)) = work.last()
                && let Some(parent) = marks.get_mut(parent)
            {
                parent.low = parent.low.min(own.low);
            }
            if own.low == own.index {
                let mut component = Vec::new();
                while let Some(member) = stack.pop() {
                    if let Some(mark) = marks.get_mut(&member) {
                        mark.on_stack = false;
                    }
                    component.push(member);
                    if member == txn {
                        break;
                    }
                }
                if component.len() > 1 {
                    component.sort_unstable();
                    found.push(component);
                }
            }
        }
    }
    found
}

/// The anomaly that a cycle is.
fn name(cycle: &[(Txn, Edge)]) -> String {
    let count = |kind| cycle.iter().filter(|(_, edge)| edge.kind == kind).count();
    let base = match (count(Kind::Rw), count(Kind::Wr)) {
        (0, 0) => "G0",
        (0, _) => "G1c",
        (1, _) => "G-single",
        _ => "G2",
    };
    let suffix = match (count(Kind::Realtime), count(Kind::Process)) {
        (0, 0) => "",
        (0, _) => "-process",
        _ => "-realtime",
    };
    format!("{base}{suffix}")
}

fn tell(
    cycle: &[(Txn, Edge)],
    operations: &[&Operation],
    observed: &Observed<'_>,
    report: &mut Report,
) {
    let mut words = Vec::new();
    for (at, (_, edge)) in cycle.iter().enumerate() {
        let (from, to) = (at + 1, (at + 1) % cycle.len() + 1);
        let list = observed.lists.get(edge.list).map_or("", |list| list.name);
        let element = edge.element;
        words.push(match edge.kind {
            Kind::Ww => format!(
                "T{to} appended {element} to '{list}' after T{from} had appended to it (ww)"
            ),
            Kind::Wr => format!("T{to} read {element} in '{list}', which T{from} appended (wr)"),
            Kind::Rw => {
                format!("T{from} read '{list}' without {element}, which T{to} appended (rw)")
            }
            Kind::Process => {
                format!("T{to} is of the same client and came after T{from} (process)")
            }
            Kind::Realtime => format!("T{to} began after T{from} was acknowledged (realtime)"),
        });
    }
    let why = format!("T1 would come before itself: {}", words.join("; "));
    let shown: Vec<&Operation> = cycle.iter().map(|(txn, _)| operations[*txn]).collect();
    report.violate(name(cycle), Object::Lists, why, &shown);
}
