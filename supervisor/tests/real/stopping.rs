//! Ends of the node.

use crate::harness::{Node, Setup, send};
use mareedb_ipc::{ExitCode, Role};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

fn terminated_in_order(node: &Node) {
    let event = node.event();
    assert!(event.starts_with("handover consensusd "), "{event}");
    for role in ["gatewayd", "consensusd", "storaged"] {
        let event = node.event();
        assert!(event.starts_with(&format!("term {role} ")), "{event}");
    }
}

#[test]
fn a_stop_goes_from_the_network_to_the_disk() {
    let mut node = Setup::new().start();
    node.all_started();
    node.wait_until_serving();
    node.signal_supervisor(Signal::SIGTERM);
    terminated_in_order(&node);
    assert_eq!(node.exit_code(), Some(0));
}

/// STO-FAULT
#[test]
fn a_fault_of_the_disk_in_the_closing_flush_is_the_nodes_code() {
    let mut node = Setup::new()
        .script(Role::Storage, "stop-with 83\nserve")
        .start();
    node.all_started();
    node.wait_until_serving();
    node.signal_supervisor(Signal::SIGTERM);
    terminated_in_order(&node);
    let code = i32::from(ExitCode::DiskFault.code());
    assert_eq!(node.exit_code(), Some(code));
}

/// What a terminal does at Ctrl-C: SIGINT to the whole foreground process group.
#[test]
fn ctrl_c_reaches_the_supervisor_alone() {
    let mut node = Setup::new().start();
    node.all_started();
    node.wait_until_serving();
    let group = Pid::from_raw(i32::try_from(node.supervisor.id()).unwrap());
    killpg(group, Signal::SIGINT).unwrap();
    terminated_in_order(&node);
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn one_that_does_not_stop_is_killed_after_its_share() {
    let mut setup = Setup::new().script(Role::Gateway, "disobey\nserve");
    setup.config.server.stop_limit_ms = 2000;
    let mut node = setup.start();
    node.all_started();
    node.wait_until_serving();
    node.signal_supervisor(Signal::SIGTERM);
    // It is asked, too, and does not obey.
    terminated_in_order(&node);
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn asking_twice_does_not_wait() {
    let mut setup = Setup::new().script(Role::Gateway, "disobey\nserve");
    // So long that a stop by this limit fails the test's patience.
    setup.config.server.stop_limit_ms = 3_600_000;
    let mut node = setup.start();
    node.all_started();
    node.wait_until_serving();
    node.signal_supervisor(Signal::SIGINT);
    assert!(node.event().starts_with("handover consensusd "));
    assert!(node.event().starts_with("term gatewayd "));
    node.signal_supervisor(Signal::SIGINT);
    assert_eq!(node.exit_code(), Some(0));
}

/// SUP-2: a daemon never outlives its supervisor, not even one that is stopped.
#[test]
fn daemons_die_with_their_supervisor() {
    let mut node = Setup::new().start();
    let starts = node.all_started();
    let pidfds: Vec<OwnedFd> = starts.iter().map(|start| pidfd(start.pid)).collect();
    send(starts[0].pid, Signal::SIGSTOP);
    node.supervisor.kill().unwrap();
    node.supervisor.wait().unwrap();
    for (pidfd, start) in pidfds.iter().zip(&starts) {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let count = poll(&mut fds, PollTimeout::from(30_000u16)).unwrap();
        assert_eq!(count, 1, "SUP-2: {} outlived its supervisor", start.role);
    }
}

fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: a plain system call without pointers; the process is alive, so the pid names it.
    let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0u32) };
    let fd = i32::try_from(fd).unwrap();
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just returned it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
