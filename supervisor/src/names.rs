//! Names of other machines, looked up without being held by it.
//!
//! getaddrinfo takes as long as the resolver's time limits, one name after the other, and no signal ends it: the supervisor's are
//! blocked. So each name that is not an address already gets a thread for the look-up, and the start waits for all of them together,
//! for as long as it may and unless a stop is asked for. A thread that is given up ends with the process, or when the resolver does.

use crate::fault::StartError;
use crate::signals::Signals;
use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(20);

/// The addresses of each name; of one that was not found in time there is no entry.
pub(crate) type Found = HashMap<String, Vec<IpAddr>>;

/// Looks all names up, waiting for at most `limit`.
///
/// # Errors
/// A stop was asked for.
pub(crate) fn look_up(
    hosts: &[&str],
    limit: Duration,
    signals: &Signals,
) -> Result<Found, StartError> {
    look_up_by(ask, hosts, limit, signals)
}

fn ask(host: &str) -> Vec<IpAddr> {
    (host, 0)
        .to_socket_addrs()
        .map(|found| found.map(|address| address.ip()).collect())
        .unwrap_or_default()
}

fn look_up_by(
    ask: fn(&str) -> Vec<IpAddr>,
    hosts: &[&str],
    limit: Duration,
    signals: &Signals,
) -> Result<Found, StartError> {
    let until = Instant::now() + limit;
    let mut found = Found::new();
    let (tell, told) = channel();
    for host in hosts {
        if let Ok(address) = host.parse() {
            found.insert((*host).to_owned(), vec![address]);
            continue;
        }
        let (tell, host) = (tell.clone(), (*host).to_owned());
        // Without a thread the name is one that was not found; the caller tries again.
        let _ = std::thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || {
                let addresses = ask(&host);
                // Nobody listens any more once the start has given the name up.
                let _ = tell.send((host, addresses));
            });
    }
    drop(tell);
    loop {
        match told.recv_timeout(STEP) {
            Ok((host, addresses)) => {
                found.insert(host, addresses);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(found),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= until => return Ok(found),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if signals.pause(Duration::ZERO) {
            return Err(StartError::Stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, raise};

    const LONG: Duration = Duration::from_secs(600);

    /// A resolver that is not there for one name.
    fn slow(host: &str) -> Vec<IpAddr> {
        if host == "lost.example" {
            std::thread::sleep(LONG);
        }
        vec![IpAddr::from([10, 0, 0, 1])]
    }

    #[test]
    fn one_slow_name_holds_neither_the_others_nor_the_start() {
        let signals = Signals::take().unwrap();
        let hosts = ["10.0.0.9", "lost.example", "db1.example"];
        let found = look_up_by(slow, &hosts, Duration::from_millis(300), &signals).unwrap();
        assert_eq!(found["10.0.0.9"], [IpAddr::from([10, 0, 0, 9])]);
        assert_eq!(found["db1.example"], [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(found.get("lost.example"), None);
        assert_eq!(look_up(&["127.0.0.9"], LONG, &signals).unwrap().len(), 1);
    }

    #[test]
    fn a_stop_ends_it() {
        let signals = Signals::take().unwrap();
        // To this thread, which has it blocked.
        raise(Signal::SIGTERM).unwrap();
        let stopped = look_up_by(slow, &["lost.example"], LONG, &signals);
        assert!(matches!(stopped, Err(StartError::Stopped)));
    }
}
