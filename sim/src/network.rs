//! What lies between the nodes: a connection for each pair, direction and lane. In one connection frames keep their order;
//! between connections nothing does.
//!
//! A cut way delivers nothing and takes nothing back that was sent: like a real connection it holds what it was given, and
//! gives it when the way is whole again, or loses it when one end gives up.

use crate::rng::Rng;
use bytes::Bytes;
use mareedb_ipc::wire::peer::{DownReason, PeerHello};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// An end gives a silent connection up after so long, in nanoseconds; gatewayd's own limit.
const GIVE_UP_NS: u64 = 1_500_000_000;

/// A connection: who dialled, to whom, and whether for bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Who dialled.
    pub from: usize,
    /// Whom.
    pub to: usize,
    /// The bulk lane.
    pub bulk: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lane = if self.bulk { ", bulk" } else { "" };
        write!(f, "node{} -> node{}{lane}:", self.from + 1, self.to + 1)
    }
}

/// A connection that is up.
#[derive(Debug)]
pub struct Connection {
    /// Its number; a later one on the same way has another.
    pub number: u64,
    /// When what was sent last arrives.
    pub last_ns: u64,
    /// What a cut holds back.
    pub held: VecDeque<Bytes>,
    /// What the dialler said of itself.
    pub hello: Box<PeerHello>,
}

/// All ways.
pub struct Network {
    rng: Rng,
    cut: BTreeSet<(usize, usize)>,
    connections: BTreeMap<Way, Connection>,
    /// How often each way was cut: a limit that began before another cut is none.
    cuts: u64,
    numbers: u64,
    /// Mean of a frame's time on its way, in nanoseconds.
    pub delay_ns: u64,
    /// Ways that are slower by this.
    slow: BTreeMap<(usize, usize), u64>,
}

impl Network {
    /// A whole network.
    pub fn new(seed: u64, delay_ns: u64) -> Network {
        Network {
            rng: Rng::new(seed, 3),
            cut: BTreeSet::new(),
            connections: BTreeMap::new(),
            cuts: 0,
            numbers: 0,
            delay_ns,
            slow: BTreeMap::new(),
        }
    }

    /// Whether frames pass this way.
    pub fn passes(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Whether both directions pass.
    pub fn whole(&self, a: usize, b: usize) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }

    /// Cuts these directions. Gives how long the ends are patient with each connection that needs one of them, in
    /// nanoseconds.
    pub fn cut(&mut self, ways: impl IntoIterator<Item = (usize, usize)>) -> Vec<(Way, u64, u64)> {
        let ways: BTreeSet<(usize, usize)> = ways.into_iter().collect();
        self.cut.extend(&ways);
        self.cuts += 1;
        let needs = |way: &Way| {
            // Acknowledgements need the other direction.
            ways.contains(&(way.from, way.to)) || ways.contains(&(way.to, way.from))
        };
        let mut limits = Vec::new();
        for (way, connection) in &self.connections {
            if needs(way) {
                let patience = GIVE_UP_NS + self.rng.below(500_000_000);
                limits.push((*way, connection.number, patience));
            }
        }
        limits
    }

    /// Makes these directions whole. Gives what was held back, to be sent now.
    pub fn heal(&mut self, ways: impl IntoIterator<Item = (usize, usize)>) -> Vec<(Way, Bytes)> {
        for way in ways {
            self.cut.remove(&way);
        }
        let mut free = Vec::new();
        for (way, connection) in &mut self.connections {
            if !self.cut.contains(&(way.from, way.to)) {
                free.extend(connection.held.drain(..).map(|frame| (*way, frame)));
            }
        }
        free
    }

    /// Makes everything whole and fast.
    pub fn heal_all(&mut self) -> Vec<(Way, Bytes)> {
        self.slow.clear();
        let ways: Vec<(usize, usize)> = self.cut.iter().copied().collect();
        self.heal(ways)
    }

    /// Makes a direction slower by so much, in nanoseconds; 0: as fast as the others.
    pub fn slow(&mut self, from: usize, to: usize, by_ns: u64) {
        self.slow.insert((from, to), by_ns);
    }

    /// How long a frame is on its way.
    pub fn delay(&mut self, from: usize, to: usize) -> u64 {
        let slow = self.slow.get(&(from, to)).copied().unwrap_or(0);
        let slow = if slow == 0 { 0 } else { self.rng.around(slow) };
        20_000 + self.rng.around(self.delay_ns) + slow
    }

    /// A connection is made.
    pub fn connect(&mut self, way: Way, hello: Box<PeerHello>) {
        self.numbers += 1;
        let connection = Connection {
            number: self.numbers,
            last_ns: 0,
            held: VecDeque::new(),
            hello,
        };
        self.connections.insert(way, connection);
    }

    /// The connection on a way.
    pub fn connection(&mut self, way: Way) -> Option<&mut Connection> {
        self.connections.get_mut(&way)
    }

    /// A connection ends, and what was in it is lost. `false`: there is none.
    pub fn disconnect(&mut self, way: Way) -> bool {
        self.connections.remove(&way).is_some()
    }

    /// The connections that these hold.
    pub fn ways(&self, which: impl Fn(&Way) -> bool) -> Vec<Way> {
        self.connections
            .keys()
            .filter(|way| which(way))
            .copied()
            .collect()
    }
}

/// Why nobody answers when a node is dialled.
pub fn why_down(node_up: bool, machine_up: bool, whole: bool) -> Option<DownReason> {
    if !whole || !machine_up {
        Some(DownReason::Unreachable)
    } else if !node_up {
        Some(DownReason::Refused)
    } else {
        None
    }
}
