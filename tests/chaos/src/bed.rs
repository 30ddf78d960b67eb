//! The cluster under test: real nodes, what keeps them running, and who leads them.

use crate::disk::{Disk, unmount_left_behind};
use crate::judge::{Finding, Leaders};
use mareedb_bench::cluster::{Addresses, Cluster, Node, Options, Site};
use mareedb_bench::directory::{self, Claim};
use mareedb_bench::load::number;
use mareedb_bench::net::Network;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often the keeper looks whether a node has ended. systemd would know at once.
const KEEPER: Duration = Duration::from_millis(20);
/// systemd waits before it starts a node that has ended by itself.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// How often nodes are asked who leads.
const WATCH: Duration = Duration::from_millis(150);
/// A stopped node does not answer, and nobody waits for it.
const ASK: Duration = Duration::from_millis(400);

/// Small log segments, so that they are recycled, purged and replaced by snapshots within a round; old versions and keys go soon,
/// so that a cluster of hours is not larger than one of minutes.
/// Small rings can be filled, and take small requests.
const SETTINGS: &str = "[storage]\nsegment_bytes = 8388608\nlog_retain_bytes = 16777216\nhistory_ms = 15000\n\n\
    [limits]\nvalue_bytes_max = 131072\nrequest_bytes_max = 262144\nidempotency_ttl_ms = 120000\n\n\
    [ipc]\nlog_ring_bytes = 8388608\nclient_ring_bytes = 8388608\npeer_ring_bytes = 2097152\n";

/// The executable that can be asked for faults; see server/Cargo.toml.
pub const WITH_FAULTS: &str = "maree-db-server-faults";
/// A disk's file, beside a node's configuration.
const IMAGE: &str = "disk.image";

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The node's executable.
    pub server: PathBuf,
    /// Directory for data and logs, made anew; see [`mareedb_bench::directory`].
    pub dir: PathBuf,
    /// 3 or 5, or 1.
    pub nodes: u8,
    /// Whether nodes live in namespaces, so that their network can be disturbed.
    pub network: bool,
    /// Whether each node has a file system of its own, so that its disk can be disturbed.
    pub disks: bool,
}

/// A node that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its number.
    pub node: usize,
    /// Its exit code; `None`: a signal.
    pub code: Option<i32>,
    /// Whether a fault has ended it.
    pub expected: bool,
}

/// A node's files, for faults that move them, or take the room for them: who brings data back needs room for it.
#[derive(Debug, Default)]
pub struct Files(tokio::sync::Mutex<()>);

/// The files are one fault's, until this is dropped.
#[derive(Debug)]
pub struct Taken<'a> {
    _files: tokio::sync::MutexGuard<'a, ()>,
}

impl Files {
    /// Takes them; `None`: another fault has them.
    pub fn take(&self) -> Option<Taken<'_>> {
        let files = self.0.try_lock().ok()?;
        Some(Taken { _files: files })
    }
}

struct Cell {
    node: Mutex<Node>,
    /// Faults that keep it down.
    held: AtomicU32,
    /// A fault has ended it.
    struck: AtomicBool,
    files: Files,
}

/// Running nodes.
pub struct Bed {
    /// The switch between them.
    pub network: Option<Network>,
    /// Where their files are.
    pub dir: PathBuf,
    /// Whether the executable can be asked for faults.
    pub seam: bool,
    /// Held by faults that end with an operator at work on a node's data: one at a time.
    pub(crate) operator: tokio::sync::Mutex<()>,
    cells: Vec<Cell>,
    leader: AtomicUsize,
    exits: Mutex<Vec<Exit>>,
    findings: Mutex<Vec<Finding>>,
    /// After the nodes, which use them.
    disks: Vec<Disk>,
    over: AtomicBool,
    _addresses: Option<Addresses>,
    /// Last of all: whoever takes the directory next finds nothing mounted in it.
    _claim: Claim,
}

/// The tasks beside a bed.
pub struct Attendants(Vec<JoinHandle<()>>);

impl Drop for Attendants {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

fn told(error: std::io::Error) -> String {
    error.to_string()
}

impl Bed {
    /// Makes the directory anew and starts all nodes; waits until they are a healthy cluster.
    ///
    /// # Errors
    /// The directory, the network or a node cannot be made, or they form no cluster within a minute.
    pub async fn start(setup: &Setup) -> Result<(Arc<Bed>, Attendants), String> {
        let claim = directory::hold(&setup.dir)?;
        unmount_left_behind(&setup.dir);
        claim.empty()?;
        let network = setup
            .network
            .then(|| Network::new(setup.nodes))
            .transpose()
            .map_err(told)?;
        let addresses = network.is_none().then(|| Addresses::claim(setup.nodes));
        let sites: Vec<Site> = match (&network, &addresses) {
            (Some(network), _) => network.sites().to_vec(),
            (None, Some(addresses)) => addresses.hosts.iter().copied().map(Site::at).collect(),
            (None, None) => Vec::new(),
        };
        let cluster = Cluster::prepare_at(
            &Options {
                server: setup.server.clone(),
                dir: setup.dir.clone(),
                hosts: Vec::new(),
                config: SETTINGS.to_owned(),
            },
            &sites,
        )
        .map_err(told)?;
        let mut cells = Vec::new();
        let mut disks = Vec::new();
        for node in cluster.nodes {
            if setup.disks {
                let image = node.config.with_file_name(IMAGE);
                disks.push(Disk::new(&image, &node.data).map_err(told)?);
            }
            // All of them hold everything: what a fault of one does to the others is the question.
            let text = std::fs::read_to_string(&node.config).map_err(told)?;
            let all = format!("replication_factor = {}", setup.nodes);
            std::fs::write(&node.config, text.replace("replication_factor = 3", &all))
                .map_err(told)?;
            cells.push(Cell {
                node: Mutex::new(node),
                held: AtomicU32::new(0),
                struck: AtomicBool::new(false),
                files: Files::default(),
            });
        }
        let bed = Arc::new(Bed {
            network,
            dir: setup.dir.clone(),
            seam: setup.server.ends_with(WITH_FAULTS),
            operator: tokio::sync::Mutex::default(),
            cells,
            leader: AtomicUsize::new(0),
            exits: Mutex::default(),
            findings: Mutex::default(),
            disks,
            over: AtomicBool::new(false),
            _addresses: addresses,
            _claim: claim,
        });
        for at in 0..bed.count() {
            bed.node(at).start().map_err(told)?;
        }
        let attendants = Attendants(vec![
            tokio::spawn(keep(bed.clone())),
            tokio::spawn(watch(bed.clone())),
        ]);
        bed.await_healthy(Duration::from_secs(60)).await?;
        Ok((bed, attendants))
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.cells.len()
    }

    /// A node. Never hold it over an await.
    pub fn node(&self, at: usize) -> MutexGuard<'_, Node> {
        self.cells[at]
            .node
            .lock()
            .expect("nobody panics while holding it")
    }

    /// The node that led when it was last asked.
    pub fn leader(&self) -> usize {
        self.leader.load(Ordering::Relaxed)
    }

    /// Names of all nodes.
    pub fn names(&self) -> Vec<String> {
        (0..self.count())
            .map(|at| self.node(at).name.clone())
            .collect()
    }

    /// The node is about to be ended; it stays down until [`Bed::release`].
    pub fn hold(&self, at: usize) {
        // The keeper may be about to start it.
        let _node = self.node(at);
        self.cells[at].held.fetch_add(1, Ordering::Relaxed);
        self.cells[at].struck.store(true, Ordering::Relaxed);
    }

    /// The node may run again.
    pub fn release(&self, at: usize) {
        let held = &self.cells[at].held;
        let _ = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_sub(1)
        });
    }

    /// The file system of a node's own.
    pub fn disk(&self, at: usize) -> Option<&Disk> {
        self.disks.get(at)
    }

    /// Takes a node's files for a fault; `None`: another one has them.
    pub(crate) fn take_files(&self, at: usize) -> Option<Taken<'_>> {
        self.cells[at].files.take()
    }

    /// A fault has met what may not be.
    pub fn blame(&self, promise: &str, evidence: String) {
        let finding = Finding {
            promise: promise.to_owned(),
            evidence,
        };
        self.findings.lock().expect("not poisoned").push(finding);
    }

    /// What faults have met since the last call.
    pub fn take_findings(&self) -> Vec<Finding> {
        std::mem::take(&mut *self.findings.lock().expect("not poisoned"))
    }

    /// Nodes that have ended since the last call.
    pub fn take_exits(&self) -> Vec<Exit> {
        std::mem::take(&mut *self.exits.lock().expect("not poisoned"))
    }

    /// `GET path` of a node; `None`: no answer of status 200 within half a second.
    pub async fn ask(&self, at: usize, path: &str) -> Option<Value> {
        let addr = self.node(at).rest();
        let mut client = mareedb_bench::http::Client::new(addr);
        let asked = client.request(http::Method::GET, path, &[], bytes::Bytes::new(), ASK);
        let answer = asked.await.ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    /// Waits until every node says that all members are online and in step.
    ///
    /// # Errors
    /// After `limit`: what each said last.
    pub async fn await_healthy(&self, limit: Duration) -> Result<(), String> {
        let end = Instant::now() + limit;
        loop {
            let mut ill = Vec::new();
            for at in 0..self.count() {
                match self.ask(at, "/v1/cluster").await {
                    Some(status)
                        if status["verdict"] == "healthy"
                            && status["members_online"] == self.count() => {}
                    Some(status) => ill.push(format!(
                        "node{}: {} {}",
                        at + 1,
                        status["verdict"],
                        status["reasons"]
                    )),
                    None => ill.push(format!("node{}: no answer", at + 1)),
                }
            }
            if ill.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("not healthy within {limit:?}: {}", ill.join("; ")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Undoes what faults have done: links, stopped processes, nodes that are held down.
    pub fn heal(&self) {
        if let Some(network) = &self.network {
            network.switch.heal();
        }
        for disk in &self.disks {
            disk.heal();
        }
        for (at, cell) in self.cells.iter().enumerate() {
            let node = self.node(at);
            for daemon in mareedb_bench::cluster::DAEMONS {
                node.signal_daemon(daemon, Signal::SIGCONT);
            }
            node.signal(Signal::SIGCONT);
            for asked in ["faults", "clock"] {
                // Nothing may have been asked for.
                let _ = std::fs::remove_file(node.data.join(asked));
            }
            cell.held.store(0, Ordering::Relaxed);
        }
    }

    /// Stops all nodes, and waits until they have ended.
    ///
    /// # Errors
    /// One does not end.
    pub fn stop(&self) -> Result<(), String> {
        self.over.store(true, Ordering::Relaxed);
        self.heal();
        for at in 0..self.count() {
            self.node(at).signal(Signal::SIGTERM);
        }
        let mut last = Ok(());
        for at in 0..self.count() {
            let mut node = self.node(at);
            if let Err(error) = node.await_exit(Duration::from_secs(20)) {
                last = Err(told(error));
            }
        }
        last
    }

    /// What each node wrote to its log, by name.
    pub fn logs(&self) -> Vec<(String, PathBuf)> {
        (0..self.count())
            .map(|at| {
                let node = self.node(at);
                (node.name.clone(), node.log.clone())
            })
            .collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // A process that waits for a frozen file system could not even be killed.
        self.heal();
    }
}

/// Starts nodes that have ended, as systemd does.
async fn keep(bed: Arc<Bed>) {
    let mut not_before = vec![Instant::now(); bed.count()];
    loop {
        tokio::time::sleep(KEEPER).await;
        if bed.over.load(Ordering::Relaxed) {
            return;
        }
        for (at, cell) in bed.cells.iter().enumerate() {
            let mut node = bed.node(at);
            if node.pid().is_some() {
                // An error says that it still runs.
                let Ok(code) = node.await_exit(Duration::ZERO) else {
                    continue;
                };
                let expected = cell.struck.swap(false, Ordering::Relaxed);
                if !expected {
                    not_before[at] = Instant::now() + RESTART_PAUSE;
                }
                bed.exits.lock().expect("not poisoned").push(Exit {
                    node: at,
                    code,
                    expected,
                });
            }
            let held = cell.held.load(Ordering::Relaxed) > 0;
            if !held && Instant::now() >= not_before[at] {
                cell.struck.store(false, Ordering::Relaxed);
                if let Err(error) = node.start() {
                    eprintln!("{} does not start: {error}", node.name);
                }
            }
        }
    }
}

/// Asks all nodes who leads, and believes the latest term. RAFT-1: all who name a leader of a term name the same one.
async fn watch(bed: Arc<Bed>) {
    let mut leaders = Leaders::default();
    loop {
        tokio::time::sleep(WATCH).await;
        let names = bed.names();
        let asked: Vec<_> = (0..bed.count())
            .map(|at| {
                let bed = bed.clone();
                tokio::spawn(async move { bed.ask(at, "/v1/cluster").await })
            })
            .collect();
        let mut latest = None;
        for task in asked {
            let Ok(Some(status)) = task.await else {
                continue;
            };
            for finding in leaders.told(&status["groups"], "id") {
                bed.blame(&finding.promise, finding.evidence);
            }
            // The group that holds the keys.
            let group = &status["groups"][1];
            let leader = names
                .iter()
                .position(|name| group["leader"] == name.as_str());
            let term = number(&group["term"]);
            latest = latest.max(term.zip(leader));
        }
        if let Some((_, leader)) = latest {
            bed.leader.store(leader, Ordering::Relaxed);
        }
    }
}

/// Copies a directory's files, those of its directories too. Disks are left out, since what is in them is mounted beside, and so is the
/// marker that lets the directory be emptied.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file()
            && entry.file_name() != IMAGE
            && entry.file_name() != directory::MARKER
        {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_files_are_one_faults_at_a_time() {
        let files = Files::default();
        let taken = files.take();
        assert!(taken.is_some() && files.take().is_none());
        drop(taken);
        assert!(files.take().is_some());
    }
}
