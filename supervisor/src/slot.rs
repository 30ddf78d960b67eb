//! One daemon as the supervisor sees it: its process, if any, its heart, and what is shown of it.

use crate::plan::{Heart, Limits, Why};
use crate::spawn::Process;
use mareedb_ipc::world::wall_ms;
use mareedb_ipc::{BoardReader, DaemonState, DaemonStatus, Gauge, LastExit, Role};
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
    ///
    /// # Panics
    /// The one before was not reaped.
    pub fn starting(&mut self) {
        assert!(self.process.is_none(), "RING-8: one runs already");
        self.heart = Heart::new(self.board.beats());
    }

    /// A process was started.
    pub fn started(&mut self, process: Process) {
        self.process = Some(process);
        self.serving = false;
        self.killed = None;
        self.missed_reload = false;
        self.started_unix_ms = wall_ms();
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

    /// A tick: whether the process has been silent for too long, and whether it says that it serves.
    ///
    /// The board outlives processes: before its first heartbeat, a daemon's Ready is its predecessor's, which it takes back before it
    /// beats. So the heart goes first: whoever saw the beat sees that, too.
    pub fn look(&mut self, limits: &Limits) -> (bool, bool) {
        let silent = self.heart.tick(self.board.beats(), self.serving, limits);
        let ready = self.board.get(Gauge::Ready) == 1;
        (silent, ready && self.heart.is_alive())
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
    use mareedb_ipc::wire::RandomId;
    use mareedb_ipc::{NodeMemory, RingSizes, Topology};
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    #[should_panic(expected = "RING-8")]
    fn none_is_started_before_its_predecessor_was_reaped() {
        let topology = Topology {
            shards: 1,
            readers: 1,
            sizes: RingSizes::each(1 << 16),
        };
        let memory = NodeMemory::create(topology, "{}", RandomId::draw()).unwrap();
        let mut slot = Slot::new(Role::Storage, memory.read_board(Role::Storage));
        slot.starting();
        slot.started(Process::this().unwrap());
        slot.starting();
    }

    /// A start over and over: it takes its predecessor's Ready back, then beats, while the supervisor looks.
    #[test]
    fn readiness_of_a_predecessor_is_not_believed() {
        const STARTS: u64 = 20_000;
        let topology = Topology {
            shards: 1,
            readers: 1,
            sizes: RingSizes::each(1 << 16),
        };
        let memory = NodeMemory::create(topology, "{}", RandomId::draw()).unwrap();
        let board = memory.board();
        let limits = Limits {
            tick_ms: 1,
            serving_ms: 1 << 40,
            starting_ms: 1 << 40,
        };
        let start = AtomicU64::new(0);
        let mut believed = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=STARTS {
                    while start.load(Ordering::Acquire) < number {
                        std::hint::spin_loop();
                    }
                    board.set(Gauge::Ready, 0);
                    board.beat();
                }
            });
            for number in 1..=STARTS {
                board.set(Gauge::Ready, 1);
                let mut slot = Slot::new(Role::Supervisor, memory.read_board(Role::Supervisor));
                start.store(number, Ordering::Release);
                while !slot.heart.is_alive() {
                    let (_, serving) = slot.look(&limits);
                    believed += u64::from(serving);
                }
            }
        });
        assert_eq!(believed, 0, "of {STARTS} starts");
    }

    #[test]
    fn the_resident_set_of_this_process_is_not_nothing() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        assert_eq!(resident_bytes(0), None);
    }
}
