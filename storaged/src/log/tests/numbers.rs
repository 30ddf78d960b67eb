//! Numbers that a disk or another process may claim, and no log has.

use super::*;
use crate::log::index::Index;
use crate::log::unit::{self, Change};
use mareedb_ipc::wire::storage::EntryBody;
use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::{RandomId, ReplicaId};

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
