//! The address by which others reach this node.
//!
//! `advertise_addr`, else a specific `listen_addr`, else the entry of `peers` that is this machine's, else the source address toward the
//! peers if it is the same for all and no loopback. Members dial each other by what is found here, so a guess that may be wrong is an
//! error with its way out. consensusd has no sockets and finds the result in the configuration that it inherits.

use crate::fault::{StartError, StartFault};
use crate::names::{Found, look_up};
use crate::patience::{Attempt, wait_for};
use crate::signals::Signals;
use mareedb_config::Config;
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
    let hosts: Vec<&str> = if asks_peers(config) {
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

/// Whether the settings leave it to the peers what the address is.
fn asks_peers(config: &Config) -> bool {
    let listen = bare(&config.server.listen_addr).parse::<IpAddr>();
    config.server.advertise_addr.is_none() && listen.is_ok_and(|address| address.is_unspecified())
}

/// Host and port of each entry of `cluster.peers`.
fn peers(config: &Config) -> impl Iterator<Item = (&str, u16)> {
    config.cluster.peers.iter().filter_map(|peer| {
        let (host, port) = peer.rsplit_once(':')?;
        Some((bare(host), port.parse().ok()?))
    })
}

/// The rules, once.
pub fn advertised(config: &Config, network: &impl Network) -> Result<String, StartFault> {
    if let Some(address) = &config.server.advertise_addr {
        return Ok(bare(address).to_owned());
    }
    if !asks_peers(config) {
        return Ok(bare(&config.server.listen_addr).to_owned());
    }
    let cluster = &config.cluster;
    let peers: Vec<(&str, u16, Vec<IpAddr>)> = peers(config)
        .map(|(host, port)| (host, port, network.resolve(host)))
        .collect();
    let own: Vec<&str> = peers
        .iter()
        .filter(|(_, port, addresses)| {
            *port == cluster.consensus_port && addresses.iter().any(|a| network.is_local(*a))
        })
        .map(|(host, ..)| *host)
        .collect();
    if let [host] = own[..] {
        return Ok(host.to_owned());
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
            c.server.listen_addr = "127.0.0.3".into();
        });
        assert_eq!(listens.unwrap(), "127.0.0.3");
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
