//! Threads beside the executor: one applies, in order; one does what may take long. Both answer by themselves.

use super::answers::Answers;
use crate::io::{Disk, StdDisk};
use crate::state::{Store, StoreError};
use bytes::Bytes;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use mareedb_ipc::wire::storage::{LogEntry, StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, LogPosition};
use mareedb_ipc::{Bell, BoardWriter, Gauge};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Old versions are collected and files merged so often.
const MAINTAIN: Duration = Duration::from_secs(10);
/// Unflushed bytes are looked at so often.
const LOOK: Duration = Duration::from_millis(100);

/// What the apply thread does.
pub enum Apply {
    /// Applies entries.
    Entries {
        /// The group.
        group: GroupId,
        /// Contiguous, from what is applied on or before.
        entries: Vec<LogEntry>,
        /// First index whose outcome is wanted.
        results_from: u64,
        /// The request that this completes, if it does.
        request: Option<u64>,
        /// Up to where the request applies.
        upto: LogPosition,
    },
    /// Installs a received snapshot, in turn with the entries.
    Install {
        /// The request.
        request: u64,
        /// Its body, a `FinishInstall`.
        body: StorageRequest,
    },
}

/// What the worker does.
pub enum Work {
    /// A request.
    Request {
        /// Its number.
        request: u64,
        /// Its body.
        body: StorageRequest,
    },
    /// Makes a file for a later segment.
    Spare {
        /// Its number.
        number: u64,
        /// Its size.
        bytes: u64,
    },
}

/// What threads tell the executor.
#[derive(Default)]
pub struct Reports {
    /// Files that are ready.
    pub spares: Mutex<Vec<u64>>,
    /// Why a thread had to end.
    pub failed: Mutex<Option<String>>,
}

/// The threads' entrances.
pub struct Threads {
    /// The apply thread.
    pub apply: Sender<Apply>,
    /// The worker.
    pub work: Sender<Work>,
    /// What they tell.
    pub reports: Arc<Reports>,
}

/// What the threads share.
#[derive(Clone)]
pub struct Shared {
    /// State machines.
    pub store: Store,
    /// Messages to consensusd.
    pub answers: Arc<Answers>,
    /// Rings the executor.
    pub bell: Arc<Bell>,
    /// The board.
    pub board: BoardWriter,
    /// Applied bytes that may be missing in tree files.
    pub unflushed_bytes_max: u64,
    /// Directory of the segments.
    pub log_dir: PathBuf,
}

/// Starts both threads. They end when their entrances are dropped.
///
/// # Panics
/// The system gives no thread.
pub fn start(shared: &Shared) -> Threads {
    let reports = Arc::new(Reports::default());
    let (apply, applies) = unbounded();
    let (work, works) = unbounded();
    let spawn = |name: &str, run: Box<dyn FnOnce() -> Result<(), String> + Send>| {
        let (reports, bell) = (reports.clone(), shared.bell.clone());
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
                    .unwrap_or_else(|_| Err("a storage thread panicked".into()));
                if let Err(why) = ended {
                    reports.failed.lock().get_or_insert(why);
                    bell.ring();
                }
            })
            .expect("a thread");
    };
    let own = shared.clone();
    spawn("apply", Box::new(move || serve_apply(&own, &applies)));
    let (own, told) = (shared.clone(), reports.clone());
    spawn("worker", Box::new(move || serve_work(&own, &works, &told)));
    Threads {
        apply,
        work,
        reports,
    }
}

fn serve_apply(shared: &Shared, applies: &Receiver<Apply>) -> Result<(), String> {
    let mut outcomes: Vec<(u64, Bytes)> = Vec::new();
    for apply in applies {
        match apply {
            Apply::Entries {
                group,
                entries,
                results_from,
                request,
                upto,
            } => {
                let count = entries.len() as u64;
                // A state machine that cannot apply what is committed must not go on: the process ends, with evidence.
                let some = shared
                    .store
                    .apply(group, &entries, results_from)
                    .map_err(|error| format!("apply: {error}"))?;
                shared.board.add(Gauge::Applied, count);
                outcomes.extend(some);
                if let Some(request) = request {
                    shared.answers.answer(
                        request,
                        StorageAnswer::Applied {
                            applied: upto,
                            outcomes: std::mem::take(&mut outcomes),
                        },
                    );
                }
            }
            Apply::Install { request, body } => {
                let StorageRequest::FinishInstall {
                    group,
                    install,
                    meta,
                } = body
                else {
                    continue;
                };
                let done = shared.store.finish_install(group, install, &meta);
                shared
                    .answers
                    .answer(request, answer(done.map(StorageAnswer::Snapshot)));
            }
        }
    }
    Ok(())
}

fn answer(done: Result<StorageAnswer, StoreError>) -> StorageAnswer {
    done.unwrap_or_else(|error| StorageAnswer::Failed {
        message: error.to_string(),
    })
}

fn serve_work(shared: &Shared, works: &Receiver<Work>, reports: &Reports) -> Result<(), String> {
    let mut maintained = Instant::now();
    loop {
        match works.recv_timeout(LOOK) {
            Ok(Work::Request { request, body }) => {
                let body = answer(serve(&shared.store, body));
                shared.answers.answer(request, body);
            }
            Ok(Work::Spare { number, bytes }) => {
                let mut disk = StdDisk::unlocked(&shared.log_dir);
                disk.create(number, bytes)
                    .map_err(|error| format!("a spare segment: {error}"))?;
                reports.spares.lock().push(number);
                shared.bell.ring();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        if shared.store.unflushed_bytes() > shared.unflushed_bytes_max {
            for (group, ..) in shared.store.replicas() {
                shared
                    .store
                    .flush(group)
                    .map_err(|error| format!("flush: {error}"))?;
            }
        }
        if maintained.elapsed() > MAINTAIN {
            maintained = Instant::now();
            shared
                .store
                .maintain()
                .map_err(|error| format!("maintenance: {error}"))?;
            shared
                .board
                .set(Gauge::DataBytes, shared.store.data_bytes());
        }
    }
}

fn serve(store: &Store, body: StorageRequest) -> Result<StorageAnswer, StoreError> {
    Ok(match body {
        StorageRequest::Query(request) => StorageAnswer::Queried(store.read(&request)),
        StorageRequest::BuildSnapshot { group } => StorageAnswer::Snapshot(store.flush(group)?),
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
        | StorageRequest::FinishInstall { .. } => {
            return Err(StoreError::Refused(
                "a request of the log, not of the store".into(),
            ));
        }
    })
}
