//! Crashes of the log over a simulated disk, against a model that forgets nothing.

use super::*;
use crate::io::SimDisk;
use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, KeyRange};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, META_GROUP, RandomId, ReplicaId, Vote};
use std::collections::BTreeMap;

const SEGMENT: u64 = 128 << 10;
const CACHE: usize = 8 << 10;
const GROUPS: [GroupId; 2] = [META_GROUP, FIRST_DATA_GROUP];

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT,
        cache_bytes_max: CACHE,
        incarnation: 1,
        acknowledged: 0,
    }
}

fn open(disk: &mut SimDisk) -> Result<Log, LogError> {
    Log::open(disk, options(), &|| {})
}

/// What an entry must hold.
fn body(position: LogPosition) -> EntryBody {
    let seed = position.index.wrapping_mul(31).wrapping_add(position.term);
    let len = usize::try_from(seed * seed % 3000).unwrap();
    EntryBody::Normal(Bytes::from(vec![seed.to_le_bytes()[0]; len]))
}

/// A group of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plain {
    vote: Option<(Vote, OperationId)>,
    purged: Option<LogPosition>,
    last: Option<LogPosition>,
    committed: Option<LogPosition>,
    entries: BTreeMap<u64, LogPosition>,
}

impl Plain {
    fn purge(&mut self, upto: LogPosition) {
        self.purged = Some(upto);
        self.entries.retain(|index, _| *index > upto.index);
        self.last = self.last.max(Some(upto));
    }
}

/// What the log was told, one record after the other.
#[derive(Clone, Debug)]
enum Told {
    Operation(OperationId, Change),
    /// Known by the unit that it is alone in.
    Installed(GroupId, LogPosition),
}

fn replay(told: &[(u64, Told)]) -> BTreeMap<GroupId, Plain> {
    let mut groups: BTreeMap<GroupId, Plain> = BTreeMap::new();
    for (_, told) in told {
        match told.clone() {
            Told::Operation(_, Change::Create { group, .. }) => {
                groups.entry(group).or_default();
            }
            Told::Operation(id, Change::Vote { group, vote }) => {
                groups.get_mut(&group).unwrap().vote = Some((vote, id));
            }
            Told::Operation(_, Change::Append { group, entries }) => {
                let state = groups.get_mut(&group).unwrap();
                for entry in entries {
                    state.entries.insert(entry.position.index, entry.position);
                    state.last = Some(entry.position);
                }
            }
            Told::Operation(_, Change::Truncate { group, last }) => {
                let state = groups.get_mut(&group).unwrap();
                state.entries.retain(|_, at| Some(*at) <= last);
                state.last = last;
            }
            Told::Operation(_, Change::Purge { group, upto }) => {
                groups.get_mut(&group).unwrap().purge(upto);
            }
            Told::Installed(group, upto) => {
                let state = groups.get_mut(&group).unwrap();
                let other = state.entries.get(&upto.index);
                if state
                    .purged
                    .is_some_and(|purged| purged.index >= upto.index)
                {
                    continue;
                }
                if other.is_some_and(|position| *position != upto) {
                    state.entries.clear();
                    state.last = None;
                }
                state.purge(upto);
            }
            Told::Operation(_, Change::Committed { group, committed }) => {
                groups.get_mut(&group).unwrap().committed = committed;
            }
            Told::Operation(_, Change::Node(_)) => {}
        }
    }
    groups
}

fn plain_of(index: &Index) -> BTreeMap<GroupId, Plain> {
    let plain = |state: &index::Group| Plain {
        vote: state.vote,
        purged: state.purged,
        last: state.last,
        committed: state.committed,
        entries: state
            .entries
            .iter()
            .map(|(index, slot)| (*index, slot.position))
            .collect(),
    };
    index
        .groups
        .iter()
        .map(|(group, state)| (*group, plain(state)))
        .collect()
}

/// A log, its disk, and what it must hold.
struct World {
    seed: u64,
    disk: SimDisk,
    log: Log,
    generation: RandomId,
    position: u64,
    term: u64,
    /// With the unit that it is in.
    told: Vec<(u64, Told)>,
    flying: Vec<(u64, u64)>,
    files: VecDeque<FileWork>,
    /// Planned, not fetched.
    cold: Vec<Plan>,
    files_seen: usize,
    rolls: u64,
    moves: u64,
    redelivered: u64,
}

/// The machine stopped.
struct Stopped;

impl World {
    fn new(seed: u64) -> World {
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
            files: VecDeque::new(),
            cold: Vec::new(),
            files_seen: 0,
            rolls: 0,
            moves: 0,
            redelivered: 0,
        };
        for group in GROUPS {
            let create = Change::Create {
                group,
                replica: ReplicaId(1),
                range: KeyRange::whole(),
            };
            world.put(vec![create]).ok().unwrap();
        }
        world.finish_all();
        world
    }

    fn random(&mut self, bound: u64) -> u64 {
        self.disk.random(bound)
    }

    fn group(&mut self) -> GroupId {
        GROUPS[usize::from(self.random(8) != 0)]
    }

    fn put(&mut self, changes: Vec<Change>) -> Result<(), Stopped> {
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

    fn tell(&mut self, told: Vec<Told>) -> Result<(), Stopped> {
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
        self.told
            .extend(told.into_iter().map(|told| (write.lsn, told)));
        self.fly(write);
        Ok(())
    }

    /// What the shard does when a segment is full.
    fn make_room(&mut self, bytes: usize) -> Result<(), Stopped> {
        if self.log.fits(bytes) {
            return Ok(());
        }
        self.finish_all();
        loop {
            self.files.extend(self.log.prepare());
            if let Some(write) = self.log.begin_segment() {
                self.rolls += 1;
                self.fly(write);
                self.finish_all();
                return Ok(());
            }
            self.file_work()?;
        }
    }

    fn file_work(&mut self) -> Result<(), Stopped> {
        let Some(work) = self.files.pop_front() else {
            return Ok(());
        };
        work.run(&mut self.disk).map_err(|_| Stopped)?;
        if matches!(work, FileWork::Prepare { .. }) {
            self.log.prepared();
        }
        Ok(())
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
        self.log.written(lsn);
    }

    fn finish_all(&mut self) {
        while !self.flying.is_empty() {
            self.finish(0);
        }
    }

    fn append(&mut self) -> Result<(), Stopped> {
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
    fn some_position(&mut self, group: GroupId) -> Option<LogPosition> {
        let state = &self.log.index.groups[&group];
        let positions: Vec<LogPosition> =
            state.entries.values().map(|slot| slot.position).collect();
        let at = self.random(positions.len() as u64);
        positions.get(usize::try_from(at).unwrap()).copied()
    }

    fn step(&mut self) -> Result<(), Stopped> {
        match self.random(20) {
            0..=8 => self.append()?,
            9 => {
                let group = self.group();
                self.term += 1;
                let vote = Vote {
                    term: self.term,
                    voted_for: None,
                    committed: false,
                };
                self.put(vec![Change::Vote { group, vote }])?;
            }
            10 => {
                let group = self.group();
                if let Some(last) = self.some_position(group) {
                    self.term += 1;
                    let last = Some(last);
                    self.put(vec![
                        Change::Truncate { group, last },
                        Change::Committed {
                            group,
                            committed: last,
                        },
                    ])?;
                }
            }
            11 | 12 => {
                // The other group is cold: it keeps all that it has for long.
                if let Some(upto) = self.some_position(FIRST_DATA_GROUP) {
                    self.put(vec![Change::Purge {
                        group: FIRST_DATA_GROUP,
                        upto,
                    }])?;
                }
            }
            13 if self.random(8) == 0 => {
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
                        index: last.map_or(0, |last| last.index) + self.disk.random(9),
                    },
                };
                self.term += 1;
                self.tell(vec![Told::Installed(group, upto)])?;
                // Nobody builds on it before it is durable.
                self.finish_all();
            }
            14 => self.mind_segments()?,
            15 => {
                self.finish_all();
                if let Some(write) = self.log.closing() {
                    self.fly(write);
                }
                if self.log.is_beginning() {
                    self.finish_all();
                }
            }
            16 => self.file_work()?,
            _ if !self.flying.is_empty() => {
                let at = self.random(self.flying.len() as u64);
                self.finish(usize::try_from(at).unwrap());
            }
            _ => {}
        }
        assert_eq!(self.log.index.recount(), self.log.index.counted());
        if self.random(16) == 0 {
            // LOG-8: with writes in flight.
            self.check_entries();
        }
        Ok(())
    }

    fn mind_segments(&mut self) -> Result<(), Stopped> {
        self.log.recycle();
        self.files.extend(self.log.prepare());
        self.files.extend(self.log.surplus());
        // What was planned before is fetched after others have changed the log (LOG-7).
        for plan in std::mem::take(&mut self.cold) {
            let group = plan.group();
            let entries = plan.fetch(&self.disk).unwrap();
            self.make_room(mareedb_ipc::wire::encode(&entries).len() + 64)?;
            if let Some(record) = self.log.moved(group, entries) {
                self.moves += 1;
                let write = self.log.take(vec![record]).unwrap();
                self.fly(write);
            }
        }
        self.cold = self.log.cold();
        self.files_seen = self.files_seen.max(self.disk.segments().unwrap().len());
        Ok(())
    }

    /// DUR-2: all that was acknowledged is there, and nothing that was never written.
    fn crash(&mut self) {
        let seed = self.seed;
        let acknowledged = self.log.durable();
        self.cold.clear();
        self.files.clear();
        self.flying.clear();
        self.disk.crash();
        // The machine stops again while the log is being opened, and again.
        self.log = loop {
            if self.random(2) == 0 {
                let calls = self.random(4);
                self.disk.crash_in(calls);
            }
            match open(&mut self.disk) {
                Ok(log) => break log,
                Err(LogError::Io(_)) => self.disk.crash(),
                Err(damage) => panic!("seed {seed}: {damage}"),
            }
        };
        self.disk.crash_in(u64::MAX);
        let last = self.log.index.last;
        let kept = self
            .told
            .iter()
            .rposition(|(_, told)| matches!(told, Told::Operation(id, _) if Some(*id) == last))
            .map_or(0, |at| at + 1);
        // Records without an id of their own follow one, in a unit of their own.
        let recovered = self.log.index.clone();
        let mut matched = None;
        for kept in kept..=self.told.len() {
            let tail = &self.told[kept.min(self.told.len())..];
            let lost = tail.iter().any(|(lsn, _)| *lsn <= acknowledged);
            if !lost && self.agrees(&self.told[..kept], &recovered) {
                matched = Some(kept);
                break;
            }
            if matches!(tail.first(), Some((_, Told::Operation(..))) | None) {
                break;
            }
        }
        let Some(matched) = matched else {
            panic!(
                "seed {seed}: DUR-2: acknowledged up to unit {acknowledged}, found {last:?}, {kept} of {} records; then {:?}\nis {:?}\nmust {:?}",
                self.told.len(),
                self.told[kept..]
                    .iter()
                    .map(|(lsn, _)| lsn)
                    .collect::<Vec<_>>(),
                plain_of(&recovered),
                replay(&self.told[..kept]),
            );
        };
        let again: Vec<(u64, Told)> = self.told.split_off(matched);
        self.check_entries();
        // LOG-6: the ring delivers the end again.
        for (_, told) in self.told.iter().rev().take(5) {
            if let Told::Operation(id, _) = told {
                assert!(self.log.has(*id), "seed {seed}: LOG-6: {id:?} is not known");
            }
        }
        for (_, told) in again {
            if let Told::Operation(id, _) = &told {
                assert!(
                    !self.log.has(*id),
                    "seed {seed}: LOG-6: {id:?} was not taken"
                );
                self.redelivered += 1;
                self.tell(vec![told]).ok().unwrap();
            }
        }
        for (lsn, _) in &mut self.told {
            *lsn = (*lsn).min(self.log.issued());
        }
    }

    fn agrees(&self, told: &[(u64, Told)], recovered: &Index) -> bool {
        replay(told) == plain_of(recovered)
    }

    fn check_entries(&self) {
        for (group, state) in &self.log.index.groups {
            let mut at = state.purged.map_or(0, |purged| purged.index + 1);
            let to = state.last.map_or(0, |last| last.index + 1);
            while at < to {
                let plan = self.log.plan(*group, at, to, 20 << 10);
                assert!(!plan.is_empty(), "seed {}: no entry {at}", self.seed);
                for entry in plan.fetch(&self.disk).unwrap() {
                    assert_eq!(entry.position.index, at, "seed {}", self.seed);
                    assert_eq!(entry.body, body(entry.position), "seed {}", self.seed);
                    at += 1;
                }
            }
        }
    }

    /// Everything is durable, and a mark says so.
    fn settle(&mut self) {
        self.finish_all();
        self.make_room(64).ok().unwrap();
        while let Some(write) = self.log.closing() {
            self.fly(write);
            self.finish_all();
        }
    }
}

/// Steps, or a stop of the machine in one of them, then a recovery.
fn live_and_crash(world: &mut World, steps: u64) {
    if world.random(3) == 0 {
        let calls = world.random(6);
        world.disk.crash_in(calls);
    }
    for _ in 0..world.random(steps) {
        if world.step().is_err() {
            break;
        }
    }
    world.crash();
}

#[test]
fn nothing_acknowledged_is_lost_in_hundreds_of_crashes() {
    let (mut rolls, mut moves, mut redelivered) = (0, 0, 0);
    let seeds = std::env::var("LOG_CRASH_SEEDS").map_or(100, |seeds| seeds.parse().unwrap());
    for seed in 1..=seeds {
        let mut world = World::new(seed);
        for _ in 0..10 {
            live_and_crash(&mut world, 120);
        }
        rolls += world.rolls;
        moves += world.moves;
        redelivered += world.redelivered;
    }
    // Otherwise the crashes hit little.
    assert!(rolls > 500, "only {rolls} segments were begun");
    assert!(moves > 50, "only {moves} records were moved");
    assert!(
        redelivered > 500,
        "only {redelivered} were lost and came again"
    );
}

#[test]
fn a_cold_group_neither_pins_the_log_nor_is_it_lost() {
    for seed in 1..=5 {
        let mut world = World::new(seed);
        for round in 0..12 {
            for _ in 0..400 {
                world.step().ok().unwrap();
            }
            if round % 4 == 3 {
                world.crash();
            }
            world.settle();
            for _ in 0..40 {
                world.mind_segments().ok().unwrap();
                world.finish_all();
            }
            let live = world.log.index.live_bytes() as u64;
            let used = world.log.segments.len() as u64 * SEGMENT;
            assert!(
                used <= 2 * live + 4 * SEGMENT,
                "seed {seed}: {used} bytes of segments hold {live} bytes"
            );
            let files = world.log.segments.len() + world.log.spare.len() + 1;
            assert!(world.log.spare.len() <= SPARES_MAX);
            assert!(world.disk.segments().unwrap().len() <= files + world.files.len());
        }
        assert!(world.rolls > 60, "only {} segments were begun", world.rolls);
        world.check_entries();
    }
}

#[test]
fn damage_to_acknowledged_bytes_is_an_error_with_a_place() {
    let mut kinds = [0; 3];
    for seed in 1..=120 {
        let mut world = World::new(seed);
        for _ in 0..world.random(400) + 50 {
            world.step().ok().unwrap();
        }
        world.settle();
        let state = &world.log.index.groups[&FIRST_DATA_GROUP];
        let places: Vec<Location> = state.entries.values().map(|slot| slot.location).collect();
        let at = world.disk.random(places.len() as u64);
        let Some(place) = places.get(usize::try_from(at).unwrap()).copied() else {
            continue;
        };
        let last = *world.log.segments.last().unwrap();
        let kind = usize::try_from(world.random(3)).unwrap();
        match kind {
            0 => {
                // Any bit of the header that says something, or of the records.
                let bit = world.random(51 * 8) + place.offset * 8;
                world
                    .disk
                    .flip(place.segment, usize::try_from(bit).unwrap());
            }
            1 => {
                // A write that was confirmed and never happened.
                let zeros = vec![0; place.bytes];
                world
                    .disk
                    .write(place.segment, place.offset, &zeros)
                    .unwrap();
            }
            _ if place.segment != last => world.disk.delete(place.segment).unwrap(),
            _ => continue,
        }
        kinds[kind] += 1;
        match open(&mut world.disk) {
            // LOG-3
            Err(LogError::Damaged { .. }) => {}
            Err(other) => panic!("seed {seed}: {other}"),
            Ok(log) => panic!(
                "seed {seed}: damage {kind} at {place:?} went unnoticed: {:?}",
                log.index.last
            ),
        }
    }
    assert!(kinds.iter().all(|count| *count > 5), "{kinds:?} were tried");
}

#[test]
fn an_end_that_somebody_else_remembers_is_missed() {
    let mut world = World::new(9);
    for _ in 0..30 {
        world.append().ok().unwrap();
    }
    world.finish_all();
    let remembered = LogOptions {
        acknowledged: world.log.durable(),
        ..options()
    };
    let last = *world.log.segments.last().unwrap();
    let mut lost = world.disk.clone();
    let len = usize::try_from(lost.bytes(last).unwrap()).unwrap();
    let bytes = lost.read_at(last, 0, len).unwrap();
    // The last unit: nothing in the log says that it was durable.
    let at = world.log.offset - unit::BLOCK as u64;
    lost.write(last, at, &[0; unit::BLOCK]).unwrap();
    assert!(bytes.len() > unit::BLOCK);
    let before = lost.segments().unwrap();
    let missed = Log::open(&mut lost, remembered, &|| {});
    assert!(matches!(missed, Err(LogError::Damaged { segment, .. }) if segment == last));
    assert_eq!(lost.segments().unwrap(), before, "something was written");
    assert!(open(&mut lost).is_ok());
    assert!(Log::open(&mut world.disk, remembered, &|| {}).is_ok());
}

#[test]
fn a_redelivered_operation_is_recognised() {
    let mut world = World::new(7);
    let last = world.log.index.last.unwrap();
    world.log = open(&mut world.disk).unwrap();
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

#[test]
fn only_the_contiguous_prefix_is_durable() {
    let mut world = World::new(3);
    let before = world.log.durable();
    for _ in 0..3 {
        world.append().ok().unwrap();
    }
    // LOG-1
    world.finish(2);
    assert_eq!(world.log.durable(), before);
    world.finish(1);
    assert_eq!(world.log.durable(), before);
    world.finish(0);
    assert_eq!(world.log.durable(), before + 3);
}

#[test]
fn a_segment_that_a_plan_points_to_is_not_used_again() {
    let mut world = World::new(11);
    for _ in 0..200 {
        world.append().ok().unwrap();
    }
    world.settle();
    let oldest = world.log.segments[0];
    let plan = world.log.plan(FIRST_DATA_GROUP, 0, 1, 1);
    let upto = world.log.index.groups[&FIRST_DATA_GROUP].last.unwrap();
    // LOG-7: nothing is needed there, but that is not durable yet.
    for group in GROUPS {
        let upto = world.log.index.groups[&group].last.unwrap_or(upto);
        world.put(vec![Change::Purge { group, upto }]).ok().unwrap();
    }
    world.log.recycle();
    assert_eq!(world.log.segments[0], oldest);
    world.settle();
    world.log.recycle();
    assert_eq!(world.log.spare.front(), Some(&oldest));
    // LOG-7
    world.log.next = Next::Missing;
    assert!(matches!(
        world.log.prepare(),
        Some(FileWork::Prepare { from: None, .. })
    ));
    assert_eq!(plan.fetch(&world.disk).unwrap().len(), 1);
    world.log.next = Next::Missing;
    assert!(matches!(
        world.log.prepare(),
        Some(FileWork::Prepare { from: Some(from), .. }) if from == oldest
    ));
}

#[test]
fn a_segment_size_that_changes_is_no_damage() {
    let mut world = World::new(5);
    for _ in 0..300 {
        world.step().ok().unwrap();
    }
    world.settle();
    world.crash();
    world.settle();
    let larger = LogOptions {
        segment_bytes: 2 * SEGMENT,
        ..options()
    };
    world.log = Log::open(&mut world.disk, larger, &|| {}).unwrap();
    world.flying.clear();
    world.files.clear();
    world.cold.clear();
    for _ in 0..600 {
        world.step().ok().unwrap();
    }
    world.settle();
    world.log = Log::open(&mut world.disk, larger, &|| {}).unwrap();
    assert!(world.agrees(&world.told, &world.log.index));
    world.check_entries();
}
