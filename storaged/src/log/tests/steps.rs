//! What may happen to a log while it is up.

use super::super::unit::Change;
use super::model::Told;
use super::world::{Held, World, done};
use super::{GROUPS, SEGMENT};
use bytes::Bytes;
use mareedb_ipc::wire::storage::NodeRecord;
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, Vote};

impl World {
    /// Something happens. A full disk is no end: what it held up was not taken.
    pub(super) fn step(&mut self) -> Result<(), Held> {
        match self.something() {
            Err(Held::Full) | Ok(()) => {}
            stopped => return stopped,
        }
        assert_eq!(self.log.index.recount(), self.log.index.counted());
        if self.random(16) == 0 {
            // LOG-8: with writes in flight.
            self.check_entries();
        }
        Ok(())
    }

    fn something(&mut self) -> Result<(), Held> {
        match self.random(22) {
            0..=8 => self.append()?,
            9 => self.vote()?,
            10 => self.truncate()?,
            11 | 12 => {
                // The other group is cold: it keeps all that it has for long.
                if let Some(upto) = self.some_position(FIRST_DATA_GROUP) {
                    let group = FIRST_DATA_GROUP;
                    self.put(vec![Change::Purge { group, upto }])?;
                }
            }
            13 if self.random(8) == 0 => self.install()?,
            14 => self.mind_segments()?,
            15 => {
                self.finish_all();
                if let Some(write) = self.log.closing() {
                    self.note(format!("unit {} closes", write.lsn));
                    self.fly(write);
                }
                if self.log.is_beginning() {
                    self.finish_all();
                }
            }
            16 => self.file_work()?,
            17 if self.random(4) == 0 => {
                let name = ["a", "b", "c"][usize::try_from(self.random(3)).unwrap()].to_owned();
                let value = Bytes::copy_from_slice(&self.term.to_le_bytes());
                self.put(vec![Change::Node(NodeRecord { name, value })])?;
            }
            18 if self.random(6) == 0 => self.hurry()?,
            _ if !self.flying.is_empty() => {
                let at = self.random(self.flying.len() as u64);
                self.finish(usize::try_from(at).unwrap());
            }
            _ => {}
        }
        Ok(())
    }

    /// Nothing is needed any more, and the files are used again at once: while the purge that says so may be in flight, and
    /// while somebody reads.
    fn hurry(&mut self) -> Result<(), Held> {
        for group in GROUPS {
            let state = &self.log.index.groups[&group];
            let from = state.purged.map_or(0, |purged| purged.index + 1);
            let plan = self.log.plan(group, from, u64::MAX, 20 << 10);
            if !plan.is_empty() {
                self.cold.push(plan);
            }
        }
        self.make_room(usize::try_from(SEGMENT).unwrap())?;
        let purges = GROUPS.into_iter().filter_map(|group| {
            let upto = self.log.index.groups[&group].last?;
            Some(Change::Purge { group, upto })
        });
        let purges: Vec<Change> = purges.collect();
        if !purges.is_empty() {
            self.put(purges)?;
        }
        if self.random(2) == 0 {
            self.finish_all();
        }
        self.log.recycle();
        self.files.extend(self.log.prepare());
        self.files.extend(self.log.surplus());
        self.all_file_work()
    }

    fn vote(&mut self) -> Result<(), Held> {
        let group = self.group();
        self.term += 1;
        let vote = Vote {
            term: self.term,
            voted_for: None,
            committed: false,
        };
        self.put(vec![Change::Vote { group, vote }])
    }

    /// A suffix that conflicts is cut off, and something else follows in the same unit: all of it counts, or nothing.
    fn truncate(&mut self) -> Result<(), Held> {
        let group = self.group();
        let Some(last) = self.some_position(group) else {
            return Ok(());
        };
        self.term += 1;
        let last = Some(last);
        self.put(vec![
            Change::Truncate { group, last },
            Change::Committed {
                group,
                committed: last,
            },
        ])
    }

    fn install(&mut self) -> Result<(), Held> {
        let group = self.group();
        let last = self.log.index.groups[&group].last;
        let upto = match self.some_position(group) {
            Some(known) if self.random(2) == 0 => known,
            Some(known) if self.random(2) == 0 => LogPosition {
                term: self.term + 1,
                ..known
            },
            _ => LogPosition {
                term: self.term,
                index: last.map_or(0, |last| last.index) + self.random(9),
            },
        };
        self.term += 1;
        self.tell(vec![Told::Installed(group, upto)])?;
        // Nobody builds on it before it is durable.
        self.finish_all();
        Ok(())
    }

    /// What the shard does about segments in each turn.
    pub(super) fn mind_segments(&mut self) -> Result<(), Held> {
        self.log.recycle();
        self.files.extend(self.log.prepare());
        self.files.extend(self.log.surplus());
        // What was planned before is fetched after others have changed the log (LOG-7).
        for plan in std::mem::take(&mut self.cold) {
            let group = plan.group();
            let entries = plan
                .fetch(&self.disk)
                .unwrap_or_else(|error| panic!("LOG-7: {group}: {error}"));
            self.make_room(mareedb_ipc::wire::encode(&entries).len() + 64)?;
            if let Some(record) = self.log.moved(group, entries) {
                self.tally.moves += 1;
                let write = self.log.take(vec![record]).unwrap();
                self.note(format!("unit {} moves entries of {group}", write.lsn));
                self.fly(write);
            }
        }
        self.cold = self.log.cold();
        Ok(())
    }

    /// Everything is durable, and a mark says so.
    pub(super) fn settle(&mut self) {
        self.finish_all();
        done(self.make_room(64));
        while let Some(write) = self.log.closing() {
            self.fly(write);
            self.finish_all();
        }
    }
}
