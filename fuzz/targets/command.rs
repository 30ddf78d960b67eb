//! Commands of any kind, in a log of any length, have an outcome, the same on two replicas, however they are batched (DET-1).
#![no_main]

use mareedb_ipc::wire::command::{Command, Rules, encode_command, stamp};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, ReplicaId, Revision, decode};
use mareedb_storaged::state::{Store, StoreOptions};

fn store(dir: &std::path::Path) -> Store {
    let store = Store::open(StoreOptions {
        dir: dir.to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules::default(),
    })
    .expect("a store");
    store
        .create_replica(FIRST_DATA_GROUP, ReplicaId(1), KeyRange::whole())
        .expect("a replica");
    store
}

libfuzzer_sys::fuzz_target!(|commands: Vec<(u16, Vec<u8>)>| {
    let log: Vec<LogEntry> = commands
        .iter()
        .filter_map(|(ms, bytes)| Some((*ms, decode::<Command>(bytes).ok()?)))
        .zip(0..)
        .map(|((ms, command), index)| LogEntry {
            position: LogPosition { term: 1, index },
            body: EntryBody::Normal(stamp(
                Revision::from_unix_ms(u64::from(ms)),
                &encode_command(&command),
            )),
        })
        .collect();
    if log.is_empty() {
        return;
    }
    let (first, second) = (tempfile::tempdir(), tempfile::tempdir());
    let (first, second) = (first.expect("a directory"), second.expect("a directory"));
    let (one, other) = (store(first.path()), store(second.path()));
    for entry in log.chunks(1) {
        let outcomes = one.apply(FIRST_DATA_GROUP, entry, 0).expect("it applies");
        assert_eq!(outcomes.len(), 1);
    }
    other
        .apply(FIRST_DATA_GROUP, &log, u64::MAX)
        .expect("it applies");
    assert_eq!(one.digest(FIRST_DATA_GROUP), other.digest(FIRST_DATA_GROUP));
});
