//! A network of its own for each node of a test cluster: a network namespace, a link to this machine for clients, and a link to a
//! switch in this process over which the nodes reach each other.
//!
//! The switch sees every packet between nodes, so it can drop, delay, thin or reset what goes from one node to another, in one
//! direction or both, without a firewall or a queueing discipline that the kernel may lack. The nodes' kernels do all the rest: a closed
//! port refuses, what was dropped is sent again, a silent peer times out.
//!
//! Invariant: dropping a [`Network`] removes its namespaces; those that a killed process left are removed by the next one.
//!
//! Non-goal: the clients' way to the nodes is not disturbed.

mod namespace;
mod packet;
mod switch;
mod tun;

pub use switch::{Carried, Link, Switch};

use crate::cluster::Site;
use namespace::Namespace;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

/// The nodes' addresses among each other; every cluster may use the same, since each has a switch of its own.
const PEERS: [u8; 3] = [172, 31, 77];

/// Namespaces of several nodes, and the switch between them.
pub struct Network {
    /// The switch.
    pub switch: Switch,
    sites: Vec<Site>,
    _namespaces: Vec<Namespace>,
    _claim: TcpListener,
}

impl Network {
    /// Whether this process may make one: it needs root's rights over the network, `ip` and `nsenter`.
    pub fn possible() -> bool {
        nix::unistd::geteuid().is_root()
            && PathBuf::from("/dev/net/tun").exists()
            && namespace::tools_exist()
    }

    /// Makes the namespaces of `count` nodes (at most 60) and connects them.
    ///
    /// # Errors
    /// A right or a tool is missing; the message names the command.
    pub fn new(count: u8) -> io::Result<Network> {
        namespace::remove_left_behind();
        let (claim, [_, a, b, _]) = crate::cluster::claim()?;
        let mut namespaces = Vec::new();
        let mut sites = Vec::new();
        let mut tuns = Vec::new();
        for at in 0..count {
            let peer = Ipv4Addr::new(PEERS[0], PEERS[1], PEERS[2], at + 1);
            // A net of four addresses for each link to a node: its own, this machine's, the node's, broadcast.
            let client = [1, 2].map(|end| Ipv4Addr::new(10, a, b, at * 4 + end));
            let namespace = Namespace::new(at, client)?;
            tuns.push((peer, tun::open(&namespace, peer)?));
            sites.push(Site {
                host: client[1],
                advertised: peer,
                listen: Ipv4Addr::UNSPECIFIED,
                launcher: namespace.launcher(),
            });
            namespaces.push(namespace);
        }
        Ok(Network {
            switch: Switch::start(tuns)?,
            sites,
            _namespaces: namespaces,
            _claim: claim,
        })
    }

    /// Where the nodes live, for [`crate::cluster::Cluster::prepare_at`].
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }
}
