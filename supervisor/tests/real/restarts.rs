//! Deaths of daemons and what follows.

use crate::harness::{Setup, descriptors, send};
use mareedb_ipc::{DaemonState, ExitCode, Role};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;

#[test]
fn a_killed_daemon_is_restarted_alone_and_its_end_is_shown() {
    let node = Setup::new().start();
    let before = node.all_started();
    for (index, role) in Role::DAEMONS.into_iter().enumerate() {
        send(before[index].pid, Signal::SIGKILL);
        let start = node.next_start();
        assert_eq!(start.role, role);
        assert_ne!(start.pid, before[index].pid);
        assert_eq!(start.generation, before[index].generation, "links stay");
        let witness = Role::DAEMONS[(index + 1) % 3];
        let status = node.status_when(witness, role, |s| s.pid == start.pid);
        assert_eq!(status.state, DaemonState::Running);
        assert_eq!((status.restarts, status.epoch), (1, 2));
        let exit = status.last_exit.expect("it ended");
        assert_eq!(exit.signal, Some(9));
        assert!(exit.reason.contains("SIGKILL"), "{}", exit.reason);
    }
}

#[test]
fn last_words_and_code_are_kept() {
    let node = Setup::new().start();
    node.all_started();
    node.command(Role::Consensus, "exit 70");
    let start = node.next_start();
    let status = node.status_when(Role::Gateway, Role::Consensus, |s| s.pid == start.pid);
    let exit = status.last_exit.expect("it ended");
    assert_eq!(exit.code, Some(70));
    assert!(exit.reason.contains("told to exit 70"), "{}", exit.reason);
    assert!(
        exit.reason.contains(ExitCode::Internal.meaning()),
        "{}",
        exit.reason
    );
}

#[test]
fn a_daemon_without_heartbeats_is_killed_and_restarted() {
    let mut setup = Setup::new();
    setup.config.server.hang_limit_ms = 1000;
    let node = setup.start();
    let before = node.all_started();
    // Stopped by the kernel, and running without a heartbeat: both are hangs. Before they serve they would have the time that recovery
    // may take.
    node.wait_until_serving();
    send(before[1].pid, Signal::SIGSTOP);
    let start = node.next_start();
    assert_eq!(start.role, Role::Storage);
    let status = node.status_when(Role::Gateway, Role::Storage, |s| s.pid == start.pid);
    let exit = status.last_exit.expect("it was killed");
    assert_eq!(exit.signal, Some(9));
    assert!(exit.reason.contains("no heartbeat"), "{}", exit.reason);
    node.command(Role::Consensus, "hang");
    assert_eq!(node.next_start().role, Role::Consensus);
}

/// A virtual machine that is paused, a laptop that sleeps: everybody stops, the clock goes on.
#[test]
fn a_pause_of_the_whole_node_kills_nobody() {
    let mut setup = Setup::new();
    setup.config.server.hang_limit_ms = 2000;
    let node = setup.start();
    let before = node.all_started();
    node.wait_until_serving();
    node.signal_supervisor(Signal::SIGSTOP);
    for start in &before {
        send(start.pid, Signal::SIGSTOP);
    }
    // The length of the pause is what is tested.
    std::thread::sleep(std::time::Duration::from_millis(3000));
    node.signal_supervisor(Signal::SIGCONT);
    for start in &before {
        send(start.pid, Signal::SIGCONT);
    }
    // Statuses are published every few ticks, so by then it has judged.
    for (start, role) in before.iter().zip(Role::DAEMONS) {
        let status = node.status_when(role, role, |s| s.heartbeat_age_ms < 500);
        assert_eq!((status.pid, status.restarts), (start.pid, 0));
    }
}

#[test]
fn a_corrupt_link_restarts_both_ends_over_new_memory() {
    let node = Setup::new().start();
    let [consensus, storage, _] = node.all_started();
    node.command(Role::Storage, "corrupt");
    let mut after = [node.next_start(), node.next_start()];
    after.sort_by_key(|start| start.role);
    assert_eq!(
        after.each_ref().map(|s| s.role),
        [Role::Consensus, Role::Storage]
    );
    assert_ne!(after[0].generation, consensus.generation);
    assert_ne!(after[1].generation, storage.generation);
    assert_eq!(after[0].generation, after[1].generation, "one link");
    let status = node.status_when(Role::Gateway, Role::Storage, |s| s.pid == after[1].pid);
    let code = i32::from(ExitCode::LinkCorrupt.code());
    assert_eq!(status.last_exit.expect("it ended").code, Some(code));
}

#[test]
fn a_crash_loop_escalates_and_then_ends_the_node_with_its_own_code() {
    let mut node = Setup::new()
        .option("budget=4")
        .option("backoff_min_ms=1")
        .option("backoff_max_ms=5")
        .script(Role::Gateway, "exit 1")
        .start();
    let mut starts = Vec::new();
    let mut terminated = Vec::new();
    // Four deaths, all three afresh over new links, four more deaths, then the others are stopped.
    while terminated.len() < 2 {
        let event = node.event();
        let words: Vec<_> = event.split(' ').map(str::to_owned).collect();
        match words[0].as_str() {
            "start" => starts.push((words[1].clone(), words[3].clone())),
            "term" => terminated.push(words[1].clone()),
            other => panic!("unexpected {other}"),
        }
    }
    let count = |name: &str| starts.iter().filter(|(role, _)| role == name).count();
    assert_eq!(count("gatewayd"), 8, "{starts:?}");
    assert_eq!((count("consensusd"), count("storaged")), (2, 2));
    let mut generations: Vec<_> = starts
        .iter()
        .filter(|(role, _)| role == "gatewayd")
        .map(|(_, generation)| generation)
        .collect();
    generations.dedup();
    assert_eq!(generations.len(), 2, "the escalation replaced the links");
    assert_eq!(terminated, ["consensusd", "storaged"]);
    let code = i32::from(ExitCode::CrashLoop.code());
    assert_eq!(node.exit_code(), Some(code));
}

#[test]
fn damage_that_is_found_twice_ends_the_node_with_the_daemons_code() {
    let mut node = Setup::new().script(Role::Storage, "exit 81").start();
    let code = i32::from(ExitCode::LogDamaged.code());
    assert_eq!(node.exit_code(), Some(code));
}

/// STO-FAULT: however it ends after it has said so, here while it leaves its mark on a disk that takes none.
#[test]
fn one_that_is_killed_after_a_fault_of_the_disk_is_not_started_again() {
    let mut node = Setup::new().start();
    let [_, storage, _] = node.all_started();
    node.command(Role::Storage, "fault");
    assert_eq!(node.event(), "fault");
    send(storage.pid, Signal::SIGKILL);
    for role in ["gatewayd", "consensusd"] {
        let event = node.event();
        assert!(event.starts_with(&format!("term {role} ")), "{event}");
    }
    let code = i32::from(ExitCode::DiskFault.code());
    assert_eq!(node.exit_code(), Some(code));
}

/// SUP-1: while gatewayd is down, connections queue and are served by its successor.
#[test]
fn no_connection_is_refused_while_the_gateway_is_down() {
    let node = Setup::new()
        .option("backoff_min_ms=1500")
        .option("backoff_max_ms=1500")
        .start();
    let [.., first] = node.all_started();
    node.status_when(Role::Storage, Role::Gateway, |s| {
        s.state == DaemonState::Running
    });
    // The first restart is immediate, the second one, of a life so brief, is not.
    node.command(Role::Gateway, "exit 1");
    let second = node.next_start();
    assert_eq!(second.role, Role::Gateway);
    node.command(Role::Gateway, "exit 1");
    node.status_when(Role::Storage, Role::Gateway, |s| {
        s.pid == 0 && s.state == DaemonState::Restarting
    });
    let streams: Vec<_> = (0..50)
        .map(|_| TcpStream::connect(("127.0.0.1", first.port)).expect("SUP-1: queued"))
        .collect();
    let third = node.next_start();
    for stream in streams {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("served");
        assert_eq!(line.trim(), third.pid.to_string());
    }
}

#[test]
fn each_daemon_holds_only_what_is_its_own() {
    let node = Setup::new().start();
    let [consensus, storage, gateway] = node.all_started();
    let lock = format!("{}/LOCK", node.setup.config.server.data_dir);
    let listener = listening_inode(gateway.port);
    for (start, lock_expected, listener_expected) in [
        (&consensus, false, false),
        (&storage, true, false),
        (&gateway, false, true),
    ] {
        let open = descriptors(start.pid);
        assert_eq!(open.contains(&lock), lock_expected, "{:?}", start.role);
        assert_eq!(
            open.contains(&listener),
            listener_expected,
            "{:?}",
            start.role
        );
    }
}

/// `socket:[inode]` of the socket that listens on a port of 127.0.0.1.
fn listening_inode(port: u16) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{port:04X}");
    let inode = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(1) == Some(&local.as_str()) && fields[3] == "0A")
        .map(|fields| fields[9].to_owned())
        .expect("it listens");
    format!("socket:[{inode}]")
}
