//! Bits that flip, writes that were confirmed and never happened, files that are gone: an error that names the place (LOG-3), or
//! one of the exceptions that docs/formats/log.md names.

use super::super::index::Location;
use super::super::recover::{LogError, recover};
use super::super::unit::{self, BLOCK, Found, HEADER_BYTES, Unit};
use super::super::{Log, LogOptions};
use super::model::{content_of, replay};
use super::world::{World, check_entries, done};
use super::{CACHE, open, options, seeds};
use crate::io::{Disk, SimDisk};
use mareedb_ipc::wire::FIRST_DATA_GROUP;

/// A whole unit on the disk, of the segment that it lies in.
struct Lying {
    segment: u64,
    offset: u64,
    /// Bytes that its checksum covers.
    covered: u64,
    lsn: u64,
    durable: u64,
}

fn lying(disk: &SimDisk) -> Vec<Lying> {
    let mut out = Vec::new();
    for segment in disk.segments().unwrap() {
        let len = usize::try_from(disk.bytes(segment).unwrap()).unwrap();
        let bytes = disk.read_at(segment, 0, len).unwrap();
        let mut at = 0;
        while at < len {
            match Unit::decode(&bytes[at..], 7) {
                Found::Unit(unit, taken) if unit.segment == segment => {
                    let payload = bytes[at + 40..at + 44].try_into().unwrap();
                    out.push(Lying {
                        segment,
                        offset: at as u64,
                        covered: HEADER_BYTES as u64 + u64::from(u32::from_le_bytes(payload)),
                        lsn: unit.lsn,
                        durable: unit.durable,
                    });
                    at += taken;
                }
                _ => at += BLOCK,
            }
        }
    }
    out
}

/// What must come of a flipped bit.
#[derive(Debug, PartialEq, Eq)]
enum Must {
    /// Nobody needs it.
    Same,
    /// It is told, with the place.
    Tell { segment: u64, offset: u64 },
    /// It looks like the end of a log that was never written further: what is before it is there.
    Prefix { below: u64 },
}

impl World {
    /// Flips a bit of a copy of the disk, as it is after a crash, and opens that.
    pub(super) fn rot(&mut self, acknowledged: u64) {
        let whole = recover(&self.disk, 7, CACHE, 0, &|| {})
            .unwrap_or_else(|error| panic!("LOG-3: a crash alone is no damage: {error}"));
        let units = lying(&self.disk);
        let mut rotten = self.disk.clone();
        rotten.limit(None);
        let (segment, bit) = self.some_bit(&units);
        rotten.flip(segment, usize::try_from(bit).unwrap());
        let remembered = acknowledged * self.random(2);
        let must = must(
            &units,
            &whole.segments,
            whole.next_lsn,
            segment,
            bit / 8,
            remembered,
        );
        self.note(format!(
            "rot: bit {bit} of segment {segment}, the board remembers {remembered}: {must:?}"
        ));
        self.tally.rotten += 1;
        let before = rotten.segments().unwrap();
        let options = LogOptions {
            acknowledged: remembered,
            ..options()
        };
        match (Log::open(&mut rotten, options, &|| {}), must) {
            (
                Err(LogError::Damaged {
                    segment: named,
                    offset,
                    what,
                }),
                Must::Tell {
                    segment,
                    offset: at,
                },
            ) => {
                assert!(
                    (named, offset) == (segment, at) || named < segment,
                    "LOG-3: damage at {segment}, {at} is told of {named}, {offset}: {what}"
                );
                assert_eq!(
                    rotten.segments().unwrap(),
                    before,
                    "LOG-3: something was written"
                );
            }
            (Ok(log), Must::Same) => {
                assert_eq!(
                    content_of(&log.index),
                    content_of(&whole.index),
                    "DUR-2: rot"
                );
                check_entries(&log, &rotten);
            }
            (Ok(log), Must::Prefix { below }) => {
                self.tally.excused += u64::from(below <= acknowledged);
                let kept = self.told.partition_point(|(lsn, _)| *lsn < below);
                assert_eq!(
                    content_of(&log.index),
                    replay(&self.told[..kept]),
                    "DUR-2: rot"
                );
                check_entries(&log, &rotten);
            }
            // What it purged is gone for good already: then its loss shows, although nothing else tells of it.
            (Err(LogError::Damaged { what, .. }), Must::Prefix { below })
                if below <= acknowledged && what.ends_with("is missing") => {}
            (Ok(log), must) => panic!("LOG-3: it opens up to unit {}: {must:?}", log.durable()),
            (Err(error), must) => panic!("LOG-3: {error}: {must:?}"),
        }
    }

    /// Mostly of a unit.
    fn some_bit(&mut self, units: &[Lying]) -> (u64, u64) {
        if self.random(4) == 0 {
            let segments = self.disk.segments().unwrap();
            let at = self.random(segments.len() as u64);
            let segment = segments[usize::try_from(at).unwrap()];
            return (segment, self.random(self.disk.bytes(segment).unwrap() * 8));
        }
        // Those at the end are where it is hard to tell.
        let at = units.len() as u64 - 1;
        let back = if self.random(2) == 0 { at.min(8) } else { at };
        let unit = &units[usize::try_from(at - self.random(back + 1)).unwrap()];
        let bit = if self.random(2) == 0 {
            self.random(HEADER_BYTES as u64 * 8)
        } else {
            self.random(unit.covered * 8)
        };
        (unit.segment, unit.offset * 8 + bit)
    }
}

fn must(
    units: &[Lying],
    segments: &[u64],
    next: u64,
    segment: u64,
    byte: u64,
    remembered: u64,
) -> Must {
    let hit = units.iter().find(|unit| {
        // The header's last bytes say nothing.
        let within = byte.wrapping_sub(unit.offset);
        unit.segment == segment && within < unit.covered && !(60..64).contains(&within)
    });
    let first = |segment: u64| {
        units
            .iter()
            .find(|unit| unit.segment == segment && unit.offset == 0)
            .map(|unit| unit.lsn)
    };
    let later = segments.iter().copied().find(|other| *other > segment);
    // What follows the end of a sealed segment, or of the log, is void.
    let end = later.and_then(first).unwrap_or(next);
    let Some(hit) = hit.filter(|hit| hit.lsn < end) else {
        return Must::Same;
    };
    let tell = Must::Tell {
        segment,
        offset: hit.offset,
    };
    let alone = !units
        .iter()
        .any(|unit| unit.segment == segment && unit.lsn != hit.lsn);
    if later.is_some() {
        // The oldest segment, if it holds nothing but its beginning, says nothing that the next one does not say.
        return if alone && segments.first() == Some(&segment) {
            Must::Same
        } else {
            tell
        };
    }
    let confirmed = units
        .iter()
        .filter(|unit| unit.segment == segment && unit.lsn > hit.lsn)
        .map(|unit| unit.durable)
        .max();
    if confirmed.max(Some(remembered)) >= Some(hit.lsn) || (hit.offset == 0 && !alone) {
        tell
    } else {
        Must::Prefix { below: hit.lsn }
    }
}

#[test]
fn damage_to_acknowledged_bytes_is_an_error_with_a_place() {
    let mut kinds = [0; 3];
    for seed in seeds(120) {
        let mut world = World::new(seed);
        for _ in 0..world.random(400) + 50 {
            done(world.step());
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
            Err(other) => panic!("{other}"),
            Ok(log) => panic!(
                "damage {kind} at {place:?} went unnoticed: {:?}",
                log.index.last
            ),
        }
    }
    assert!(
        seeds(120).count() < 100 || kinds.iter().all(|count| *count > 5),
        "{kinds:?} were tried"
    );
}

#[test]
fn rot_is_noticed_when_an_entry_is_read() {
    let mut world = World::new(13);
    for _ in 0..40 {
        done(world.append());
        world.finish_all();
    }
    world.settle();
    let state = &world.log.index.groups[&FIRST_DATA_GROUP];
    let (index, slot) = state
        .entries
        .iter()
        .find(|(_, slot)| slot.cached.is_none())
        .unwrap();
    let (index, place) = (*index, slot.location);
    let bit = usize::try_from(place.offset * 8).unwrap() + HEADER_BYTES * 8 + 3;
    world.disk.flip(place.segment, bit);
    let plan = world.log.plan(FIRST_DATA_GROUP, index, index + 1, 1);
    assert!(matches!(
        plan.fetch(&world.disk),
        Err(LogError::Damaged { segment, offset, .. })
            if (segment, offset) == (place.segment, place.offset)
    ));
    // A read that fails is no damage, and may be tried again.
    world.disk.flip(place.segment, bit);
    world.disk.fail_read_in(0);
    let plan = || world.log.plan(FIRST_DATA_GROUP, index, index + 1, 1);
    assert!(matches!(plan().fetch(&world.disk), Err(LogError::Io(_))));
    assert_eq!(plan().fetch(&world.disk).unwrap().len(), 1);
}

#[test]
fn an_end_that_somebody_else_remembers_is_missed() {
    let mut world = World::new(9);
    for _ in 0..30 {
        done(world.append());
    }
    world.finish_all();
    let remembered = LogOptions {
        acknowledged: world.log.durable(),
        ..options()
    };
    let last = *world.log.segments.last().unwrap();
    let mut lost = world.disk.clone();
    // The last unit: nothing in the log says that it was durable.
    let at = world.log.offset - unit::BLOCK as u64;
    lost.write(last, at, &[0; unit::BLOCK]).unwrap();
    let before = lost.segments().unwrap();
    let missed = Log::open(&mut lost, remembered, &|| {});
    assert!(matches!(missed, Err(LogError::Damaged { segment, .. }) if segment == last));
    assert_eq!(lost.segments().unwrap(), before, "something was written");
    assert!(open(&mut lost).is_ok());
    assert!(Log::open(&mut world.disk, remembered, &|| {}).is_ok());
}
