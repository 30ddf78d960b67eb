//! Real nodes for tests, benchmarks and the demo: starts `maree-db-server` processes on loopback addresses, and ends
//! what it started.
//!
//! Invariant: only processes that this value started are ever signalled, by pid. Dropping it kills what still runs: the
//! supervisors, and with them their daemons (PDEATHSIG). So does the end of this process, however it ends.

mod node;

pub use node::Node;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A daemon's name as its `comm` shows it.
pub type DaemonName = &'static str;
/// The three daemons of a node.
pub const DAEMONS: [DaemonName; 3] = ["consensusd", "storaged", "gatewayd"];
/// Port of the REST API.
pub const REST_PORT: u16 = 8080;
/// Port of gRPC and the peers.
pub const GRPC_PORT: u16 = 7001;

/// What a cluster is made of.
pub struct Options {
    /// The executable.
    pub server: PathBuf,
    /// Directory for configurations, data and logs.
    pub dir: PathBuf,
    /// One node an address.
    pub hosts: Vec<Ipv4Addr>,
    /// Lines added to each node's configuration, for example `"[storage]\ncache_bytes = 1048576\n"`.
    pub config: String,
}

/// Where a node lives.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where clients reach it.
    pub host: Ipv4Addr,
    /// Where the other nodes reach it.
    pub advertised: Ipv4Addr,
    /// What it listens on.
    pub listen: Ipv4Addr,
    /// What stands before its command, for example to enter a namespace; it must replace itself by the command.
    pub launcher: Vec<OsString>,
}

impl Site {
    /// An address of this machine, the same for all.
    pub fn at(host: Ipv4Addr) -> Site {
        Site {
            host,
            advertised: host,
            listen: host,
            launcher: Vec::new(),
        }
    }
}

/// Three addresses `127.a.b.1`, `.2`, `.3` that no other run uses while the value lives.
pub struct Addresses {
    /// The addresses.
    pub hosts: Vec<Ipv4Addr>,
    _claim: TcpListener,
}

impl Addresses {
    /// Claims `count` addresses by listening on a port of `127.a.b.254`.
    ///
    /// # Panics
    /// All addresses that were tried are taken.
    pub fn claim(count: u8) -> Addresses {
        for _ in 0..1_000 {
            let (claim, [_, a, b, _]) = claim().expect("free addresses");
            let hosts: Vec<_> = (1..=count).map(|n| Ipv4Addr::new(127, a, b, n)).collect();
            let free = |host: &Ipv4Addr| {
                [REST_PORT, GRPC_PORT]
                    .iter()
                    .all(|port| TcpListener::bind((*host, *port)).is_ok())
            };
            if hosts.iter().all(free) {
                return Addresses {
                    hosts,
                    _claim: claim,
                };
            }
        }
        panic!("no free loopback addresses among 1,000 tried");
    }
}

/// Claims a pair of numbers that no other run on this machine uses while the listener lives: the middle of `[127, a, b, 254]`.
///
/// # Errors
/// None of 10,000 was free.
pub fn claim() -> io::Result<(TcpListener, [u8; 4])> {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let mut seed = std::process::id() ^ LAST.load(Ordering::Relaxed);
    for _ in 0..10_000 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [a, b, ..] = (seed >> 8).to_le_bytes();
        let octets = [127, 64 + a % 128, b, 254];
        if let Ok(claim) = TcpListener::bind((Ipv4Addr::from(octets), GRPC_PORT)) {
            LAST.store(seed, Ordering::Relaxed);
            return Ok((claim, octets));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        "no free loopback address among 10,000 tried",
    ))
}

/// Several nodes.
pub struct Cluster {
    /// The nodes, in the order of their addresses.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Writes the configurations of nodes `node1`, `node2`, ... Nothing is started.
    pub fn prepare(options: &Options) -> io::Result<Cluster> {
        let sites: Vec<Site> = options.hosts.iter().copied().map(Site::at).collect();
        Cluster::prepare_at(options, &sites)
    }

    /// The same for nodes that live elsewhere than on addresses of this machine; [`Options::hosts`] is not looked at.
    pub fn prepare_at(options: &Options, sites: &[Site]) -> io::Result<Cluster> {
        let mut nodes = Vec::new();
        for (at, site) in sites.iter().enumerate() {
            let name = format!("node{}", at + 1);
            let dir = options.dir.join(&name);
            fs::create_dir_all(&dir)?;
            let data = dir.join("data");
            let config = dir.join("maree-db.toml");
            let peers: Vec<String> = sites
                .iter()
                .map(|other| other.advertised)
                .filter(|other| *other != site.advertised)
                .map(|other| format!("\"{other}:{GRPC_PORT}\""))
                .collect();
            let text = format!(
                "[server]\ndata_dir = \"{}\"\nlisten_addr = \"{}\"\nadvertise_addr = \"{}\"\nrest_port = {REST_PORT}\n\n\
                 [cluster]\nenabled = {}\nnode_id = \"{name}\"\npeers = [{}]\nconsensus_port = {GRPC_PORT}\n\
                 replication_factor = {}\n\n{}",
                data.display(),
                site.listen,
                site.advertised,
                sites.len() > 1,
                peers.join(", "),
                sites.len().min(3),
                options.config,
            );
            fs::write(&config, text)?;
            nodes.push(Node {
                name,
                host: site.host,
                config,
                data,
                log: dir.join("stderr.log"),
                server: options.server.clone(),
                launcher: site.launcher.clone(),
                child: None,
            });
        }
        Ok(Cluster { nodes })
    }

    /// Starts every node that does not run.
    pub fn start_all(&mut self) -> io::Result<()> {
        for node in &mut self.nodes {
            if !node.running() {
                node.start()?;
            }
        }
        Ok(())
    }

    /// Waits until every running node reports verdict `healthy` with all members online.
    ///
    /// # Errors
    /// After `limit`: what each node said last, and the end of its log.
    pub async fn await_healthy(&self, limit: Duration) -> Result<(), String> {
        let members = self.nodes.len();
        self.await_status(limit, move |status| {
            status["verdict"] == "healthy" && status["members_online"] == members
        })
        .await
    }

    /// Waits until `accept` holds for `GET /v1/cluster` of every running node.
    ///
    /// # Errors
    /// After `limit`: what each node said last, and the end of its log.
    pub async fn await_status(
        &self,
        limit: Duration,
        accept: impl Fn(&Value) -> bool,
    ) -> Result<(), String> {
        let end = Instant::now() + limit;
        loop {
            let mut problem = None;
            for node in self.nodes.iter().filter(|node| node.child.is_some()) {
                match node.ask("/v1/cluster").await {
                    Ok(status) if accept(&status) => {}
                    Ok(status) => problem = Some(format!("{}: {status}", node.name)),
                    Err(why) => problem = Some(format!("{}: {why}", node.name)),
                }
            }
            match problem {
                None => return Ok(()),
                Some(problem) if Instant::now() >= end => {
                    let logs: Vec<String> = self.nodes.iter().map(Node::log_end).collect();
                    return Err(format!(
                        "not reached within {limit:?}: {problem}\n{}",
                        logs.join("\n")
                    ));
                }
                // Status is polled, as an operator would: there is no event to wait for from outside of a node.
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Index of the node that leads the meta group, as `GET /v1/cluster` of the first node that knows one tells.
    pub async fn leader(&self) -> Option<usize> {
        for node in self.nodes.iter().filter(|node| node.child.is_some()) {
            if let Ok(status) = node.ask("/v1/cluster").await
                && let Some(name) = status["leader"].as_str()
                && let Some(at) = self.nodes.iter().position(|node| node.name == name)
            {
                return Some(at);
            }
        }
        None
    }

    /// Stops all nodes gracefully, all at once, waiting at most `limit` for each.
    pub fn stop_all(&mut self, limit: Duration) -> io::Result<()> {
        for node in &self.nodes {
            node.signal(Signal::SIGTERM);
        }
        for node in &mut self.nodes {
            node.await_exit(limit)?;
        }
        Ok(())
    }
}

/// A command to start, and whom to tell.
type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a process that is killed when this one ends, and that is in a process group of its own: Ctrl-C in a terminal is for this
/// process, which stops the others in its own way.
///
/// # Errors
/// It cannot be started.
pub fn spawn_bound(mut command: Command) -> io::Result<Child> {
    let parent = getpid();
    command.process_group(0);
    // SAFETY: between fork and exec this makes two system calls; it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have ended before; then no signal comes any more.
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        });
    }
    let (answer, started) = mpsc::channel();
    let gone = "the thread that starts processes has ended";
    spawner()?
        .send((command, answer))
        .map_err(|_| io::Error::other(gone))?;
    started.recv().map_err(|_| io::Error::other(gone))?
}

/// The thread that starts all processes. PDEATHSIG is about the thread that forked, not its process; a test's thread ends, and so does a
/// worker of tokio that was blocked in place. This one never does.
fn spawner() -> io::Result<&'static mpsc::Sender<Order>> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    if let Some(spawner) = SPAWNER.get() {
        return Ok(spawner);
    }
    let (orders, queue) = mpsc::channel::<Order>();
    std::thread::Builder::new()
        .name("spawner".into())
        .spawn(move || {
            for (mut command, answer) in queue {
                // Whoever asked waits for it.
                let _ = answer.send(command.spawn());
            }
        })?;
    // Of two at once the second one's thread ends with its sender, unused.
    Ok(SPAWNER.get_or_init(|| orders))
}

/// An executable of this workspace that lies beside the running one, as cargo puts them.
///
/// # Errors
/// It is not there: it was not built.
pub fn sibling_executable(name: &str) -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut dir: &Path = own.parent().unwrap_or(Path::new("."));
    if dir.ends_with("deps") {
        dir = dir.parent().unwrap_or(dir);
    }
    let path = dir.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} is not built: run `cargo build`", path.display()),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::node::to_pid;
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it_in_a_group_of_its_own() {
        let asked = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("600").stdin(Stdio::null());
            spawn_bound(command)
        });
        let mut child = asked.join().unwrap().unwrap();
        let pid = to_pid(child.id());
        let group = nix::unistd::getpgid(Some(pid)).unwrap();
        // A signal of the thread's end would come at once.
        std::thread::sleep(Duration::from_millis(100));
        let lives = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(lives);
        assert_eq!(group, pid);
    }

    #[test]
    fn what_cannot_be_started_is_told() {
        let missing = spawn_bound(Command::new("/nonexistent/maree-db-server"));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
