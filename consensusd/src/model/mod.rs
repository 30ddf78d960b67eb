//! A cluster in one process, over real rings: consensusd itself, and models of what it talks to.
//!
//! Each consensusd is a thread with a runtime of its own; killing it drops the runtime. What it sent is in the rings, what it
//! knew is gone. Time is the machine's: nothing here measures it, but elections take it.

mod hazards;
mod network;
mod scenarios;
mod storage;

use crate::planted::Fault;
use mareedb_config::Config;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::command::{Command, Op, SessionRef, Txn, encode_command};
use mareedb_ipc::wire::gateway::{AdminRequest, ConsensusError, FromConsensus, ToConsensus};
use mareedb_ipc::wire::view::{ClusterView, GroupView};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, GroupId, RandomId};
use mareedb_ipc::{Gauge, Inheritance, RingSizes, Role, Topology};
use network::Network;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use storage::{Disk, Storage};

/// A generous bound: a loaded machine is slow, a hang is for ever.
pub const PATIENCE: Duration = Duration::from_secs(40);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no poison")
}

thread_local! {
    static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Whether a fault is planted in the consensusd that this thread runs.
pub fn planted(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// A running consensusd.
struct Daemon {
    kill: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(inheritance: Inheritance, planted: Option<Fault>) -> Daemon {
        let (kill, killed) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            PLANTED.set(planted);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async move {
                tokio::select! {
                    biased;
                    _ = killed => {}
                    ended = crate::serve(inheritance) => {
                        panic!("consensusd has ended: {:?}", ended.err().map(|ended| ended.to_string()))
                    }
                }
            });
            // Nothing waits for its tasks.
            runtime.shutdown_background();
        });
        Daemon {
            kill: Some(kill),
            thread: Some(thread),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.kill.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("consensusd did not panic");
            }
        }
    }
}

struct Node {
    memory: NodeInProcess,
    disk: Arc<Disk>,
    storage: Option<Storage>,
    daemon: Option<Daemon>,
}

/// Three nodes.
pub struct Cluster {
    nodes: Vec<Node>,
    network: Network,
    planted: Option<Fault>,
    sequence: u64,
}

/// Elections of a cluster under test.
pub struct Timing {
    /// Heartbeats.
    pub heartbeat_ms: u64,
    /// Shortest election timeout.
    pub min_ms: u64,
    /// Longest election timeout and lease.
    pub max_ms: u64,
}

/// Elections as configured by default.
pub const DEFAULT: Timing = Timing {
    heartbeat_ms: 100,
    min_ms: 500,
    max_ms: 1000,
};

fn config(node: usize, timing: &Timing, change: &impl Fn(&mut Config)) -> Config {
    let host = |node: usize| format!("127.0.0.{}", node + 1);
    let mut config = Config::default();
    config.server.advertise_addr = Some(host(node));
    config.cluster.enabled = true;
    config.cluster.node_id = Some(format!("node{}", node + 1));
    config.cluster.peers = (0..3).map(|peer| format!("{}:7001", host(peer))).collect();
    config.cluster.heartbeat_ms = timing.heartbeat_ms;
    config.cluster.election_timeout_min_ms = timing.min_ms;
    config.cluster.election_timeout_max_ms = timing.max_ms;
    change(&mut config);
    config
}

impl Cluster {
    /// Three nodes that have formed a cluster.
    pub fn form(timing: &Timing, planted: Option<Fault>) -> Cluster {
        Cluster::form_with(timing, planted, |_| {})
    }

    /// The same with other settings.
    pub fn form_with(
        timing: &Timing,
        planted: Option<Fault>,
        change: impl Fn(&mut Config),
    ) -> Cluster {
        Cluster::form_over(timing, planted, change, [1 << 20; 3])
    }

    /// The same over rings of these sizes.
    pub fn form_over(
        timing: &Timing,
        planted: Option<Fault>,
        change: impl Fn(&mut Config),
        rings: [u64; 3],
    ) -> Cluster {
        let mut nodes = Vec::new();
        let mut ports = Vec::new();
        for (number, ring) in rings.into_iter().enumerate() {
            let topology = Topology {
                shards: 1,
                readers: 1,
                sizes: RingSizes::each(ring),
            };
            let config = config(number, timing, &change);
            let json = serde_json::to_string(&config).expect("configuration");
            let memory = NodeInProcess::new(topology, &json);
            ports.push((
                format!("127.0.0.{}:7001", number + 1),
                memory.attach(Role::Gateway),
            ));
            nodes.push(Node {
                memory,
                disk: Arc::new(Disk::default()),
                storage: None,
                daemon: None,
            });
        }
        let mut cluster = Cluster {
            nodes,
            network: Network::start(ports),
            planted,
            sequence: 0,
        };
        for number in 0..3 {
            cluster.start_storage(number);
            cluster.start_consensus(number);
        }
        cluster.network.wait("the cluster forms", |views| {
            (views.len() == 3 && views.values().all(|view| view.ready)).then_some(())
        });
        cluster
    }

    /// Starts a node's storage over its disk.
    pub fn start_storage(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let inheritance = node.memory.attach(Role::Storage);
        node.storage = Some(Storage::start(inheritance, node.disk.clone()));
    }

    /// Starts a node's consensusd.
    pub fn start_consensus(&mut self, node: usize) {
        let planted = self.planted;
        let node = &mut self.nodes[node];
        let inheritance = node.memory.attach(Role::Consensus);
        node.daemon = Some(Daemon::start(inheritance, planted));
    }

    /// Kills a node's storage.
    pub fn kill_storage(&mut self, node: usize) {
        self.nodes[node].storage = None;
    }

    /// Kills a node's consensusd.
    pub fn kill_consensus(&mut self, node: usize) {
        self.nodes[node].daemon = None;
    }

    /// Replaces the links between a node's consensusd and storage; both are dead.
    pub fn renew_links(&mut self, node: usize) {
        self.nodes[node]
            .memory
            .renew_links(Role::Consensus, Role::Storage)
            .expect("memory for links");
    }

    /// From now on nothing becomes durable on this node, or all that waits does.
    pub fn pause_storage(&self, node: usize, paused: bool) {
        let storage = self.nodes[node].storage.as_ref().expect("it runs");
        storage.paused.store(paused, Ordering::SeqCst);
    }

    /// What the status board says of a node's storage.
    pub fn storage_ready(&self, node: usize, ready: bool) {
        let storage = self.nodes[node].storage.as_ref().expect("it runs");
        storage.board.set(Gauge::Ready, u64::from(ready));
    }

    /// The same of its disk.
    pub fn disk_stalls(&self, node: usize, stalls: bool) {
        let storage = self.nodes[node].storage.as_ref().expect("it runs");
        storage.board.set(Gauge::DiskStalled, u64::from(stalls));
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A node's disk.
    pub fn disk(&self, node: usize) -> &Disk {
        &self.nodes[node].disk
    }

    /// The node that leads the data group, in the view of itself and of another one.
    pub fn leader(&self) -> usize {
        self.network.wait("a leader", |views| {
            (0..3).find(|node| {
                let named = views
                    .values()
                    .filter(|view| {
                        let id = views[node].me.id;
                        data(view).is_some_and(|group| id.is_some() && group.leader == id)
                    })
                    .count();
                named >= 2 && leads(&views[node])
            })
        })
    }

    /// The node that leads all groups.
    pub fn leader_of_all(&self) -> usize {
        self.network.wait("one leader of all groups", |views| {
            let leads_all = |view: &ClusterView| {
                let me = view.me.id;
                me.is_some() && leads(view) && view.groups.iter().all(|group| group.leader == me)
            };
            let leading = views.iter().find(|(_, view)| leads_all(view));
            leading.map(|(node, _)| *node)
        })
    }

    /// The term of the data group at a node.
    pub fn term(&self, node: usize) -> u64 {
        self.disk(node)
            .look(|content| {
                content.groups[&FIRST_DATA_GROUP]
                    .vote
                    .map(|(vote, _)| vote.term)
            })
            .expect("a vote")
    }

    fn propose(
        &mut self,
        node: usize,
        key: &str,
        value: &str,
    ) -> std::sync::mpsc::Receiver<FromConsensus> {
        self.sequence += 1;
        let command = encode_command(&Command::Write {
            origin: SessionRef {
                session: RandomId(1),
                sequence: self.sequence,
                low_water: 0,
            },
            epoch: 1,
            idempotency: None,
            txn: Txn {
                success: vec![Op::Put {
                    key: key.to_owned().into(),
                    value: value.to_owned().into(),
                }],
                ..Txn::default()
            },
        });
        self.network.call(node, |call| ToConsensus::Propose {
            call,
            group: FIRST_DATA_GROUP,
            command,
        })
    }

    /// Asks a node that leads to hand leadership over to another one.
    pub fn transfer(&self, leader: usize, to: usize) -> Result<String, ConsensusError> {
        let to = self
            .network()
            .wait("an id", |views| views.get(&to).map(|view| view.me.id));
        let answers = self.network().call(leader, |call| ToConsensus::Admin {
            call,
            request: AdminRequest::TransferLeadership { to },
        });
        match answers.recv_timeout(PATIENCE).unwrap() {
            FromConsensus::Admin { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    /// Asks a node to write, without waiting for an answer.
    pub fn begin_write(&mut self, node: usize, key: &str, value: &str) {
        drop(self.propose(node, key, value));
    }

    /// Writes at a node, once.
    pub fn try_write(&mut self, node: usize, key: &str, value: &str) -> Result<(), String> {
        match self
            .propose(node, key, value)
            .recv_timeout(Duration::from_secs(5))
        {
            Ok(FromConsensus::Proposed { result: Ok(_), .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    /// Writes, at whichever of the nodes takes it, until it is acknowledged. Returns who did.
    pub fn write(&mut self, nodes: &[usize], key: &str, value: &str) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut why = String::new();
            for node in nodes {
                match self.try_write(*node, key, value) {
                    Ok(()) => return *node,
                    Err(error) => why = error,
                }
            }
            assert!(Instant::now() < deadline, "nobody takes a write: {why}");
            std::thread::yield_now();
        }
    }

    /// A linearizable read at a node; `Err`: refused or unanswered.
    pub fn read(&self, node: usize, key: &str) -> Result<Option<String>, String> {
        let answers = self.network.call(node, |call| ToConsensus::ReadIndex {
            call,
            group: FIRST_DATA_GROUP,
        });
        let index = match answers.recv_timeout(Duration::from_secs(3)) {
            Ok(FromConsensus::ReadIndex {
                result: Ok(index), ..
            }) => index,
            Ok(FromConsensus::ReadIndex {
                result: Err(ConsensusError::NotLeader { .. }),
                ..
            }) => return Err("not the leader".into()),
            other => return Err(format!("{other:?}")),
        };
        let key = bytes::Bytes::from(key.to_owned());
        Ok(self
            .disk(node)
            .wait("the read index is applied", |content| {
                let state = &content.groups[&FIRST_DATA_GROUP].state;
                let applied = state.meta.last_applied.is_some_and(|at| at.index >= index);
                applied.then(|| {
                    state
                        .map
                        .get(&key)
                        .map(|value| String::from_utf8_lossy(value).into_owned())
                })
            }))
    }

    /// What breaks the rules on the disks: RAFT-2 (the same place, another entry) and DET-1.
    pub fn violations(&self) -> Vec<String> {
        let disks: Vec<_> = self
            .nodes
            .iter()
            .map(|node| node.disk.look(|content| content.groups.clone()))
            .collect();
        let mut found = Vec::new();
        for (a, left) in disks.iter().enumerate() {
            for (b, right) in disks.iter().enumerate().skip(a + 1) {
                for (id, group) in left {
                    let Some(other) = right.get(id) else { continue };
                    for (index, entry) in &group.log {
                        if let Some(same) = other.log.get(index)
                            && same.position == entry.position
                            && same.body != entry.body
                        {
                            found.push(format!("RAFT-2: {id} {} on {a} and {b}", entry.position));
                        }
                    }
                    let (mine, its) = (&group.state, &other.state);
                    if mine.meta.last_applied == its.meta.last_applied && mine.map != its.map {
                        found.push(format!("DET-1: {id} on {a} and {b}"));
                    }
                }
            }
        }
        found
    }

    /// Waits until all nodes have applied the same, and returns what the data group holds.
    pub fn settle(
        &self,
        nodes: &[usize],
    ) -> std::collections::BTreeMap<bytes::Bytes, bytes::Bytes> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let states: Vec<_> = nodes
                .iter()
                .map(|node| {
                    self.disk(*node)
                        .look(|content| content.groups[&FIRST_DATA_GROUP].state.clone())
                })
                .collect();
            let applied = states[0].meta.last_applied;
            if states
                .iter()
                .all(|state| state.meta.last_applied == applied)
            {
                return states[0].map.clone();
            }
            assert!(Instant::now() < deadline, "replicas do not catch up");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn group(view: &ClusterView, id: GroupId) -> Option<&GroupView> {
    view.groups.iter().find(|group| group.id == id)
}

fn data(view: &ClusterView) -> Option<&GroupView> {
    group(view, FIRST_DATA_GROUP)
}

fn leads(view: &ClusterView) -> bool {
    data(view)
        .and_then(|group| group.local.as_ref())
        .is_some_and(|local| local.role == "leader")
}
