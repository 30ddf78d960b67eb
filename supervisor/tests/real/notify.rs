//! systemd's protocol, with a socket in systemd's place.

use crate::harness::Setup;
use mareedb_ipc::Role;
use nix::sys::signal::Signal;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

struct Manager(UnixDatagram);

impl Manager {
    fn bind(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        Manager(socket)
    }

    /// Receives until a message fits; fails when `forbidden` comes first.
    fn until(&self, wanted: impl Fn(&str) -> bool, forbidden: &str) -> String {
        loop {
            let mut buffer = [0u8; 4096];
            let length = self.0.recv(&mut buffer).expect("a message in time");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if wanted(&text) {
                return text;
            }
            assert!(!text.starts_with(forbidden), "too early: {text}");
        }
    }
}

#[test]
fn systemd_hears_ready_only_when_all_serve_then_watchdog_reload_and_stop() {
    let mut setup = Setup::new().script(Role::Gateway, "wait");
    let path = setup.dir.path().join("manager");
    let manager = Manager::bind(&path);
    setup.variables = vec![
        ("NOTIFY_SOCKET".to_owned(), path.display().to_string()),
        ("WATCHDOG_USEC".to_owned(), "200000".to_owned()),
    ];
    let mut node = setup.start();
    for start in node.all_started() {
        assert!(!start.has_notify_socket, "{:?}", start.role);
    }
    let waiting = "STATUS=waiting for gatewayd to serve";
    manager.until(|text| text == waiting, "READY");
    // The watchdog is fed before the node serves, too.
    manager.until(|text| text == "WATCHDOG=1", "READY");
    node.command(Role::Gateway, "serve");
    manager.until(|text| text == "STATUS=serving", "READY");
    manager.until(|text| text == "READY=1", "STOPPING");
    manager.until(|text| text == "WATCHDOG=1", "STOPPING");
    node.signal_supervisor(Signal::SIGHUP);
    manager.until(
        |text| text.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "READY",
    );
    manager.until(|text| text == "READY=1", "STOPPING");
    let mut hups: Vec<_> = (0..3).map(|_| node.event()).collect();
    hups.sort();
    assert!(hups[0].starts_with("hup consensusd"), "{hups:?}");
    assert!(hups[1].starts_with("hup gatewayd"), "{hups:?}");
    assert!(hups[2].starts_with("hup storaged"), "{hups:?}");
    node.command(Role::Storage, "exit 1");
    assert_eq!(node.next_start().role, Role::Storage);
    let restarted = |text: &str| text.starts_with("STATUS=serving; 1 restarts, last: storaged");
    manager.until(restarted, "READY");
    node.signal_supervisor(Signal::SIGTERM);
    manager.until(|text| text == "STOPPING=1", "READY");
    assert_eq!(node.exit_code(), Some(0));
}
