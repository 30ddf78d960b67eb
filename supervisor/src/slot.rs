//! One daemon as the supervisor sees it: its process, if any, its heart, and what is shown of it.

use crate::exits::unix_ms;
use crate::plan::{Heart, Why};
use crate::spawn::Process;
use mareedb_ipc::{BoardReader, DaemonState, DaemonStatus, LastExit, Role};
use std::fs;

/// A daemon.
pub(crate) struct Slot {
    pub role: Role,
    /// Its board outlives its processes.
    pub board: BoardReader,
    pub process: Option<Process>,
    pub heart: Heart,
    /// This process has said that it serves, and still does.
    pub serving: bool,
    /// Why we killed the running process.
    pub killed: Option<Why>,
    /// A reload came before this process could take the signal.
    pub missed_reload: bool,
    started_unix_ms: u64,
    /// Processes started so far.
    spawns: u64,
    pub last_exit: Option<LastExit>,
    rss_bytes: u64,
}

impl Slot {
    pub fn new(role: Role, board: BoardReader) -> Slot {
        Slot {
            role,
            heart: Heart::new(board.beats()),
            board,
            process: None,
            serving: false,
            killed: None,
            missed_reload: false,
            started_unix_ms: 0,
            spawns: 0,
            last_exit: None,
            rss_bytes: 0,
        }
    }

    /// A process is about to be started. Its first heartbeat may come before the spawning call has returned.
    pub fn starting(&mut self) {
        self.heart = Heart::new(self.board.beats());
    }

    /// A process was started.
    pub fn started(&mut self, process: Process) {
        self.process = Some(process);
        self.serving = false;
        self.killed = None;
        self.missed_reload = false;
        self.started_unix_ms = unix_ms();
        self.spawns += 1;
        self.rss_bytes = 0;
    }

    /// Its process ended.
    pub fn ended(&mut self, exit: LastExit) {
        self.process = None;
        self.serving = false;
        self.killed = None;
        self.rss_bytes = 0;
        self.last_exit = Some(exit);
    }

    /// Restarts so far.
    pub fn restarts(&self) -> u64 {
        self.spawns.saturating_sub(1)
    }

    /// Reads the resident set from /proc.
    pub fn measure(&mut self) {
        if let Some(process) = &self.process {
            self.rss_bytes = resident_bytes(process.pid()).unwrap_or(self.rss_bytes);
        }
    }

    /// What is published.
    pub fn status(&self, ending: bool, tick_ms: u64) -> DaemonStatus {
        let state = match (&self.process, self.killed) {
            (Some(_), Some(Why::Hung)) => DaemonState::Hung,
            (Some(_), Some(_)) => DaemonState::Restarting,
            (Some(_), None) => DaemonState::Running,
            (None, _) if ending => DaemonState::Failed,
            (None, _) => DaemonState::Restarting,
        };
        DaemonStatus {
            role: self.role,
            state,
            pid: self.process.as_ref().map_or(0, Process::pid),
            epoch: self.spawns,
            started_unix_ms: self.started_unix_ms,
            restarts: self.restarts(),
            rss_bytes: self.rss_bytes,
            heartbeat_age_ms: self.heart.silent_for_ms(tick_ms),
            last_exit: self.last_exit.clone(),
        }
    }
}

fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page_bytes).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_of_this_process_is_not_nothing() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        assert_eq!(resident_bytes(0), None);
    }
}
