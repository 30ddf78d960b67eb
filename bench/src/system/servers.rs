//! Three real nodes of a system, and what they cost.

use super::driver::{Api, Driver};
use crate::cluster::{Addresses, Cluster, Options, sibling_executable};
use crate::usage::{self, Memory};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// An etcd node; its process ends with this.
struct Etcd {
    command: Command,
    dir: PathBuf,
    child: Child,
}
impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
    /// Starts three nodes in an empty directory, and waits until they serve.
    pub async fn start(api: Api, dir: &Path) -> Result<Servers, String> {
        Servers::start_with(api, dir, "").await
    }

    /// [`Servers::start`] with more lines in the configuration of each node of Maree-DB.
    pub async fn start_with(api: Api, dir: &Path, config: &str) -> Result<Servers, String> {
        Servers::start_on(api, dir, config, &mut |_| Ok(())).await
    }

    /// [`Servers::start_with`] on file systems of one's own: `prepare` is given each node's data directory, which is there and empty.
    pub async fn start_on(
        api: Api,
        dir: &Path,
        config: &str,
        prepare: &mut (dyn FnMut(&Path) -> Result<(), String> + Send),
    ) -> Result<Servers, String> {
        let told = |error: std::io::Error| error.to_string();
        let addresses = Addresses::claim(3);
        let dir = std::path::absolute(dir)
            .map_err(told)?
            .join(api.to_string());
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(told)?;
        }
        std::fs::create_dir_all(&dir).map_err(told)?;
        let (kind, addrs) = if api == Api::Etcd {
            let (nodes, addrs) = start_etcd(&addresses, &dir, prepare)?;
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
        let servers = Servers {
            api,
            addrs,
            kind,
            dir,
            _addresses: addresses,
        };
        servers.await_service().await?;
        Ok(servers)
    }

    async fn await_service(&self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        for addr in &self.addrs {
            loop {
                let tried = async {
                    let mut client = Driver::connect(self.api, *addr).await?;
                    client.put("first".into(), "value".into()).await
                };
                match tried.await {
                    Ok(()) => break,
                    Err(why) if Instant::now() > end => return Err(why),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        }
        Ok(())
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

    /// The processes of a node, with their names.
    pub fn processes(&self, node: usize) -> Vec<(&'static str, u32)> {
        match &self.kind {
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
        }
    }

    /// The node that leads, if one does; etcd says it in its metrics.
    pub async fn leader(&self) -> Option<usize> {
        match &self.kind {
            Kind::Maree(cluster) => cluster.leader().await,
            Kind::Etcd(_) => {
                for (at, addr) in self.addrs.iter().enumerate() {
                    let said = crate::http::Client::new(*addr).get("/metrics").await;
                    let leads = said.is_ok_and(|said| {
                        String::from_utf8_lossy(&said.body).contains("\netcd_server_is_leader 1\n")
                    });
                    if leads {
                        return Some(at);
                    }
                }
                None
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
        (0..self.count())
            .flat_map(|node| self.processes(node))
            .map(|(_, pid)| pid)
            .collect()
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
            End::Graceful => &processes[..1],
            End::Kill => &processes[..],
        };
        let signal = match how {
            End::Graceful => Signal::SIGTERM,
            End::Kill => Signal::SIGKILL,
        };
        for (_, pid) in signalled {
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
            Kind::Etcd(nodes) => {
                let node = &mut nodes[node];
                node.command.spawn().map(|child| node.child = child)
            }
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

/// Makes a data directory that only its owner may look into: etcd insists.
fn make(
    data: &Path,
    prepare: &mut (dyn FnMut(&Path) -> Result<(), String> + Send),
) -> Result<(), String> {
    let mut builder = std::fs::DirBuilder::new();
    let told = |error| format!("{}: {error}", data.display());
    builder.mode(0o700).create(data).map_err(told)?;
    prepare(data)
}

fn start_etcd(
    addresses: &Addresses,
    dir: &Path,
    prepare: &mut (dyn FnMut(&Path) -> Result<(), String> + Send),
) -> Result<(Vec<Etcd>, Vec<SocketAddr>), String> {
    let names: Vec<String> = (1..=addresses.hosts.len())
        .map(|at| format!("e{at}"))
        .collect();
    let members: Vec<String> = names
        .iter()
        .zip(&addresses.hosts)
        .map(|(name, host)| format!("{name}=http://{host}:2380"))
        .collect();
    let mut nodes = Vec::new();
    let mut addrs = Vec::new();
    for (name, host) in names.iter().zip(&addresses.hosts) {
        let log = std::fs::File::create(dir.join(format!("{name}.log")))
            .map_err(|error| error.to_string())?;
        make(&dir.join(name), prepare)?;
        let mut command = Command::new("etcd");
        command
            .arg("--name")
            .arg(name)
            .arg("--data-dir")
            .arg(dir.join(name))
            .args(["--listen-peer-urls", &format!("http://{host}:2380")])
            .args([
                "--initial-advertise-peer-urls",
                &format!("http://{host}:2380"),
            ])
            .args(["--listen-client-urls", &format!("http://{host}:2379")])
            .args(["--advertise-client-urls", &format!("http://{host}:2379")])
            .args(["--initial-cluster", &members.join(",")])
            .args(["--initial-cluster-state", "new"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log);
        let child = command.spawn().map_err(|error| {
            format!("etcd does not start: {error}; on Debian: apt-get install etcd-server")
        })?;
        nodes.push(Etcd {
            command,
            dir: dir.join(name),
            child,
        });
        addrs.push(SocketAddr::new((*host).into(), 2379));
    }
    Ok((nodes, addrs))
}
