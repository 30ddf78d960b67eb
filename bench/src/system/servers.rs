//! Three real nodes of a system, and what they cost.

use super::driver::{Api, Driver};
use crate::cluster::{Addresses, Cluster, Options, sibling_executable};
use std::net::SocketAddr;
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

/// An etcd process, which ends with this.
struct Etcd(Child);
impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Servers {
    /// Starts three nodes in an empty directory, and waits until they serve.
    pub async fn start(api: Api, dir: &Path) -> Result<Servers, String> {
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
            let (nodes, addrs) = start_etcd(&addresses, &dir)?;
            (Kind::Etcd(nodes), addrs)
        } else {
            let mut cluster = Cluster::prepare(&Options {
                server: sibling_executable("maree-db-server").map_err(told)?,
                dir: dir.clone(),
                hosts: addresses.hosts.clone(),
                config: String::new(),
            })
            .map_err(told)?;
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

    /// All processes of the nodes.
    fn pids(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Etcd(nodes) => nodes.iter().map(|node| node.0.id()).collect(),
            Kind::Maree(cluster) => cluster
                .nodes
                .iter()
                .flat_map(|node| {
                    let daemons = crate::cluster::DAEMONS.map(|daemon| node.daemon_pid(daemon));
                    daemons.into_iter().chain([node.pid()]).flatten()
                })
                .collect(),
        }
    }

    /// CPU time of all processes so far.
    pub fn cpu(&self) -> Duration {
        // SAFETY: asks for a constant of the system.
        let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
        let used: u64 = self.pids().into_iter().filter_map(used_ticks).sum();
        Duration::from_micros(used * 1_000_000 / ticks)
    }

    /// Memory and disk, for people.
    pub fn footprint(&self) -> String {
        let pss: u64 = self.pids().into_iter().filter_map(pss_kib).sum();
        format!(
            "three nodes: {} MiB of memory (PSS), {} MiB of files",
            pss / 1024,
            files_bytes(&self.dir) >> 20
        )
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

fn start_etcd(addresses: &Addresses, dir: &Path) -> Result<(Vec<Etcd>, Vec<SocketAddr>), String> {
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
        let child = Command::new("etcd")
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
            .stderr(log)
            .spawn()
            .map_err(|error| {
                format!("etcd does not start: {error}; on Debian: apt-get install etcd-server")
            })?;
        nodes.push(Etcd(child));
        addrs.push(SocketAddr::new((*host).into(), 2379));
    }
    Ok((nodes, addrs))
}

/// User and system time of a process, in clock ticks.
fn used_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn files_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => files_bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
