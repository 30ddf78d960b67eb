//! The groups' lives: started from what storaged holds, watched, bounded, started anew alone.

use super::{Event, FAILURES_MAX, FAILURES_MS, Host};
use crate::formation::Proposal;
use crate::raft::C;
use crate::replica::Replica;
use crate::rt;
use crate::start::{Start, start_replica};
use crate::view::metrics;
use mareedb_ipc::Gauge;
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::storage::StorageRequest;
use mareedb_ipc::wire::{GroupId, ReplicaId};
use openraft::ServerState;
use openraft::alias::LogIdOf;
use openraft::errors::Fatal;
use std::collections::VecDeque;

/// A log with more entries lets older ones go: storaged's index of it takes some 150 bytes an entry.
const ENTRIES_MAX: u64 = 40_000;
/// So many stay then, so that a follower that was away for a moment needs no snapshot.
const ENTRIES_KEPT: u64 = 20_000;
/// Times `storage.log_retain_bytes`, or as much as there is data if that is more: a larger log waits for no member, see [`waits_upto`].
const RETAIN_FOR_MEMBERS: u64 = 32;
/// Nor does one with more entries than these.
const ENTRIES_FOR_MEMBERS_MAX: u64 = 2_000_000;

/// When groups have ended lately.
#[derive(Default)]
pub(super) struct Failures(VecDeque<u64>);

impl Failures {
    /// One more; how many there were within [`FAILURES_MS`].
    fn another(&mut self, now: u64) -> usize {
        self.0.push_back(now);
        while self.0.front().is_some_and(|at| now - at > FAILURES_MS) {
            self.0.pop_front();
        }
        self.0.len()
    }
}

/// How far of what may go up to `upto` goes now: what a snapshot covers, and openraft has applied.
///
/// storaged may have applied, and covered, what openraft has not: outcomes are asked for until all are told, and each time from entries that
/// are in the log.
fn purgeable(upto: u64, snapshot: Option<u64>, applied: Option<u64>) -> Option<u64> {
    Some(upto.min(snapshot?).min(applied?))
}

/// Whether another snapshot would let more go: it covers what is applied, and no more.
fn uncovered(goes: Option<u64>, snapshot: Option<u64>, applied: Option<u64>) -> bool {
    snapshot < goes.min(applied)
}

/// How large a log may be that waits for members. It leaves as much of the disk free as its files take: on a full one not even what lets it
/// go can be written. `free` 0: nobody has told yet how much that is.
fn waits_upto(retain: u64, data: u64, files: u64, free: u64) -> u64 {
    // A log that is larger than the data is no shorter way to the end of the log than a snapshot.
    let most = retain.saturating_mul(RETAIN_FOR_MEMBERS).max(data);
    if free == 0 {
        return most;
    }
    most.min(files.saturating_add(free) / 2).max(retain)
}

/// Whether a log is too large to wait for members. After a restart what it holds is a guess that may be far too large; what its files take
/// is known. `files` 0: nobody has told yet.
fn is_full(files: u64, held: u64, entries: u64, upto: u64) -> bool {
    let bytes = if files > 0 { files } else { held };
    bytes > upto || entries > ENTRIES_FOR_MEMBERS_MAX
}

impl Host {
    /// A new storaged has applied what its files hold, and readers wait for what its predecessor had applied: it applies
    /// up to there now, not only with the next write.
    pub(super) fn apply_again(&self) {
        for replica in self.replicas.values() {
            self.apply_of(replica);
        }
    }

    /// To be called of a replica that starts, too: storaged may have died since it told how far the group was applied.
    pub(super) fn apply_of(&self, replica: &Replica) {
        let Some(upto) = replica.applied() else {
            return;
        };
        let (link, group) = (self.link.clone(), replica.group());
        rt::spawn(async move {
            link.request(StorageRequest::Apply {
                group,
                results_from: u64::MAX,
                upto,
            })
            .await;
        });
    }

    /// Notes how old entries are; ends a group whose openraft has ended, to start it anew, alone, through the same fence as
    /// a restart of the process.
    pub(super) fn watch_groups(&mut self, now: u64) {
        let mut failed = Vec::new();
        for (group, replica) in &self.replicas {
            let metrics = metrics(replica);
            if let Err(fatal) = &metrics.running_state {
                tracing::error!(%group, %fatal, "the group has ended; it starts anew");
                failed.push((*group, matches!(fatal, Fatal::StorageError(_))));
            }
            match (metrics.state, metrics.last_log_index) {
                (ServerState::Leader, Some(last)) => {
                    self.ages.sample(*group, last, now);
                    replica.lead();
                }
                _ => {
                    self.ages.forget(*group);
                    if let Some(leader) = replica.leader() {
                        replica.rise().follows(leader);
                    }
                }
            }
        }
        for (group, storage) in failed {
            // What fails again and again is no accident: the process ends with evidence, and its successor starts over.
            assert!(
                self.failures.another(now) <= FAILURES_MAX,
                "{group} has ended, and groups did so {FAILURES_MAX} times within {FAILURES_MS} ms"
            );
            if storage {
                self.unsound.insert(group);
            }
            let Some(replica) = self.replicas.remove(&group) else {
                continue;
            };
            let (report, wake) = (self.report.clone(), self.wake.clone());
            rt::spawn(async move {
                replica.end().await;
                let _ = report.send(Event::Ended(group));
                wake.notify_one();
            });
        }
    }

    /// Lets a group's log go that is larger than its share of `storage.log_retain_bytes`, or has too many entries, once a snapshot covers
    /// it. What members lack that are brought to its end stays, as long as it is not too much.
    pub(super) fn bound_logs(&self) {
        let groups = self.replicas.len().max(1) as u64;
        let retain = self.config.storage.log_retain_bytes;
        let files = self.storage_board.get(Gauge::LogFileBytes);
        let data = self.storage_board.get(Gauge::DataBytes);
        let free = self.storage_board.get(Gauge::FreeBytes);
        let waits_upto = waits_upto(retain, data, files, free);
        for replica in self.replicas.values() {
            let log = replica.log();
            let mut share = retain / groups;
            if files > retain {
                // Small writes take whole blocks, and files are given up as a whole: as much too large as the files are, so
                // much too large is the log. What a follower needs after a moment's absence stays in any case.
                let fitting = u128::from(log.held()) * u128::from(retain);
                let fitting = u64::try_from(fitting / u128::from(files)).unwrap_or(u64::MAX);
                share = share.min(fitting.max(retain / 16));
            }
            let many = log.entries() > ENTRIES_MAX;
            let beyond = many.then(|| log.beyond_entries(ENTRIES_KEPT)).flatten();
            let beyond = beyond.max(log.beyond(share));
            let full = is_full(files, log.held(), log.entries(), waits_upto);
            let metrics = metrics(replica);
            let index = |at: &Option<LogIdOf<C>>| at.as_ref().map(|at| at.index);
            let purged = index(&metrics.purged);
            let matched = |member: ReplicaId| index(metrics.replication.as_ref()?.get(&member.0)?);
            let all_have = replica.behind().all_have(purged, matched);
            let (snapshot, applied) = (index(&metrics.snapshot), index(&metrics.last_applied));
            let goes =
                beyond.map(|beyond| beyond.min(all_have.filter(|_| !full).unwrap_or(beyond)));
            let purge = goes
                .and_then(|upto| purgeable(upto, snapshot, applied))
                .filter(|upto| Some(*upto) > purged);
            replica
                .behind()
                .give_up(purge.filter(|_| full).unwrap_or(0));
            let uncovered = uncovered(goes, snapshot, applied);
            if purge.is_none() && !uncovered {
                continue;
            }
            let raft = replica.raft().clone();
            rt::spawn(async move {
                let trigger = raft.trigger();
                let mut told = Ok(());
                if let Some(upto) = purge {
                    told = trigger.purge_log(upto).await;
                }
                if uncovered && told.is_ok() {
                    told = trigger.snapshot().await;
                }
                if let Err(error) = told {
                    tracing::debug!(%error, "retention");
                }
            });
        }
    }

    pub(super) fn start_replicas(&mut self) {
        let formed = self
            .formation
            .as_ref()
            .is_some_and(|formation| formation.my_id().is_some());
        if !formed || self.bootstrapped.is_none() || std::mem::replace(&mut self.starting, true) {
            return;
        }
        for (group, _) in Proposal::groups() {
            self.start_replica(group);
        }
    }

    /// What this node declares when it leads.
    fn rules(&self) -> Rules {
        let (limits, storage) = (&self.config.limits, &self.config.storage);
        Rules {
            quota_bytes: storage.quota_bytes,
            idempotency_keys_max: limits.idempotency_keys_max,
            idempotency_ttl_ms: limits.idempotency_ttl_ms,
            session_ttl_ms: limits.session_ttl_ms,
            history_ms: storage.history_ms,
        }
    }

    pub(super) fn start_replica(&self, group: GroupId) {
        let (Some(formation), Some(bootstrapped)) = (&self.formation, &self.bootstrapped) else {
            return;
        };
        let (Some(formed), Some(me)) = (formation.formed(), formation.my_id()) else {
            return;
        };
        let Some((_, range)) = Proposal::groups()
            .into_iter()
            .find(|(known, _)| *known == group)
        else {
            return;
        };
        let start = Start {
            group,
            range,
            me,
            formed: formed.clone(),
            founder: formation.is_founder(),
            state: bootstrapped
                .replicas
                .iter()
                .find(|state| state.group == group)
                .cloned(),
            generation: bootstrapped.generation,
            sound: self.storage_board.get(Gauge::IoErrors) == 0 && !self.unsound.contains(&group),
            config: self.config.clone(),
            link: self.link.clone(),
            exchange: self.exchange.clone(),
        };
        let (report, wake) = (self.report.clone(), self.wake.clone());
        let (client, clock, rules) = (self.client.clone(), self.clock.clone(), self.rules());
        rt::spawn(async move {
            let event = match start_replica(start).await {
                Ok(started) => Event::Started(Replica::new(started, client, clock, me, rules)),
                Err(why) => Event::Broken(why),
            };
            let _ = report.send(event);
            wake.notify_one();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_is_covered_and_applied() {
        for (upto, snapshot, applied, goes) in [
            (30, Some(40), Some(50), Some(30)),
            (30, Some(30), Some(30), Some(30)),
            (30, Some(29), Some(50), Some(29)),
            (30, None, Some(50), None),
            // storaged is ahead: it has covered what openraft has not seen the outcomes of.
            (30, Some(40), Some(20), Some(20)),
            (30, Some(10), Some(20), Some(10)),
            (30, Some(40), None, None),
        ] {
            let found = purgeable(upto, snapshot, applied);
            assert_eq!(found, goes, "{upto} {snapshot:?} {applied:?}");
        }
    }

    #[test]
    fn no_snapshot_is_asked_for_that_would_let_nothing_go() {
        for (goes, snapshot, applied, more) in [
            (Some(30), None, Some(50), true),
            (Some(30), Some(29), Some(50), true),
            (Some(30), Some(30), Some(50), false),
            (None, None, Some(50), false),
            // Without a quorum more is written than can be applied.
            (Some(30), Some(10), Some(20), true),
            (Some(30), Some(20), Some(20), false),
            (Some(30), None, None, false),
        ] {
            let found = uncovered(goes, snapshot, applied);
            assert_eq!(found, more, "{goes:?} {snapshot:?} {applied:?}");
        }
    }

    #[test]
    fn a_log_that_waits_for_members_does_not_fill_the_disk() {
        const RETAIN: u64 = 32 << 20;
        let gib = |count: u64| count << 30;
        for (data, files, free, upto) in [
            (0, gib(1), gib(1000), RETAIN_FOR_MEMBERS * RETAIN),
            (gib(60), gib(30), gib(1000), gib(60)),
            // 17.5 GiB
            (gib(60), gib(30), gib(5), gib(35) / 2),
            (gib(60), RETAIN, 1, RETAIN),
            (gib(60), gib(30), 0, gib(60)),
        ] {
            let found = waits_upto(RETAIN, data, files, free);
            assert_eq!(found, upto, "{data} {files} {free}");
        }
    }

    /// LIVE-4: a leader that is restored counts its entries as large ones, and would let go what a member lacks.
    #[test]
    fn what_the_files_take_says_whether_a_log_is_full() {
        let many = ENTRIES_FOR_MEMBERS_MAX + 1;
        for (files, held, entries, full) in [
            (100, 900, 1, false),
            (100, 0, 1, false),
            (101, 0, 1, true),
            (0, 100, 1, false),
            (0, 101, 1, true),
            (100, 100, many, true),
        ] {
            let found = is_full(files, held, entries, 100);
            assert_eq!(found, full, "{files} {held} {entries}");
        }
    }

    #[test]
    fn failures_that_are_far_apart_are_accidents() {
        let mut failures = Failures::default();
        for number in 0..100 {
            assert_eq!(failures.another(number * (FAILURES_MS + 1)), 1);
        }
        let now = 100 * (FAILURES_MS + 1);
        let counted: Vec<usize> = (0..3)
            .map(|number| failures.another(now + number))
            .collect();
        assert_eq!(counted, [1, 2, 3]);
    }
}
