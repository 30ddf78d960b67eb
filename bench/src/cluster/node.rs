//! One node: its processes, and what it says.

use super::{GRPC_PORT, REST_PORT, spawn_bound};
use crate::http::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A node that can be started, killed and asked.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its address, as clients reach it.
    pub host: Ipv4Addr,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its data directory.
    pub data: PathBuf,
    /// What it writes to its error output.
    pub log: PathBuf,
    pub(super) server: PathBuf,
    pub(super) launcher: Vec<OsString>,
    /// Its supervisor, once it was started and until its end was seen.
    pub(super) child: Option<Child>,
}

impl Node {
    /// Starts the supervisor; its error output is appended to [`Node::log`].
    pub fn start(&mut self) -> io::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = match self.launcher.split_first() {
            None => Command::new(&self.server),
            Some((launcher, arguments)) => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(&self.server);
                command
            }
        };
        command
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(spawn_bound(command)?);
        Ok(())
    }

    /// Whether the supervisor runs.
    pub fn running(&mut self) -> bool {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => true,
            Some(_) => {
                self.child = None;
                false
            }
            None => false,
        }
    }

    /// Pid of the supervisor.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Address of the REST API.
    pub fn rest(&self) -> SocketAddr {
        SocketAddr::from((self.host, REST_PORT))
    }

    /// `ip:port` of gRPC.
    pub fn grpc(&self) -> String {
        format!("{}:{GRPC_PORT}", self.host)
    }

    /// A client of the node.
    pub fn client(&self) -> Client {
        Client::new(self.rest())
    }

    /// `GET path` as JSON.
    ///
    /// # Errors
    /// No connection, no answer within five seconds, or another status than 200.
    pub async fn ask(&self, path: &str) -> Result<Value, String> {
        let answer = self
            .client()
            .get(path)
            .await
            .map_err(|error| error.to_string())?;
        if answer.status == 200 {
            Ok(answer.json())
        } else {
            Err(format!(
                "{}: {}",
                answer.status,
                String::from_utf8_lossy(&answer.body)
            ))
        }
    }

    /// Pid of a daemon: the child of the supervisor with that `comm`.
    pub fn daemon_pid(&self, daemon: &str) -> Option<u32> {
        child_named(self.pid()?, daemon)
    }

    /// Sends a signal to a daemon and returns its pid; `None` when it does not run at this moment.
    pub fn signal_daemon(&self, daemon: &str, signal: Signal) -> Option<u32> {
        let pid = self.daemon_pid(daemon)?;
        kill(to_pid(pid), signal).ok()?;
        Some(pid)
    }

    /// Waits until a daemon runs under another pid than `old`.
    ///
    /// # Errors
    /// None did within `limit`.
    pub async fn await_restart(
        &self,
        daemon: &str,
        old: u32,
        limit: Duration,
    ) -> Result<u32, String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(pid) = self.daemon_pid(daemon).filter(|pid| *pid != old) {
                return Ok(pid);
            }
            if Instant::now() >= end {
                return Err(format!(
                    "{} did not restart {daemon} (pid {old}) within {limit:?}\n{}",
                    self.name,
                    self.log_end()
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a signal to the supervisor, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended by itself; then there is nobody to tell.
            let _ = kill(to_pid(pid), signal);
        }
    }

    /// Kills the supervisor, and by that the node.
    pub fn kill9(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGKILL);
        self.await_exit(Duration::from_secs(5)).map(drop)
    }

    /// Waits for the end of the supervisor.
    ///
    /// # Errors
    /// It still ran after `limit`.
    pub fn await_exit(&mut self, limit: Duration) -> io::Result<Option<i32>> {
        let Some(child) = self.child.as_mut() else {
            return Ok(None);
        };
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status.code());
            }
            if Instant::now() >= end {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{} still runs after {limit:?}", self.name),
                ));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last lines that the node wrote.
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(30);
        format!("--- {} ---\n{}", self.name, lines[from..].join("\n"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The child of `parent` whose `comm` is `name`; zombies do not count.
fn child_named(parent: u32, name: &str) -> Option<u32> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|pid| pid.parse().ok())
        else {
            continue;
        };
        // pid (comm) state ppid ...; a process may end while it is looked at.
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut fields = tail.split(' ');
        let (state, ppid) = (fields.next(), fields.next());
        let comm = head.split_once(" (").map(|(_, comm)| comm);
        if comm == Some(name) && ppid == Some(&parent.to_string()) && state != Some("Z") {
            return Some(pid);
        }
    }
    None
}

pub(super) fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}
