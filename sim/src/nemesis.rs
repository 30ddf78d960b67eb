//! Faults, one after the other and over each other, by the seed.
//!
//! Tolerance: disks are lost for good on less than half of the nodes; everything else comes back.

use crate::cluster::Cluster;
use crate::plan::Kind;
use crate::rng::Rng;
use crate::{client, gateway};
use mareedb_ipc::Role;
use mareedb_ipc::wire::FIRST_DATA_GROUP;
use mareedb_ipc::wire::gateway::{AdminRequest, FromConsensus, ToConsensus};
use mareedb_ipc::world::Timer;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const MS: u64 = 1_000_000;

/// Makes trouble until its time is over.
pub async fn run(cluster: Rc<Cluster>, _clients: Rc<client::Clients>, seed: u64) {
    let mut nemesis = Nemesis {
        rng: Rng::new(seed, 5),
        cluster,
    };
    if nemesis.cluster.plan.calm {
        return;
    }
    let end = nemesis.cluster.world.now_ns() + nemesis.cluster.plan.faulty_s * 1_000 * MS;
    loop {
        let gap = nemesis.rng.around(nemesis.cluster.plan.gap_ms * MS);
        Timer::after(Duration::from_nanos(gap)).await;
        if nemesis.cluster.world.now_ns() > end {
            return;
        }
        let kinds = nemesis.cluster.plan.kinds.clone();
        let kind = *nemesis.rng.pick(&kinds);
        nemesis.strike(kind);
    }
}

struct Nemesis {
    cluster: Rc<Cluster>,
    rng: Rng,
}

/// Counts a fault once, however many parts of it take place and whenever they do.
#[derive(Clone)]
struct Count {
    cluster: Rc<Cluster>,
    counted: Rc<Cell<bool>>,
}

impl Count {
    fn new(cluster: &Rc<Cluster>) -> Count {
        Count {
            cluster: cluster.clone(),
            counted: Rc::default(),
        }
    }

    /// A part of it took place, or did not.
    fn one(&self, took_place: bool) {
        if took_place && !self.counted.replace(true) {
            self.cluster.struck();
        }
    }
}

impl Nemesis {
    fn any(&mut self) -> usize {
        self.rng.index(self.cluster.nodes.len())
    }

    /// The node that leads the data group as most views have it, or any.
    fn leader(&mut self) -> usize {
        let mut named = vec![0; self.cluster.nodes.len()];
        for node in &self.cluster.nodes {
            let gate = node.gate.borrow();
            let groups = gate.view.iter().flat_map(|view| &view.groups);
            for group in groups.filter(|group| group.id == FIRST_DATA_GROUP) {
                // Nodes are numbered in the order of their names.
                let leader = group.leader.and_then(|leader| leader.0.checked_sub(1));
                let leader = leader.and_then(|leader| usize::try_from(leader).ok());
                if let Some(votes) = leader.and_then(|leader| named.get_mut(leader)) {
                    *votes += 1;
                }
            }
        }
        let most = named.iter().copied().max().unwrap_or(0);
        match named.iter().position(|votes| *votes == most && most > 0) {
            Some(leader) => leader,
            None => self.any(),
        }
    }

    fn other(&mut self, node: usize) -> usize {
        let count = self.cluster.nodes.len();
        (node + 1 + self.rng.index(count - 1)) % count
    }

    /// A leader is worth more trouble than the others.
    fn victim(&mut self) -> usize {
        if self.rng.chance(500) {
            self.leader()
        } else {
            self.any()
        }
    }

    fn role(&mut self) -> Role {
        *self.rng.pick(&Role::DAEMONS)
    }

    fn later(&mut self, mean_ms: u64, act: impl FnOnce(&Rc<Cluster>) + 'static) {
        let ns = self.rng.around(mean_ms * MS) + MS;
        let cluster = self.cluster.clone();
        self.cluster.world.after(ns, move || act(&cluster));
    }

    /// Draws what a fault is like, and makes it. It is counted once, when some of it takes place.
    fn strike(&mut self, kind: Kind) {
        let node = self.victim();
        self.cluster
            .world
            .note(|| format!("fault: {kind:?} at node{}", node + 1));
        let count = Count::new(&self.cluster);
        match kind {
            Kind::Daemon => {
                let role = self.role();
                count.one(self.kill(node, role));
            }
            Kind::Daemons => self.kill_daemons(node, &count),
            Kind::Node => count.one(self.kill_node(node)),
            Kind::Nodes => {
                let all = self.rng.chance(500);
                for node in 0..self.cluster.nodes.len() {
                    if all || self.rng.chance(600) {
                        count.one(self.kill_node(node));
                    }
                }
            }
            Kind::Links => {
                count.one(self.cluster.nodes[node].is_up());
                self.cluster.renew_links(node);
            }
            Kind::Stop => self.stop(node, &count),
            Kind::Halves
            | Kind::OneWay
            | Kind::Isolated
            | Kind::Flapping
            | Kind::Slow
            | Kind::Reset => {
                self.disturb(kind, node, &count);
            }
            Kind::Deposed => {
                let leader = self.leader();
                count.one(self.part(Kind::Isolated, leader));
                for other in (0..self.cluster.nodes.len()).filter(|other| *other != leader) {
                    count.one(self.kill(other, Role::Consensus));
                }
            }
            // Counted when it is sprung.
            Kind::Ambush => self.cluster.ambush.set(true),
            Kind::Startled => {
                self.cluster.startled.set(Some(node));
                count.one(self.kill(node, Role::Consensus));
            }
            Kind::Clock => {
                let far = *self.rng.pick(&[200, 5_000, 400_000, 4_000_000]);
                let ahead = self.rng.below(2 * far).cast_signed() - far.cast_signed();
                self.cluster.world.set_wall(node, ahead);
                count.one(!self.cluster.nodes[node].lost.get());
            }
            Kind::Transfer => self.transfer(node, count),
            Kind::Stall | Kind::Failure | Kind::Rot | Kind::Full => {
                count.one(self.spoil(kind, node));
            }
        }
    }

    fn kill_daemons(&mut self, node: usize, count: &Count) {
        let spared = self.rng.chance(500).then(|| self.role());
        for role in Role::DAEMONS {
            if Some(role) == spared {
                continue;
            }
            if self.rng.chance(500) {
                count.one(self.kill(node, role));
            } else {
                let apart = self.rng.within(1..100);
                let count = count.clone();
                self.later(apart, move |cluster| {
                    count.one(cluster.kill_and_restart(node, role));
                });
            }
        }
    }

    /// Something about the network.
    fn disturb(&mut self, kind: Kind, node: usize, count: &Count) {
        match kind {
            Kind::Flapping => self.flap(node, count),
            Kind::Slow => {
                let other = self.other(node);
                let by = self.rng.within(5..400) * MS;
                self.cluster.network.borrow_mut().slow(node, other, by);
                count.one(true);
                self.later(5_000, move |cluster| {
                    cluster.network.borrow_mut().slow(node, other, 0);
                });
            }
            Kind::Reset => {
                let ways = self
                    .cluster
                    .network
                    .borrow()
                    .ways(|way| way.from == node || way.to == node);
                for way in ways {
                    gateway::broken(&self.cluster, way);
                    count.one(true);
                }
            }
            parted => count.one(self.part(parted, node)),
        }
    }

    /// Something about a disk. `true`: it took place.
    fn spoil(&mut self, kind: Kind, number: usize) -> bool {
        let cluster = self.cluster.clone();
        let node = &cluster.nodes[number];
        let bears = self.may_lose(number);
        match kind {
            Kind::Stall => {
                let ms = self.rng.within(20..6_000);
                node.stalled_until.set(cluster.world.now_ns() + ms * MS);
                !node.lost.get() && !node.broken.get()
            }
            Kind::Failure => bears && !node.lost.get() && !node.broken.replace(true),
            Kind::Rot if bears && node.is_up() => {
                cluster.kill_node(number, false);
                let rotted = node.disk.rot(&mut self.rng);
                node.rotten.set(rotted);
                self.later(300, move |cluster| cluster.power_on(number));
                rotted
            }
            Kind::Rot => false,
            _ => {
                let taken = !node.lost.get() && !node.full.get();
                node.fill(true);
                self.later(8_000, move |cluster| cluster.nodes[number].fill(false));
                taken
            }
        }
    }

    /// Leadership is handed over, if the node has it and there is somebody to take it.
    fn transfer(&mut self, node: usize, count: Count) {
        let asked = gateway::call(&self.cluster, node, |call| ToConsensus::Admin {
            call,
            request: AdminRequest::TransferLeadership { to: None },
        });
        if let Some(answer) = asked {
            self.cluster.world.spawn(None, async move {
                let told = answer.await;
                count.one(matches!(
                    told,
                    Ok(FromConsensus::Admin { result: Ok(_), .. })
                ));
            });
        }
    }

    /// Kills a daemon at once; its supervisor restarts it. `false`: it did not live.
    fn kill(&mut self, node: usize, role: Role) -> bool {
        self.cluster
            .world
            .note(|| format!("{role} of node{} is killed", node + 1));
        self.cluster.kill_and_restart(node, role)
    }

    fn kill_node(&mut self, node: usize) -> bool {
        let machine = self.rng.chance(300);
        let lived = self.cluster.kill_node(node, machine);
        let mean = *self.rng.pick(&[50, 500, 3_000]);
        self.later(mean, move |cluster| cluster.power_on(node));
        lived
    }

    fn stop(&mut self, node: usize, count: &Count) {
        let all = self.rng.chance(300);
        for role in Role::DAEMONS {
            if !all && !self.rng.chance(400) {
                continue;
            }
            if let Some(process) = self.cluster.nodes[node].daemon(role) {
                self.cluster.world.stop(process);
                count.one(true);
                self.later(1_500, move |cluster| cluster.world.resume(process));
            }
        }
    }

    /// `false`: nothing was cut that was whole.
    fn part(&mut self, kind: Kind, node: usize) -> bool {
        let count = self.cluster.nodes.len();
        let mut ways = Vec::new();
        match kind {
            Kind::OneWay => {
                ways.push((node, self.other(node)));
            }
            Kind::Isolated => {
                let leader = self.leader();
                let both = self.rng.chance(700);
                for other in (0..count).filter(|other| *other != leader) {
                    ways.push((leader, other));
                    if both {
                        ways.push((other, leader));
                    }
                }
            }
            _ => {
                let here: Vec<bool> = (0..count).map(|_| self.rng.chance(500)).collect();
                for from in 0..count {
                    for to in 0..count {
                        if here[from] != here[to] {
                            ways.push((from, to));
                        }
                    }
                }
            }
        }
        let network = self.cluster.network.borrow();
        let cuts = ways.iter().any(|(from, to)| network.passes(*from, *to));
        drop(network);
        self.cut_for(ways, 3_000);
        cuts
    }

    fn cut_for(&mut self, ways: Vec<(usize, usize)>, mean_ms: u64) {
        self.cluster.cut(ways.clone());
        self.later(mean_ms, move |cluster| {
            let held = cluster.network.borrow_mut().heal(ways);
            cluster.send_held(held);
        });
    }

    fn flap(&mut self, node: usize, count: &Count) {
        count.one(true);
        let nodes = self.cluster.nodes.len();
        for turn in 0..6 {
            let ways: Vec<(usize, usize)> = (0..nodes)
                .filter(|other| *other != node)
                .flat_map(|other| [(node, other), (other, node)])
                .collect();
            let (cut, healed) = (ways.clone(), ways);
            let at = turn * 700 * MS;
            let cluster = self.cluster.clone();
            self.cluster.world.after(at, move || cluster.cut(cut));
            let cluster = self.cluster.clone();
            let until = at + self.rng.within(50..600) * MS;
            self.cluster.world.after(until, move || {
                let held = cluster.network.borrow_mut().heal(healed);
                cluster.send_held(held);
            });
        }
    }

    /// Whether the cluster bears the loss of this node's disk.
    fn may_lose(&self, node: usize) -> bool {
        let doubtful =
            |node: &crate::node::Node| node.lost.get() || node.broken.get() || node.rotten.get();
        let lost = self
            .cluster
            .nodes
            .iter()
            .filter(|node| doubtful(node))
            .count();
        let bears = (self.cluster.nodes.len() - 1) / 2;
        doubtful(&self.cluster.nodes[node]) || lost < bears
    }
}

/// Somebody was elected while it was waited for: most nodes die before much of it is durable.
pub fn spring(cluster: &Rc<Cluster>, rng: &mut Rng) {
    cluster.world.note(|| "the ambush is sprung".into());
    let count = Count::new(cluster);
    for number in 0..cluster.nodes.len() {
        if rng.chance(800) {
            let die = rng.below(10 * MS);
            let back = die + rng.around(300 * MS) + MS;
            let (killer, healer, count) = (cluster.clone(), cluster.clone(), count.clone());
            cluster
                .world
                .after(die, move || count.one(killer.kill_node(number, false)));
            cluster.world.after(back, move || healer.power_on(number));
        }
    }
}

/// Ends all faults; what can come back does.
pub fn heal(cluster: &Rc<Cluster>) {
    cluster.ambush.set(false);
    cluster.startled.set(None);
    cluster.world.note(|| "all is healed".into());
    let held = cluster.network.borrow_mut().heal_all();
    cluster.send_held(held);
    for node in &cluster.nodes {
        for role in Role::DAEMONS {
            if let Some(process) = node.daemon(role) {
                cluster.world.resume(process);
            }
        }
        node.stalled_until.set(0);
        node.fill(false);
        if node.broken.get() && !node.lost.get() {
            // It is as good as lost: it ends with its next write.
            continue;
        }
        cluster.power_on(node.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Executor;
    use crate::plan::Plan;
    use mareedb_ipc::world;

    /// Faults that are counted when these strike a cluster of which no node was ever started.
    fn counted(kinds: &[Kind]) -> u64 {
        let plan = Plan::of(1);
        let world = Executor::new(1, plan.nodes, None);
        let _entered = world::enter(world.clone());
        let dir = tempfile::tempdir().expect("a directory");
        let mut nemesis = Nemesis {
            cluster: Cluster::new(1, plan, world, dir.path()),
            rng: Rng::new(1, 5),
        };
        for kind in kinds {
            nemesis.strike(*kind);
        }
        nemesis.cluster.faults.get()
    }

    #[test]
    fn only_what_takes_place_is_counted_and_once() {
        let at_nobody = [
            Kind::Daemon,
            Kind::Daemons,
            Kind::Node,
            Kind::Nodes,
            Kind::Links,
            Kind::Stop,
            Kind::Reset,
            Kind::Ambush,
            Kind::Startled,
            Kind::Transfer,
            Kind::Rot,
        ];
        assert_eq!(counted(&at_nobody), 0);
        assert_eq!(counted(&[Kind::Clock]), 1);
        assert_eq!(counted(&[Kind::Flapping]), 1);
        assert_eq!(counted(&[Kind::Isolated]), 1);
        // A disk fails once, and those of most nodes do not.
        assert!(counted(&[Kind::Failure; 50]) <= 2);
    }
}
