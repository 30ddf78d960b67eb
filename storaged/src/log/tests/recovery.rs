//! Crashes, and what the log must be after them.

use super::super::recover::LogError;
use super::super::{Log, LogOptions};
use super::model::{Told, content_of, replay};
use super::world::{Held, World, done};
use super::{SEGMENT, options};
use std::io::ErrorKind;

impl World {
    /// Steps, of which one may be the last because the machine stops or the disk fails in it, then a recovery.
    pub(super) fn live_and_crash(&mut self, steps: u64) {
        match self.random(6) {
            0 | 1 => {
                let calls = self.random(6);
                self.disk.crash_in(calls);
            }
            2 => {
                let calls = self.random(6);
                self.disk.fail_in(calls);
            }
            3 => {
                let room = self.random(3) * SEGMENT;
                let taken = self.disk.taken();
                self.disk.limit(Some(taken + room));
            }
            _ => {}
        }
        for _ in 0..self.random(steps) {
            if self.random(400) == 0 && !self.flying.is_empty() {
                // A write fails, and storaged ends: what is on disk is known only after it has been read back.
                let (flight, lsn) = self.flying.remove(0);
                self.disk.fail(flight);
                self.note(format!("the write of unit {lsn} fails"));
                self.tally.failed += 1;
                break;
            }
            if self.step() == Err(Held::Stopped) {
                break;
            }
        }
        self.crash();
    }

    /// DUR-2: all that was acknowledged is there, and nothing that was never written.
    pub(super) fn crash(&mut self) {
        let acknowledged = self.log.durable();
        self.note(format!("crash; unit {acknowledged} was acknowledged"));
        self.cold.clear();
        self.files.clear();
        self.flying.clear();
        self.disk.crash();
        if self.random(3) == 0 {
            self.rot(acknowledged);
        }
        self.log = self.reopen(acknowledged);
        self.disk.heal();
        self.disk.limit(None);
        let kept = self.kept(acknowledged);
        let again: Vec<(u64, Told)> = self.told.split_off(kept);
        self.check_entries();
        self.deliver_again(again);
        for (lsn, _) in &mut self.told {
            *lsn = (*lsn).min(self.log.issued());
        }
    }

    /// Opens the log, in the course of which the machine stops and the disk fails again, and again (LOG-4).
    fn reopen(&mut self, acknowledged: u64) -> Log {
        loop {
            match self.random(8) {
                0..=2 => {
                    let calls = self.random(4);
                    self.disk.crash_in(calls);
                }
                3 => {
                    let calls = self.random(4);
                    self.disk.fail_in(calls);
                }
                4 => {
                    let reads = self.random(12);
                    self.disk.fail_read_in(reads);
                }
                _ => {}
            }
            // The supervisor's board remembers, unless the machine has stopped.
            let remembered = acknowledged * self.random(2);
            let options = LogOptions {
                acknowledged: remembered,
                ..options()
            };
            match Log::open(&mut self.disk, options, &|| {}) {
                Ok(log) => {
                    self.note(format!("open up to unit {}", log.durable()));
                    break log;
                }
                Err(LogError::Io(error)) => {
                    self.note(format!("open: {error}"));
                    self.tally.interrupted += 1;
                    if error.kind() == ErrorKind::StorageFull {
                        self.disk.limit(None);
                    }
                    self.disk.crash();
                }
                Err(damage) => panic!("LOG-3: a crash alone is no damage: {damage}"),
            }
        }
    }

    /// How many of the records are there: all that were acknowledged, and a prefix of the others, whole units only.
    fn kept(&self, acknowledged: u64) -> usize {
        let last = self.log.index.last;
        let least = self
            .told
            .iter()
            .rposition(|(_, told)| matches!(told, Told::Operation(id, _) if Some(*id) == last))
            .map_or(0, |at| at + 1);
        // Records without an id of their own follow one, in a unit of their own.
        let found = content_of(&self.log.index);
        for kept in least..=self.told.len() {
            let tail = &self.told[kept..];
            let lost = tail.iter().any(|(lsn, _)| *lsn <= acknowledged);
            let halved = kept > 0
                && tail
                    .first()
                    .is_some_and(|(lsn, _)| *lsn == self.told[kept - 1].0);
            if !lost && !halved && replay(&self.told[..kept]) == found {
                return kept;
            }
            if matches!(tail.first(), Some((_, Told::Operation(..))) | None) {
                break;
            }
        }
        panic!(
            "DUR-2: acknowledged up to unit {acknowledged}, found {last:?}, {least} of {} records; then {:?}\nis {found:?}\nmust {:?}",
            self.told.len(),
            self.told[least..]
                .iter()
                .map(|(lsn, _)| lsn)
                .collect::<Vec<_>>(),
            replay(&self.told[..least]),
        );
    }

    /// LOG-6: the ring delivers the end again, and the log knows what it has.
    fn deliver_again(&mut self, again: Vec<(u64, Told)>) {
        for (_, told) in self.told.iter().rev().take(5) {
            if let Told::Operation(id, _) = told {
                assert!(self.log.has(*id), "LOG-6: {id:?} is not known");
            }
        }
        for (_, told) in again {
            if let Told::Operation(id, _) = &told {
                assert!(!self.log.has(*id), "LOG-6: {id:?} was not taken");
                self.tally.redelivered += 1;
                done(self.tell(vec![told]));
            }
        }
    }
}
