//! Threads beside the executor, for everything that may block: one applies ([`apply`]), one reads logs, one moves snapshots, one
//! flushes trees and one merges their files ([`keep`]), one makes replicas, one minds the files of the log ([`files`]). They answer
//! by themselves, and tell the executor what it has to know.

use super::answers::Answers;
use super::end::Ended;
use super::{apply, files, keep};
use crate::io::Disk;
use crate::log::{FileWork, Log, Plan};
use crate::state::{Store, StoreError};
use crossbeam::channel::{Receiver, Sender, unbounded};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry, SnapshotMeta, StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, ReplicaId};
use mareedb_ipc::{Bell, BoardWriter};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;

/// A request with its number.
pub(super) struct Asked {
    pub(super) request: u64,
    pub(super) body: StorageRequest,
}

/// What the reading thread does.
pub(super) enum Read {
    /// A `ReadLog`.
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
    pub(super) fn tell(&self, tell: impl FnOnce(&mut Reports)) {
        tell(&mut self.reports.lock());
        self.bell.ring();
    }

    pub(super) fn disk(&self) -> Box<dyn Disk> {
        (self.disk)()
    }

    pub(super) fn answer(&self, request: u64, done: Result<StorageAnswer, StoreError>) {
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
        apply: spawn("apply", shared, apply::serve),
        read: spawn("read", shared, read),
        snapshots: spawn("snapshots", shared, snapshots),
        keep: spawn("keep", shared, keep::keep),
        merge: spawn("merge", shared, keep::merge),
        make: spawn("make", shared, make),
        files: spawn("files", shared, files::serve),
    }
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
        StorageRequest::Apply { .. }
        | StorageRequest::ReadLog { .. }
        | StorageRequest::BuildSnapshot { .. }
        | StorageRequest::FinishInstall { .. } => {
            return Err(StoreError::Refused("no request about snapshots".into()));
        }
    })
}
