//! Crashes of the log over a simulated disk.

use super::*;
use crate::io::SimDisk;
use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, KeyRange};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, META_GROUP, RandomId, ReplicaId, Vote};

const SEGMENT: u64 = 256 << 10;
const CACHE: usize = 8 << 10;

/// What was acknowledged: the state that a recovered log must at least have.
struct World {
    disk: SimDisk,
    log: Log,
    generation: RandomId,
    position: u64,
    /// Index and term of what each unit appended last, by LSN.
    acknowledged: u64,
    appended: Vec<(u64, LogPosition)>,
    votes: Vec<(u64, u64)>,
    flying: Vec<(u64, u64)>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut disk = SimDisk::new(seed);
        let log = Log::open(&mut disk, SEGMENT, CACHE, 1).unwrap();
        let mut world = World {
            disk,
            log,
            generation: RandomId(u128::from(seed) + 1),
            position: 0,
            acknowledged: 0,
            appended: Vec::new(),
            votes: Vec::new(),
            flying: Vec::new(),
        };
        for group in [META_GROUP, FIRST_DATA_GROUP] {
            let create = Change::Create {
                group,
                replica: ReplicaId(1),
                range: KeyRange::whole(),
            };
            world.put(vec![create]);
        }
        world.finish_all();
        world
    }

    fn put(&mut self, changes: Vec<Change>) {
        let operations = changes
            .into_iter()
            .map(|change| {
                self.position += 64;
                let id = OperationId {
                    generation: self.generation,
                    position: self.position,
                };
                (id, change)
            })
            .collect();
        let write = self.log.append(operations).unwrap();
        self.fly(write);
    }

    fn fly(&mut self, write: Write) {
        let flight = self
            .disk
            .start(write.location.segment, write.location.offset, &write.bytes);
        self.flying.push((flight, write.lsn));
    }

    fn finish(&mut self, at: usize) {
        let (flight, lsn) = self.flying.remove(at);
        self.disk.finish(flight);
        self.acknowledged = self.log.written(lsn);
    }

    fn finish_all(&mut self) {
        while !self.flying.is_empty() {
            self.finish(0);
        }
    }

    fn step(&mut self) {
        match self.disk.random(10) {
            0..=4 => {
                let count = 1 + self.disk.random(5);
                let last = self.log.index.groups[&FIRST_DATA_GROUP].last;
                let from = last.map_or(0, |last| last.index + 1);
                let size = usize::try_from(self.disk.random(9000)).unwrap();
                let entries: Vec<LogEntry> = (from..from + count)
                    .map(|index| LogEntry {
                        position: LogPosition { term: 1, index },
                        body: EntryBody::Normal(Bytes::from(vec![
                            u8::try_from(index % 251)
                                .unwrap();
                            size
                        ])),
                    })
                    .collect();
                if !self.log.fits(entries.len() * (size + 64) + 512) {
                    self.finish_all();
                    self.log.begin_segment(&mut self.disk).unwrap();
                }
                let position = entries.last().unwrap().position;
                self.put(vec![Change::Append {
                    group: FIRST_DATA_GROUP,
                    entries,
                }]);
                self.appended.push((self.log.issued(), position));
            }
            5 => {
                if !self.log.fits(512) {
                    self.finish_all();
                    self.log.begin_segment(&mut self.disk).unwrap();
                }
                let term = self.votes.last().map_or(0, |(_, term)| *term) + 1;
                self.put(vec![Change::Vote {
                    group: META_GROUP,
                    vote: Vote {
                        term,
                        voted_for: None,
                        committed: false,
                    },
                }]);
                self.votes.push((self.log.issued(), term));
            }
            6 => {
                let state = &self.log.index.groups[&FIRST_DATA_GROUP];
                let durable = self.durable_append();
                if let (Some(upto), true) =
                    (durable, state.entries.len() > 20 && self.log.fits(512))
                {
                    self.put(vec![Change::Purge {
                        group: FIRST_DATA_GROUP,
                        upto,
                    }]);
                }
            }
            7 => {
                self.finish_all();
                if let Some(write) = self.log.recycle(&self.disk, 2).unwrap() {
                    self.fly(write);
                }
                if let Some(write) = self.log.closing() {
                    self.fly(write);
                }
            }
            _ => {
                if !self.flying.is_empty() {
                    let at = self.disk.random(self.flying.len() as u64);
                    self.finish(usize::try_from(at).unwrap());
                }
            }
        }
    }

    fn durable_append(&self) -> Option<LogPosition> {
        self.appended
            .iter()
            .rev()
            .find(|(lsn, _)| *lsn <= self.acknowledged)
            .map(|(_, position)| *position)
    }

    /// DUR-2, LOG-1: what was acknowledged is there, and what is there was written.
    fn crash_and_check(&mut self) {
        self.disk.crash();
        self.flying.clear();
        let wanted = self.durable_append();
        let vote = self
            .votes
            .iter()
            .rev()
            .find(|(lsn, _)| *lsn <= self.acknowledged)
            .map(|(_, term)| *term);
        let before = self.log.index.groups[&FIRST_DATA_GROUP].last;
        // A second crash in the middle of recovery changes nothing.
        let mut half = self.disk.clone();
        drop(Log::open(&mut half, SEGMENT, CACHE, 2).unwrap());
        self.log = Log::open(&mut self.disk, SEGMENT, CACHE, 2).unwrap();
        let state = &self.log.index.groups[&FIRST_DATA_GROUP];
        assert!(state.last >= wanted, "lost: {:?} of {wanted:?}", state.last);
        assert!(
            state.last <= before,
            "invented: {:?} beyond {before:?}",
            state.last
        );
        let found = self.log.index.groups[&META_GROUP]
            .vote
            .map(|(vote, _)| vote.term);
        assert!(found >= vote, "vote {found:?}, {vote:?} was acknowledged");
        let from = state.purged.map_or(0, |purged| purged.index + 1);
        let to = state.last.map_or(0, |last| last.index + 1);
        let mut at = from;
        while at < to {
            let entries = self
                .log
                .read(&self.disk, FIRST_DATA_GROUP, at, to, 1 << 20)
                .unwrap();
            assert!(!entries.is_empty(), "entry {at} cannot be read");
            for entry in entries {
                assert_eq!(entry.position.index, at);
                let EntryBody::Normal(bytes) = &entry.body else {
                    panic!("another entry at {at}");
                };
                assert!(
                    bytes.iter().all(|byte| u64::from(*byte) == at % 251),
                    "entry {at} holds other bytes"
                );
                at += 1;
            }
        }
        let last = state.last;
        self.appended
            .retain(|(_, position)| Some(*position) <= last);
        let issued = self.log.issued();
        for (lsn, _) in self.appended.iter_mut().chain([].iter_mut()) {
            *lsn = (*lsn).min(issued);
        }
        self.votes.retain(|(_, term)| Some(*term) <= found);
        self.acknowledged = self.log.durable();
        self.position = self.log.index.last.map_or(0, |last| last.position);
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_hundreds_of_crashes() {
    for seed in 1..=60 {
        let mut world = World::new(seed);
        for _ in 0..10 {
            for _ in 0..world.disk.random(60) {
                world.step();
            }
            world.crash_and_check();
        }
    }
}

#[test]
fn damage_to_acknowledged_bytes_is_an_error_with_a_place() {
    let mut found = 0;
    for seed in 1..=40 {
        let mut world = World::new(seed);
        for _ in 0..80 {
            world.step();
        }
        world.finish_all();
        // The mark says that all of it was durable (LOG-3).
        while let Some(write) = world.log.closing() {
            world.fly(write);
            world.finish_all();
        }
        let segments = world.disk.segments().unwrap();
        let live = segments[usize::try_from(world.disk.random(segments.len() as u64)).unwrap()];
        let bytes = world.disk.read(live).unwrap();
        let Some((unit, _)) = Unit::decode(&bytes) else {
            continue;
        };
        if unit.segment != live
            || unit.lsn + 2 > world.log.durable()
            || !world.log.segments.contains(&live)
        {
            continue;
        }
        // The first unit of a live segment: its header.
        world.disk.flip(live, 8 * 20);
        match Log::open(&mut world.disk, SEGMENT, CACHE, 2) {
            Err(LogError::Damaged { .. }) => found += 1,
            Err(other) => panic!("{other}"),
            Ok(log) => assert_ne!(
                live,
                *world.log.segments.first().unwrap(),
                "seed {seed}: damage went unnoticed: {:?}",
                log.index.last
            ),
        }
    }
    assert!(found > 10, "only {found} damaged logs were looked at");
}

#[test]
fn a_redelivered_operation_is_recognised() {
    let mut world = World::new(7);
    let last = world.log.index.last.unwrap();
    world.log = Log::open(&mut world.disk, SEGMENT, CACHE, 2).unwrap();
    // LOG-6
    assert!(world.log.has(last));
    assert!(!world.log.has(OperationId {
        position: last.position + 64,
        ..last
    }));
    assert!(!world.log.has(OperationId {
        generation: RandomId(0),
        ..last
    }));
}
