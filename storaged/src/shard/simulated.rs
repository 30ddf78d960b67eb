//! A shard that a simulation drives: the same steps, and the same work as the threads do, one piece at a time when the
//! simulation says so; only the executor, the threads and the device are its own.

use super::answers::Answers;
use super::end::{Ended, Ends};
use super::full::FullDisk;
use super::keep::{self, Keeper};
use super::steps::{Next, Quiet, Steps, StepsParts};
use super::threads::{self, Asked, Disks, Keep, Make, Never, Read, Shared, Threads};
use super::writer::{Flying, UnitWriter, Written};
use super::{apply, files};
use crate::log::{FileWork, Log, Write};
use crate::state::Store;
use crate::{check_orphans, log_options, open_log, store_options};
use crossbeam::channel::{Receiver, unbounded};
use futures::FutureExt;
use mareedb_config::Config;
use mareedb_ipc::{ExitCode, Gauge, Inheritance, Lane, Role, Waiter};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A full disk is tried again so often.
pub const AGAIN: Duration = files::AGAIN;

/// A shard's number: there is one.
const SHARD: u16 = 0;

/// Begins writes, and is told of their end.
#[derive(Default)]
struct Flights {
    open: Option<u64>,
    begun: Vec<Write>,
    flying: Flying,
    ended: VecDeque<Written>,
}

impl UnitWriter for Flights {
    fn has_room(&self) -> bool {
        self.flying.has_room()
    }

    fn waiting(&self) -> Duration {
        self.flying.waiting()
    }

    fn ended(&mut self) -> Option<Written> {
        let written = self.ended.pop_front()?;
        self.flying.end(written.lsn);
        Some(written)
    }

    async fn open(&mut self, segment: u64) -> io::Result<()> {
        self.open = Some(segment);
        Ok(())
    }

    fn place(&self, segment: u64) -> String {
        format!("segment {segment}")
    }

    fn begin(&mut self, write: Write) {
        assert_eq!(
            self.open,
            Some(write.location.segment),
            "LOG-2: a unit for another segment"
        );
        self.flying.begin(write.lsn);
        self.begun.push(write);
    }
}

/// A thread beside the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thread {
    /// Applies.
    Apply,
    /// Reads logs.
    Read,
    /// Moves snapshots.
    Snapshots,
    /// Flushes.
    Keep,
    /// Makes replicas.
    Make,
    /// Makes and removes files.
    Files,
}

impl Thread {
    /// All of them.
    pub const ALL: [Thread; 6] = [
        Thread::Apply,
        Thread::Read,
        Thread::Snapshots,
        Thread::Keep,
        Thread::Make,
        Thread::Files,
    ];
}

/// What a thread did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// There was nothing to do.
    Nothing,
    /// A piece of work.
    Work,
    /// The disk is full: after [`AGAIN`], [`SimShard::again`] is to be called, and nothing asked of this thread before.
    Full,
}

/// The entrances' other ends.
struct Works {
    apply: Receiver<Asked>,
    read: Receiver<Read>,
    snapshots: Receiver<Asked>,
    keep: Receiver<Keep>,
    make: Receiver<Make>,
    files: Receiver<FileWork>,
    /// Nothing comes; it is held.
    _merge: Receiver<Never>,
}

/// The shard.
pub struct SimShard {
    steps: Steps<Flights>,
    shared: Shared,
    works: Works,
    keeper: Keeper,
    /// There was no room for a file.
    full: FullDisk,
    /// There was none for a merge.
    merge_full: FullDisk,
    quiet: Quiet,
}

fn channels() -> (Threads, Works) {
    let (apply, applies) = unbounded();
    let (read, reads) = unbounded();
    let (snapshots, moves) = unbounded();
    let (keep, keeps) = unbounded();
    let (merge, merges) = unbounded();
    let (make, makes) = unbounded();
    let (files, changes) = unbounded();
    let threads = Threads {
        apply,
        read,
        snapshots,
        keep,
        merge,
        make,
        files,
    };
    let works = Works {
        apply: applies,
        read: reads,
        snapshots: moves,
        keep: keeps,
        make: makes,
        files: changes,
        _merge: merges,
    };
    (threads, works)
}

impl SimShard {
    /// What storaged does at its start, over this disk.
    ///
    /// # Errors
    /// What ends storaged.
    pub fn open(
        inheritance: &mut Inheritance,
        config: &Config,
        disk: Disks,
    ) -> Result<SimShard, Ended> {
        let board = inheritance.board();
        let store = Store::open(store_options(config))?;
        let ends = Ends::new(board.clone());
        let lane = Lane::Log(SHARD);
        let answers = Arc::new(Answers::new(inheritance.sender(Role::Consensus, lane)));
        let options = log_options(config, &answers, ends.get(SHARD));
        let log = open_log(&mut *disk(), options, &store, &|| ())?;
        check_orphans(
            &store,
            std::iter::once(&log),
            Path::new(&config.server.data_dir),
        )?;
        let shared = Shared {
            store,
            log: Arc::new(Mutex::new(log)),
            answers,
            bell: inheritance.ringer(Waiter::Shard(SHARD)),
            board,
            unflushed_bytes_max: config.storage.unflushed_bytes_max,
            disk,
            log_dir: config.server.data_dir.clone().into(),
            reports: Arc::default(),
        };
        let (threads, works) = channels();
        let parts = StepsParts {
            number: SHARD,
            receiver: inheritance.receiver(Role::Consensus, lane),
            config: config.clone(),
            ends,
            turns: Arc::default(),
            stop: Arc::default(),
            threads,
            writer: Flights::default(),
        };
        let mut steps = Steps::new(&shared, parts);
        steps.begin();
        inheritance.ring_all_bells();
        Ok(SimShard {
            steps,
            shared,
            works,
            keeper: Keeper::new(),
            full: FullDisk::default(),
            merge_full: FullDisk::default(),
            quiet: Quiet::new(),
        })
    }

    /// A turn of the main task. `Ok(true)`: nothing to do until somebody rings.
    ///
    /// # Errors
    /// What ends storaged.
    pub fn turn(&mut self) -> Result<bool, Ended> {
        let turned = self.steps.turn().now_or_never();
        let turned = turned.expect("a simulated device lets nobody wait for a file")?;
        self.quiet.look(&self.shared.log.lock());
        if turned == Next::Turn {
            return Ok(false);
        }
        let closed = self.steps.close_quiet(&mut self.quiet).now_or_never();
        let closed = closed.expect("a simulated device lets nobody wait for a file")?;
        Ok(closed == Next::Wait)
    }

    /// The writes that were begun since this was asked last.
    pub fn begun(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.steps.writer.begun)
    }

    /// A write has ended.
    pub fn ended(&mut self, lsn: u64, result: io::Result<()>) {
        let writer = &mut self.steps.writer;
        let took = writer.flying.age(lsn);
        writer.ended.push_back(Written { lsn, took, result });
    }

    /// A piece of work of a thread.
    ///
    /// # Errors
    /// What ends storaged.
    pub fn work(&mut self, thread: Thread) -> Result<Did, Ended> {
        let shared = &self.shared;
        match thread {
            Thread::Apply => match self.works.apply.try_recv() {
                Ok(asked) => apply::serve_one(shared, asked)?,
                Err(_) => return Ok(Did::Nothing),
            },
            Thread::Read => match self.works.read.try_recv() {
                Ok(work) => threads::read_one(shared, &*shared.disk(), work)?,
                Err(_) => return Ok(Did::Nothing),
            },
            Thread::Snapshots => match self.works.snapshots.try_recv() {
                Ok(asked) => threads::snapshot_one(shared, asked),
                Err(_) => return Ok(Did::Nothing),
            },
            Thread::Keep => match self.works.keep.try_recv() {
                Ok(work) => {
                    self.keeper.serve(shared, work)?;
                    self.keeper.look(shared)?;
                }
                Err(_) => return Ok(Did::Nothing),
            },
            Thread::Make => match self.works.make.try_recv() {
                Ok(work) => threads::make_one(shared, work)?,
                Err(_) => return Ok(Did::Nothing),
            },
            Thread::Files => match self.works.files.try_recv() {
                Ok(work) => {
                    if files::serve_one(shared, &mut *shared.disk(), work, &mut self.full)? {
                        return Ok(Did::Full);
                    }
                }
                Err(_) => return Ok(Did::Nothing),
            },
        }
        Ok(Did::Work)
    }

    /// Whether a thread has work.
    pub fn has_work(&self, thread: Thread) -> bool {
        match thread {
            Thread::Apply => !self.works.apply.is_empty(),
            Thread::Read => !self.works.read.is_empty(),
            Thread::Snapshots => !self.works.snapshots.is_empty(),
            Thread::Keep => !self.works.keep.is_empty(),
            Thread::Make => !self.works.make.is_empty(),
            Thread::Files => !self.works.files.is_empty(),
        }
    }

    /// Tries again to make the file that there was no room for.
    pub fn again(&self) {
        files::again(&self.shared);
    }

    /// What the flushing thread looks at now and then.
    ///
    /// # Errors
    /// What ends storaged.
    pub fn look(&mut self) -> Result<(), Ended> {
        self.keeper.look(&self.shared)
    }

    /// What the merging thread does now and then.
    ///
    /// # Errors
    /// What ends storaged.
    pub fn merge(&mut self) -> Result<(), Ended> {
        keep::merge_once(&self.shared, &mut self.merge_full)
    }

    /// Leaves on the board why storaged ends.
    pub fn tell(&self, ended: &Ended) {
        if matches!(ended, Ended::Failed(ExitCode::Io | ExitCode::DiskFault, _)) {
            self.shared.board.add(Gauge::IoErrors, 1);
        }
    }

    /// The state machines.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// The log.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log.lock()
    }
}

#[cfg(test)]
mod tests;
