//! Nodes of etcd.

use super::servers::make;
use crate::cluster::{Addresses, spawn_bound};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// etcd's port for clients.
const CLIENT_PORT: u16 = 2379;
/// etcd's port for its peers.
const PEER_PORT: u16 = 2380;

/// An etcd node; its process ends with this.
pub(super) struct Etcd {
    arguments: Vec<OsString>,
    /// Its data directory.
    pub(super) dir: PathBuf,
    pub(super) child: Child,
}
impl Etcd {
    fn start(arguments: Vec<OsString>, dir: PathBuf) -> io::Result<Etcd> {
        let child = Etcd::spawn(&arguments, &log_of(&dir))?;
        Ok(Etcd {
            arguments,
            dir,
            child,
        })
    }

    pub(super) fn start_again(&mut self) -> io::Result<()> {
        self.child = Etcd::spawn(&self.arguments, &log_of(&self.dir))?;
        Ok(())
    }

    fn spawn(arguments: &[OsString], log: &Path) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("etcd");
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        spawn_bound(command)
    }

    /// An error: it has ended.
    pub(super) fn runs(&mut self) -> Result<(), String> {
        match self.child.try_wait().map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(status) => Err(format!(
                "etcd has ended with {status}: see {}",
                log_of(&self.dir).display()
            )),
        }
    }
}
impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a cluster: its nodes, and where clients reach each.
pub(super) fn start(
    addresses: &Addresses,
    dir: &Path,
    prepare: &mut (dyn FnMut(&Path) -> Result<(), String> + Send),
) -> Result<(Vec<Etcd>, Vec<SocketAddr>), String> {
    for host in &addresses.hosts {
        free(*host, &[CLIENT_PORT, PEER_PORT])?;
    }
    let names: Vec<String> = (1..=addresses.hosts.len())
        .map(|at| format!("e{at}"))
        .collect();
    let members: Vec<String> = names
        .iter()
        .zip(&addresses.hosts)
        .map(|(name, host)| format!("{name}=http://{host}:{PEER_PORT}"))
        .collect();
    let mut nodes = Vec::new();
    let mut addrs = Vec::new();
    for (name, host) in names.iter().zip(&addresses.hosts) {
        let data = dir.join(name);
        make(&data, prepare)?;
        let (clients, peers) = (
            format!("http://{host}:{CLIENT_PORT}"),
            format!("http://{host}:{PEER_PORT}"),
        );
        let arguments: [(&str, OsString); 8] = [
            ("--name", name.into()),
            ("--data-dir", data.clone().into()),
            ("--listen-peer-urls", (&peers).into()),
            ("--initial-advertise-peer-urls", peers.into()),
            ("--listen-client-urls", (&clients).into()),
            ("--advertise-client-urls", clients.into()),
            ("--initial-cluster", members.join(",").into()),
            ("--initial-cluster-state", "new".into()),
        ];
        let arguments = arguments
            .into_iter()
            .flat_map(|(option, value)| [option.into(), value]);
        let node = Etcd::start(arguments.collect(), data).map_err(|error| {
            format!("etcd does not start: {error}; on Debian: apt-get install etcd-server")
        })?;
        nodes.push(node);
        addrs.push(SocketAddr::new((*host).into(), CLIENT_PORT));
    }
    Ok((nodes, addrs))
}

/// Where an etcd writes what it says.
fn log_of(data: &Path) -> PathBuf {
    data.with_extension("log")
}

/// Who listens there already, perhaps on all addresses of the machine, would be measured in place of ours, which could not start.
fn free(host: Ipv4Addr, ports: &[u16]) -> Result<(), String> {
    for port in ports {
        TcpListener::bind((host, *port)).map_err(|error| {
            format!("{host}:{port}: {error}: end what listens on port {port}, another etcd perhaps")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::REST_PORT;

    #[test]
    fn who_listens_on_all_addresses_is_noticed() {
        let addresses = Addresses::claim(1);
        let host = addresses.hosts[0];
        assert_eq!(free(host, &[REST_PORT]), Ok(()));
        let other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let why = free(host, &[REST_PORT, port]).unwrap_err();
        assert!(why.contains(&format!("{host}:{port}")), "{why}");
    }
}
