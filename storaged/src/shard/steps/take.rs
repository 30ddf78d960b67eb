//! What comes off the ring and from the threads: records for the log, and what follows once they are durable.

use super::{Ended, Internal, Making, Pending, Steps, UnitWriter, What, hand};
use crate::log::UNIT_BYTES_MAX;
use crate::log::index::weight;
use crate::log::unit::{Change, Record};
use crate::shard::threads::{Installed, Make};
use mareedb_ipc::wire::OperationId;
use mareedb_ipc::wire::storage::{StorageAnswer, ToStorage};
use mareedb_ipc::world::{Fault, now, planted};

/// Messages taken in one turn.
const MESSAGES_MAX: usize = 4096;

impl<W: UnitWriter> Steps<W> {
    /// Takes what threads want logged, and what is in the ring.
    pub(super) fn take(&mut self) -> Result<Pending, Ended> {
        let mut pending = Pending::default();
        for internal in std::mem::take(&mut self.internal) {
            self.sort_internal(internal, &mut pending);
        }
        // One more message, of any size, still fits into the unit, and the unit into a segment.
        let quarter = usize::try_from(self.config.storage.segment_bytes / 4).unwrap_or(usize::MAX);
        let enough = quarter.min(UNIT_BYTES_MAX / 2);
        for _ in 0..MESSAGES_MAX {
            if pending.bytes > enough {
                break;
            }
            let Some((message, end, bytes)) = self.next_message()? else {
                break;
            };
            self.sort(message, end, bytes, &mut pending)?;
        }
        // LOG-9: with what is logged next, or after a quiet moment.
        if std::mem::take(&mut self.note) || !pending.records.is_empty() {
            pending.records.extend(self.notes());
        }
        Ok(pending)
    }

    /// The next message with the end of its record and its bytes: from the ring, unless one waits for its replica.
    fn next_message(&mut self) -> Result<Option<(ToStorage, u64, usize)>, Ended> {
        if let Some(made) = self.making.take_if(|making| making.done) {
            return Ok(Some((made.message, made.end, made.bytes)));
        }
        if self.making.is_some() {
            return Ok(None);
        }
        let start = self.receiver.cursor();
        let received = self.receiver.try_recv::<ToStorage>()?;
        Ok(received.map(|(message, end)| {
            let bytes = usize::try_from(end - start).unwrap_or(usize::MAX);
            (message, end, bytes)
        }))
    }

    /// The noted commit positions as records.
    pub(super) fn notes(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.noted)
            .into_iter()
            .map(|(group, (id, committed))| Record::Operation {
                id,
                change: Change::Committed { group, committed },
            })
            .collect()
    }

    fn sort_internal(&self, internal: Internal, pending: &mut Pending) {
        let log = self.log.lock();
        match internal {
            Internal::Installed(Installed {
                request,
                group,
                meta,
            }) => {
                let upto = meta.last_applied;
                let record = upto.and_then(|upto| log.installed(group, upto));
                pending.records.extend(record);
                if let Some(request) = request {
                    let body = StorageAnswer::Snapshot(meta);
                    pending.steps.push((None, What::Answer { request, body }));
                }
            }
            Internal::Moved(group, entries) => {
                pending.bytes += entries.iter().map(weight).sum::<usize>();
                pending.records.extend(log.moved(group, entries));
            }
        }
    }

    /// What a message is: an operation for the log, or something to do when it is reached.
    fn sort(
        &mut self,
        message: ToStorage,
        end: u64,
        bytes: usize,
        pending: &mut Pending,
    ) -> Result<(), Ended> {
        let id = OperationId {
            generation: self.receiver.generation(),
            position: end,
        };
        let change = match message {
            ToStorage::Hello { epoch, number } => {
                pending
                    .steps
                    .push((Some(end), What::Hello { epoch, number }));
                return Ok(());
            }
            ToStorage::Request { request, body } => {
                let what = What::Request { request, body };
                pending.steps.push((Some(end), what));
                return Ok(());
            }
            // LOG-6: what was recovered and is delivered again is in the log already.
            _ if self.log.lock().has(id) && !planted(Fault::RedeliveryTaken) => {
                pending.steps.push((Some(end), What::Operation));
                return Ok(());
            }
            ToStorage::CreateReplica {
                group,
                replica,
                range,
            } if self.store.has(group, replica) => Change::Create {
                group,
                replica,
                range,
            },
            // Taken when it is made, which takes longer on a slow disk than the executor may be silent.
            ToStorage::CreateReplica {
                group,
                replica,
                ref range,
            } => {
                let range = range.clone();
                hand(
                    &self.threads.make,
                    Make {
                        group,
                        replica,
                        range,
                    },
                )?;
                self.making = Some(Making {
                    message,
                    end,
                    bytes,
                    since: now(),
                    done: false,
                });
                return Ok(());
            }
            ToStorage::SaveVote { group, vote } => Change::Vote { group, vote },
            ToStorage::Append { group, entries } => Change::Append { group, entries },
            ToStorage::Truncate { group, last } => Change::Truncate { group, last },
            ToStorage::Purge { group, upto } => {
                let persisted = self.store.persisted(group);
                let persisted = persisted.and_then(|meta| meta.last_applied);
                // The log is the state machine's write-ahead log; what is not persisted must stay.
                if persisted.is_none_or(|at| at.index < upto.index) {
                    return Err(Ended::broken(format!(
                        "STO-PURGE: {group}: purge up to {upto}, persisted is {persisted:?}"
                    )));
                }
                Change::Purge { group, upto }
            }
            // LOG-9: worth no write of its own, it goes with the next.
            ToStorage::SaveCommitted { group, committed } => {
                self.noted.insert(group, (id, committed));
                pending.steps.push((Some(end), What::Operation));
                return Ok(());
            }
            ToStorage::SaveNodeRecord { record } => Change::Node(record),
        };
        pending.records.push(Record::Operation { id, change });
        pending.bytes += bytes;
        pending.steps.push((Some(end), What::Operation));
        Ok(())
    }
}
