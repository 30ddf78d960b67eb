//! The node as processes, with its real daemons.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// In alphabetical order.
const DAEMONS: [&str; 3] = ["consensusd", "gatewayd", "storaged"];

struct Node {
    dir: tempfile::TempDir,
    supervisor: Child,
    lines: Receiver<String>,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let node_config = config_path(&dir);
        write_config(&dir, "info");
        let mut supervisor = Command::new(env!("CARGO_BIN_EXE_maree-db-server"))
            .arg("--config")
            .arg(node_config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(supervisor.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Node {
            dir,
            supervisor,
            lines,
        }
    }

    /// The next line that says all of `parts`.
    fn line(&self, parts: &[&str]) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(30)) {
                Ok(line) if parts.iter().all(|part| line.contains(part)) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("{error}: no {parts:?} in\n{}", seen.join("\n")),
            }
        }
    }

    /// Pid of the child whose comm is `name`, if there is one.
    fn child(&self, name: &str) -> Option<u32> {
        let pid = self.supervisor.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|child| child.parse().ok())
            .find(|child: &u32| comm(*child).as_deref() == Some(name))
    }

    fn signal(&self, signal: Signal) {
        send(self.supervisor.id(), signal);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

fn config_path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("maree-db.toml")
}

fn write_config(dir: &tempfile::TempDir, level: &str) {
    let data = dir.path().join("data");
    let text = format!(
        "[server]\ndata_dir = {data:?}\nlisten_addr = \"127.0.0.1\"\nrest_port = 0\nhang_limit_ms = 20000\n\
         [cluster]\nconsensus_port = 0\n[log]\nlevel = \"{level}\"\n"
    );
    std::fs::write(config_path(dir), text).unwrap();
}

fn comm(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_end().to_owned())
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

#[test]
fn daemons_are_named_children_that_come_back_follow_a_reload_and_stop() {
    let mut node = Node::start();
    node.line(&["supervisor[", "the node serves"]);
    for name in DAEMONS {
        let pid = node.child(name).expect("a direct child with its name");
        send(pid, Signal::SIGKILL);
        node.line(&["supervisor[", &format!("{name} ended: signal 9 (SIGKILL)")]);
        let started = node.line(&["supervisor[", &format!("started {name}"), "restarts=1"]);
        assert!(!started.contains(&format!("child_pid={pid} ")), "{started}");
        node.line(&["supervisor[", "the node serves again"]);
    }
    write_config(&node.dir, "debug");
    node.signal(Signal::SIGHUP);
    node.line(&["supervisor[", "reloaded", "debug"]);
    let mut speakers: Vec<String> = DAEMONS
        .iter()
        .map(|_| node.line(&["log.level is \"debug\""]))
        .collect();
    speakers.sort();
    for (line, name) in speakers.iter().zip(DAEMONS) {
        assert!(line.starts_with(name), "{speakers:?}");
    }
    // A file with a fault changes nothing.
    write_config(&node.dir, "loud=very");
    node.signal(Signal::SIGHUP);
    node.line(&["supervisor[", "reload refused", "loud=very"]);
    node.signal(Signal::SIGTERM);
    for name in ["gatewayd", "consensusd", "storaged"] {
        node.line(&["supervisor[", &format!("{name} stopped")]);
    }
    assert_eq!(node.supervisor.wait().unwrap().code(), Some(0));
}
