//! Single rules of the log.

use super::super::Log;
use super::super::{LogOptions, OperationId};
use super::model::{content_of, replay};
use super::open;
use super::world::{World, done};
use super::{SEGMENT, options};
use mareedb_ipc::wire::RandomId;

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
        done(world.append());
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
fn a_segment_size_that_changes_is_no_damage() {
    let mut world = World::new(5);
    for _ in 0..300 {
        done(world.step());
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
        done(world.step());
    }
    world.settle();
    world.log = Log::open(&mut world.disk, larger, &|| {}).unwrap();
    assert_eq!(replay(&world.told), content_of(&world.log.index));
    world.check_entries();
}
