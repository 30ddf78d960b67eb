//! A tree that lacks something of what its state record counts is found, though its digest is that of the other replicas (SM-5).

use bytes::Bytes;
use mareedb_ipc::wire::command::{Command, Op, Rules, SessionRef, Stamp, Txn, encode_command};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, NodeId, RandomId, ReplicaId, Revision};
use mareedb_ipc::world::{self, Fault};
use mareedb_sim::executor::Executor;
use mareedb_storaged::state::{Store, StoreOptions};
use std::path::Path;

fn open(dir: &Path) -> Store {
    let store = Store::open(StoreOptions {
        dir: dir.to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules::default(),
    });
    let store = store.expect("a store");
    let range = KeyRange {
        start: Bytes::new(),
        end: Bytes::new(),
        epoch: 1,
    };
    let created = store.create_replica(FIRST_DATA_GROUP, ReplicaId(1), range);
    created.expect("a replica");
    store
}

fn entry(index: u64, command: &Command) -> LogEntry {
    let stamp = Stamp::at(Revision(index + 1));
    LogEntry {
        position: LogPosition { term: 1, index },
        body: EntryBody::Normal(stamp.on(&encode_command(command))),
    }
}

/// A store with a session, an outcome and a key, and another one that takes its snapshot.
fn copied(planted: Option<Fault>) -> (Result<(), String>, bool) {
    let _entered = world::enter(Executor::new(1, 1, planted));
    let dir = tempfile::tempdir().expect("a directory");
    let first = open(&dir.path().join("first"));
    let session = RandomId(7);
    let entries = [
        entry(
            0,
            &Command::OpenSession {
                session,
                node: NodeId(1),
            },
        ),
        entry(
            1,
            &Command::Write {
                origin: SessionRef {
                    session,
                    sequence: 1,
                    low_water: 1,
                },
                epoch: 1,
                idempotency: None,
                txn: Txn {
                    success: vec![Op::Put {
                        key: "k".into(),
                        value: "v".into(),
                    }],
                    ..Txn::default()
                },
            },
        ),
    ];
    first.apply(FIRST_DATA_GROUP, &entries, 0).expect("applied");
    first.recount(FIRST_DATA_GROUP).expect("all is there");
    let (id, meta) = first.open_snapshot(FIRST_DATA_GROUP).expect("a snapshot");
    let chunk = first.read_snapshot(id, &[], 1 << 20).expect("a chunk");
    let second = open(&dir.path().join("second"));
    second.begin_install(FIRST_DATA_GROUP, id).expect("begun");
    second.install_chunk(id, 0, &chunk).expect("taken");
    let installed = second.finish_install(FIRST_DATA_GROUP, id, &meta);
    installed.expect("installed");
    let same = first.digest(FIRST_DATA_GROUP) == second.digest(FIRST_DATA_GROUP);
    let recounted = second.recount(FIRST_DATA_GROUP);
    (recounted.map_err(|error| error.to_string()), same)
}

#[test]
fn det_1_what_is_in_a_tree_is_counted_anew() {
    let (recounted, same) = copied(None);
    assert!(recounted.is_ok() && same, "{recounted:?}");
    let (recounted, same) = copied(Some(Fault::SnapshotWithoutSessions));
    assert!(same, "the digest itself shows nothing");
    assert!(recounted.is_err());
}
