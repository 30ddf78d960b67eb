//! Addresses of nodes: what `peers` may hold, and whom an address on loopback leads to.

use crate::schema::Config;
use crate::validate::{Found, add};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a host is by its looks the machine that dials it: an address of the loopback network, or `localhost`.
pub fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        // Also localhost.localdomain.
        Err(_) => host
            .split('.')
            .next()
            .is_some_and(|label| label.eq_ignore_ascii_case("localhost")),
    }
}

/// What is wrong with an entry of `peers`.
pub(crate) fn peer_fault(peer: &str) -> Option<&'static str> {
    let Some((host, port)) = peer.rsplit_once(':') else {
        return Some("has no port");
    };
    if !matches!(port.parse::<u16>(), Ok(1..)) {
        return Some("has no port from 1 to 65535");
    }
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match bracketed {
        Some(host) => match host.parse::<Ipv6Addr>() {
            Ok(address) => unreachable_fault(address.into()),
            Err(_) => Some("is no IPv6 address"),
        },
        None if host.contains(':') => Some("is an IPv6 address without brackets"),
        None => {
            let valid = !host.is_empty()
                && host.len() <= 253
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
            if !valid {
                return Some("is no address and no host name");
            }
            match host.parse::<Ipv4Addr>() {
                Ok(address) => unreachable_fault(address.into()),
                // No name is all numbers, and a resolver that takes 10.1 for an address finds another one than was meant.
                Err(_) if is_all_numbers(host) => Some("is no IPv4 address"),
                Err(_) => None,
            }
        }
    }
}

fn unreachable_fault(address: IpAddr) -> Option<&'static str> {
    address
        .to_canonical()
        .is_unspecified()
        .then_some("is no address that others can reach")
}

fn is_all_numbers(host: &str) -> bool {
    host.chars().all(|c| c.is_ascii_digit() || c == '.')
}

fn is_unspecified(host: &str) -> bool {
    host.parse::<IpAddr>()
        .is_ok_and(|address| address.is_unspecified())
}

/// Host of an entry of `peers`, without brackets.
fn host_of(peer: &str) -> &str {
    let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Nodes tell each other their own address and their lists. On loopback each would dial itself, and a cluster of several machines would
/// never form. What a name leads to is not known here; the node looks at its start.
pub(crate) fn loopback(config: &Config, found: &mut Found) {
    let (server, peers) = (&config.server, &config.cluster.peers);
    let is_elsewhere = |peer: &&String| {
        host_of(peer).parse::<IpAddr>().is_ok_and(|address| {
            let address = address.to_canonical();
            !address.is_loopback() && !address.is_unspecified()
        })
    };
    let Some(other) = peers.iter().find(is_elsewhere) else {
        return;
    };
    let (key, own) = match &server.advertise_addr {
        Some(own) => ("server.advertise_addr", own),
        None => ("server.listen_addr", &server.listen_addr),
    };
    if is_loopback(own) {
        add(
            found,
            key,
            format!(
                "is '{own}', where each machine reaches itself, and cluster.peers lists '{other}': name the address of this machine that \
                 the other nodes dial"
            ),
        );
    }
    // The own entry is the node's address unless another setting is; the others find by its incarnation whom they dial.
    let named = server.advertise_addr.is_some() || !is_unspecified(&server.listen_addr);
    let own = |peer: &&String| !named && is_loopback(host_of(peer));
    for peer in peers.iter().filter(own) {
        add(
            found,
            "cluster.peers",
            format!(
                "'{peer}' is each machine itself, and '{other}' is another one: list a node by the address that the others dial; this \
                 node may be left out"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_its_looks() {
        for host in [
            "127.0.0.1",
            "127.8.9.10",
            "::1",
            "::ffff:127.0.0.1",
            "localhost",
            "LocalHost.",
            "localhost.localdomain",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "10.0.0.1",
            "0.0.0.0",
            "::2",
            "db1",
            "localhosts.example",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_peer_is_an_address_or_a_name_with_a_port() {
        for good in [
            "192.168.1.11:7001",
            "127.0.0.2:7001",
            "localhost:7001",
            "[fe80::1]:7001",
            "db1:7001",
            "db-1.rack_2.example:65535",
            "10-0-0-1.example.:7001",
            "7eleven.example:7001",
            "1a:7001",
            "mareedb.1:7001",
        ] {
            assert_eq!(peer_fault(good), None, "{good}");
        }
        for (bad, why) in [
            ("db1", "has no port"),
            ("db1:0", "has no port from"),
            ("db1:70000", "has no port from"),
            ("fe80::1:7001", "without brackets"),
            ("[fe80::x]:7001", "no IPv6 address"),
            ("192.168.1.1111:7001", "no IPv4 address"),
            ("192.168.1:7001", "no IPv4 address"),
            ("192.168.1.11.:7001", "no IPv4 address"),
            ("7001:7001", "no IPv4 address"),
            ("0.0.0.0:7001", "others can reach"),
            ("[::]:7001", "others can reach"),
            ("[::ffff:0.0.0.0]:7001", "others can reach"),
            ("d b:7001", "no host name"),
            (":7001", "no host name"),
        ] {
            let told = peer_fault(bad);
            assert!(
                told.is_some_and(|told| told.contains(why)),
                "{bad}: {told:?}"
            );
        }
    }
}
