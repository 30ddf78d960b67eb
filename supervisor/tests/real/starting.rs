//! Starts that meet a predecessor, a neighbour, or a new version.

use crate::harness::{EXECUTABLE, Setup, send};
use mareedb_ipc::{ExitCode, Role};
use nix::sys::signal::Signal;
use std::net::TcpListener;

#[test]
fn a_second_node_on_the_same_directory_is_refused() {
    let node = Setup::new().start();
    node.all_started();
    let mut neighbour = Setup::new().option("wait_limit_ms=50");
    neighbour
        .config
        .server
        .data_dir
        .clone_from(&node.setup.config.server.data_dir);
    let mut neighbour = neighbour.start();
    let code = i32::from(ExitCode::Locked.code());
    assert_eq!(neighbour.exit_code(), Some(code));
}

#[test]
fn a_taken_port_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut setup = Setup::new().option("wait_limit_ms=50");
    setup.config.cluster.consensus_port = taken.local_addr().unwrap().port();
    let mut node = setup.start();
    let code = i32::from(ExitCode::Unavailable.code());
    assert_eq!(node.exit_code(), Some(code));
}

#[test]
fn a_start_right_after_a_kill_gets_directory_and_ports() {
    let mut setup = Setup::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    setup.config.server.rest_port = free.local_addr().unwrap().port();
    drop(free);
    let mut node = setup.start();
    node.all_started();
    for _ in 0..3 {
        node.supervisor.kill().unwrap();
        node.supervisor.wait().unwrap();
        node.supervisor = node.setup.supervisor();
        node.all_started();
    }
}

/// The executable was replaced by an upgrade while the node runs: restarts go on with the version that the supervisor is.
#[test]
fn a_replaced_executable_does_not_mix_versions() {
    let mut setup = Setup::new();
    let copy = setup.dir.path().join("testnode");
    std::fs::copy(EXECUTABLE, &copy).unwrap();
    setup.executable.clone_from(&copy);
    let node = setup.start();
    let [consensus, ..] = node.all_started();
    let new = node.setup.dir.path().join("new");
    std::fs::write(&new, "#!/bin/false\n").unwrap();
    std::fs::rename(&new, &copy).unwrap();
    send(consensus.pid, Signal::SIGKILL);
    assert_eq!(node.next_start().role, Role::Consensus);
}
