//! Numbers that a disk or another process may claim, and no log has.

use super::*;
use crate::log::index::Index;
use crate::log::planted::{Fault, plant};
use crate::log::unit::{self, Change};
use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, NodeRecord};
use mareedb_ipc::wire::{RandomId, ReplicaId};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn operation(change: Change) -> Record {
    let id = OperationId {
        generation: RandomId(1),
        position: 64,
    };
    Record::Operation { id, change }
}

/// A replica, and a log of so many entries of so many bytes.
fn entries(count: u64, bytes: usize) -> [Record; 2] {
    let group = FIRST_DATA_GROUP;
    let create = Change::Create {
        group,
        replica: ReplicaId(1),
        range: KeyRange::whole(),
    };
    let entry = |index| LogEntry {
        position: LogPosition { term: 1, index },
        body: EntryBody::Normal(vec![0; bytes].into()),
    };
    let entries = (0..count).map(entry).collect();
    [
        operation(create),
        operation(Change::Append { group, entries }),
    ]
}

#[test]
fn numbers_that_no_log_has_are_refused() {
    let last = LogPosition {
        term: 1,
        index: u64::MAX,
    };
    let group = FIRST_DATA_GROUP;
    let id = OperationId {
        generation: RandomId(1),
        position: 64,
    };
    let mark = |purged, last| {
        let mark = unit::GroupMark {
            group,
            replica: ReplicaId(1),
            range: KeyRange::whole(),
            vote: None,
            purged,
            last,
            committed: None,
        };
        Record::Checkpoint(unit::Checkpoint {
            groups: vec![mark],
            ..unit::Checkpoint::default()
        })
    };
    let first = LogPosition { index: 0, ..last };
    let operation = |change| Record::Operation { id, change };
    let records = [
        operation(Change::Truncate {
            group,
            last: Some(last),
        }),
        operation(Change::Purge { group, upto: last }),
        Record::Installed {
            group,
            upto: last,
            alone: true,
        },
        mark(None, Some(last)),
        // Less is there than was purged.
        mark(Some(first), None),
    ];
    let create = || {
        operation(Change::Create {
            group,
            replica: ReplicaId(1),
            range: KeyRange::whole(),
        })
    };
    for record in records {
        // By who asks, and on the disk.
        let mut disk = SimDisk::new(1);
        let mut log = open(&mut disk).unwrap();
        let write = log.take(vec![create()]).unwrap();
        disk.write(write.location.segment, write.location.offset, &write.bytes)
            .unwrap();
        log.written(write.lsn);
        assert!(log.take(vec![record.clone()]).is_err(), "{record:?}");
        let mut next = write.location;
        next.offset += next.bytes as u64;
        let unit = |lsn, records| Unit {
            segment: next.segment,
            lsn,
            durable: 0,
            incarnation: 1,
            key: disk.clone().key().unwrap(),
            records,
        };
        let forged = unit(write.lsn + 1, vec![record.clone()]).encode();
        let worn = unit(u64::MAX, vec![Record::Mark]).encode();
        let mut other = disk.clone();
        disk.write(next.segment, next.offset, &forged).unwrap();
        assert!(
            matches!(open(&mut disk), Err(LogError::Damaged { .. })),
            "{record:?}"
        );
        other.write(next.segment, 0, &worn).unwrap();
        assert!(matches!(open(&mut other), Err(LogError::Damaged { .. })));
    }
    let mut index = Index::new(0);
    let location = Location {
        segment: 1,
        offset: 0,
        bytes: unit::BLOCK,
        lsn: 1,
    };
    index.take(create(), location).unwrap();
    // The end never lies below the purge mark.
    let upto = LogPosition { index: 2, ..last };
    index
        .take(operation(Change::Purge { group, upto }), location)
        .unwrap();
    let alone = Record::Installed {
        group,
        upto: first,
        alone: true,
    };
    index.take(alone, location).unwrap();
    assert_eq!(index.groups[&group].last, Some(upto));
    // The one before the last takes no entry after it.
    let upto = LogPosition {
        index: u64::MAX - 1,
        ..last
    };
    index
        .take(operation(Change::Purge { group, upto }), location)
        .unwrap();
    let entries = vec![LogEntry {
        position: last,
        body: EntryBody::Blank,
    }];
    let append = operation(Change::Append { group, entries });
    assert!(index.take(append, location).is_err());
}

/// Whoever reads a log rests on a checkpoint alone once the segments before it are gone.
#[test]
fn small_state_that_contradicts_what_was_there_is_refused() {
    let group = FIRST_DATA_GROUP;
    let replica = ReplicaId(1);
    let operation = |change| {
        let generation = RandomId(1);
        let id = OperationId {
            generation,
            position: 64,
        };
        Record::Operation { id, change }
    };
    let create = |range| {
        operation(Change::Create {
            group,
            replica,
            range,
        })
    };
    let node = NodeRecord {
        name: "node".into(),
        value: Bytes::from_static(b"1"),
    };
    let mark = |range| unit::GroupMark {
        group,
        replica,
        range,
        vote: None,
        purged: None,
        last: None,
        committed: None,
    };
    let checkpoint = |groups, records| {
        Record::Checkpoint(unit::Checkpoint {
            groups,
            records,
            last: None,
        })
    };
    let whole = KeyRange::whole();
    let part = KeyRange {
        start: Bytes::from_static(b"m"),
        ..whole.clone()
    };
    let records = || vec![node.clone()];
    let contradicts = [
        (true, checkpoint(Vec::new(), records())),
        (true, checkpoint(vec![mark(whole.clone())], Vec::new())),
        (true, checkpoint(vec![mark(part.clone())], records())),
        (true, create(part)),
        (false, checkpoint(vec![mark(whole.clone())], records())),
        (false, create(whole.clone())),
    ];
    for (refused, record) in contradicts {
        let mut disk = SimDisk::new(1);
        let mut log = open(&mut disk).unwrap();
        let begun = vec![create(whole.clone()), operation(Change::Node(node.clone()))];
        let write = log.take(begun).unwrap();
        let at = write.location;
        disk.write(at.segment, at.offset, &write.bytes).unwrap();
        log.written(write.lsn);
        // As the next unit on the disk, and by who asks.
        let forged = Unit {
            segment: at.segment,
            lsn: write.lsn + 1,
            durable: 0,
            incarnation: 1,
            key: disk.key().unwrap(),
            records: vec![record.clone()],
        };
        let next = at.offset + at.bytes as u64;
        disk.write(at.segment, next, &forged.encode()).unwrap();
        let opened = open(&mut disk);
        if refused {
            assert!(
                matches!(opened, Err(LogError::Damaged { .. })),
                "{record:?}"
            );
        } else {
            opened.unwrap();
        }
        assert_eq!(log.take(vec![record.clone()]).is_err(), refused);
    }
}

#[test]
fn a_log_that_ends_before_is_not_cut() {
    let group = FIRST_DATA_GROUP;
    let location = Location {
        segment: 1,
        offset: 0,
        bytes: unit::BLOCK,
        lsn: 1,
    };
    let mut log = Index::new(0);
    for record in entries(3, 1) {
        log.take(record, location).unwrap();
    }
    let mut cut_after = |index| {
        let last = Some(LogPosition { term: 1, index });
        log.take(operation(Change::Truncate { group, last }), location)
    };
    let hole = |cut: Result<(), String>| cut.unwrap_err().contains("RAFT-2");
    // What is appended next would lie behind a hole.
    assert!(hole(cut_after(3)));
    cut_after(2).unwrap();
    cut_after(0).unwrap();
    assert!(hole(cut_after(1)));
}

#[test]
fn an_entry_is_planned_from_its_unit_when_that_is_durable() {
    let plan = |fault| {
        let mut disk = SimDisk::new(1);
        let mut log = open(&mut disk).unwrap();
        plant(fault);
        let taken = log.take(entries(3, CACHE).into());
        plant(None);
        taken.unwrap();
        let planned = || log.plan(FIRST_DATA_GROUP, 0, 1, usize::MAX).is_empty();
        catch_unwind(AssertUnwindSafe(planned))
    };
    assert!(matches!(plan(None), Ok(false)));
    let panic = plan(Some(Fault::Evicted)).expect_err("it is in its unit alone");
    let said = panic.downcast_ref::<String>().expect("words");
    assert!(said.starts_with("LOG-8"), "{said}");
}
