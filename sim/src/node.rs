//! A node: its memory, its disk, and the lives of its daemons.

use crate::disk::LogDisk;
use crate::executor::Process;
use crate::gateway::Gate;
use crate::plan::{Plan, addr};
use mareedb_config::Config;
use mareedb_ipc::Role;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_storaged::shard::simulated::SimShard;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

/// A node.
pub struct Node {
    /// Its number, from 0.
    pub number: usize,
    /// Where it is dialled.
    pub addr: String,
    /// Its configuration.
    pub config: Config,
    json: String,
    plan: Plan,
    /// Links and boards; `None`: the supervisor is dead.
    pub memory: RefCell<Option<NodeInProcess>>,
    /// The log's disk.
    pub disk: LogDisk,
    /// Daemons that live.
    pub daemons: RefCell<BTreeMap<Role, Process>>,
    lives: RefCell<BTreeMap<Role, u32>>,
    /// What gatewayd knows.
    pub gate: RefCell<Gate>,
    /// The shard of the storaged that lives.
    pub shard: RefCell<Option<Rc<RefCell<SimShard>>>>,
    /// Whether the machine runs: one that does not, does not even refuse connections.
    pub machine: Cell<bool>,
    /// It will not come back.
    pub lost: Cell<bool>,
    /// A bit of its disk has rotted.
    pub rotten: Cell<bool>,
    /// Until when its disk makes nothing durable, in nanoseconds.
    pub stalled_until: Cell<u64>,
    /// Its disk is full.
    pub full: Cell<bool>,
    /// Its disk has failed.
    pub broken: Cell<bool>,
    /// How many lives in a row storaged has ended by itself soon after its start.
    pub brief: Cell<u32>,
    /// When the storaged that lives was started, in nanoseconds.
    pub storage_since: Cell<u64>,
}

impl Node {
    /// A node that does not run yet.
    pub fn new(number: usize, seed: u64, plan: &Plan, dir: &Path) -> Node {
        let config = plan.config(number, dir);
        Node {
            number,
            addr: addr(number),
            json: serde_json::to_string(&config).expect("a configuration is JSON"),
            config,
            plan: plan.clone(),
            memory: RefCell::new(None),
            disk: LogDisk::new(seed ^ (number as u64 + 1)),
            daemons: RefCell::default(),
            lives: RefCell::default(),
            gate: RefCell::default(),
            shard: RefCell::default(),
            machine: Cell::new(true),
            lost: Cell::new(false),
            rotten: Cell::new(false),
            stalled_until: Cell::new(0),
            full: Cell::new(false),
            broken: Cell::new(false),
            brief: Cell::new(0),
            storage_since: Cell::new(0),
        }
    }

    /// A supervisor starts: new memory.
    pub fn power_on(&self) {
        let memory = NodeInProcess::new(self.plan.topology(), &self.json);
        *self.memory.borrow_mut() = Some(memory);
        self.machine.set(true);
    }

    /// Whether the supervisor lives.
    pub fn is_up(&self) -> bool {
        self.memory.borrow().is_some()
    }

    /// The next life of a daemon.
    pub fn born(&self, role: Role) -> Process {
        let mut lives = self.lives.borrow_mut();
        let life = lives.entry(role).or_default();
        *life += 1;
        let process = Process {
            node: self.number,
            role,
            life: *life,
        };
        self.daemons.borrow_mut().insert(role, process);
        process
    }

    /// Its disk takes no more segments, or does again.
    pub fn fill(&self, full: bool) {
        self.full.set(full);
        self.disk.with(|disk| {
            let taken = disk.taken();
            disk.limit(full.then_some(taken));
        });
    }

    /// The daemon of a role, if it lives.
    pub fn daemon(&self, role: Role) -> Option<Process> {
        self.daemons.borrow().get(&role).copied()
    }
}
