//! A log, its disk, and what it must hold.

use super::super::index::Location;
use super::super::unit::{Change, Record};
use super::super::{FileWork, Log, Plan, Write};
use super::model::{Told, body};
use super::{GROUPS, open};
use crate::io::{Disk, SimDisk};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId, RandomId, ReplicaId};
use std::collections::{BTreeMap, VecDeque};

/// A log of a shard whose shard and consensusd the test plays.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) disk: SimDisk,
    pub(super) log: Log,
    generation: RandomId,
    position: u64,
    pub(super) term: u64,
    /// With the unit that it is in.
    pub(super) told: Vec<(u64, Told)>,
    pub(super) flying: Vec<(u64, u64)>,
    /// Where the last unit of each segment ends.
    ends: BTreeMap<u64, u64>,
    pub(super) files: VecDeque<FileWork>,
    /// Planned, not fetched.
    pub(super) cold: Vec<Plan>,
    /// What was done, for whoever has to find out why.
    journal: Vec<String>,
    pub(super) tally: Tally,
}

/// What a run has met: otherwise the crashes hit little.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) rolls: u64,
    pub(super) moves: u64,
    pub(super) redelivered: u64,
    pub(super) failed: u64,
    pub(super) full: u64,
    pub(super) interrupted: u64,
    pub(super) rotten: u64,
    pub(super) excused: u64,
}

/// Why something was not done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The machine or the process has stopped.
    Stopped,
    /// The disk is full: later, perhaps.
    Full,
}

/// What must go well does.
pub(super) fn done(result: Result<(), Held>) {
    assert_eq!(result, Ok(()));
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut disk = SimDisk::new(seed);
        let log = open(&mut disk).unwrap();
        let mut world = World {
            seed,
            disk,
            log,
            generation: RandomId(u128::from(seed) + 1),
            position: 0,
            term: 1,
            told: Vec::new(),
            flying: Vec::new(),
            ends: BTreeMap::new(),
            files: VecDeque::new(),
            cold: Vec::new(),
            journal: Vec::new(),
            tally: Tally::default(),
        };
        for group in GROUPS {
            let create = Change::Create {
                group,
                replica: ReplicaId(1),
                range: KeyRange::whole(),
            };
            done(world.put(vec![create]));
        }
        world.finish_all();
        world
    }

    pub(super) fn random(&mut self, bound: u64) -> u64 {
        self.disk.random(bound)
    }

    /// Notes what was done.
    pub(super) fn note(&mut self, what: String) {
        self.journal.push(what);
    }

    pub(super) fn put(&mut self, changes: Vec<Change>) -> Result<(), Held> {
        let mut operations = Vec::new();
        for change in changes {
            self.position += 64;
            let id = OperationId {
                generation: self.generation,
                position: self.position,
            };
            operations.push(Told::Operation(id, change));
        }
        self.tell(operations)
    }

    /// One unit of all of it, or nothing.
    pub(super) fn tell(&mut self, told: Vec<Told>) -> Result<(), Held> {
        let records: Vec<Record> = told
            .iter()
            .cloned()
            .filter_map(|told| match told {
                Told::Operation(id, change) => Some(Record::Operation { id, change }),
                Told::Installed(group, upto) => self.log.installed(group, upto),
            })
            .collect();
        if records.is_empty() {
            return Ok(());
        }
        self.make_room(mareedb_ipc::wire::encode(&records).len())?;
        let write = self.log.take(records).unwrap();
        let brief: Vec<String> = told.iter().map(Told::brief).collect();
        self.note(format!("unit {}: {}", write.lsn, brief.join(", ")));
        self.told
            .extend(told.into_iter().map(|told| (write.lsn, told)));
        self.fly(write);
        Ok(())
    }

    /// What the shard does when a segment is full.
    pub(super) fn make_room(&mut self, bytes: usize) -> Result<(), Held> {
        if self.log.fits(bytes) {
            return Ok(());
        }
        self.finish_all();
        loop {
            self.files.extend(self.log.prepare());
            if let Some(write) = self.log.begin_segment() {
                self.tally.rolls += 1;
                self.note(format!(
                    "segment {} begins with unit {}",
                    write.location.segment, write.lsn
                ));
                self.fly(write);
                self.finish_all();
                return Ok(());
            }
            self.file_work()?;
        }
    }

    /// What the thread does that minds the files.
    pub(super) fn file_work(&mut self) -> Result<(), Held> {
        let Some(work) = self.files.pop_front() else {
            return Ok(());
        };
        let ended = work.run(&mut self.disk);
        self.note(format!("{work:?}: {ended:?}"));
        let prepares = matches!(work, FileWork::Prepare { .. });
        match ended {
            Ok(()) if prepares => self.log.prepared(),
            Ok(()) => {}
            Err(error) if prepares && error.kind() == std::io::ErrorKind::StorageFull => {
                self.tally.full += 1;
                self.log.unprepared();
                return Err(Held::Full);
            }
            Err(_) => return Err(Held::Stopped),
        }
        Ok(())
    }

    /// All that it has to do.
    pub(super) fn all_file_work(&mut self) -> Result<(), Held> {
        while !self.files.is_empty() {
            self.file_work()?;
        }
        Ok(())
    }

    /// LOG-2: each unit has blocks of its own, whatever was recovered or used again before.
    pub(super) fn fly(&mut self, write: Write) {
        let Location {
            segment,
            offset,
            bytes,
            lsn,
        } = write.location;
        let end = self.ends.insert(segment, offset + bytes as u64);
        assert!(
            end.is_none_or(|end| end <= offset),
            "LOG-2: unit {lsn} of segment {segment} at {offset}, the one before ends at {end:?}"
        );
        let flight = self
            .disk
            .start(write.location.segment, write.location.offset, &write.bytes);
        self.flying.push((flight, write.lsn));
    }

    pub(super) fn finish(&mut self, at: usize) {
        let (flight, lsn) = self.flying.remove(at);
        self.disk.finish(flight);
        let durable = self.log.written(lsn);
        self.note(format!("unit {lsn} is written, durable up to {durable}"));
    }

    pub(super) fn finish_all(&mut self) {
        while !self.flying.is_empty() {
            self.finish(0);
        }
    }

    pub(super) fn group(&mut self) -> GroupId {
        GROUPS[usize::from(self.random(8) != 0)]
    }

    pub(super) fn append(&mut self) -> Result<(), Held> {
        let group = self.group();
        let count = 1 + self.random(5);
        let from = self.log.index.groups[&group]
            .last
            .map_or(0, |last| last.index + 1);
        let entries = (from..from + count)
            .map(|index| {
                let position = LogPosition {
                    term: self.term,
                    index,
                };
                LogEntry {
                    position,
                    body: body(position),
                }
            })
            .collect();
        self.put(vec![Change::Append { group, entries }])
    }

    /// A position between purge mark and last entry.
    pub(super) fn some_position(&mut self, group: GroupId) -> Option<LogPosition> {
        let state = &self.log.index.groups[&group];
        let positions: Vec<LogPosition> =
            state.entries.values().map(|slot| slot.position).collect();
        let at = self.random(positions.len() as u64);
        positions.get(usize::try_from(at).unwrap()).copied()
    }

    /// LOG-8: every entry can be read, and is what it was.
    pub(super) fn check_entries(&self) {
        check_entries(&self.log, &self.disk);
    }

    /// Segments on disk.
    pub(super) fn segments_on_disk(&self) -> usize {
        self.disk.segments().unwrap().len()
    }
}

/// Every entry of the log can be read, and is what it was.
pub(super) fn check_entries(log: &Log, disk: &SimDisk) {
    for (group, state) in &log.index.groups {
        let mut at = state.purged.map_or(0, |purged| purged.index + 1);
        let to = state.last.map_or(0, |last| last.index + 1);
        while at < to {
            let plan = log.plan(*group, at, to, 20 << 10);
            assert!(!plan.is_empty(), "DUR-2: {group} has no entry {at}");
            let entries = plan
                .fetch(disk)
                .unwrap_or_else(|error| panic!("LOG-8: {group}: {error}"));
            for entry in entries {
                assert_eq!(entry.position.index, at, "DUR-2: {group}");
                assert_eq!(entry.body, body(entry.position), "DUR-2: {group}");
                at += 1;
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.journal.len().saturating_sub(400);
            eprintln!(
                "seed {}: the last {} of {} steps:",
                self.seed,
                self.journal.len() - from,
                self.journal.len()
            );
            for step in &self.journal[from..] {
                eprintln!("  {step}");
            }
            eprintln!(
                "again: CRASH_SEED={} cargo test -p mareedb-storaged --lib log::tests::{}",
                self.seed,
                std::thread::current()
                    .name()
                    .and_then(|name| name.strip_prefix("log::tests::"))
                    .unwrap_or("crash")
            );
        }
    }
}
