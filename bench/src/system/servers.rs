//! Three real nodes of a system, and what they cost.

use super::driver::{Api, Driver};
use super::etcd::{self, Etcd};
use crate::cluster::{Addresses, Cluster, Options, sibling_executable};
use crate::directory::Claim;
use crate::usage::{self, Memory};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process with its name, which no other one of its node has.
pub type Process = (&'static str, u32);

/// Running nodes.
pub struct Servers {
    /// How they are spoken to.
    pub api: Api,
    /// Where.
    pub addrs: Vec<SocketAddr>,
    kind: Kind,
    dir: PathBuf,
    _addresses: Addresses,
}

enum Kind {
    Maree(Cluster),
    Etcd(Vec<Etcd>),
}

/// How a node is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// SIGTERM, and what it takes.
    Graceful,
    /// kill -9 of all its processes.
    Kill,
}

impl Servers {
    /// Starts three nodes in a directory of their own below the claimed one, where nothing is left of those before, and waits until
    /// they serve.
    pub async fn start(api: Api, claim: &Claim) -> Result<Servers, String> {
        Servers::start_with(api, claim, "").await
    }

    /// [`Servers::start`] with more lines in the configuration of each node of Maree-DB.
    pub async fn start_with(api: Api, claim: &Claim, config: &str) -> Result<Servers, String> {
        Servers::start_on(api, claim, config, &mut |_| Ok(())).await
    }

    /// [`Servers::start_with`] on file systems of one's own: `prepare` is given each node's data directory, which is there and empty.
    pub async fn start_on(
        api: Api,
        claim: &Claim,
        config: &str,
        prepare: &mut (dyn FnMut(&Path) -> Result<(), String> + Send),
    ) -> Result<Servers, String> {
        // Who races this against signals has their handlers set by that: before there is anything that a signal must end.
        tokio::task::yield_now().await;
        let told = |error: io::Error| error.to_string();
        let addresses = Addresses::claim(3);
        let dir = claim.dir().join(api.to_string());
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(told)?;
        }
        std::fs::create_dir_all(&dir).map_err(told)?;
        let (kind, addrs) = if api == Api::Etcd {
            let (nodes, addrs) = etcd::start(&addresses, &dir, prepare)?;
            (Kind::Etcd(nodes), addrs)
        } else {
            let mut cluster = Cluster::prepare(&Options {
                server: sibling_executable("maree-db-server").map_err(told)?,
                dir: dir.clone(),
                hosts: addresses.hosts.clone(),
                config: config.to_owned(),
            })
            .map_err(told)?;
            for node in &cluster.nodes {
                make(&node.data, prepare)?;
            }
            cluster.start_all().map_err(told)?;
            cluster.await_healthy(PATIENCE).await?;
            let addrs = cluster.nodes.iter().map(|node| match api {
                Api::MareeRest => Ok(node.rest()),
                _ => node
                    .grpc()
                    .parse()
                    .map_err(|error: std::net::AddrParseError| error.to_string()),
            });
            let addrs = addrs.collect::<Result<Vec<_>, _>>()?;
            (Kind::Maree(cluster), addrs)
        };
        let mut servers = Servers {
            api,
            addrs,
            kind,
            dir,
            _addresses: addresses,
        };
        servers.await_service().await?;
        Ok(servers)
    }

    async fn await_service(&mut self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        for addr in self.addrs.clone() {
            loop {
                let tried = async {
                    let mut client = Driver::connect(self.api, addr).await?;
                    client.put("first".into(), "value".into()).await
                };
                let tried = tried.await;
                // Who answers in place of one that has ended is somebody else's.
                self.all_run()?;
                match tried {
                    Ok(()) => break,
                    Err(why) if Instant::now() > end => return Err(why),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }
        Ok(())
    }

    /// An error: the first process of a node has ended.
    fn all_run(&mut self) -> Result<(), String> {
        match &mut self.kind {
            Kind::Maree(cluster) => {
                for node in &mut cluster.nodes {
                    if !node.running() {
                        return Err(format!("{} has ended\n{}", node.name, node.log_end()));
                    }
                }
                Ok(())
            }
            Kind::Etcd(nodes) => nodes.iter_mut().try_for_each(Etcd::runs),
        }
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.addrs.len()
    }

    /// The cluster, when the system is Maree-DB.
    pub fn cluster(&self) -> Option<&Cluster> {
        match &self.kind {
            Kind::Maree(cluster) => Some(cluster),
            Kind::Etcd(_) => None,
        }
    }

    /// The processes of a node that run.
    pub fn processes(&self, node: usize) -> Vec<Process> {
        let mut all = match &self.kind {
            Kind::Etcd(nodes) => vec![("etcd", nodes[node].child.id())],
            Kind::Maree(cluster) => {
                let node = &cluster.nodes[node];
                let daemons = crate::cluster::DAEMONS.map(|name| (name, node.daemon_pid(name)));
                [("supervisor", node.pid())]
                    .into_iter()
                    .chain(daemons)
                    .filter_map(|(name, pid)| Some((name, pid?)))
                    .collect()
            }
        };
        all.retain(|(_, pid)| runs(*pid));
        all
    }

    /// The processes of each node.
    pub fn all_processes(&self) -> Vec<Vec<Process>> {
        (0..self.count()).map(|node| self.processes(node)).collect()
    }

    /// Processes that are not those of `before`, for people.
    pub fn replaced(&self, before: &[Vec<Process>]) -> Vec<String> {
        let nodes = before.iter().zip(self.all_processes()).enumerate();
        let replaced = nodes.flat_map(|(node, (before, now))| {
            let names = differing(before, &now).into_iter();
            names.map(move |name| format!("{name} of node {}", node + 1))
        });
        replaced.collect()
    }

    /// What was measured since `before` is only worth something if all processes are still the same.
    ///
    /// # Errors
    /// One has died, or has been started since.
    pub fn unchanged(&self, before: &[Vec<Process>]) -> Result<(), String> {
        match self.replaced(before) {
            replaced if replaced.is_empty() => Ok(()),
            replaced => Err(format!("died or restarted: {}", replaced.join(", "))),
        }
    }

    /// The node that says that it leads, if one does; `spared` is not asked.
    pub async fn leader(&self, spared: Option<usize>) -> Option<usize> {
        for node in (0..self.count()).filter(|node| Some(*node) != spared) {
            if self.leads(node).await {
                return Some(node);
            }
        }
        None
    }

    /// Whether a node says that it leads; etcd does in its metrics.
    async fn leads(&self, node: usize) -> bool {
        match &self.kind {
            Kind::Maree(cluster) => {
                let node = &cluster.nodes[node];
                let said = node.ask("/v1/cluster").await;
                said.is_ok_and(|status| status["leader"] == node.name.as_str())
            }
            Kind::Etcd(_) => {
                let mut client = crate::http::Client::new(self.addrs[node]);
                let said = client.get("/metrics").await;
                said.is_ok_and(|said| {
                    String::from_utf8_lossy(&said.body).contains("\netcd_server_is_leader 1\n")
                })
            }
        }
    }

    /// Where a node keeps the data itself, and its log.
    pub fn places(&self, node: usize) -> (PathBuf, PathBuf) {
        match &self.kind {
            Kind::Etcd(nodes) => {
                let member = nodes[node].dir.join("member");
                (member.join("snap/db"), member.join("wal"))
            }
            Kind::Maree(cluster) => {
                let data = &cluster.nodes[node].data;
                (data.join("state"), data.join("log"))
            }
        }
    }

    /// All processes of the nodes.
    fn pids(&self) -> Vec<u32> {
        let all = self.all_processes().into_iter().flatten();
        all.map(|(_, pid)| pid).collect()
    }

    /// CPU time of all processes so far.
    pub fn cpu(&self) -> Duration {
        self.pids().into_iter().filter_map(usage::cpu).sum()
    }

    /// Memory and disk, for people.
    pub fn footprint(&self) -> String {
        format!(
            "three nodes: {} MiB of memory (PSS), {} MiB of files",
            Memory::sum(self.pids()).pss_kib / 1024,
            usage::disk_bytes(&self.dir) >> 20
        )
    }

    /// Ends a node, and waits until none of its processes is left.
    ///
    /// # Errors
    /// It did not end in 20 s.
    pub async fn end(&mut self, node: usize, how: End) -> Result<(), String> {
        let limit = Duration::from_secs(20);
        let processes = self.processes(node);
        let signalled = match how {
            // A supervisor, or etcd, is the first.
            End::Graceful => 1,
            End::Kill => processes.len(),
        };
        let signal = match how {
            End::Graceful => Signal::SIGTERM,
            End::Kill => Signal::SIGKILL,
        };
        for (_, pid) in processes.iter().take(signalled) {
            // One that has just ended by itself needs no signal.
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
        let end = Instant::now() + limit;
        match &mut self.kind {
            Kind::Maree(cluster) => cluster.nodes[node]
                .await_exit(limit)
                .map(drop)
                .map_err(|error| error.to_string())?,
            Kind::Etcd(nodes) => {
                while nodes[node]
                    .child
                    .try_wait()
                    .map_err(|error| error.to_string())?
                    .is_none()
                {
                    if Instant::now() > end {
                        return Err(format!("etcd does not end within {limit:?}"));
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        // Daemons of a killed supervisor are nobody's children here: they are waited for by looking.
        while processes.iter().any(|(_, pid)| usage::cpu(*pid).is_some()) {
            if Instant::now() > end {
                return Err(format!("processes are left after {limit:?}"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Starts a node that was ended; does not wait.
    ///
    /// # Errors
    /// The executable cannot be started.
    pub fn begin(&mut self, node: usize) -> Result<(), String> {
        let started = match &mut self.kind {
            Kind::Maree(cluster) => cluster.nodes[node].start(),
            Kind::Etcd(nodes) => nodes[node].start_again(),
        };
        started.map_err(|error| error.to_string())
    }

    /// Ends the nodes.
    pub async fn stop(mut self) -> Result<(), String> {
        match &mut self.kind {
            Kind::Maree(cluster) => cluster
                .stop_all(Duration::from_secs(20))
                .map_err(|error| error.to_string()),
            Kind::Etcd(nodes) => {
                nodes.clear();
                Ok(())
            }
        }
    }
}

/// Whether a process is there, and not only its end that nobody has asked for yet.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| !state.starts_with('Z'))
}

/// Names of the processes that one of two moments has and the other has not, or under another pid.
fn differing(before: &[Process], now: &[Process]) -> BTreeSet<&'static str> {
    let gone = before.iter().filter(|process| !now.contains(process));
    let new = now.iter().filter(|process| !before.contains(process));
    gone.chain(new).map(|(name, _)| *name).collect()
}

/// Makes a data directory that only its owner may look into: etcd insists.
pub(super) fn make(
    data: &Path,
    prepare: &mut (dyn FnMut(&Path) -> Result<(), String> + Send),
) -> Result<(), String> {
    let mut builder = std::fs::DirBuilder::new();
    let told = |error| format!("{}: {error}", data.display());
    builder.mode(0o700).create(data).map_err(told)?;
    prepare(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn processes_that_died_came_or_were_replaced_differ() {
        let before = [("supervisor", 1), ("storaged", 2), ("gatewayd", 3)];
        assert!(differing(&before, &before).is_empty());
        let now = [("supervisor", 1), ("storaged", 9), ("consensusd", 4)];
        let names: Vec<_> = differing(&before, &now).into_iter().collect();
        assert_eq!(names, ["consensusd", "gatewayd", "storaged"]);
    }

    #[test]
    fn a_process_whose_end_nobody_has_asked_for_does_not_run() {
        assert!(runs(std::process::id()));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(runs(child.id()));
        child.kill().unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while runs(child.id()) {
            assert!(Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(!runs(child.id()));
    }
}
