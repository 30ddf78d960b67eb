//! Segments that are used again, and a disk that has no room for another one.

use super::super::recover::LogError;
use super::super::unit::Change;
use super::super::{FileWork, Log, LogOptions, Next, SPARES_MAX};
use super::world::{Held, World, done};
use super::{GROUPS, SEGMENT, open, options};
use crate::io::Disk;
use mareedb_ipc::wire::FIRST_DATA_GROUP;
use std::io::ErrorKind;

#[test]
fn a_cold_group_neither_pins_the_log_nor_is_it_lost() {
    for seed in 1..=5 {
        let mut world = World::new(seed);
        for round in 0..12 {
            for _ in 0..400 {
                done(world.step());
            }
            if round % 4 == 3 {
                world.crash();
            }
            world.settle();
            for _ in 0..40 {
                done(world.mind_segments());
                world.finish_all();
                done(world.all_file_work());
            }
            let live = world.log.index.live_bytes() as u64;
            let used = world.log.segments.len() as u64 * SEGMENT;
            assert!(
                used <= 2 * live + 4 * SEGMENT,
                "{used} bytes of segments hold {live} bytes"
            );
            let files = world.log.segments.len() + world.log.spare.len() + 1;
            assert!(world.log.spare.len() <= SPARES_MAX);
            assert!(world.segments_on_disk() <= files + world.files.len());
        }
        let rolls = world.tally.rolls;
        assert!(rolls > 60, "only {rolls} segments were begun");
        world.check_entries();
    }
}

#[test]
fn a_segment_that_a_plan_points_to_is_not_used_again() {
    let mut world = World::new(11);
    for _ in 0..200 {
        done(world.append());
    }
    world.settle();
    let oldest = world.log.segments[0];
    let plan = world.log.plan(FIRST_DATA_GROUP, 0, 1, 1);
    let upto = world.log.index.groups[&FIRST_DATA_GROUP].last.unwrap();
    // LOG-7: nothing is needed there, but that is not durable yet.
    for group in GROUPS {
        let upto = world.log.index.groups[&group].last.unwrap_or(upto);
        done(world.put(vec![Change::Purge { group, upto }]));
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

/// Seed 1459 of the crash tests: a flipped bit in the only unit of the only segment was an empty log.
#[test]
fn the_segment_before_is_kept_until_something_follows_the_beginning_of_the_open_one() {
    let mut world = World::new(23);
    done(world.make_room(usize::try_from(SEGMENT).unwrap()));
    for _ in 0..2 {
        world.log.recycle();
        assert_eq!(world.log.segments, [1, 2]);
    }
    let mut rotten = world.disk.clone();
    rotten.flip(2, 100);
    let log = open(&mut rotten).unwrap();
    assert_eq!(log.index.checkpoint(), world.log.index.checkpoint());
    done(world.append());
    world.finish_all();
    for _ in 0..2 {
        world.log.recycle();
    }
    assert_eq!(world.log.segments, [2]);
    let mut rotten = world.disk.clone();
    rotten.delete(1).unwrap();
    rotten.flip(2, 100);
    assert!(matches!(
        open(&mut rotten),
        Err(LogError::Damaged { segment: 2, .. })
    ));
}

/// The same at a start, which makes the next segment: it must not take the file of the one before, or a crash on the way and a rotten
/// block leave nothing.
#[test]
fn a_start_keeps_the_segment_before_one_that_holds_its_beginning_only() {
    let mut world = World::new(29);
    done(world.make_room(usize::try_from(SEGMENT).unwrap()));
    assert_eq!(world.log.segments, [1, 2]);
    let mut crashes = 0;
    // What a crash leaves of a write is drawn.
    for (calls, draw) in (0..).flat_map(|calls| (0..8).map(move |draw| (calls, draw))) {
        let mut disk = world.disk.clone();
        for _ in 0..draw {
            disk.random(2);
        }
        disk.crash_in(calls);
        let whole = open(&mut disk).is_ok();
        disk.crash();
        disk.heal();
        if whole {
            break;
        }
        crashes += 1;
        disk.flip(2, 100);
        // All that was there, or an error; not an empty log.
        match open(&mut disk) {
            Ok(log) => assert_eq!(log.index.checkpoint(), world.log.index.checkpoint()),
            Err(error) => assert!(matches!(error, LogError::Damaged { .. }), "{error}"),
        }
    }
    assert!(crashes > 8, "it makes a file and writes to it");
    // Without room for another file it takes that one.
    let mut full = world.disk.clone();
    full.limit(Some(full.taken() + SEGMENT / 2));
    let log = open(&mut full).unwrap();
    assert_eq!(log.segments, [2, 4], "the third could not be made");
    assert_eq!(log.index.checkpoint(), world.log.index.checkpoint());
}

/// The full disk of docs/formats/log.md: no write is taken that would need another segment, nothing that was acknowledged is
/// lost, and it goes on by itself when there is room.
#[test]
fn a_full_disk_without_spare_segments_takes_nothing_and_loses_nothing() {
    let mut world = World::new(17);
    world.settle();
    assert!(world.log.spare.is_empty());
    let taken = world.disk.taken();
    world.disk.limit(Some(taken + SEGMENT / 2));
    let mut refused = 0;
    // As often as it is tried; what is small may still fit for a while.
    while refused < 50 {
        let told = world.told.len();
        match world.append() {
            Ok(()) => continue,
            held => assert_eq!(held, Err(Held::Full)),
        }
        refused += 1;
        assert_eq!(world.told.len(), told, "it was not taken");
        assert_eq!(world.log.unfinished(), 0, "nothing of it was begun");
    }
    let told = world.told.len();
    assert_eq!(world.disk.taken(), taken, "no half of a file");
    world.check_entries();
    // A restart does not cure it, and spoils nothing.
    for _ in 0..2 {
        match open(&mut world.disk) {
            Err(LogError::Io(error)) => assert_eq!(error.kind(), ErrorKind::StorageFull),
            other => panic!("{other:?}"),
        }
    }
    world.disk.limit(None);
    done(world.append());
    world.crash();
    assert!(world.told.len() >= told);
    for _ in 0..50 {
        done(world.append());
    }
    world.settle();
    world.crash();
    world.check_entries();
}

/// A file that could not be given to the next segment stays the oldest one: were it forgotten, the ones behind it would go first,
/// and a restart would take the gap for damage.
#[test]
fn a_file_that_could_not_be_used_again_keeps_its_place() {
    let mut world = World::new(19);
    for _ in 0..300 {
        done(world.append());
    }
    for group in GROUPS {
        if let Some(upto) = world.log.index.groups[&group].last {
            done(world.put(vec![Change::Purge { group, upto }]));
        }
    }
    world.settle();
    let larger = LogOptions {
        segment_bytes: 2 * SEGMENT,
        ..options()
    };
    world.log = Log::open(&mut world.disk, larger, &|| {}).unwrap();
    assert!(world.log.spare.len() > 1, "{:?}", world.log.spare);
    let oldest = world.log.spare[0];
    let taken = world.disk.taken();
    world.disk.limit(Some(taken));
    for _ in 0..2 {
        world.files.extend(world.log.prepare());
        assert_eq!(world.file_work(), Err(Held::Full));
    }
    world.disk.limit(None);
    for _ in 0..3 {
        world.log.next = Next::Missing;
        world.files.extend(world.log.prepare());
        done(world.file_work());
    }
    open(&mut world.disk).unwrap();
    assert!(!world.disk.segments().unwrap().contains(&oldest));
}
