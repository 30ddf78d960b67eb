//! Faults, one after the other and over each other, by the seed.
//!
//! Tolerance: disks are lost for good on less than half of the nodes; everything else comes back.

use crate::cluster::Cluster;
use crate::plan::Kind;
use crate::rng::Rng;
use crate::{client, gateway};
use mareedb_ipc::Role;
use mareedb_ipc::wire::gateway::{AdminRequest, ToConsensus};
use mareedb_ipc::world::Timer;
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

impl Nemesis {
    fn any(&mut self) -> usize {
        self.rng.index(self.cluster.nodes.len())
    }

    /// The node that leads the data group as most views have it, or any.
    fn leader(&mut self) -> usize {
        let named = self.cluster.nodes.iter().find_map(|node| {
            let gate = node.gate.borrow();
            let view = gate.view.as_ref()?;
            let led = view.groups.iter().any(|group| {
                group
                    .local
                    .as_ref()
                    .is_some_and(|local| local.role == "leader")
            });
            led.then_some(node.number)
        });
        named.unwrap_or_else(|| self.any())
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

    fn strike(&mut self, kind: Kind) {
        let node = self.victim();
        self.cluster
            .world
            .note(|| format!("fault: {kind:?} at node{}", node + 1));
        self.cluster.faults.set(self.cluster.faults.get() + 1);
        match kind {
            Kind::Daemon => {
                let role = self.role();
                self.kill(node, role);
            }
            Kind::Daemons => {
                let spared = self.rng.chance(500).then(|| self.role());
                for role in Role::DAEMONS {
                    if Some(role) == spared {
                        continue;
                    }
                    if self.rng.chance(500) {
                        self.kill(node, role);
                    } else {
                        let apart = self.rng.within(1..100);
                        self.later(apart, move |cluster| cluster.kill_and_restart(node, role));
                    }
                }
            }
            Kind::Node => self.kill_node(node),
            Kind::Nodes => {
                let all = self.rng.chance(500);
                for node in 0..self.cluster.nodes.len() {
                    if all || self.rng.chance(600) {
                        self.kill_node(node);
                    }
                }
            }
            Kind::Links => self.cluster.renew_links(node),
            Kind::Stop => self.stop(node),
            Kind::Slow => {
                let other = self.any();
                let by = self.rng.within(5..400) * MS;
                self.cluster.network.borrow_mut().slow(node, other, by);
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
                }
            }
            Kind::Halves | Kind::OneWay | Kind::Isolated => self.part(kind, node),
            Kind::Deposed => {
                let leader = self.leader();
                self.part(Kind::Isolated, leader);
                for other in (0..self.cluster.nodes.len()).filter(|other| *other != leader) {
                    self.kill(other, Role::Consensus);
                }
            }
            Kind::Ambush => self.cluster.ambush.set(true),
            Kind::Startled => {
                self.cluster.startled.set(Some(node));
                self.kill(node, Role::Consensus);
            }
            Kind::Flapping => self.flap(node),
            Kind::Stall => {
                let ms = self.rng.within(20..6_000);
                let until = self.cluster.world.now_ns() + ms * MS;
                self.cluster.nodes[node].stalled_until.set(until);
            }
            Kind::Clock => {
                let far = *self.rng.pick(&[200, 5_000, 400_000, 4_000_000]);
                let ahead = self.rng.below(2 * far).cast_signed() - far.cast_signed();
                self.cluster.world.set_wall(node, ahead);
            }
            Kind::Transfer => {
                // Nobody waits for the answer.
                drop(gateway::call(&self.cluster, node, |call| {
                    ToConsensus::Admin {
                        call,
                        request: AdminRequest::TransferLeadership { to: None },
                    }
                }));
            }
            Kind::Failure => {
                if self.may_lose(node) {
                    self.cluster.nodes[node].broken.set(true);
                }
            }
            Kind::Rot => {
                if self.may_lose(node) && self.cluster.nodes[node].is_up() {
                    self.cluster.kill_node(node, false);
                    let rotted = self.cluster.nodes[node].disk.rot(&mut self.rng);
                    self.cluster.nodes[node].rotten.set(rotted);
                    self.later(300, move |cluster| cluster.power_on(node));
                }
            }
            Kind::Full => {
                self.cluster.nodes[node].fill(true);
                self.later(8_000, move |cluster| cluster.nodes[node].fill(false));
            }
        }
    }

    /// Most of the time at once, sometimes in the middle of what comes next.
    fn kill(&mut self, node: usize, role: Role) {
        self.cluster
            .world
            .note(|| format!("{role} of node{} is killed", node + 1));
        self.cluster.kill_and_restart(node, role);
    }

    fn kill_node(&mut self, node: usize) {
        let machine = self.rng.chance(300);
        self.cluster.kill_node(node, machine);
        let mean = *self.rng.pick(&[50, 500, 3_000]);
        self.later(mean, move |cluster| cluster.power_on(node));
    }

    fn stop(&mut self, node: usize) {
        let all = self.rng.chance(300);
        for role in Role::DAEMONS {
            if !all && !self.rng.chance(400) {
                continue;
            }
            if let Some(process) = self.cluster.nodes[node].daemon(role) {
                self.cluster.world.stop(process);
                self.later(1_500, move |cluster| cluster.world.resume(process));
            }
        }
    }

    fn part(&mut self, kind: Kind, node: usize) {
        let count = self.cluster.nodes.len();
        let mut ways = Vec::new();
        match kind {
            Kind::OneWay => {
                let other = (node + 1 + self.rng.index(count - 1)) % count;
                ways.push((node, other));
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
        self.cut_for(ways, 3_000);
    }

    fn cut_for(&mut self, ways: Vec<(usize, usize)>, mean_ms: u64) {
        self.cluster.cut(ways.clone());
        self.later(mean_ms, move |cluster| {
            let held = cluster.network.borrow_mut().heal(ways);
            cluster.send_held(held);
        });
    }

    fn flap(&mut self, node: usize) {
        let count = self.cluster.nodes.len();
        for turn in 0..6 {
            let ways: Vec<(usize, usize)> = (0..count)
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
    for number in 0..cluster.nodes.len() {
        if rng.chance(800) {
            let die = rng.below(10 * MS);
            let back = die + rng.around(300 * MS) + MS;
            let (killer, healer) = (cluster.clone(), cluster.clone());
            cluster
                .world
                .after(die, move || killer.kill_node(number, false));
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
