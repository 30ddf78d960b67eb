//! The threads that flush trees, collect old versions and merge files. What a full disk keeps them from is tried again: nothing is
//! lost meanwhile, the log has it.

use super::end::Ended;
use super::full::{FullDisk, is_full};
use super::threads::{Asked, Keep, Never, Shared};
use crate::state::{Store, StoreError};
use crossbeam::channel::{Receiver, RecvTimeoutError};
use mareedb_ipc::wire::storage::{StorageAnswer, StorageRequest};
use mareedb_ipc::world::now;
use std::time::{Duration, Instant};

/// What is worth a file is flushed so often: a restart applies the rest again.
const FLUSH: Duration = Duration::from_secs(2);
/// Unflushed bytes are looked at so often.
const LOOK: Duration = Duration::from_millis(100);
/// Old versions are collected and files merged so often.
const MAINTAIN: Duration = Duration::from_secs(1);

pub(super) fn keep(shared: &Shared, works: &Receiver<Keep>) -> Result<(), Ended> {
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
    full: FullDisk,
    waiting: Vec<Asked>,
    /// Whether those that wait do so for room.
    waiting_full: FullDisk,
}

impl Keeper {
    pub(super) fn new() -> Keeper {
        Keeper {
            flushed: now(),
            full: FullDisk::default(),
            waiting: Vec::new(),
            waiting_full: FullDisk::default(),
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
                    self.waiting_full
                        .note(true, format_args!("a snapshot of {group}: {error}"));
                    self.waiting.push(asked);
                }
                done => shared.answer(asked.request, done.map(StorageAnswer::Snapshot)),
            }
        }
        if self.waiting.is_empty() {
            self.waiting_full.note(false, format_args!("snapshots"));
        }
        let unflushed = shared.store.unflushed_bytes();
        let passed = now().saturating_duration_since(self.flushed);
        let due = passed > FLUSH && unflushed > shared.unflushed_bytes_max / 8;
        if due || unflushed > shared.unflushed_bytes_max {
            self.flushed = now();
            match flush_all(&shared.store) {
                // The board shows the free bytes, and the next look tries again.
                Err(error) if is_full(&error) => {
                    self.full.note(true, format_args!("flush: {error}"));
                }
                done => {
                    done?;
                    self.full.note(false, format_args!("flush"));
                }
            }
        }
        Ok(())
    }
}

/// Flushes all trees, those after one that there was no room for, too.
pub(super) fn flush_all(store: &Store) -> Result<(), StoreError> {
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
pub(super) fn merge(shared: &Shared, ends: &Receiver<Never>) -> Result<(), Ended> {
    let mut full = FullDisk::default();
    loop {
        match ends.recv_timeout(MAINTAIN) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        merge_once(shared, &mut full)?;
    }
}

pub(super) fn merge_once(shared: &Shared, full: &mut FullDisk) -> Result<(), Ended> {
    match shared.store.maintain() {
        Err(error) if is_full(&error) => full.note(true, format_args!("maintenance: {error}")),
        done => {
            done?;
            full.note(false, format_args!("maintenance"));
        }
    }
    Ok(())
}
