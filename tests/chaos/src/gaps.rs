//! How long nobody could write: the times of acknowledged writes, and the longest pause after each fault.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// After a fault is over, what it left behind (a leader to elect, connections to make) counts as its work for so long.
pub const AFTERMATH_MS: u64 = 2500;
/// A fault that begins later than this after another one is alone.
const SETTLED_MS: u64 = 500;
/// A supervisor backs off from a daemon that it has to restart again so soon, and the node that is struck shows that pause.
const BACKED_OFF_MS: u64 = 2000;

/// When writes were acknowledged, by node, in ms since the beginning; and what clients have met that nobody may.
pub struct Acks {
    began: Instant,
    nodes: Vec<Mutex<Vec<u64>>>,
    /// Connections that a node refused, and when.
    refused: Mutex<Vec<(usize, u64)>>,
    /// Answers that nobody can read.
    unreadable: Mutex<Vec<String>>,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}

/// A fault as it took place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// Its name.
    pub kind: &'static str,
    /// The node that it strikes, or strikes first.
    pub node: usize,
    /// A bit a node whose clients need not be served meanwhile.
    pub victims: u64,
    /// When it began, in ms since the beginning.
    pub began_ms: u64,
    /// When it was over.
    pub ended_ms: u64,
}

impl Acks {
    /// Of so many nodes, from now on.
    pub fn new(nodes: usize) -> Acks {
        Acks {
            began: Instant::now(),
            nodes: (0..nodes).map(|_| Mutex::default()).collect(),
            refused: Mutex::default(),
            unreadable: Mutex::default(),
        }
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Milliseconds since then.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A node has acknowledged a write just now.
    pub fn record(&self, node: usize) {
        let now = self.now_ms();
        self.of(node).push(now);
    }

    fn of(&self, node: usize) -> MutexGuard<'_, Vec<u64>> {
        guard(&self.nodes[node])
    }

    /// A node has refused a connection just now.
    pub fn refused(&self, node: usize) {
        guard(&self.refused).push((node, self.now_ms()));
    }

    /// An answer cannot be read.
    pub fn unreadable(&self, what: String) {
        guard(&self.unreadable).push(what);
    }

    /// Refused connections, and unreadable answers.
    pub fn met(&self) -> (Vec<(usize, u64)>, Vec<String>) {
        (
            guard(&self.refused).clone(),
            guard(&self.unreadable).clone(),
        )
    }

    /// The longest pause of a node's acknowledgements between two moments.
    fn longest_pause(&self, node: usize, from_ms: u64, to_ms: u64) -> u64 {
        let acks = self.of(node);
        let first = acks.partition_point(|at| *at < from_ms);
        let mut last = from_ms;
        let mut longest = 0;
        for at in acks[first..].iter().copied().chain([to_ms]) {
            let at = at.min(to_ms);
            longest = longest.max(at.saturating_sub(last));
            if at == to_ms {
                break;
            }
            last = at;
        }
        longest
    }

    /// The gap of each fault that was alone, with its place in `faults`: for the healthy node that did worst, the longest time without an
    /// acknowledged write from the beginning of the fault until its aftermath is over or the next fault begins.
    ///
    /// `end_ms`: when clients stopped. Faults that left no node healthy, or that met another one, have no gap; nor one that strikes a node
    /// which another one has struck less than two seconds before.
    pub fn gaps(&self, faults: &[Happened], end_ms: u64) -> Vec<(usize, u64)> {
        let mut gaps = Vec::new();
        for (at, fault) in faults.iter().enumerate() {
            let others = || {
                faults
                    .iter()
                    .enumerate()
                    .filter(move |(other, _)| *other != at)
                    .map(|(_, other)| other)
            };
            let disturbed = others().any(|other| {
                let settled = if other.node == fault.node {
                    BACKED_OFF_MS
                } else {
                    SETTLED_MS
                };
                other.began_ms <= fault.ended_ms && other.ended_ms + settled > fault.began_ms
            });
            let next = others()
                .map(|other| other.began_ms)
                .filter(|began| *began > fault.ended_ms)
                .min();
            let until = (fault.ended_ms + AFTERMATH_MS)
                .min(next.unwrap_or(u64::MAX))
                .min(end_ms);
            // Clients stopped before anything could be seen.
            if disturbed || until < fault.ended_ms.max(fault.began_ms + 200) {
                continue;
            }
            let worst = (0..self.nodes.len())
                .filter(|node| fault.victims & (1 << node) == 0)
                .map(|node| self.longest_pause(node, fault.began_ms, until))
                .max();
            gaps.extend(worst.map(|worst| (at, worst)));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(of: &[&[u64]]) -> Acks {
        let acks = Acks::new(of.len());
        for (node, times) in of.iter().enumerate() {
            acks.of(node).extend_from_slice(times);
        }
        acks
    }

    fn fault(victims: u64, began_ms: u64, ended_ms: u64) -> Happened {
        at_node(0, victims, began_ms, ended_ms)
    }

    fn at_node(node: usize, victims: u64, began_ms: u64, ended_ms: u64) -> Happened {
        Happened {
            kind: "x",
            node,
            victims,
            began_ms,
            ended_ms,
        }
    }

    #[test]
    fn the_worst_healthy_node_tells_the_gap() {
        let acks = acks(&[&[900, 1000, 1010, 1600, 9000], &[1000, 1005], &[990, 8000]]);
        // Node 2 is the victim; node 1 says nothing more until the clients stop.
        let gaps = acks.gaps(&[fault(0b110, 1000, 1200)], 3000);
        assert_eq!(gaps, [(0, 1400)]);
        let gaps = acks.gaps(&[fault(0b100, 1000, 1200)], 3000);
        assert_eq!(gaps, [(0, 1995)]);
    }

    #[test]
    fn a_fault_is_watched_until_the_next_one_begins() {
        let times: Vec<u64> = (0..200).map(|n| n * 10).chain([4000]).collect();
        let acks = acks(&[&times]);
        let faults = [at_node(0, 0, 500, 600), at_node(1, 0, 1200, 1990)];
        assert_eq!(acks.gaps(&faults, 5000), [(0, 10), (1, 2010)]);
    }

    #[test]
    fn a_node_that_is_struck_again_at_once_is_backed_off_from() {
        let acks = acks(&[&[10, 20]]);
        let count = |node, began_ms| {
            let faults = [
                at_node(0, 0, 10, 20),
                at_node(node, 0, began_ms, began_ms + 10),
            ];
            acks.gaps(&faults, 9000).len()
        };
        assert_eq!((count(0, 1020), count(0, 2020)), (1, 2));
        // Another node is not.
        assert_eq!(count(1, 1020), 2);
    }

    #[test]
    fn faults_that_meet_have_no_gap_of_their_own() {
        let acks = acks(&[&[10, 20]]);
        assert_eq!(
            acks.gaps(&[fault(0, 10, 1000), fault(0, 900, 2000)], 9000),
            []
        );
        // Nor one that leaves nobody healthy.
        assert_eq!(acks.gaps(&[fault(1, 10, 20)], 9000), []);
    }
}
