//! A snapshot of any parts is a whole state or refused, and never changes the state that is there.
#![no_main]

use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::storage::{KeyRange, SnapshotChunk, SnapshotMeta};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, RandomId, ReplicaId, decode};
use mareedb_storaged::state::{Store, StoreOptions};

libfuzzer_sys::fuzz_target!(|input: (u64, Vec<Vec<u8>>)| {
    let (index, parts) = input;
    let chunks: Vec<SnapshotChunk> = parts.iter().filter_map(|part| decode(part).ok()).collect();
    if chunks.is_empty() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(StoreOptions {
        dir: dir.path().to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules::default(),
    })
    .expect("a store");
    store
        .create_replica(FIRST_DATA_GROUP, ReplicaId(1), KeyRange::whole())
        .expect("a replica");
    let before = store.digest(FIRST_DATA_GROUP);
    let install = RandomId(1);
    store
        .begin_install(FIRST_DATA_GROUP, install)
        .expect("it begins");
    for (number, chunk) in (0..).zip(&chunks) {
        if store.install_chunk(install, number, chunk).is_err() {
            break;
        }
    }
    let meta = SnapshotMeta {
        last_applied: Some(LogPosition { term: 1, index }),
        membership: None,
    };
    if store.finish_install(FIRST_DATA_GROUP, install, &meta).is_err() {
        assert_eq!(store.digest(FIRST_DATA_GROUP), before);
    }
});
