//! The thread that applies entries to the state machines, and puts received snapshots in force.

use super::end::Ended;
use super::full::is_full;
use super::keep::flush_all;
use super::threads::{Asked, Installed, Shared};
use crate::state::StoreError;
use crossbeam::channel::Receiver;
use mareedb_ipc::Gauge;
use mareedb_ipc::wire::storage::{StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, LogPosition};
use mareedb_ipc::world::{Fault, planted};

/// With more than so many times `storage.unflushed_bytes_max` in memory, applying waits for a flush.
const UNFLUSHED_FACTOR: u64 = 4;
/// What an answer takes beside its outcomes, at most.
const ANSWER_EXTRA_BYTES: usize = 256;
/// What an outcome takes beside its bytes, at most.
const OUTCOME_EXTRA_BYTES: usize = 20;
/// Bytes of entries that are applied at once.
const APPLY_BYTES_MAX: usize = 1 << 20;

pub(super) fn serve(shared: &Shared, works: &Receiver<Asked>) -> Result<(), Ended> {
    works.iter().try_for_each(|asked| serve_one(shared, asked))
}

pub(super) fn serve_one(shared: &Shared, asked: Asked) -> Result<(), Ended> {
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
            // Which state is in force nobody knows here, and who believes the answer that it is the old one may be wrong (RAFT-2). A
            // successor sees which, and is asked again.
            Err(error @ StoreError::Unsettled(_)) => return Err(error.into()),
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
