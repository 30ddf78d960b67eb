//! The listening sockets. They belong to the supervisor, so that connections queue while gatewayd restarts (invariant SUP-1).

use crate::fault::{StartError, StartFault, words};
use crate::patience::{Attempt, wait_for};
use crate::signals::Signals;
use mareedb_ipc::ExitCode;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen,
    setsockopt, socket, sockopt,
};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Connections that may queue on a port while gatewayd restarts. The kernel caps it at net.core.somaxconn.
pub const BACKLOG: i32 = 4096;

/// Both ports of the node.
#[derive(Debug)]
pub struct Sockets {
    rest: OwnedFd,
    grpc: OwnedFd,
    /// What they are bound to, for the log.
    pub addresses: [SocketAddr; 2],
}

impl Sockets {
    /// Binds and listens; waits for taken ports for at most `limit` each.
    pub fn bind(
        host: &str,
        rest_port: u16,
        consensus_port: u16,
        limit: Duration,
        signals: &Signals,
    ) -> Result<Sockets, StartError> {
        if rest_port == consensus_port && rest_port != 0 {
            return Err(StartFault {
                code: ExitCode::Config,
                what: format!("cannot listen on {host}:{rest_port}"),
                why: "server.rest_port and cluster.consensus_port are the same".to_owned(),
                remedy: "give them different ports; without a setting they are 8080 and 7001"
                    .to_owned(),
            }
            .into());
        }
        let (rest, rest_address) = port(host, rest_port, "server.rest_port", limit, signals)?;
        let (grpc, grpc_address) = port(
            host,
            consensus_port,
            "cluster.consensus_port",
            limit,
            signals,
        )?;
        Ok(Sockets {
            rest,
            grpc,
            addresses: [rest_address, grpc_address],
        })
    }

    /// The listener of the REST port, for gatewayd alone.
    pub fn rest(&self) -> RawFd {
        self.rest.as_raw_fd()
    }

    /// The listener of the consensus port, for gatewayd alone.
    pub fn grpc(&self) -> RawFd {
        self.grpc.as_raw_fd()
    }
}

fn port(
    host: &str,
    port: u16,
    setting: &str,
    limit: Duration,
    signals: &Signals,
) -> Result<(OwnedFd, SocketAddr), StartError> {
    let address = address_of(host, port)?;
    wait_for(signals, limit, || match open(address) {
        Ok(pair) => Attempt::Done(pair),
        Err(errno) => {
            let fault = explain(address, setting, errno, limit);
            match errno {
                // At boot an address may come up later than the node.
                Errno::EADDRINUSE | Errno::EADDRNOTAVAIL => Attempt::Later(fault),
                _ => Attempt::Never(fault),
            }
        }
    })
}

/// The configuration takes addresses only: a name would have to be looked up, and a resolver may hold up a start.
fn address_of(host: &str, port: u16) -> Result<SocketAddr, StartFault> {
    host.parse::<IpAddr>()
        .map(|address| SocketAddr::new(address, port))
        .map_err(|error| StartFault {
            code: ExitCode::Config,
            what: format!("cannot listen on server.listen_addr = \"{host}\""),
            why: error.to_string(),
            remedy: "set it to an address of this machine, or to 0.0.0.0 for all of them"
                .to_owned(),
        })
}

fn open(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    let bound = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    let bound_port = bound
        .as_sockaddr_in()
        .map(|v4| v4.port())
        .or_else(|| bound.as_sockaddr_in6().map(|v6| v6.port()))
        .unwrap_or(address.port());
    Ok((fd, SocketAddr::new(address.ip(), bound_port)))
}

fn explain(address: SocketAddr, setting: &str, errno: Errno, limit: Duration) -> StartFault {
    let waited = limit.as_millis();
    let (code, why, remedy) = match errno {
        Errno::EADDRINUSE => (
            ExitCode::Unavailable,
            format!("another process listens there, and still did after {waited} ms"),
            format!(
                "`ss -ltnp 'sport = :{}'` shows who; stop it, or change {setting} or server.listen_addr",
                address.port()
            ),
        ),
        Errno::EADDRNOTAVAIL => (
            ExitCode::Unavailable,
            format!("no interface of this machine has the address, nor got it within {waited} ms"),
            "correct server.listen_addr, or use 0.0.0.0; `ip address` shows what there is"
                .to_owned(),
        ),
        Errno::EACCES | Errno::EPERM => (
            ExitCode::NoPermission,
            errno.desc().to_owned(),
            format!(
                "ports below 1024 need CAP_NET_BIND_SERVICE: change {setting}, or grant it in the unit"
            ),
        ),
        other => (
            ExitCode::Unavailable,
            words(&io::Error::from(other)),
            format!("check server.listen_addr and {setting}"),
        ),
    };
    StartFault {
        code,
        what: format!("cannot listen on {address}"),
        why,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn fault(result: Result<Sockets, StartError>) -> StartFault {
        match result {
            Err(StartError::Fault(fault)) => fault,
            other => panic!("expected a fault, got {other:?}"),
        }
    }

    #[test]
    fn connections_queue_without_anybody_accepting() {
        let signals = Signals::take().unwrap();
        let sockets = Sockets::bind("127.0.0.1", 0, 0, Duration::ZERO, &signals).unwrap();
        for address in sockets.addresses {
            assert_ne!(address.port(), 0);
            TcpStream::connect(address).expect("queued by the kernel");
        }
    }

    #[test]
    fn a_taken_port_names_the_address_and_the_setting() {
        let signals = Signals::take().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let limit = Duration::from_millis(50);
        let fault = fault(Sockets::bind(
            "127.0.0.1",
            address.port(),
            0,
            limit,
            &signals,
        ));
        assert_eq!(fault.code, ExitCode::Unavailable);
        let text = fault.to_string();
        assert!(text.contains(&address.to_string()), "{text}");
        assert!(text.contains("server.rest_port"), "{text}");
    }

    #[test]
    fn a_foreign_address_a_name_and_equal_ports_are_explained() {
        let signals = Signals::take().unwrap();
        let zero = Duration::ZERO;
        let foreign = fault(Sockets::bind("192.0.2.1", 0, 0, zero, &signals));
        assert_eq!(foreign.code, ExitCode::Unavailable);
        assert!(foreign.to_string().contains("192.0.2.1"), "{foreign}");
        let equal = fault(Sockets::bind("127.0.0.1", 7001, 7001, zero, &signals));
        assert_eq!(equal.code, ExitCode::Config);
        let name = fault(Sockets::bind("localhost", 0, 0, zero, &signals));
        assert_eq!(name.code, ExitCode::Config, "it is not looked up");
    }
}
