//! The storage daemon: logs, state machines, snapshots.
//!
//! A shard is a thread with an executor over io_uring that owns a log ([`shard`]), with threads beside it that apply, read
//! and flush; reader threads serve gatewayd ([`reader`]). The main thread watches them and beats only while they turn.

pub mod fault;
pub mod io;
pub mod log;
pub mod reader;
pub mod shard;
pub mod state;

use crate::io::{Disk, StdDisk};
use crate::log::{Log, LogOptions};
use mareedb_config::Config;
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::{
    BoardWriter, Cell, ExitCode, Gauge, GroupDigest, Inheritance, Lane, RingError, Role, Waiter,
};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use shard::{Answers, Ended, Ends, Parts};
use state::{Store, StoreOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The main thread looks so often.
const LOOK: Duration = Duration::from_millis(50);
/// Digests and disk space are shown so often.
const SHOW: Duration = Duration::from_millis(500);

/// Runs storaged until it is told to stop.
pub fn run(inheritance: Inheritance) -> ExitCode {
    let board = inheritance.board();
    fault::show_on(board.clone());
    let mut data_dir = None;
    let ended = serve(inheritance, &mut data_dir);
    let ended = fault::overrules(ended, fault::seen());
    end(&board, data_dir.as_deref(), ended)
}

/// Leaves word of why storaged ends. `data_dir`: what a fault of the disk is to be remembered in.
fn end(board: &BoardWriter, data_dir: Option<&Path>, ended: Ended) -> ExitCode {
    match ended {
        Ended::Stopped => ExitCode::Done,
        Ended::Ring(error) => board.ended_by(&error),
        Ended::Failed(ExitCode::DiskFault, why) => {
            // The disk may keep the mark waiting for longer than a daemon may be silent while it serves, and this process may be
            // killed meanwhile: so the supervisor is told first, and consensusd hands leadership over at once.
            board.set(Gauge::DiskFault, 1);
            board.set(Gauge::DiskStalled, 1);
            board.set(Gauge::Ready, 0);
            let exit = board.ended(ExitCode::DiskFault, &why);
            if let Some(data_dir) = data_dir {
                fault::remember(data_dir, &why);
            }
            exit
        }
        Ended::Failed(exit, why) => board.ended(exit, &why),
    }
}

fn failed(exit: ExitCode, error: &dyn std::fmt::Display) -> Ended {
    Ended::Failed(exit, error.to_string())
}

/// `data_dir`: set once it is looked at.
fn serve(mut inheritance: Inheritance, data_dir: &mut Option<PathBuf>) -> Ended {
    match start(&mut inheritance, data_dir) {
        Ok(running) => running.watch(),
        Err(ended) => ended,
    }
}

fn store_options(config: &Config) -> StoreOptions {
    StoreOptions {
        dir: Path::new(&config.server.data_dir).join("state"),
        cache_bytes: config.storage.cache_bytes,
        unflushed_bytes_max: config.storage.unflushed_bytes_max,
        first_rules: Rules::default(),
    }
}

fn log_options(config: &Config, answers: &Answers, acknowledged: u64) -> LogOptions {
    LogOptions {
        segment_bytes: config.storage.segment_bytes,
        cache_bytes_max: usize::try_from(config.storage.log_cache_bytes / 2).unwrap_or(usize::MAX),
        incarnation: answers.epoch(),
        acknowledged,
    }
}

struct Running {
    board: BoardWriter,
    store: Store,
    data_dir: PathBuf,
    shards: Vec<(JoinHandle<Ended>, Arc<AtomicU64>)>,
    readers: Vec<JoinHandle<RingError>>,
    stop: Arc<AtomicBool>,
    signals: SignalFd,
}

fn start(inheritance: &mut Inheritance, looked_at: &mut Option<PathBuf>) -> Result<Running, Ended> {
    let board = inheritance.board();
    // Before any thread is made, so that all of them leave the signal to the main one.
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block()
        .map_err(|error| failed(ExitCode::Failed, &error))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|error| failed(ExitCode::Failed, &error))?;
    let config: Config = serde_json::from_str(inheritance.config_json())
        .map_err(|error| failed(ExitCode::Config, &error))?;
    let data_dir = PathBuf::from(&config.server.data_dir);
    fault::check(&data_dir)?;
    *looked_at = Some(data_dir.clone());
    let store = Store::open(store_options(&config))?;
    board.beat();
    let stop = Arc::new(AtomicBool::new(false));
    let ends = Ends::new(board.clone());
    let mut opened = Vec::new();
    for number in 0..inheritance.topology().shards {
        opened.push(open_shard(
            inheritance,
            &config,
            &store,
            &ends,
            number,
            &stop,
        )?);
    }
    // Before anybody is told what is there.
    check_orphans(&store, opened.iter().map(|parts| &parts.log), &data_dir)?;
    let mut shards = Vec::new();
    for parts in opened {
        let turns = parts.turns.clone();
        let handle = std::thread::Builder::new()
            .name(format!("shard-{}", parts.number))
            .spawn(move || shard::run(parts))
            .map_err(|error| failed(ExitCode::Failed, &error))?;
        shards.push((handle, turns));
    }
    let mut readers = Vec::new();
    for number in 0..inheritance.topology().readers {
        let lane = Lane::Read(number);
        let parts = reader::Parts {
            store: store.clone(),
            sender: inheritance.sender(Role::Gateway, lane),
            receiver: inheritance.receiver(Role::Gateway, lane),
            bell: inheritance.bell(Waiter::Reader(number)),
            ringer: inheritance.ringer(Waiter::Reader(number)),
        };
        readers.push(reader::spawn(parts, &format!("reader-{number}")));
    }
    inheritance.ring_all_bells();
    Ok(Running {
        board,
        store,
        data_dir,
        shards,
        readers,
        stop,
        signals,
    })
}

/// Of a group that the store has applied something of, and no log knows, the log is gone, and with it what was acknowledged.
fn check_orphans<'a>(
    store: &Store,
    logs: impl Iterator<Item = &'a Log> + Clone,
    data_dir: &Path,
) -> Result<(), Ended> {
    let known = |group: &GroupId| logs.clone().any(|log| log.index.groups.contains_key(group));
    let orphan = store
        .replicas()
        .into_iter()
        .filter(|(group, ..)| !known(group))
        .find_map(|(group, ..)| Some((group, store.applied(group)?.last_applied?)));
    let Some((group, applied)) = orphan else {
        return Ok(());
    };
    Err(Ended::Failed(
        ExitCode::LogDamaged,
        format!(
            "{}: {group} is applied up to {applied}, and no log knows of it: bring that very directory 'log' back; \
             without it the node is lost, see docs/runbooks/lost-node.md",
            data_dir.display()
        ),
    ))
}

fn open_shard(
    inheritance: &mut Inheritance,
    config: &Config,
    store: &Store,
    ends: &Ends,
    number: u16,
    stop: &Arc<AtomicBool>,
) -> Result<Parts, Ended> {
    let log_dir = Path::new(&config.server.data_dir)
        .join("log")
        .join(format!("shard-{number}"));
    let board = inheritance.board();
    let told = |ended: Ended| match ended {
        Ended::Failed(exit, why) => Ended::Failed(exit, format!("{}: {why}", log_dir.display())),
        other => other,
    };
    let mut disk =
        StdDisk::open(&log_dir).map_err(|error| told(failed(fault::exit_of(&error), &error)))?;
    board.beat();
    let lane = Lane::Log(number);
    let answers = Arc::new(Answers::new(inheritance.sender(Role::Consensus, lane)));
    let options = log_options(config, &answers, ends.get(number));
    let began = Instant::now();
    let log = open_log(&mut disk, options, store, &|| board.beat()).map_err(told)?;
    tracing::info!(
        took_ms = began.elapsed().as_millis(),
        units = log.durable(),
        "the log is read back"
    );
    Ok(Parts {
        number,
        receiver: inheritance.receiver(Role::Consensus, lane),
        answers,
        bell: inheritance.bell(Waiter::Shard(number)),
        ringer: inheritance.ringer(Waiter::Shard(number)),
        store: store.clone(),
        log,
        log_dir,
        config: config.clone(),
        board,
        ends: ends.clone(),
        turns: Arc::new(AtomicU64::new(0)),
        stop: stop.clone(),
    })
}

/// Opens a log, and makes the replicas that it knows and the store does not: they were created in the moment of a crash.
fn open_log(
    disk: &mut dyn Disk,
    options: LogOptions,
    store: &Store,
    alive: &dyn Fn(),
) -> Result<Log, Ended> {
    let log = Log::open(disk, options, alive)?;
    for (group, state) in &log.index.groups {
        store.create_replica(*group, state.replica, state.range.clone())?;
    }
    Ok(log)
}

impl Running {
    /// Beats while every executor turns, until something ends.
    fn watch(self) -> Ended {
        let mut seen: Vec<u64> = vec![0; self.shards.len()];
        let mut shown = Instant::now() - SHOW;
        let mut ready = false;
        loop {
            let turned: Vec<u64> = self
                .shards
                .iter()
                .map(|(_, turns)| turns.load(Ordering::Relaxed))
                .collect();
            if turned.iter().zip(&seen).all(|(now, before)| now > before) {
                self.board.beat();
                if !std::mem::replace(&mut ready, true) {
                    self.board.set(Gauge::Ready, 1);
                }
            }
            seen = turned;
            if shown.elapsed() >= SHOW {
                shown = Instant::now();
                self.show();
            }
            if self.readers.iter().any(JoinHandle::is_finished)
                || self.shards.iter().any(|(shard, _)| shard.is_finished())
            {
                return self.ended();
            }
            if let Some(why) = fault::seen() {
                return Ended::Failed(ExitCode::DiskFault, why.to_owned());
            }
            self.await_signal();
        }
    }

    fn await_signal(&self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let timeout = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, timeout);
        if let Ok(Some(_)) = self.signals.read_signal() {
            tracing::info!("stopping");
            self.stop.store(true, Ordering::Release);
        }
    }

    fn show(&self) {
        let digests: Vec<GroupDigest> = self
            .store
            .replicas()
            .into_iter()
            .filter_map(|(group, ..)| {
                let (applied_index, digest) = self.store.digest(group)?;
                Some(GroupDigest {
                    group,
                    applied_index,
                    digest,
                })
            })
            .collect();
        self.board.put(Cell::Digests, &digests);
        self.board.set(Gauge::DataBytes, self.store.data_bytes());
        match io::free_bytes(&self.data_dir) {
            // 0 is what a board shows that nobody has written.
            Ok(bytes) => self.board.set(Gauge::FreeBytes, bytes.max(1)),
            // What was shown last stays; a fault of the disk ends the process.
            Err(error) => {
                tracing::debug!(%error, "nobody knows how much room there is");
                fault::note(&error);
            }
        }
    }

    fn ended(self) -> Ended {
        for (shard, _) in self.shards {
            if shard.is_finished() {
                return shard
                    .join()
                    .unwrap_or_else(|payload| Ended::panicked("a shard", &*payload));
            }
        }
        for reader in self.readers {
            if reader.is_finished() {
                return match reader.join() {
                    Ok(error) => Ended::Ring(error),
                    Err(payload) => Ended::panicked("a reader", &*payload),
                };
            }
        }
        Ended::broken("nothing has ended")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::testing::NodeInProcess;
    use nix::sys::stat::Mode;
    use std::fs::File;

    /// STO-FAULT: a disk that fails may take its time over the mark, and the process may be killed meanwhile.
    #[test]
    fn a_fault_is_shown_before_it_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        // Nothing is written to it before somebody reads.
        let mark = dir.path().join("DISK_FAULT");
        nix::unistd::mkfifo(&mark, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let node = NodeInProcess::small("{}");
        let board = node.attach(Role::Storage).board();
        let (writer, data_dir) = (board.clone(), dir.path().to_owned());
        let ending = std::thread::spawn(move || {
            let ended = Ended::Failed(ExitCode::DiskFault, "EIO".to_owned());
            end(&writer, Some(data_dir.as_path()), ended)
        });
        let began = Instant::now();
        while board.reader().get(Gauge::DiskFault) == 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "nobody is told");
            std::thread::yield_now();
        }
        assert!(!ending.is_finished());
        // Both ends, so that nobody waits any more.
        let _open = File::options().read(true).write(true).open(&mark).unwrap();
        assert_eq!(ending.join().unwrap(), ExitCode::DiskFault);
    }
}
