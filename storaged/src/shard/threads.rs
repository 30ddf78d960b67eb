//! Threads beside the executor, for everything that may block: one applies, one reads logs and state machines, one moves
//! snapshots, one flushes trees, one merges their files, one makes replicas, one minds the files of the log. They answer by
//! themselves, and tell the executor what it has to know.

use super::answers::Answers;
use super::end::Ended;
use super::files;
use crate::io::Disk;
use crate::log::{FileWork, Log, Plan};
use crate::state::{Store, StoreError};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry, SnapshotMeta, StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, LogPosition, ReplicaId};
use mareedb_ipc::world::{Fault, now, planted};
use mareedb_ipc::{Bell, BoardWriter, Gauge};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Old versions are collected and files merged so often.
const MAINTAIN: Duration = Duration::from_secs(1);
/// With more than so many times `storage.unflushed_bytes_max` in memory, applying waits for a flush.
const UNFLUSHED_FACTOR: u64 = 4;
/// What is worth a file is flushed so often: a restart applies the rest again.
const FLUSH: Duration = Duration::from_secs(2);
/// Unflushed bytes are looked at so often.
const LOOK: Duration = Duration::from_millis(100);
/// What an answer takes beside its outcomes, at most.
const ANSWER_EXTRA_BYTES: usize = 256;
/// What an outcome takes beside its bytes, at most.
const OUTCOME_EXTRA_BYTES: usize = 20;
/// Bytes of entries that are applied at once.
const APPLY_BYTES_MAX: usize = 1 << 20;

/// A request with its number.
pub(super) struct Asked {
    pub(super) request: u64,
    pub(super) body: StorageRequest,
}

/// What the reading thread does.
pub(super) enum Read {
    /// A `ReadLog` or a `Query`.
    Asked(Asked),
    /// Entries that are to be moved to another segment.
    Cold(Vec<Plan>),
}

/// What nobody says.
pub(super) enum Never {}

/// What the flushing thread does.
pub(super) enum Keep {
    /// A `BuildSnapshot`.
    Asked(Asked),
    /// Flushes everything before the end.
    Finish,
}

/// A replica that is to be made: about ten syncs.
pub(super) struct Make {
    pub(super) group: GroupId,
    pub(super) replica: ReplicaId,
    pub(super) range: KeyRange,
}

/// A snapshot that has become a group's state.
pub(super) struct Installed {
    pub(super) request: Option<u64>,
    pub(super) group: GroupId,
    pub(super) meta: SnapshotMeta,
}

/// What threads tell the executor.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) installed: Vec<Installed>,
    pub(super) moved: Option<Vec<(GroupId, Vec<LogEntry>)>>,
    pub(super) finished: bool,
    /// The replica that was to be made is there.
    pub(super) made: bool,
    /// So much of what the applying thread was handed is done, and what it tells is told.
    pub(super) applied: u64,
    /// The executor wants to know of the next.
    pub(super) awaited: bool,
    /// Why a thread had to end.
    pub(super) failed: Option<Ended>,
}

/// The threads' entrances; each bounded by what consensusd wants answered at a time.
pub(super) struct Threads {
    pub(super) apply: Sender<Asked>,
    pub(super) read: Sender<Read>,
    pub(super) snapshots: Sender<Asked>,
    pub(super) keep: Sender<Keep>,
    /// Nothing is asked; it ends when this is dropped.
    #[allow(dead_code, reason = "it is held")]
    pub(super) merge: Sender<Never>,
    pub(super) make: Sender<Make>,
    pub(super) files: Sender<FileWork>,
}

/// Opens the disk of the log, once a thread.
pub(super) type Disks = Arc<dyn Fn() -> Box<dyn Disk> + Send + Sync>;

/// What the threads share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) log: Arc<Mutex<Log>>,
    pub(super) answers: Arc<Answers>,
    /// Rings the executor.
    pub(super) bell: Arc<Bell>,
    pub(super) board: BoardWriter,
    pub(super) unflushed_bytes_max: u64,
    pub(super) disk: Disks,
    pub(super) log_dir: PathBuf,
    pub(super) reports: Arc<Mutex<Reports>>,
}

impl Shared {
    fn tell(&self, tell: impl FnOnce(&mut Reports)) {
        tell(&mut self.reports.lock());
        self.bell.ring();
    }

    pub(super) fn disk(&self) -> Box<dyn Disk> {
        (self.disk)()
    }

    fn answer(&self, request: u64, done: Result<StorageAnswer, StoreError>) {
        let body = done.unwrap_or_else(|error| StorageAnswer::Failed {
            message: error.to_string(),
        });
        self.answers.answer(request, body);
    }
}

/// Starts the threads. They end when their entrances are dropped.
///
/// # Panics
/// The system gives no thread.
pub(super) fn start(shared: &Shared) -> Threads {
    fn spawn<T: Send + 'static>(
        name: &'static str,
        shared: &Shared,
        serve: fn(&Shared, &Receiver<T>) -> Result<(), Ended>,
    ) -> Sender<T> {
        let (entrance, works) = unbounded();
        let shared = shared.clone();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let run = std::panic::AssertUnwindSafe(|| serve(&shared, &works));
                let ended = std::panic::catch_unwind(run)
                    .unwrap_or_else(|payload| Err(Ended::panicked(name, &*payload)));
                if let Err(why) = ended {
                    shared.tell(|reports| {
                        reports.failed.get_or_insert(why);
                    });
                }
            })
            .expect("a thread");
        entrance
    }
    Threads {
        apply: spawn("apply", shared, apply),
        read: spawn("read", shared, read),
        snapshots: spawn("snapshots", shared, snapshots),
        keep: spawn("keep", shared, keep),
        merge: spawn("merge", shared, merge),
        make: spawn("make", shared, make),
        files: spawn("files", shared, files::serve),
    }
}

fn apply(shared: &Shared, works: &Receiver<Asked>) -> Result<(), Ended> {
    works.iter().try_for_each(|asked| apply_one(shared, asked))
}

pub(super) fn apply_one(shared: &Shared, asked: Asked) -> Result<(), Ended> {
    serve_apply(shared, asked)?;
    let awaited = {
        let mut reports = shared.reports.lock();
        reports.applied += 1;
        std::mem::take(&mut reports.awaited)
    };
    if awaited {
        shared.bell.ring();
    }
    Ok(())
}

fn serve_apply(shared: &Shared, asked: Asked) -> Result<(), Ended> {
    let Asked { request, body } = asked;
    match body {
        StorageRequest::Apply {
            group,
            results_from,
            upto,
        } => {
            let body = apply_entries(shared, group, results_from, upto)?;
            shared.answers.answer(request, body);
        }
        StorageRequest::FinishInstall {
            group,
            install,
            meta,
        } => match shared.store.finish_install(group, install, &meta) {
            // Answered once the log is emptied up to there.
            Ok(meta) => shared.tell(|reports| {
                reports.installed.push(Installed {
                    request: Some(request),
                    group,
                    meta,
                });
            }),
            Err(error) => shared.answer(request, Err(error)),
        },
        _ => return Err(Ended::broken("a request that applies nothing")),
    }
    Ok(())
}

/// Applies up to `upto` what is not applied yet. A state machine that cannot apply what is committed must not go on: then
/// the process ends, with evidence.
fn apply_entries(
    shared: &Shared,
    group: GroupId,
    results_from: u64,
    upto: LogPosition,
) -> Result<StorageAnswer, Ended> {
    let disk = shared.disk();
    let applied = shared.store.applied(group);
    let applied = applied.and_then(|meta| meta.last_applied);
    let next = applied.map_or(0, |at| at.index + 1);
    let upto = match shared.log.lock().index.groups.get(&group) {
        Some(state) if planted(Fault::ApplyBeyondCommit) => state.last.unwrap_or(upto),
        _ => upto,
    };
    let mut from = next.min(results_from);
    let mut outcomes = Vec::new();
    let (mut bytes, room) = (ANSWER_EXTRA_BYTES, shared.answers.message_max());
    while from <= upto.index {
        let plan = shared
            .log
            .lock()
            .plan(group, from, upto.index + 1, APPLY_BYTES_MAX);
        if plan.is_empty() {
            let message =
                format!("{group}: entry {from} is not in the log, apply goes up to {upto}");
            return Ok(StorageAnswer::Failed { message });
        }
        let entries = plan.fetch(&*disk)?;
        if let Some(last) = entries.last()
            && last.position.index == upto.index
            && last.position != upto
        {
            return Err(Ended::broken(format!(
                "RAFT-2: {group}: apply goes up to {upto}, the log has {} there",
                last.position
            )));
        }
        from += entries.len() as u64;
        for outcome in shared.store.apply(group, &entries, results_from)? {
            // The rest is asked for again.
            bytes += outcome.1.len() + OUTCOME_EXTRA_BYTES;
            if bytes > room {
                break;
            }
            outcomes.push(outcome);
        }
        if shared.store.unflushed_bytes() > UNFLUSHED_FACTOR * shared.unflushed_bytes_max {
            // The flushing thread does not keep up: applying waits for the disk. For room on it it does not wait, nor would it help: what
            // is not flushed is no more than the log, which gets no room then either, and the data that it supersedes.
            if let Err(error) = flush_all(&shared.store)
                && !is_full(&error)
            {
                return Err(error.into());
            }
        }
        let new = from.saturating_sub(next).min(entries.len() as u64);
        shared.board.add(Gauge::Applied, new);
    }
    Ok(StorageAnswer::Applied {
        applied: upto,
        outcomes,
    })
}

fn make(shared: &Shared, works: &Receiver<Make>) -> Result<(), Ended> {
    works.iter().try_for_each(|work| make_one(shared, work))
}

pub(super) fn make_one(shared: &Shared, work: Make) -> Result<(), Ended> {
    shared
        .store
        .create_replica(work.group, work.replica, work.range)?;
    shared.tell(|reports| reports.made = true);
    Ok(())
}

fn read(shared: &Shared, works: &Receiver<Read>) -> Result<(), Ended> {
    let disk = shared.disk();
    works
        .iter()
        .try_for_each(|work| read_one(shared, &*disk, work))
}

pub(super) fn read_one(shared: &Shared, disk: &dyn Disk, work: Read) -> Result<(), Ended> {
    match work {
        Read::Cold(plans) => {
            let mut moved = Vec::new();
            for plan in plans {
                moved.push((plan.group(), plan.fetch(disk)?));
            }
            shared.tell(|reports| reports.moved = Some(moved));
        }
        Read::Asked(Asked { request, body }) => {
            let body = match body {
                StorageRequest::ReadLog {
                    group,
                    from,
                    to,
                    max_bytes,
                } => {
                    let plan = shared.log.lock().plan(group, from, to, max_bytes as usize);
                    let entries = plan.fetch(disk)?;
                    StorageAnswer::Log { entries }
                }
                StorageRequest::Query(request) => {
                    StorageAnswer::Queried(shared.store.read(&request))
                }
                _ => return Err(Ended::broken("a request that reads nothing")),
            };
            shared.answers.answer(request, body);
        }
    }
    Ok(())
}

fn snapshots(shared: &Shared, works: &Receiver<Asked>) -> Result<(), Ended> {
    for asked in works {
        snapshot_one(shared, asked);
    }
    Ok(())
}

pub(super) fn snapshot_one(shared: &Shared, asked: Asked) {
    shared.answer(asked.request, snapshot(&shared.store, asked.body));
}

fn snapshot(store: &Store, body: StorageRequest) -> Result<StorageAnswer, StoreError> {
    Ok(match body {
        StorageRequest::CurrentSnapshot { group } => StorageAnswer::MaybeSnapshot(
            store
                .persisted(group)
                .filter(|meta| meta.last_applied.is_some()),
        ),
        StorageRequest::OpenSnapshot { group } => {
            let (snapshot, meta) = store.open_snapshot(group)?;
            StorageAnswer::Opened { snapshot, meta }
        }
        StorageRequest::ReadSnapshot {
            snapshot,
            cursor,
            max_bytes,
        } => StorageAnswer::Chunk(store.read_snapshot(snapshot, &cursor, max_bytes)?),
        StorageRequest::CloseSnapshot { snapshot } => {
            store.close_snapshot(snapshot);
            StorageAnswer::Done
        }
        StorageRequest::BeginInstall { group, install } => {
            store.begin_install(group, install)?;
            StorageAnswer::Done
        }
        StorageRequest::InstallChunk {
            install,
            number,
            chunk,
        } => {
            store.install_chunk(install, number, &chunk)?;
            StorageAnswer::Done
        }
        StorageRequest::AbortInstall { install } => {
            store.abort_install(install);
            StorageAnswer::Done
        }
        StorageRequest::Apply { .. }
        | StorageRequest::ReadLog { .. }
        | StorageRequest::Query(_)
        | StorageRequest::BuildSnapshot { .. }
        | StorageRequest::FinishInstall { .. } => {
            return Err(StoreError::Refused("no request about snapshots".into()));
        }
    })
}

fn keep(shared: &Shared, works: &Receiver<Keep>) -> Result<(), Ended> {
    let mut keeper = Keeper::new();
    loop {
        match works.recv_timeout(LOOK) {
            Ok(work) => keeper.serve(shared, work)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        keeper.look(shared)?;
    }
}

/// Flushes trees when it is asked to, and when there is enough to flush.
pub(super) struct Keeper {
    flushed: Instant,
    full: bool,
    waiting: Vec<Asked>,
}

impl Keeper {
    pub(super) fn new() -> Keeper {
        Keeper {
            flushed: now(),
            full: false,
            waiting: Vec::new(),
        }
    }

    pub(super) fn serve(&mut self, shared: &Shared, work: Keep) -> Result<(), Ended> {
        match work {
            Keep::Asked(asked) => self.waiting.push(asked),
            Keep::Finish => {
                flush_all(&shared.store)?;
                shared.tell(|reports| reports.finished = true);
            }
        }
        Ok(())
    }

    /// To be called every [`LOOK`], and after each [`Keeper::serve`].
    pub(super) fn look(&mut self, shared: &Shared) -> Result<(), Ended> {
        for asked in std::mem::take(&mut self.waiting) {
            let StorageRequest::BuildSnapshot { group } = asked.body else {
                return Err(Ended::broken("a request that flushes nothing"));
            };
            match shared.store.flush(group) {
                // An error would end the group, again and again; so the answer waits for room. Until then the log is kept.
                Err(error) if is_full(&error) => {
                    if !std::mem::replace(&mut self.full, true) {
                        tracing::error!("a snapshot of {group}: {error}; tried again");
                    }
                    self.waiting.push(asked);
                }
                done => shared.answer(asked.request, done.map(StorageAnswer::Snapshot)),
            }
        }
        let unflushed = shared.store.unflushed_bytes();
        let passed = now().saturating_duration_since(self.flushed);
        let due = passed > FLUSH && unflushed > shared.unflushed_bytes_max / 8;
        if due || unflushed > shared.unflushed_bytes_max {
            self.flushed = now();
            match flush_all(&shared.store) {
                // Nothing is lost: the log has it. The board shows the free bytes, and the next look tries again.
                Err(error) if is_full(&error) => {
                    if !std::mem::replace(&mut self.full, true) {
                        tracing::error!("flush: {error}; tried again");
                    }
                }
                done => {
                    done?;
                    self.full = false;
                }
            }
        }
        Ok(())
    }
}

/// Flushes all trees, those after one that there was no room for, too.
fn flush_all(store: &Store) -> Result<(), StoreError> {
    let mut flushed = Ok(());
    for (group, ..) in store.replicas() {
        match store.flush(group) {
            Err(error) if is_full(&error) => flushed = Err(error),
            done => drop(done?),
        }
    }
    flushed
}

/// Collects old versions and merges files; beside the flushing thread, which must not wait for a large merge.
fn merge(shared: &Shared, ends: &Receiver<Never>) -> Result<(), Ended> {
    loop {
        match ends.recv_timeout(MAINTAIN) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        merge_once(shared)?;
    }
}

pub(super) fn merge_once(shared: &Shared) -> Result<(), Ended> {
    match shared.store.maintain() {
        Err(error) if is_full(&error) => tracing::error!("maintenance: {error}"),
        done => done?,
    }
    Ok(())
}

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Io(error) if crate::fault::is_full(error))
}
