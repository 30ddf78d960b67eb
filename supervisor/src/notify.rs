//! systemd's notification protocol: datagrams of `KEY=value` lines to the socket named by NOTIFY_SOCKET.
//!
//! Small enough to write down: a library would bring less than it costs. Without the variable everything here does nothing, so the
//! node runs in the foreground as well. A failed send is dropped: systemd's time limits are the answer to it, not a retry that
//! blocks.

use nix::time::{ClockId, clock_gettime};
use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Variables that concern the supervisor alone and are kept from the daemons.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The connection to the service manager, if there is one.
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    status: String,
    ready: bool,
}

impl Notifier {
    /// From the environment.
    pub fn from_env() -> Notifier {
        let watchdog_pid = std::env::var("WATCHDOG_PID").ok();
        let ours = watchdog_pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let usec = std::env::var("WATCHDOG_USEC").ok().filter(|_| ours);
        Notifier::new(std::env::var_os("NOTIFY_SOCKET"), usec.as_deref())
    }

    /// With the values of NOTIFY_SOCKET and WATCHDOG_USEC.
    pub fn new(socket: Option<OsString>, watchdog_usec: Option<&str>) -> Notifier {
        let socket = socket.and_then(|name| {
            let address = address_of(&name)?;
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        Notifier {
            watchdog: watchdog_usec
                .and_then(|text| text.parse().ok())
                .filter(|usec| *usec > 0)
                .map(Duration::from_micros),
            socket,
            status: String::new(),
            ready: false,
        }
    }

    /// How often systemd wants to hear from us; half the limit, as its manual advises.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.socket.as_ref()?;
        self.watchdog.map(|limit| limit / 2)
    }

    /// The loop runs.
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// One line for `systemctl status`; sent only when it changed.
    pub fn status(&mut self, text: &str) {
        if self.status != text {
            text.clone_into(&mut self.status);
            self.send(&format!("STATUS={}", text.replace('\n', " ")));
        }
    }

    /// The node serves; told once.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.send("READY=1");
        }
    }

    /// Whether [`Notifier::ready`] was called.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// A reload begins.
    pub fn reloading(&self) {
        let now_usec = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map(|now| Duration::from(now).as_micros())
            .unwrap_or_default();
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={now_usec}"));
    }

    /// A reload is over. Tells systemd that the service is ready again only if it was before.
    pub fn reloaded(&self) {
        if self.ready {
            self.send("READY=1");
        }
    }

    /// The node is on its way out.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn address_of(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0u8; 512];
        let n = socket.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    }

    #[test]
    fn a_path_socket_gets_each_message_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut notifier = Notifier::new(Some(path.into_os_string()), Some("3000000"));
        assert_eq!(
            notifier.watchdog_interval(),
            Some(Duration::from_millis(1500))
        );
        notifier.status("starting\nnow");
        notifier.status("starting\nnow");
        notifier.reloaded();
        notifier.ready();
        notifier.ready();
        notifier.watchdog();
        notifier.reloading();
        notifier.reloaded();
        notifier.stopping();
        assert_eq!(received(&socket), "STATUS=starting now");
        assert_eq!(received(&socket), "READY=1");
        assert_eq!(received(&socket), "WATCHDOG=1");
        assert!(received(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(received(&socket), "READY=1");
        assert_eq!(received(&socket), "STOPPING=1");
    }

    #[test]
    fn an_abstract_socket_works_and_nothing_is_fine_too() {
        let name = format!("mareedb-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::new(Some(format!("@{name}").into()), None).ready();
        assert_eq!(received(&socket), "READY=1");
        let mut silent = Notifier::new(None, Some("3000000"));
        silent.ready();
        assert_eq!(silent.watchdog_interval(), None);
        assert!(
            Notifier::new(Some("vsock:1:2".into()), None)
                .socket
                .is_none()
        );
    }
}
