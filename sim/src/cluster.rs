//! The whole cluster: nodes, network, clocks, and what is known of them.

use crate::checks::{Checks, Violation};
use crate::executor::{Executor, Process};
use crate::gateway::{broken, carry};
use crate::network::{Network, Way};
use crate::node::Node;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::{consensus, gateway, nemesis, storage};
use bytes::Bytes;
use mareedb_consensusd::host::Host;
use mareedb_consensusd::raft::position;
use mareedb_history::Operation;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::ReplicaId;
use mareedb_ipc::{ExitCode, Inheritance, Role};
use mareedb_storaged::shard::Ended;
use mareedb_storaged::shard::simulated::SimShard;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

/// A cluster of a seed.
pub struct Cluster {
    /// Tasks and time.
    pub world: Rc<Executor>,
    /// What the seed says.
    pub plan: Plan,
    /// The network.
    pub network: RefCell<Network>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// What must hold.
    pub checks: RefCell<Checks>,
    /// What clients did.
    pub history: RefCell<Vec<Operation>>,
    /// Faults that took place so far.
    pub faults: Cell<u64>,
    /// The next election is waited for.
    pub ambush: Cell<bool>,
    /// The node whose storaged dies while its replicas start.
    pub startled: Cell<Option<usize>>,
    rng: RefCell<Rng>,
}

impl Cluster {
    /// A cluster that does not run yet; its trees are in `dir`.
    pub fn new(seed: u64, plan: Plan, world: Rc<Executor>, dir: &Path) -> Rc<Cluster> {
        let nodes = (0..plan.nodes)
            .map(|number| {
                Node::new(
                    number,
                    seed,
                    &plan,
                    &dir.join(format!("node{}", number + 1)),
                )
            })
            .collect();
        for (node, ppm) in plan.drift_ppm.iter().enumerate() {
            world.set_drift(node, *ppm);
        }
        Rc::new(Cluster {
            world,
            network: RefCell::new(Network::new(seed, plan.delay_us * 1_000)),
            nodes,
            checks: RefCell::default(),
            history: RefCell::default(),
            faults: Cell::new(0),
            ambush: Cell::new(false),
            startled: Cell::new(None),
            rng: RefCell::new(Rng::new(seed, 4)),
            plan,
        })
    }

    /// A promise was not kept.
    pub fn violated(&self, id: &'static str, what: String) {
        self.world.note(|| format!("{id}: {what}"));
        self.checks.borrow_mut().violated(id, what);
    }

    /// The first promise that was not kept.
    pub fn violation(&self) -> Option<Violation> {
        self.checks.borrow().violation().cloned()
    }

    /// A fault took place.
    pub fn struck(&self) {
        self.faults.set(self.faults.get() + 1);
    }

    /// The node at an address.
    pub fn at(&self, addr: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.addr == addr)
    }

    /// How long a durable write takes, in nanoseconds.
    pub fn write_ns(&self) -> u64 {
        20_000 + self.rng.borrow_mut().around(self.plan.write_us * 1_000)
    }

    /// How long a piece of work of a thread takes, in nanoseconds.
    pub fn work_ns(&self) -> u64 {
        5_000 + self.rng.borrow_mut().around(50_000)
    }

    /// How long a supervisor takes to restart a daemon, in nanoseconds.
    fn restart_ns(&self) -> u64 {
        5_000_000 + self.rng.borrow_mut().around(20_000_000)
    }

    /// What a daemon is given at its start.
    ///
    /// # Panics
    /// The supervisor is dead, or a ring is corrupt.
    pub fn attach(&self, node: usize, role: Role) -> Inheritance {
        let memory = self.nodes[node].memory.borrow();
        let memory = memory.as_ref().expect("the supervisor lives");
        NodeInProcess::attach(memory, role)
    }

    /// Starts a daemon.
    pub fn start(self: &Rc<Self>, number: usize, role: Role) {
        let node = &self.nodes[number];
        if node.daemon(role).is_some() || !node.is_up() {
            return;
        }
        let process = node.born(role);
        if role == Role::Storage {
            node.storage_since.set(self.world.now_ns());
        }
        self.world.begin(process);
        let cluster = self.clone();
        let body: std::pin::Pin<Box<dyn Future<Output = ()>>> = match role {
            Role::Consensus => Box::pin(consensus::run(cluster, number)),
            Role::Storage => Box::pin(storage::run(cluster, process)),
            _ => Box::pin(gateway::run(cluster, number)),
        };
        self.world.spawn(Some(process), body);
    }

    /// Starts a supervisor, which starts its daemons.
    pub fn power_on(self: &Rc<Self>, number: usize) {
        let node = &self.nodes[number];
        if node.is_up() || node.lost.get() {
            return;
        }
        node.power_on();
        self.world.note(|| format!("node{} starts", number + 1));
        for role in Role::DAEMONS {
            self.start(number, role);
        }
    }

    /// Kills a daemon, which is not restarted. `false`: it did not live.
    pub fn kill(self: &Rc<Self>, number: usize, role: Role) -> bool {
        let node = &self.nodes[number];
        let Some(process) = node.daemons.borrow_mut().remove(&role) else {
            return false;
        };
        self.world.kill(process);
        match role {
            Role::Storage => {
                *node.shard.borrow_mut() = None;
                // Of what was in flight any part has landed.
                node.disk.with(|disk| disk.crash());
                self.checks.borrow_mut().forgot(number);
            }
            Role::Gateway => {
                *node.gate.borrow_mut() = gateway::Gate::default();
                self.connections_end(number);
            }
            _ => {}
        }
        true
    }

    /// All connections of a node's gatewayd end. The other ends learn it, unless the machine has stopped or the way is cut:
    /// then they find it out.
    fn connections_end(self: &Rc<Self>, number: usize) {
        let ways = |from: bool| {
            let of = |way: &Way| number == if from { way.from } else { way.to };
            self.network.borrow().ways(of)
        };
        for way in ways(true) {
            self.network.borrow_mut().disconnect(way);
        }
        for way in ways(false) {
            let (connection, ns) = {
                let network = &mut *self.network.borrow_mut();
                let told = self.nodes[number].machine.get() && network.whole(way.from, way.to);
                let delay = network.delay(way.to, way.from);
                let connection = network.connection(way).map(|open| open.number);
                (connection, if told { delay } else { 1_500_000_000 })
            };
            self.break_later(way, connection, ns);
        }
    }

    /// Breaks a connection after so long, if it still is that one.
    pub fn break_later(self: &Rc<Self>, way: Way, connection: Option<u64>, ns: u64) {
        let Some(connection) = connection else { return };
        let cluster = self.clone();
        self.world.after(ns, move || {
            let still = cluster
                .network
                .borrow_mut()
                .connection(way)
                .is_some_and(|open| open.number == connection);
            if still {
                broken(&cluster, way);
            }
        });
    }

    /// Kills a daemon, and has its supervisor restart it. `false`: it did not live.
    pub fn kill_and_restart(self: &Rc<Self>, number: usize, role: Role) -> bool {
        let lived = self.kill(number, role);
        if lived {
            self.restart_later(number, role);
        }
        lived
    }

    /// Has the supervisor restart a daemon.
    pub fn restart_later(self: &Rc<Self>, number: usize, role: Role) {
        self.restart_after(number, role, 0);
    }

    /// Has the supervisor restart a daemon after a pause, in nanoseconds.
    fn restart_after(self: &Rc<Self>, number: usize, role: Role, pause_ns: u64) {
        let cluster = self.clone();
        let start = self.supervisor(number);
        self.world.after(self.restart_ns() + pause_ns, move || {
            // Only the supervisor that saw it die.
            if cluster.supervisor(number) == start {
                cluster.start(number, role);
            }
        });
    }

    fn supervisor(&self, number: usize) -> Option<mareedb_ipc::wire::RandomId> {
        let memory = self.nodes[number].memory.borrow();
        memory.as_ref().map(|memory| memory.memory().start())
    }

    /// Kills a whole node, its supervisor too: the rings are gone. `machine`: the machine stops as well. `false`: it was down.
    pub fn kill_node(self: &Rc<Self>, number: usize, machine: bool) -> bool {
        let lived = self.nodes[number].is_up();
        self.nodes[number].machine.set(!machine);
        for role in Role::DAEMONS {
            self.kill(number, role);
        }
        *self.nodes[number].memory.borrow_mut() = None;
        lived
    }

    /// Replaces the links between consensusd and storaged, and restarts both.
    pub fn renew_links(self: &Rc<Self>, number: usize) {
        for role in [Role::Consensus, Role::Storage] {
            self.kill(number, role);
        }
        if let Some(memory) = self.nodes[number].memory.borrow_mut().as_mut() {
            memory
                .renew_links(Role::Consensus, Role::Storage)
                .expect("memory for links");
        }
        for role in [Role::Consensus, Role::Storage] {
            self.restart_later(number, role);
        }
    }

    /// storaged has ended by itself.
    pub fn storage_ended(self: &Rc<Self>, process: Process, ended: &Ended) {
        let number = process.node;
        let node = &self.nodes[number];
        self.world
            .note(|| format!("storaged of node{} ends: {ended:?}", number + 1));
        let excused = match ended {
            Ended::Failed(ExitCode::Io, _) => node.full.get(),
            Ended::Failed(ExitCode::DiskFault, _) => node.broken.get(),
            Ended::Failed(ExitCode::LogDamaged | ExitCode::StateDamaged, _) => node.rotten.get(),
            _ => false,
        };
        if !excused {
            self.violated("ENDS", format!("storaged of node{}: {ended:?}", number + 1));
        }
        if storage::is_final(ended) {
            // The supervisor never restarts it by itself.
            node.lost.set(true);
            let cluster = self.clone();
            self.world.after(0, move || {
                cluster.kill_node(number, false);
            });
        } else {
            // As the supervisor does it: no pause for the first, then 50 ms that double up to 2 s, until one has lived for a second.
            let lived = self.world.now_ns() - node.storage_since.get();
            let brief = if lived < 1_000_000_000 {
                node.brief.get() + 1
            } else {
                0
            };
            node.brief.set(brief);
            let pause_ms = brief
                .checked_sub(2)
                .map_or(0, |n| (50u64 << n.min(6)).min(2_000));
            self.kill(number, Role::Storage);
            self.restart_after(number, Role::Storage, pause_ms * 1_000_000);
        }
    }

    /// Cuts directions.
    pub fn cut(self: &Rc<Self>, ways: Vec<(usize, usize)>) {
        let limits = self.network.borrow_mut().cut(ways);
        for (way, connection, patience) in limits {
            let cluster = self.clone();
            self.world.after(patience, move || {
                let network = &cluster.network;
                let same = network
                    .borrow_mut()
                    .connection(way)
                    .is_some_and(|open| open.number == connection);
                if same && !network.borrow().whole(way.from, way.to) {
                    broken(&cluster, way);
                }
            });
        }
    }

    /// Sends what a cut has held back.
    pub fn send_held(self: &Rc<Self>, held: Vec<(Way, Bytes)>) {
        for (way, frame) in held {
            carry(self, way, frame);
        }
    }

    /// Looks at what a host shows.
    pub fn observe_host(self: &Rc<Self>, number: usize, host: &Host) {
        for replica in host.replicas() {
            let metrics = replica.raft().metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state != ServerState::Leader {
                continue;
            }
            let last = replica.log().last().as_ref().map(position);
            let (group, term) = (replica.group(), metrics.current_term);
            let new = self
                .checks
                .borrow_mut()
                .leads(group, term, ReplicaId(metrics.id), last);
            if new {
                self.world
                    .note(|| format!("node{} leads {group} in term {term}", number + 1));
                if self.ambush.take() {
                    nemesis::spring(self, &mut self.rng.borrow_mut());
                }
            }
        }
    }

    /// Looks at what a shard shows.
    pub fn observe_storage(&self, number: usize, shard: &SimShard) {
        let checks = &mut *self.checks.borrow_mut();
        let log = shard.log();
        checks.log(number, &log, &self.nodes[number].disk);
        checks.applied(number, &log, shard.store());
    }
}
