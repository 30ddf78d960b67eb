//! The shard's main task: takes messages off the ring, writes what must be durable, releases in order.

mod latencies;
mod run;
mod take;

use super::answers::Answers;
use super::end::{Ended, Ends};
use super::requests::hand;
use super::threads::{Installed, Keep, Read, Reports, Shared, Threads};
use super::writer::{UnitWriter, Writer, Written};
use crate::fault;
use crate::log::unit::{RECORD_EXTRA_BYTES, Record};
use crate::log::{Log, Write};
use crate::state::Store;
use latencies::Latencies;
use mareedb_config::Config;
use mareedb_ipc::wire::storage::{FromStorage, LogEntry, StorageAnswer, StorageRequest, ToStorage};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId};
use mareedb_ipc::world::{Fault, now, planted};
use mareedb_ipc::{BoardWriter, ExitCode, Gauge, Receiver};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A shard is young for so long.
const YOUNG: Duration = Duration::from_secs(1);
/// A quiet log gets its closing mark after so long.
const QUIET: Duration = Duration::from_millis(200);
/// What a unit takes beside its header and its records, at most, with some to spare: their number.
const UNIT_EXTRA_BYTES: usize = 256;

/// A message on its way to being released, or something that waits for a unit to be durable.
pub(super) struct Step {
    /// End of its record in the ring, if it came from there.
    pub(super) end: Option<u64>,
    /// The unit that must be durable first.
    pub(super) lsn: u64,
    pub(super) what: What,
}

pub(super) enum What {
    /// An operation: durable is done.
    Operation,
    /// A new consensusd.
    Hello { epoch: u64, number: u64 },
    /// A request.
    Request { request: u64, body: StorageRequest },
    /// The answer to an installation, which empties the log.
    Answer { request: u64, body: StorageAnswer },
}

/// Records that this daemon itself has to log.
pub(super) enum Internal {
    Installed(Installed),
    Moved(GroupId, Vec<LogEntry>),
}

/// What is to be logged next, and the steps that follow from it.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) records: Vec<Record>,
    pub(super) steps: Vec<(Option<u64>, What)>,
    bytes: usize,
}

/// A message that waits for its replica to be made; the stream waits behind it.
struct Making {
    message: ToStorage,
    end: u64,
    bytes: usize,
    since: Instant,
    done: bool,
}

/// What is due after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another turn.
    Turn,
    /// Nothing until somebody rings.
    Wait,
}

/// What can be done with records.
enum Room {
    Here(Write),
    Begin(Write),
    Later,
}

/// What a main task is made of, beside what it shares with the threads.
pub(super) struct StepsParts<W> {
    pub(super) number: u16,
    pub(super) receiver: Receiver,
    pub(super) config: Config,
    pub(super) ends: Ends,
    pub(super) turns: Arc<AtomicU64>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) threads: Threads,
    pub(super) writer: W,
}

/// The main task, whatever drives it and writes for it.
pub(super) struct Steps<W> {
    number: u16,
    pub(super) receiver: Receiver,
    pub(super) answers: Arc<Answers>,
    pub(super) store: Store,
    pub(super) log: Arc<Mutex<Log>>,
    pub(super) config: Config,
    board: BoardWriter,
    ends: Ends,
    turns: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    pub(super) threads: Threads,
    pub(super) reports: Arc<Mutex<Reports>>,
    pub(super) writer: W,
    pub(super) queue: VecDeque<Step>,
    /// Waits for a segment.
    pub(super) pending: Option<Pending>,
    /// Waits for a replica.
    making: Option<Making>,
    /// So much was handed to the applying thread.
    pub(super) handed: u64,
    /// Commit positions that are not in the log yet.
    pub(super) noted: BTreeMap<GroupId, (OperationId, Option<LogPosition>)>,
    /// They are to be logged although nothing else is.
    note: bool,
    pub(super) internal: VecDeque<Internal>,
    /// Entries are being moved to another segment.
    moving: bool,
    /// Since when `pending` waits.
    waits_since: Option<Instant>,
    latencies: Latencies,
    began: Instant,
}

impl<W: UnitWriter> Steps<W> {
    /// One that has done nothing yet.
    pub(super) fn new(shared: &Shared, parts: StepsParts<W>) -> Steps<W> {
        Steps {
            number: parts.number,
            receiver: parts.receiver,
            answers: shared.answers.clone(),
            store: shared.store.clone(),
            log: shared.log.clone(),
            config: parts.config,
            board: shared.board.clone(),
            ends: parts.ends,
            turns: parts.turns,
            stop: parts.stop,
            threads: parts.threads,
            reports: shared.reports.clone(),
            writer: parts.writer,
            queue: VecDeque::new(),
            pending: None,
            making: None,
            handed: 0,
            noted: BTreeMap::new(),
            note: false,
            internal: VecDeque::new(),
            moving: false,
            waits_since: None,
            latencies: Latencies::default(),
            began: now(),
        }
    }

    /// The first thing of all.
    pub(super) fn begin(&mut self) {
        self.complete_installs();
        self.answers.send(&FromStorage::Up {
            epoch: self.answers.epoch(),
        });
    }

    /// A crash may have come between a snapshot's installation and the record that empties the log up to its end.
    fn complete_installs(&mut self) {
        let log = self.log.lock();
        for (group, ..) in self.store.replicas() {
            if let Some(meta) = self.store.persisted(group)
                && meta.last_applied.is_some_and(|at| log.lacks(group, at))
            {
                let request = None;
                self.internal.push_back(Internal::Installed(Installed {
                    request,
                    group,
                    meta,
                }));
            }
        }
    }

    /// What is to be done when nothing is.
    pub(super) async fn close_quiet(&mut self, quiet: &mut Quiet) -> Result<Next, Ended> {
        if now().saturating_duration_since(quiet.since) <= QUIET || self.pending.is_some() {
            return Ok(Next::Wait);
        }
        quiet.since = now();
        if !self.noted.is_empty() && self.may_write() {
            self.note = true;
            return Ok(Next::Turn);
        }
        let closing = self.log.lock().closing();
        if let Some(write) = closing {
            self.write(write).await?;
        }
        Ok(Next::Wait)
    }

    /// Does what can be done now.
    pub(super) async fn turn(&mut self) -> Result<Next, Ended> {
        self.hear()?;
        self.end_writes()?;
        self.show_stall();
        self.release()?;
        let stopping = self.stop.load(Ordering::Acquire);
        let quiet = stopping || self.advance().await? == Next::Wait;
        // What came needed no write, and waits for none.
        self.release()?;
        self.mind_segments()?;
        let answered = self.answers.flush()?;
        // What waits for a write, a file or a replica is rung for.
        let waits = self.pending.is_some() || self.making.is_some();
        let listens = !stopping && !waits && self.may_write();
        if quiet && answered && (!listens || self.receiver.arm()?) {
            Ok(Next::Wait)
        } else {
            Ok(Next::Turn)
        }
    }

    /// What the threads tell.
    fn hear(&mut self) -> Result<(), Ended> {
        // Whoever met it, a reader too.
        if let Some(damage) = self.store.damage() {
            return Err(damage.into());
        }
        let mut reports = self.reports.lock();
        if let Some(ended) = reports.failed.take() {
            return Err(ended);
        }
        let installed = reports.installed.drain(..).map(Internal::Installed);
        self.internal.extend(installed);
        if let Some(moved) = reports.moved.take() {
            let moved = moved.into_iter();
            self.internal
                .extend(moved.map(|(group, entries)| Internal::Moved(group, entries)));
            self.moving = false;
        }
        if std::mem::take(&mut reports.made)
            && let Some(making) = &mut self.making
        {
            making.done = true;
        }
        Ok(())
    }

    fn end_writes(&mut self) -> Result<(), Ended> {
        while let Some(Written { lsn, took, result }) = self.writer.ended() {
            if let Err(why) = result {
                return Err(Ended::Failed(
                    fault::exit_of(&why),
                    format!("write of unit {lsn} of the log: {why}"),
                ));
            }
            self.latencies.record(took);
            self.board.add(Gauge::Flushes, 1);
            self.log.lock().written(lsn);
        }
        Ok(())
    }

    fn show_stall(&self) {
        let replica = self.making.as_ref().map(|making| making.since);
        let waits = [self.waits_since, replica].into_iter().flatten().min();
        let waits = waits.map_or(Duration::ZERO, |at| now().saturating_duration_since(at));
        let longest = self.writer.waiting().max(waits);
        let stalled = longest.as_millis() > u128::from(self.config.storage.stall_limit_ms);
        self.board.set(Gauge::DiskStalled, u64::from(stalled));
    }

    /// Moves the head, and does what it passes. LOG-1: only past what is durable.
    fn release(&mut self) -> Result<(), Ended> {
        let durable = if planted(Fault::HeadBeforeDurable) {
            self.log.lock().issued()
        } else {
            self.log.lock().durable()
        };
        let mut told = false;
        while let Some(step) = self.queue.front()
            && step.lsn <= durable
        {
            if matches!(step.what, What::Hello { .. }) && !self.is_settled(durable) {
                break;
            }
            if !told {
                self.ends.set(self.number, durable);
                told = true;
            }
            let Some(step) = self.queue.pop_front() else {
                break;
            };
            match step.what {
                What::Operation => {}
                What::Hello { epoch, number } => self.bootstrapped(epoch, number),
                What::Request { request, body } => self.dispatch(request, body)?,
                What::Answer { request, body } => self.answers.answer(request, body),
            }
            if let Some(end) = step.end {
                self.receiver.release(end);
            }
        }
        Ok(())
    }

    fn may_write(&self) -> bool {
        self.writer.has_room() && !self.log.lock().is_beginning()
    }

    /// Writes what is next.
    async fn advance(&mut self) -> Result<Next, Ended> {
        if !self.may_write() {
            return Ok(Next::Wait);
        }
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => self.take()?,
        };
        if pending.records.is_empty() {
            let drained = pending.steps.is_empty();
            self.queue_steps(pending.steps);
            return Ok(if drained { Next::Wait } else { Next::Turn });
        }
        match self.room_for(&mut pending)? {
            Room::Here(write) => {
                self.waits_since = None;
                self.board.add(Gauge::LogBytes, write.bytes.len() as u64);
                self.write(write).await?;
                self.queue_steps(pending.steps);
                Ok(Next::Turn)
            }
            Room::Begin(write) => {
                self.pending = Some(pending);
                self.write(write).await?;
                Ok(Next::Wait)
            }
            Room::Later => {
                self.waits_since.get_or_insert_with(now);
                self.pending = Some(pending);
                Ok(Next::Wait)
            }
        }
    }

    fn room_for(&self, pending: &mut Pending) -> Result<Room, Ended> {
        // The encoding of records adds a little to that of messages.
        let records = RECORD_EXTRA_BYTES * pending.records.len();
        let need = pending.bytes + records + UNIT_EXTRA_BYTES;
        let mut log = self.log.lock();
        if log.fits(need) {
            let write = log
                .take(std::mem::take(&mut pending.records))
                .map_err(Ended::broken)?;
            return Ok(Room::Here(write));
        }
        if !log.fits_empty(need) {
            return Err(Ended::Failed(
                ExitCode::Config,
                format!("{need} bytes fit into no segment: raise storage.segment_bytes"),
            ));
        }
        // A segment begins once everything before is durable (LOG-4).
        let begun = (log.unfinished() == 0)
            .then(|| log.begin_segment())
            .flatten();
        Ok(begun.map_or(Room::Later, Room::Begin))
    }

    fn queue_steps(&mut self, steps: Vec<(Option<u64>, What)>) {
        let lsn = self.log.lock().issued();
        self.queue
            .extend(steps.into_iter().map(|(end, what)| Step { end, lsn, what }));
    }

    async fn write(&mut self, write: Write) -> Result<(), Ended> {
        let segment = write.location.segment;
        if let Err(error) = self.writer.open(segment).await {
            let why = format!("{}: {error}", self.writer.place(segment));
            return Err(Ended::Failed(fault::exit_of(&error), why));
        }
        self.writer.begin(write);
        Ok(())
    }

    /// Recycles old segments, and has a file ready for the next one.
    fn mind_segments(&mut self) -> Result<(), Ended> {
        let mut log = self.log.lock();
        log.recycle();
        self.board.set(Gauge::LogFileBytes, log.file_bytes());
        // A restart has other things to do than to fill a file that is needed in a while.
        let young = now().saturating_duration_since(self.began) < YOUNG
            && log.used() < self.config.storage.segment_bytes / 4;
        let prepare = if young { None } else { log.prepare() };
        let works = [log.sealed(), prepare, log.surplus()];
        // One at a time, and none while the last one waits to be logged.
        let idle = !self.moving && self.internal.is_empty() && self.pending.is_none();
        let cold = if idle { log.cold() } else { Vec::new() };
        drop(log);
        for work in works.into_iter().flatten() {
            hand(&self.threads.files, work)?;
        }
        if !cold.is_empty() {
            self.moving = true;
            hand(&self.threads.read, Read::Cold(cold))?;
        }
        Ok(())
    }
}

/// Since when nothing was begun in the log: what is only asked keeps nothing from being written down.
pub(super) struct Quiet {
    since: Instant,
    issued: u64,
}

impl Quiet {
    pub(super) fn new() -> Quiet {
        Quiet {
            since: now(),
            issued: 0,
        }
    }

    /// To be called after each turn.
    pub(super) fn look(&mut self, log: &Log) {
        let issued = log.issued();
        if issued != self.issued {
            (self.since, self.issued) = (now(), issued);
        }
    }
}
