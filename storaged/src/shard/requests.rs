//! What becomes of messages that are no operations, when the head reaches them.

use super::end::Ended;
use super::steps::{Internal, Steps, What};
use super::threads::{Asked, Keep, Read};
use super::writer::UnitWriter;
use crate::log::unit::{Change, Record};
use crossbeam::channel::Sender;
use mareedb_ipc::wire::storage::{FromStorage, ReplicaState, SnapshotMeta, StorageRequest};
use mareedb_ipc::wire::{GroupId, LogPosition};

impl<W: UnitWriter> Steps<W> {
    /// The commit position that was told last: in the log, about to be, or noted.
    fn committed(&self, group: GroupId, logged: Option<LogPosition>) -> Option<LogPosition> {
        if let Some((_, committed)) = self.noted.get(&group) {
            return *committed;
        }
        let records = self.pending.iter().flat_map(|pending| &pending.records);
        records
            .filter_map(|record| match record {
                Record::Operation {
                    change:
                        Change::Committed {
                            group: of,
                            committed,
                        },
                    ..
                } if *of == group => Some(*committed),
                _ => None,
            })
            .next_back()
            .unwrap_or(logged)
    }

    /// Whether a new consensusd can be told where everything stands. What its predecessor asked of the applying thread still moves that: an
    /// entry applied later would make what is persisted newer than what was said to be applied, and a snapshot installed later empties
    /// the log up to an end of which the new one knows nothing, so that its next entry would leave a hole (RAFT-2).
    pub(super) fn is_settled(&self, durable: u64) -> bool {
        {
            let mut reports = self.reports.lock();
            if reports.applied != self.handed || !reports.installed.is_empty() {
                reports.awaited = true;
                return false;
            }
        }
        let installing = |what: &What| matches!(what, What::Answer { .. });
        let mut pending = self.pending.iter().flat_map(|pending| &pending.steps);
        let mut internal = self.internal.iter();
        let mut queued = self.queue.iter();
        !internal.any(|internal| matches!(internal, Internal::Installed(_)))
            && !pending.any(|(_, what)| installing(what))
            && !queued.any(|step| step.lsn > durable && installing(&step.what))
    }

    /// Answers a new consensusd: everything in the ring before its Hello is durable now.
    pub(super) fn bootstrapped(&self, epoch: u64, number: u64) {
        let nothing = || SnapshotMeta {
            last_applied: None,
            membership: None,
        };
        let log = self.log.lock();
        let replicas = log
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
                committed: self.committed(*group, state.committed),
                applied: self.store.applied(*group).unwrap_or_else(nothing),
                persisted: self.store.persisted(*group).unwrap_or_else(nothing),
            })
            .collect();
        let message = FromStorage::Bootstrapped {
            epoch,
            number,
            generation: self.receiver.generation(),
            replicas,
            records: log.index.records.values().cloned().collect(),
        };
        drop(log);
        self.answers.send(&message);
    }

    /// Hands a request to the thread that serves it; none of them waits for another's disk.
    pub(super) fn dispatch(&mut self, request: u64, body: StorageRequest) -> Result<(), Ended> {
        let asked = Asked { request, body };
        match asked.body {
            StorageRequest::Apply { .. } | StorageRequest::FinishInstall { .. } => {
                self.handed += 1;
                hand(&self.threads.apply, asked)
            }
            StorageRequest::ReadLog { .. } => hand(&self.threads.read, Read::Asked(asked)),
            StorageRequest::BuildSnapshot { .. } => hand(&self.threads.keep, Keep::Asked(asked)),
            _ => hand(&self.threads.snapshots, asked),
        }
    }
}

/// Never blocks: what waits there is bounded by what consensusd wants answered.
pub(super) fn hand<T>(entrance: &Sender<T>, work: T) -> Result<(), Ended> {
    entrance
        .send(work)
        .map_err(|_| Ended::broken("a storage thread has ended"))
}
