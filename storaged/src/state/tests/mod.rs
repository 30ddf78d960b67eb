//! The store against a model, and against itself: flushed, restarted, collected, copied.

use super::*;
use mareedb_ipc::wire::command::{
    Command, Compare, CompareOp, CompareTarget, IdempotencyKey, Op, OpResult, Outcome, SessionRef,
    Stamp, Txn, encode_command,
};
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::wire::storage::{EntryBody, SnapshotChunk};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, NodeId, Revision, decode};
use proptest::prelude::*;
use std::collections::BTreeMap;
use tempfile::TempDir;

mod crash;
mod elections;
mod files;
mod hostile;
mod install;
mod limits;
mod model;
mod parallel;

const GROUP: GroupId = FIRST_DATA_GROUP;
const SESSION: RandomId = RandomId(7);
const TTL_MS: u64 = 1_000;

fn options(dir: &Path) -> StoreOptions {
    StoreOptions {
        dir: dir.to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules {
            history_ms: 1 << 40,
            quota_bytes: 0,
            idempotency_ttl_ms: TTL_MS,
            idempotency_keys_max: 20,
            session_ttl_ms: 1 << 40,
        },
    }
}

fn store(dir: &Path) -> Store {
    let store = Store::open(options(dir)).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    store
}

/// Reads the whole of a store, as of a revision.
fn read_all(store: &Store, revision: Option<Revision>) -> Result<ReadResponse, ReadError> {
    store.read(&ReadRequest {
        group: GROUP,
        epoch: 1,
        min_index: 0,
        query: Query::Range {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 1000,
            max_bytes: 1 << 20,
            revision,
            keys_only: false,
        },
    })
}

/// At a wall clock's `ms`, without a word of how long it took.
fn entry(index: u64, ms: u64, command: &Command) -> LogEntry {
    later(index, ms, 0, command)
}

/// At a wall clock's `ms`, so many milliseconds after the one before.
fn later(index: u64, ms: u64, elapsed_ms: u32, command: &Command) -> LogEntry {
    let stamp = Stamp {
        revision: Revision::from_unix_ms(ms),
        elapsed_ms,
    };
    LogEntry {
        position: LogPosition { term: 1, index },
        body: EntryBody::Normal(stamp.on(&encode_command(command))),
    }
}

fn open_session() -> Command {
    Command::OpenSession {
        session: SESSION,
        node: NodeId(1),
    }
}

fn write(sequence: u64, low_water: u64, idempotency: Option<IdempotencyKey>, txn: Txn) -> Command {
    Command::Write {
        origin: SessionRef {
            session: SESSION,
            sequence,
            low_water,
        },
        epoch: 1,
        idempotency,
        txn,
    }
}

fn put(key: &[u8], value: &[u8]) -> Op {
    Op::Put {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
    }
}

fn outcome(store: &Store, entry: &LogEntry) -> Outcome {
    let outcomes = store
        .apply(GROUP, std::slice::from_ref(entry), entry.position.index)
        .unwrap();
    decode(&outcomes[0].1).unwrap()
}

fn get(store: &Store, key: &[u8], revision: Option<Revision>) -> Option<(Bytes, u64)> {
    let response = store
        .read(&ReadRequest {
            group: GROUP,
            epoch: 1,
            min_index: 0,
            query: Query::Get {
                key: Bytes::copy_from_slice(key),
                revision,
            },
        })
        .unwrap();
    response
        .items
        .into_iter()
        .next()
        .map(|item| (item.value, item.version))
}

fn key(number: u8) -> Vec<u8> {
    // Zero bytes and prefixes of each other: what escaping is for.
    vec![0; usize::from(number % 3) + 1]
        .into_iter()
        .chain([number / 3])
        .collect()
}

fn copy(from: &Store, to: &Store) {
    let (snapshot, meta) = from.open_snapshot(GROUP).unwrap();
    let install = RandomId::draw();
    to.begin_install(GROUP, install).unwrap();
    let mut cursor = Bytes::new();
    for number in 0.. {
        let chunk = from.read_snapshot(snapshot, &cursor, 200).unwrap();
        to.install_chunk(install, number, &chunk).unwrap();
        // A chunk that comes twice changes nothing.
        to.install_chunk(install, number, &chunk).unwrap();
        match chunk.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    from.close_snapshot(snapshot);
    assert_eq!(to.finish_install(GROUP, install, &meta).unwrap(), meta);
    assert_eq!(
        to.finish_install(GROUP, install, &meta).unwrap(),
        meta,
        "repeating changes nothing"
    );
}

#[test]
fn a_repeat_gets_the_first_outcome_and_a_given_up_number_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    let txn = |value: &[u8]| Txn {
        success: vec![put(b"k", value)],
        ..Txn::default()
    };
    // ONCE-1
    let stranger = entry(0, 1, &write(1, 1, None, txn(b"x")));
    assert_eq!(outcome(&store, &stranger), Outcome::SessionUnknown);
    assert_eq!(
        outcome(&store, &entry(1, 1, &open_session())),
        Outcome::SessionOpen
    );
    let first = outcome(&store, &entry(2, 2, &write(1, 1, None, txn(b"1"))));
    assert!(matches!(first, Outcome::Done(_)));
    assert_eq!(
        outcome(&store, &entry(3, 3, &write(1, 1, None, txn(b"1")))),
        first
    );
    assert_eq!(get(&store, b"k", None), Some((Bytes::from_static(b"1"), 1)));
    outcome(&store, &entry(4, 4, &write(5, 5, None, txn(b"2"))));
    assert_eq!(
        outcome(&store, &entry(5, 5, &write(3, 3, None, txn(b"3")))),
        Outcome::BelowLowWater
    );
    assert_eq!(get(&store, b"k", None), Some((Bytes::from_static(b"2"), 2)));
}

#[test]
fn a_session_that_nobody_uses_expires_by_logged_time() {
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path());
    options.first_rules.session_ttl_ms = 100;
    let store = Store::open(options).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    outcome(&store, &entry(0, 1, &open_session()));
    outcome(&store, &entry(1, 2, &write(1, 1, None, Txn::default())));
    assert_eq!(
        outcome(&store, &later(2, 50, 48, &Command::Tick)),
        Outcome::Ticked
    );
    assert!(matches!(
        outcome(
            &store,
            &later(3, 60, 10, &write(2, 1, None, Txn::default()))
        ),
        Outcome::Done(_)
    ));
    // ONCE-1: a wall clock that jumps ends nothing.
    assert_eq!(
        outcome(&store, &entry(4, 1 << 40, &Command::Tick)),
        Outcome::Ticked
    );
    assert!(matches!(
        outcome(
            &store,
            &later(5, 70, 10, &write(3, 1, None, Txn::default()))
        ),
        Outcome::Done(_)
    ));
    assert_eq!(
        outcome(&store, &later(6, 80, 101, &Command::Tick)),
        Outcome::Ticked
    );
    assert_eq!(
        outcome(&store, &entry(7, 90, &write(4, 1, None, Txn::default()))),
        Outcome::SessionUnknown
    );
}

#[test]
fn entries_with_a_hole_are_refused_and_change_nothing() {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    outcome(&store, &entry(0, 1, &open_session()));
    let before = store.digest(GROUP);
    // SM-3
    let error = store
        .apply(GROUP, &[entry(2, 2, &Command::Tick)], 0)
        .unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Hole {
                expected: 1,
                found: 2,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(store.digest(GROUP), before);
}

#[test]
fn a_listed_tree_that_is_gone_is_damage() {
    let dir = TempDir::new().unwrap();
    drop(store(dir.path()));
    std::fs::remove_file(dir.path().join("tree-0").join("current")).unwrap();
    // SM-2
    assert!(matches!(
        Store::open(options(dir.path())),
        Err(StoreError::Damaged(_))
    ));
}

#[test]
fn a_quota_refuses_growth_and_takes_deletes() {
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path());
    options.first_rules.quota_bytes = 20;
    let store = Store::open(options).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    outcome(&store, &entry(0, 1, &open_session()));
    let mut index = 0;
    let mut run = |op: Op| {
        index += 1;
        let txn = Txn {
            success: vec![op],
            ..Txn::default()
        };
        outcome(
            &store,
            &entry(index, 1 + index, &write(index, 1, None, txn)),
        )
    };
    assert!(matches!(run(put(b"a", b"0123456789")), Outcome::Done(_)));
    assert_eq!(run(put(b"b", b"0123456789")), Outcome::QuotaExceeded);
    assert!(
        matches!(run(put(b"a", b"9876543210")), Outcome::Done(_)),
        "no growth"
    );
    assert!(matches!(
        run(Op::Delete {
            key: Bytes::from_static(b"a")
        }),
        Outcome::Done(_)
    ));
    assert!(
        matches!(run(put(b"b", b"0123456789")), Outcome::Done(_)),
        "SM-5: it clears by itself"
    );
}

#[test]
fn another_replica_id_and_a_broken_transfer_are_refused() {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    assert!(
        store
            .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
            .is_ok()
    );
    // RAFT-5
    assert!(
        store
            .create_replica(GROUP, ReplicaId(2), KeyRange::whole())
            .is_err()
    );
    let install = RandomId::draw();
    let chunk = SnapshotChunk::default();
    assert!(
        store.install_chunk(install, 0, &chunk).is_err(),
        "not begun"
    );
    store.begin_install(GROUP, install).unwrap();
    assert!(store.install_chunk(install, 1, &chunk).is_err(), "a gap");
    let meta = SnapshotMeta {
        last_applied: Some(LogPosition { term: 1, index: 9 }),
        membership: None,
    };
    assert!(
        store.finish_install(GROUP, install, &meta).is_err(),
        "it does not hold what is said"
    );
    assert_eq!(store.applied(GROUP).unwrap().last_applied, None);
}

/// The engine numbers its versions of the file list, too, and picks one by the number that a read is pinned at.
#[test]
fn what_is_applied_is_seen_however_often_it_is_flushed_and_merged() {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    outcome(&store, &entry(0, 1, &open_session()));
    for index in 1..60u64 {
        let txn = Txn {
            success: vec![put(b"k", &index.to_be_bytes())],
            ..Txn::default()
        };
        outcome(
            &store,
            &entry(index, index, &write(index, index, None, txn)),
        );
        store.flush(GROUP).unwrap();
        store.maintain().unwrap();
        store.maintain().unwrap();
        let found = get(&store, b"k", None);
        assert_eq!(
            found,
            Some((Bytes::copy_from_slice(&index.to_be_bytes()), index)),
            "SM-4"
        );
    }
}
