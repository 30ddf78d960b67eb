//! The shard's main task: takes messages off the ring, writes what must be durable, releases in order, dispatches requests.

use super::answers::Answers;
use super::work::{Apply, Threads, Work};
use super::writer::{Writer, Written};
use super::{Ended, writer};
use crate::io::StdDisk;
use crate::log::unit::Change;
use crate::log::{Log, UNIT_BYTES_MAX, recover::LogError};
use crate::state::Store;
use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use mareedb_config::Config;
use mareedb_ipc::wire::storage::{
    FromStorage, ReplicaState, SnapshotMeta, StorageAnswer, StorageRequest, ToStorage,
};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId};
use mareedb_ipc::{BoardWriter, ExitCode, Gauge, Receiver};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The task turns at least so often, to prove that it runs.
const TURN: Duration = Duration::from_millis(40);
/// A quiet log gets its closing mark after so long.
const QUIET: Duration = Duration::from_millis(200);
/// Messages taken in one turn.
const MESSAGES_MAX: usize = 4096;
/// Bytes of entries handed to the apply thread at once.
const APPLY_BYTES_MAX: usize = 1 << 20;
/// Segments kept before entries that pin the oldest are moved.
const SEGMENTS_KEPT: usize = 3;

/// A message on its way to being released.
pub(super) struct Step {
    /// End of its record in the ring.
    end: u64,
    /// The unit that must be durable first.
    lsn: u64,
    what: What,
}

enum What {
    /// An operation: durable is done.
    Operation,
    /// A new consensusd.
    Hello { epoch: u64 },
    /// A request.
    Request { request: u64, body: StorageRequest },
}

/// Operations that wait for a segment.
pub(super) struct Pending {
    operations: Vec<(OperationId, Change)>,
    steps: Vec<(u64, What)>,
    bytes: usize,
}

/// The main task.
pub(super) struct Steps {
    pub(super) receiver: Receiver,
    pub(super) answers: Arc<Answers>,
    pub(super) store: Store,
    pub(super) log: Log,
    pub(super) disk: StdDisk,
    pub(super) config: Config,
    pub(super) board: BoardWriter,
    pub(super) turns: Arc<AtomicU64>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) fresh: bool,
    pub(super) threads: Threads,
    pub(super) writer: Writer,
    pub(super) queue: VecDeque<Step>,
    pub(super) pending: Option<Pending>,
    /// The next index to hand to the apply thread, by group.
    pub(super) next: BTreeMap<GroupId, u64>,
    pub(super) spare_asked: bool,
    /// Something happened after which a segment may be free: looking costs a walk over all entries.
    pub(super) recycle_due: bool,
}

impl Steps {
    pub(super) async fn run(mut self, mut rung: UnboundedReceiver<()>) -> Ended {
        self.answers.send(&FromStorage::Up {
            epoch: self.answers.epoch(),
        });
        let mut quiet_since = Instant::now();
        let mut latencies = Latencies::default();
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            match self.turn(&mut latencies).await {
                Ok(true) => {}
                Ok(false) => {
                    quiet_since = Instant::now();
                    glommio::executor().yield_task_queue_now().await;
                    continue;
                }
                Err(ended) => return ended,
            }
            if self.stop.load(Ordering::Acquire) && self.log.unfinished() == 0 {
                if let Err(ended) = self.close().await {
                    return ended;
                }
                return Ended::Stopped;
            }
            if quiet_since.elapsed() > QUIET {
                quiet_since = Instant::now();
                latencies.show(&self.board);
                if let Some(write) = self.log.closing()
                    && let Err(ended) = self.write(write).await
                {
                    return ended;
                }
            }
            // Several rings are one wake.
            let wake = glommio::timer::timeout(TURN, async {
                Ok::<_, glommio::GlommioError<()>>(rung.next().await)
            });
            if wake.await.is_ok() {
                while rung.try_recv().is_ok() {}
            }
        }
    }

    /// `Ok(true)`: nothing to do until somebody rings.
    async fn turn(&mut self, latencies: &mut Latencies) -> Result<bool, Ended> {
        if let Some(why) = self.threads.reports.failed.lock().take() {
            return Err(Ended::Failed(ExitCode::Io, why));
        }
        while let Some(Written { lsn, took, result }) = self.writer.ended() {
            if let Err(why) = result {
                self.board.add(Gauge::IoErrors, 1);
                return Err(Ended::Failed(
                    ExitCode::Io,
                    format!("write of the log: {why}"),
                ));
            }
            latencies.record(took);
            self.board.add(Gauge::Flushes, 1);
            self.log.written(lsn);
        }
        let stalled =
            self.writer.waiting().as_millis() > u128::from(self.config.storage.stall_limit_ms);
        self.board.set(Gauge::DiskStalled, u64::from(stalled));
        for number in std::mem::take(&mut *self.threads.reports.spares.lock()) {
            self.log.add_spare(number);
            self.spare_asked = false;
        }
        self.release()?;
        let mut quiet = true;
        if self.pending.is_some() {
            self.begin_segment().await?;
        }
        if self.pending.is_none() && self.writer.has_room() {
            quiet = self.take().await?;
        }
        self.mind_segments().await?;
        let answered = self.answers.flush()?;
        Ok(quiet && answered && (!self.writer.has_room() || self.receiver.arm()?))
    }

    /// Moves the head, and dispatches what it passes. LOG-1: only past what is durable.
    fn release(&mut self) -> Result<(), Ended> {
        let durable = self.log.durable();
        while self.queue.front().is_some_and(|step| step.lsn <= durable) {
            let Some(step) = self.queue.pop_front() else {
                break;
            };
            match step.what {
                What::Operation => {}
                What::Hello { epoch } => self.bootstrapped(epoch),
                What::Request { request, body } => self.dispatch(request, body)?,
            }
            self.receiver.release(step.end);
        }
        Ok(())
    }

    fn bootstrapped(&mut self, epoch: u64) {
        let nothing = SnapshotMeta {
            last_applied: None,
            membership: None,
        };
        let replicas = self
            .log
            .index
            .groups
            .iter()
            .map(|(group, state)| ReplicaState {
                group: *group,
                replica: state.replica,
                range: state.range.clone(),
                vote: state.vote,
                purged: state.purged,
                last: state.last,
                committed: state.committed,
                applied: self
                    .store
                    .applied(*group)
                    .unwrap_or_else(|| nothing.clone()),
                persisted: self
                    .store
                    .persisted(*group)
                    .unwrap_or_else(|| nothing.clone()),
            })
            .collect();
        self.answers.send(&FromStorage::Bootstrapped {
            epoch,
            generation: self.receiver.generation(),
            replicas,
            records: self.log.index.records.values().cloned().collect(),
            fresh: self.fresh,
        });
    }

    fn dispatch(&mut self, request: u64, body: StorageRequest) -> Result<(), Ended> {
        match body {
            StorageRequest::Apply {
                group,
                results_from,
                upto,
            } => self.dispatch_apply(request, group, results_from, upto),
            StorageRequest::ReadLog {
                group,
                from,
                to,
                max_bytes,
            } => {
                let read = self
                    .log
                    .read(&self.disk, group, from, to, max_bytes as usize);
                let body = match read {
                    Ok(entries) => StorageAnswer::Log { entries },
                    Err(error) => return Err(damaged(&error)),
                };
                self.answers.answer(request, body);
                Ok(())
            }
            StorageRequest::FinishInstall {
                group, ref meta, ..
            } => {
                let after = meta.last_applied.map_or(0, |at| at.index + 1);
                let next = self.next.entry(group).or_default();
                *next = after.max(*next);
                self.hand_over(Apply::Install { request, body })
            }
            body => self
                .threads
                .work
                .send(Work::Request { request, body })
                .map_err(|_| gone()),
        }
    }

    fn hand_over(&self, apply: Apply) -> Result<(), Ended> {
        self.threads.apply.send(apply).map_err(|_| gone())
    }

    /// Reads the entries that are due and hands them to the apply thread, in parts.
    fn dispatch_apply(
        &mut self,
        request: u64,
        group: GroupId,
        results_from: u64,
        upto: LogPosition,
    ) -> Result<(), Ended> {
        let applied = self.store.applied(group).and_then(|meta| meta.last_applied);
        let next = *self
            .next
            .entry(group)
            .or_insert_with(|| applied.map_or(0, |at| at.index + 1));
        let mut from = next.min(results_from);
        let to = upto.index + 1;
        loop {
            let entries = self
                .log
                .read(&self.disk, group, from, to, APPLY_BYTES_MAX)
                .map_err(|error| damaged(&error))?;
            if entries.is_empty() && from < to {
                self.answers.answer(
                    request,
                    StorageAnswer::Failed {
                        message: format!(
                            "{group}: entry {from} is not in the log, apply goes up to {upto}"
                        ),
                    },
                );
                return Ok(());
            }
            from += entries.len() as u64;
            let last = from >= to;
            self.hand_over(Apply::Entries {
                group,
                entries,
                results_from,
                request: last.then_some(request),
                upto,
            })?;
            if last {
                break;
            }
        }
        self.next.insert(group, to.max(next));
        Ok(())
    }

    /// Takes what is in the ring. `Ok(true)`: all of it.
    async fn take(&mut self) -> Result<bool, Ended> {
        let mut pending = Pending {
            operations: Vec::new(),
            steps: Vec::new(),
            bytes: 0,
        };
        let mut drained = false;
        for _ in 0..MESSAGES_MAX {
            if pending.bytes > UNIT_BYTES_MAX / 2 {
                break;
            }
            let start = self.receiver.cursor();
            let Some((message, end)) = self.receiver.try_recv::<ToStorage>()? else {
                drained = true;
                break;
            };
            let bytes = usize::try_from(end - start).unwrap_or(usize::MAX);
            self.sort(message, end, bytes, &mut pending)?;
        }
        if pending.steps.is_empty() {
            return Ok(drained);
        }
        self.put(pending).await?;
        Ok(false)
    }

    /// What a message is: an operation for the log, or something to do when it is reached.
    fn sort(
        &mut self,
        message: ToStorage,
        end: u64,
        bytes: usize,
        pending: &mut Pending,
    ) -> Result<(), Ended> {
        let change = match message {
            ToStorage::Hello { epoch } => {
                pending.steps.push((end, What::Hello { epoch }));
                return Ok(());
            }
            ToStorage::Request { request, body } => {
                pending.steps.push((end, What::Request { request, body }));
                return Ok(());
            }
            ToStorage::CreateReplica {
                group,
                replica,
                range,
            } => {
                self.store
                    .create_replica(group, replica, range.clone())
                    .map_err(|error| Ended::Failed(ExitCode::Io, error.to_string()))?;
                Change::Create {
                    group,
                    replica,
                    range,
                }
            }
            ToStorage::SaveVote { group, vote } => Change::Vote { group, vote },
            ToStorage::Append { group, entries } => Change::Append { group, entries },
            ToStorage::Truncate { group, last } => Change::Truncate { group, last },
            ToStorage::Purge { group, upto } => {
                let persisted = self
                    .store
                    .persisted(group)
                    .and_then(|meta| meta.last_applied);
                // STO-PURGE: the log is the state machine's write-ahead log; what is not persisted must stay.
                assert!(
                    persisted.is_some_and(|at| at.index >= upto.index),
                    "STO-PURGE: {group}: purge up to {upto}, persisted is {persisted:?}"
                );
                self.recycle_due = true;
                Change::Purge { group, upto }
            }
            ToStorage::SaveCommitted { group, committed } => Change::Committed { group, committed },
            ToStorage::SaveNodeRecord { record } => Change::Node(record),
        };
        let id = OperationId {
            generation: self.receiver.generation(),
            position: end,
        };
        // LOG-6: what was recovered and is delivered again is in the log already.
        if !self.log.has(id) {
            pending.operations.push((id, change));
            pending.bytes += bytes;
        }
        pending.steps.push((end, What::Operation));
        Ok(())
    }

    async fn put(&mut self, pending: Pending) -> Result<(), Ended> {
        if pending.operations.is_empty() {
            self.queue_steps(pending.steps);
            return Ok(());
        }
        // The encoding of records adds a little to that of messages.
        if !self
            .log
            .fits(pending.bytes + 64 * pending.operations.len() + 256)
        {
            self.pending = Some(pending);
            return self.begin_segment().await;
        }
        self.board.add(Gauge::LogBytes, pending.bytes as u64);
        let write = self
            .log
            .append(pending.operations)
            .map_err(|why| Ended::Failed(ExitCode::Internal, format!("RAFT-2: {why}")))?;
        self.write(write).await?;
        self.queue_steps(pending.steps);
        Ok(())
    }

    fn queue_steps(&mut self, steps: Vec<(u64, What)>) {
        let lsn = self.log.issued();
        self.queue
            .extend(steps.into_iter().map(|(end, what)| Step { end, lsn, what }));
    }

    async fn write(&mut self, write: crate::log::Write) -> Result<(), Ended> {
        let segment = write.location.segment;
        self.writer
            .open(&self.disk, segment)
            .await
            .map_err(|why| Ended::Failed(ExitCode::Io, why))?;
        self.writer.begin(write);
        Ok(())
    }

    /// Begins a segment for what waits, once everything before is durable (LOG-4).
    async fn begin_segment(&mut self) -> Result<(), Ended> {
        if self.log.unfinished() > 0 {
            return Ok(());
        }
        self.log
            .begin_segment(&mut self.disk)
            .map_err(|error| damaged(&error))?;
        self.recycle_due = true;
        if let Some(pending) = self.pending.take() {
            let need = pending.bytes + 64 * pending.operations.len() + 256;
            if !self.log.fits(need) {
                return Err(Ended::Failed(
                    ExitCode::Config,
                    format!("{need} bytes fit into no segment: raise storage.segment_bytes"),
                ));
            }
            Box::pin(self.put(pending)).await?;
        }
        Ok(())
    }

    /// Recycles old segments, and has a file ready for the next one.
    async fn mind_segments(&mut self) -> Result<(), Ended> {
        if self.pending.is_some() || !self.writer.has_room() {
            return Ok(());
        }
        if self.recycle_due && self.log.unfinished() == 0 {
            let moved = self
                .log
                .recycle(&self.disk, SEGMENTS_KEPT)
                .map_err(|error| damaged(&error))?;
            match moved {
                Some(write) => self.write(write).await?,
                None => self.recycle_due = false,
            }
        }
        if self.log.spares() == 0 && !self.spare_asked {
            self.spare_asked = true;
            let number = self.log.reserve();
            let bytes = self.config.storage.segment_bytes;
            self.threads
                .work
                .send(Work::Spare { number, bytes })
                .map_err(|_| gone())?;
        }
        Ok(())
    }

    /// Ends gracefully: the mark says how far the log is durable.
    async fn close(&mut self) -> Result<(), Ended> {
        if let Some(write) = self.log.closing() {
            self.write(write).await?;
            while self.log.unfinished() > 0 {
                glommio::timer::sleep(Duration::from_millis(1)).await;
                while let Some(Written { lsn, .. }) = self.writer.ended() {
                    self.log.written(lsn);
                }
            }
        }
        for (group, ..) in self.store.replicas() {
            self.store
                .flush(group)
                .map_err(|error| Ended::Failed(ExitCode::Io, error.to_string()))?;
        }
        Ok(())
    }
}

fn damaged(error: &LogError) -> Ended {
    let exit = match error {
        LogError::Io(_) => ExitCode::Io,
        LogError::Damaged { .. } => ExitCode::LogDamaged,
    };
    Ended::Failed(exit, error.to_string())
}

fn gone() -> Ended {
    Ended::Failed(ExitCode::Internal, "a storage thread has ended".into())
}

/// Recent durations of writes.
#[derive(Default)]
struct Latencies {
    recent: VecDeque<u64>,
}

impl Latencies {
    fn record(&mut self, took: Duration) {
        if self.recent.len() == 1024 {
            self.recent.pop_front();
        }
        self.recent
            .push_back(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    fn show(&self, board: &BoardWriter) {
        let mut sorted: Vec<u64> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        if let Some(last) = sorted.len().checked_sub(1) {
            board.set(Gauge::FsyncUsP50, sorted[last / 2]);
            board.set(Gauge::FsyncUsP99, sorted[last * 99 / 100]);
        }
    }
}

const _: () = assert!(writer::WRITES_MAX >= 1);
