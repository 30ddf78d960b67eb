//! The address by which others reach this node.
//!
//! `advertise_addr`, else a specific `listen_addr`, else the entry of `peers` that is this machine's, else the source address toward the
//! peers if it is the same for all and no loopback. Members dial each other by what is found here, so a guess that may be wrong is an
//! error with its way out, and so is an address on loopback unless all peers are there. consensusd has no sockets and finds the result in
//! the configuration that it inherits.

use crate::fault::{StartError, StartFault};
use crate::names::{Found, look_up};
use crate::patience::{Attempt, wait_for};
use crate::signals::Signals;
use mareedb_config::{Config, is_loopback};
use mareedb_ipc::ExitCode;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// What the rules ask of the machine.
pub trait Network {
    /// The addresses of a name.
    fn resolve(&self, host: &str) -> Vec<IpAddr>;
    /// Whether an interface of this machine has the address.
    fn is_local(&self, address: IpAddr) -> bool;
    /// The address that this machine would use toward another one. Sends nothing.
    fn source_toward(&self, address: IpAddr) -> Option<IpAddr>;
}

/// The machine that we run on, with the names that it has looked up.
pub(crate) struct Machine {
    found: Found,
}

impl Network for Machine {
    fn resolve(&self, host: &str) -> Vec<IpAddr> {
        self.found.get(host).cloned().unwrap_or_default()
    }
    /// By the interfaces: with the sysctl ip_nonlocal_bind, which is common beside a floating address, a bind to any address succeeds.
    fn is_local(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        // Of 127.0.0.0/8 the interface shows one address, and all are this machine's.
        if address.is_loopback() {
            return true;
        }
        getifaddrs().is_ok_and(|mut interfaces| {
            interfaces.any(|interface| interface.address.and_then(ip_of) == Some(address))
        })
    }
    fn source_toward(&self, address: IpAddr) -> Option<IpAddr> {
        let any = match address {
            IpAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
            IpAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
        };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect((address, 9)).ok()?;
        socket.local_addr().ok().map(|source| source.ip())
    }
}

fn ip_of(address: SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| IpAddr::V4(v4.ip()))
        .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// Finds the address; names and interfaces may come up a moment after the node.
pub(crate) fn find(
    config: &Config,
    limit: Duration,
    signals: &Signals,
) -> Result<String, StartError> {
    let began = Instant::now();
    let hosts: Vec<&str> = if named(config).is_none_or(is_loopback) {
        peers(config).map(|(host, _)| host).collect()
    } else {
        Vec::new()
    };
    wait_for(signals, limit, || {
        let found = match look_up(&hosts, limit.saturating_sub(began.elapsed()), signals) {
            Ok(found) => found,
            Err(stopped) => return Attempt::Never(stopped),
        };
        match advertised(config, &Machine { found }) {
            Ok(address) => Attempt::Done(address),
            Err(fault) => Attempt::Later(fault.into()),
        }
    })
}

/// The address that the settings name; `None`: they leave it to the peers what it is.
fn named(config: &Config) -> Option<&str> {
    if let Some(address) = &config.server.advertise_addr {
        return Some(bare(address));
    }
    let listen = bare(&config.server.listen_addr);
    let any = listen
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_unspecified());
    (!any).then_some(listen)
}

/// Host and port of each entry of `cluster.peers`.
fn peers(config: &Config) -> impl Iterator<Item = (&str, u16)> {
    config.cluster.peers.iter().filter_map(|peer| {
        let (host, port) = peer.rsplit_once(':')?;
        Some((bare(host), port.parse().ok()?))
    })
}

/// An entry of `cluster.peers`: its host, its port, and the addresses that the host has here.
type Peer<'a> = (&'a str, u16, Vec<IpAddr>);

/// The rules, once.
pub fn advertised(config: &Config, network: &impl Network) -> Result<String, StartFault> {
    let cluster = &config.cluster;
    let peers: Vec<Peer<'_>> = peers(config)
        .map(|(host, port)| (host, port, network.resolve(host)))
        .collect();
    if let Some(host) = named(config) {
        return reached_at(host, &peers);
    }
    let own: Vec<&str> = peers
        .iter()
        .filter(|(_, port, addresses)| {
            *port == cluster.consensus_port && addresses.iter().any(|a| network.is_local(*a))
        })
        .map(|(host, ..)| *host)
        .collect();
    if let [host] = own[..] {
        return reached_at(host, &peers);
    }
    if own.len() > 1 {
        let why = format!(
            "several entries of cluster.peers are addresses of this machine: {}",
            own.join(", ")
        );
        return Err(unknown(why));
    }
    if peers.is_empty() {
        return Ok(alone(network));
    }
    let mut sources: Vec<IpAddr> = peers
        .iter()
        .flat_map(|(.., addresses)| addresses.first())
        .filter_map(|address| network.source_toward(*address))
        .collect();
    sources.sort();
    sources.dedup();
    match sources[..] {
        [] => Err(unknown(
            "there is no route to any of cluster.peers, or no peer's name can be resolved".into(),
        )),
        [source] if source.is_loopback() => Err(unknown(format!(
            "toward cluster.peers this machine is {source}, which other machines cannot dial"
        ))),
        [source] => Ok(source.to_string()),
        _ => Err(unknown(format!(
            "this machine has different addresses toward different peers: {}",
            sources
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ))),
    }
}

/// This host, unless it would lead other machines to themselves: each would take its own answer for this node's.
fn reached_at(host: &str, peers: &[Peer<'_>]) -> Result<String, StartFault> {
    // A name may be a loopback address to its own machine and another one to all others: then it is a good one.
    let is_elsewhere = |(peer, _, addresses): &&Peer<'_>| {
        let here = !addresses.is_empty()
            && addresses
                .iter()
                .all(|address| address.to_canonical().is_loopback());
        !here && !is_loopback(peer)
    };
    match peers.iter().find(is_elsewhere) {
        Some((other, ..)) if is_loopback(host) => Err(StartFault {
            // Not Config, as below: whether a name is of this machine is not known before it can be looked up.
            code: ExitCode::Unavailable,
            what: format!("other nodes cannot reach this one at {host}"),
            why: format!("that is each machine itself, and {other} of cluster.peers is another one"),
            remedy: "set server.advertise_addr to the address of this machine that the others dial, and list this node in \
                     cluster.peers by that address or not at all"
                .to_owned(),
        }),
        _ => Ok(host.to_owned()),
    }
}

/// A node without peers: the address of the default route, which later members would use, else loopback.
fn alone(network: &impl Network) -> String {
    // TEST-NET-1 of RFC 5737: nobody is there, and nothing is sent.
    network
        .source_toward(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)))
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .to_string()
}

fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn unknown(why: String) -> StartFault {
    StartFault {
        // Not Config: at boot it may be only the network that is late, and a later start cures it.
        code: ExitCode::Unavailable,
        what: "cannot tell by which address other nodes reach this one".to_owned(),
        why,
        remedy: "set server.advertise_addr to this node's address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of TEST-NET-1: no machine has it.
    const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// A machine with these addresses; toward `10.x` it is 10.0.0.1, toward `172.x` 172.16.0.1, toward 127.x 127.0.0.1.
    struct Fake(&'static [&'static str]);
    impl Network for Fake {
        fn resolve(&self, host: &str) -> Vec<IpAddr> {
            match host {
                "self.example" => vec!["10.0.0.1".parse().unwrap()],
                "db2.example" => vec!["10.0.0.2".parse().unwrap()],
                "here.example" => vec!["127.0.0.2".parse().unwrap()],
                "localhost" => vec!["127.0.0.1".parse().unwrap()],
                "lost.example" => vec![],
                _ => host.parse().into_iter().collect(),
            }
        }
        fn is_local(&self, address: IpAddr) -> bool {
            self.0.contains(&address.to_string().as_str())
        }
        fn source_toward(&self, address: IpAddr) -> Option<IpAddr> {
            match address {
                IpAddr::V4(v4) => match v4.octets()[0] {
                    127 => Some("127.0.0.1".parse().unwrap()),
                    10 | 192 => Some("10.0.0.1".parse().unwrap()),
                    172 => Some("172.16.0.1".parse().unwrap()),
                    _ => None,
                },
                IpAddr::V6(_) => None,
            }
        }
    }

    fn find(peers: &[&str], change: impl Fn(&mut Config)) -> Result<String, String> {
        let mut config = Config::default();
        config.cluster.enabled = true;
        config.cluster.peers = peers.iter().map(|p| (*p).to_owned()).collect();
        change(&mut config);
        advertised(&config, &Fake(&["10.0.0.1", "127.0.0.1", "127.0.0.2"])).map_err(|f| f.why)
    }

    #[test]
    fn what_is_set_goes_first() {
        let set = find(&["10.0.0.2:7001"], |c| {
            c.server.advertise_addr = Some("db1.example".into());
            c.server.listen_addr = "10.0.0.9".into();
        });
        assert_eq!(set.unwrap(), "db1.example");
        let listens = find(&["10.0.0.2:7001"], |c| {
            c.server.listen_addr = "10.0.0.3".into();
        });
        assert_eq!(listens.unwrap(), "10.0.0.3");
    }

    #[test]
    fn loopback_is_for_clusters_of_one_machine() {
        let advertise = |address: &'static str| {
            move |c: &mut Config| c.server.advertise_addr = Some(address.into())
        };
        let listen = |c: &mut Config| c.server.listen_addr = "127.0.0.3".into();
        let all_here = ["127.0.0.1:7001", "127.0.0.2:7001", "here.example:7001"];
        assert_eq!(find(&all_here, listen).unwrap(), "127.0.0.3");
        assert_eq!(
            find(&all_here, advertise("127.0.0.1")).unwrap(),
            "127.0.0.1"
        );
        assert_eq!(find(&[], advertise("::1")).unwrap(), "::1");
        // Other ports of this machine.
        let ports = ["localhost:7001", "localhost:7002", "127.0.0.1:7003"];
        assert_eq!(find(&ports, |_| ()).unwrap(), "localhost");
        for other in ["10.0.0.2:7001", "db2.example:7001", "lost.example:7001"] {
            for own in ["localhost:7001", "127.0.0.1:7001"] {
                let why = find(&[own, other], |_| ()).unwrap_err();
                assert!(why.contains("each machine itself"), "{own}, {other}: {why}");
            }
            for why in [
                find(&[other], listen).unwrap_err(),
                find(&["127.0.0.2:7001", other], advertise("127.0.0.1")).unwrap_err(),
            ] {
                assert!(why.contains("each machine itself"), "{other}: {why}");
            }
        }
        // The own name is one of loopback addresses in some distributions' /etc/hosts; to the others it is not.
        let name = find(&["here.example:7001", "10.0.0.2:7001"], |_| ());
        assert_eq!(name.unwrap(), "here.example");
    }

    #[test]
    fn the_own_entry_of_peers_is_found_by_address_and_port() {
        assert_eq!(
            find(&["10.0.0.1:7001", "10.0.0.2:7001"], |_| ()).unwrap(),
            "10.0.0.1"
        );
        assert_eq!(
            find(&["self.example:7001", "10.0.0.2:7001"], |_| ()).unwrap(),
            "self.example"
        );
        let why = find(&["127.0.0.1:7001", "127.0.0.2:7001"], |_| ()).unwrap_err();
        assert!(why.contains("several entries"), "{why}");
    }

    #[test]
    fn else_the_source_address_toward_all_peers() {
        // The guide's files list the other nodes only.
        let guide = find(&["192.168.1.11:7001", "192.168.1.12:7001"], |_| ());
        assert_eq!(guide.unwrap(), "10.0.0.1");
        let partly = find(&["10.0.0.2:7001", "lost.example:7001"], |_| ());
        assert_eq!(partly.unwrap(), "10.0.0.1");
        for (peers, word) in [
            (&["10.0.0.2:7001", "172.16.0.2:7001"][..], "different"),
            (&["127.0.0.5:7001"], "127.0.0.1"),
            (&["lost.example:7001"], "no route"),
        ] {
            let why = find(peers, |_| ()).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn a_node_alone_always_has_an_address() {
        assert_eq!(find(&[], |_| ()).unwrap(), "10.0.0.1");
    }

    #[test]
    fn the_real_machine_knows_itself() {
        let machine = Machine {
            found: Found::new(),
        };
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(machine.is_local(local));
        assert!(machine.is_local("127.8.9.10".parse().unwrap()));
        assert!(!machine.is_local(STRANGER));
        assert_eq!(machine.source_toward(local), Some(local));
        // Whatever it is toward others, it is.
        if let Some(own) = machine.source_toward(STRANGER) {
            assert!(machine.is_local(own), "{own}");
        }
    }

    /// In a network namespace of this thread's own, so that the machine's setting stays.
    #[test]
    fn an_address_that_can_be_bound_is_not_local_for_that() {
        use nix::sched::{CloneFlags, unshare};
        let set = || -> std::io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            std::fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", "1")
        };
        std::thread::spawn(move || {
            if let Err(error) = set() {
                eprintln!("SKIPPED an_address_that_can_be_bound_is_not_local_for_that: {error}");
                return;
            }
            let found = Found::new();
            std::net::TcpListener::bind((STRANGER, 0)).expect("what the setting is for");
            assert!(!Machine { found }.is_local(STRANGER));
        })
        .join()
        .unwrap();
    }
}
