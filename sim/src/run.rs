//! A seed's run: a cluster forms, is in trouble, is healed, and must then be well in time.

use crate::checks::Violation;
use crate::client::{self, Clients};
use crate::cluster::Cluster;
use crate::executor::{Executor, Panicked};
use crate::node::Node;
use crate::plan::Plan;
use crate::{hook, nemesis};
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::world::{self, Fault};
use std::path::PathBuf;
use std::rc::Rc;

const SECOND: u64 = 1_000_000_000;
/// A cluster without faults forms within this.
const FORMS_NS: u64 = 30 * SECOND;
/// Once all is healed a write is acknowledged within this: a lease, an election timeout, and what a node needs to start and
/// to be connected with.
const HEALS_NS: u64 = 10 * SECOND;
/// All replicas are equal, and no client waits any more, within this. A client gives an answer up much sooner, but what it does may
/// need several.
const EQUAL_NS: u64 = 40 * SECOND;
/// Everything that was written is read, with nobody else there, within this.
const READ_NS: u64 = 40 * SECOND;

/// How a seed is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A fault that is planted in the code.
    pub planted: Option<Fault>,
    /// Prints events as they come.
    pub aloud: bool,
    /// Where trees are kept; the fastest place there is.
    pub dir: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The digest over everything that happened.
    pub digest: u64,
    /// The first promise that was not kept.
    pub violation: Option<Violation>,
    /// The end of the trace.
    pub tail: String,
    /// Nodes.
    pub nodes: usize,
    /// Virtual time, in nanoseconds.
    pub virtual_ns: u64,
    /// Steps of tasks.
    pub steps: u64,
    /// Clients' operations.
    pub operations: usize,
    /// Those that were answered.
    pub answered: usize,
    /// Faults.
    pub faults: u64,
    /// Elections that were won.
    pub elections: u64,
    /// Entries that were committed.
    pub committed: u64,
    /// Objects of whose operations nothing can be said, such as a key for which the search for an order was given up; and why.
    pub undecided: Vec<String>,
    /// From the end of the faults until a write was acknowledged, in nanoseconds.
    pub healed_ns: Option<u64>,
}

fn scratch(options: &Options) -> PathBuf {
    options.dir.clone().unwrap_or_else(|| {
        let memory = PathBuf::from("/dev/shm");
        if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        }
    })
}

/// Runs a seed.
///
/// # Panics
/// There is no room for the trees.
pub fn run(seed: u64, options: &Options) -> Report {
    hook::watch();
    let plan = Plan::of(seed);
    let dir = tempfile::Builder::new()
        .prefix("mareedb-sim-")
        .tempdir_in(scratch(options))
        .expect("room for the trees");
    let executor = Executor::new(seed, plan.nodes, options.planted);
    if options.aloud {
        executor.trace.aloud();
    }
    let entered = world::enter(executor.clone());
    let cluster = Cluster::new(seed, plan, executor.clone(), dir.path());
    let clients = Rc::new(Clients::default());
    let life = Life {
        seed,
        cluster: cluster.clone(),
        clients,
    };
    let mut healed_ns = None;
    if let Err(panicked) = life.live(&mut healed_ns) {
        let who = panicked.process.map_or_else(
            || "the simulation".to_owned(),
            |process| process.to_string(),
        );
        cluster.violated("PANIC", format!("{who}: {}", panicked.message));
    }
    let undecided = if cluster.violation().is_none() {
        crate::judge::judge(&cluster)
    } else {
        Vec::new()
    };
    let report = {
        let history = cluster.history.borrow();
        let checks = cluster.checks.borrow();
        Report {
            seed,
            digest: executor.trace.digest(),
            violation: checks.violation().cloned(),
            tail: executor.trace.tail(usize::MAX),
            nodes: cluster.nodes.len(),
            virtual_ns: executor.now_ns(),
            steps: executor.steps(),
            operations: history.len(),
            answered: history.iter().filter(|one| one.end_ns.is_some()).count(),
            faults: cluster.faults.get(),
            elections: checks.elections,
            committed: checks.committed,
            undecided,
            healed_ns,
        }
    };
    drop(life);
    executor.clear();
    for node in &cluster.nodes {
        node.shard.borrow_mut().take();
    }
    drop(cluster);
    drop(entered);
    report
}

struct Life {
    seed: u64,
    cluster: Rc<Cluster>,
    clients: Rc<Clients>,
}

impl Life {
    fn broken(&self) -> bool {
        self.cluster.checks.borrow().violation().is_some()
    }

    fn live(&self, healed_ns: &mut Option<u64>) -> Result<(), Panicked> {
        let (cluster, world) = (&self.cluster, &self.cluster.world);
        for number in 0..cluster.nodes.len() {
            cluster.power_on(number);
        }
        world.run(FORMS_NS, &|| self.broken() || self.formed())?;
        if !self.formed() && !self.broken() {
            cluster.violated("LIVE", "the cluster does not form".into());
        }
        if self.broken() {
            return Ok(());
        }
        for number in 0..cluster.plan.clients {
            let body = client::run(cluster.clone(), self.clients.clone(), self.seed, number);
            world.spawn(None, body);
        }
        let body = nemesis::run(cluster.clone(), self.clients.clone(), self.seed);
        world.spawn(None, body);
        world.run(cluster.plan.faulty_s * SECOND, &|| self.broken())?;
        if self.broken() {
            return Ok(());
        }
        nemesis::heal(cluster);
        let from = world.now_ns();
        let body = client::probe(cluster.clone(), self.clients.clone(), self.seed);
        world.spawn(None, body);
        world.run(HEALS_NS, &|| {
            self.broken() || self.clients.probed_ns.get().is_some()
        })?;
        if self.broken() {
            return Ok(());
        }
        let Some(probed) = self.clients.probed_ns.get() else {
            let what = format!("nobody can write {} s after the faults", HEALS_NS / SECOND);
            cluster.violated("LIVE", what);
            return Ok(());
        };
        *healed_ns = Some(probed - from);
        self.clients.over.set(true);
        world.run(EQUAL_NS, &|| {
            self.broken() || (self.clients.busy.get() == 0 && self.equal())
        })?;
        if self.broken() {
            return Ok(());
        }
        if !self.equal() {
            let what = format!("replicas are not equal: {:?}", self.states());
            cluster.violated("LIVE", what);
            return Ok(());
        }
        let busy = self.clients.busy.get();
        if busy > 0 {
            let what = format!(
                "{busy} clients wait {} s after the faults",
                EQUAL_NS / SECOND
            );
            cluster.violated("LIVE", what);
            return Ok(());
        }
        self.look_at_all()
    }

    /// Reads whatever was written, and counts what is in the trees.
    fn look_at_all(&self) -> Result<(), Panicked> {
        let (cluster, world) = (&self.cluster, &self.cluster.world);
        let body = client::last(cluster.clone(), self.clients.clone(), self.seed);
        world.spawn(None, body);
        world.run(READ_NS, &|| self.broken() || self.clients.read.get())?;
        if !self.broken() && !self.clients.read.get() {
            let what = "what was written cannot be read though nothing is wrong".to_owned();
            cluster.violated("LIVE", what);
        }
        for node in self.hopeful() {
            let Some(shard) = node.shard.borrow().clone() else {
                continue;
            };
            let shard = shard.borrow();
            for (group, ..) in shard.store().replicas() {
                if let Err(error) = shard.store().recount(group) {
                    let what = format!("{group}: the tree of node{}: {error}", node.number + 1);
                    cluster.violated("DET-1", what);
                }
            }
        }
        Ok(())
    }

    /// Nodes that have a future.
    fn hopeful(&self) -> impl Iterator<Item = &Node> {
        let nodes = self.cluster.nodes.iter();
        nodes.filter(|node| !node.lost.get() && !node.broken.get())
    }

    fn formed(&self) -> bool {
        self.cluster.nodes.iter().all(|node| {
            let gate = node.gate.borrow();
            gate.view.as_ref().is_some_and(|view| view.ready)
        })
    }

    /// What each node that has a future has applied, by group.
    fn states(&self) -> Vec<Vec<(GroupId, u64, String)>> {
        self.hopeful()
            .map(|node| {
                let shard = node.shard.borrow().clone();
                let Some(shard) = shard else {
                    return Vec::new();
                };
                let shard = shard.borrow();
                let groups = shard.store().replicas().into_iter();
                groups
                    .filter_map(|(group, ..)| {
                        let (index, digest) = shard.store().digest(group)?;
                        Some((group, index, digest))
                    })
                    .collect()
            })
            .collect()
    }

    fn equal(&self) -> bool {
        let states = self.states();
        states
            .iter()
            .all(|state| !state.is_empty() && *state == states[0])
    }
}
