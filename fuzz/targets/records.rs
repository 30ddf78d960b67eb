//! Identity and acceptance on disk, and the state machine's manifest: any bytes are what was written or an error.
#![no_main]

use bytes::Bytes;
use mareedb_config::Config;
use mareedb_consensusd::formation::{ACCEPTED, Formation, IDENTITY};
use mareedb_ipc::wire::RandomId;
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::storage::NodeRecord;
use mareedb_storaged::state::{Store, StoreOptions};

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (identity, accepted, manifest) = input;
    let record = |name: &str, value: &[u8]| NodeRecord {
        name: name.into(),
        value: Bytes::copy_from_slice(value),
    };
    let records = [record(IDENTITY, identity), record(ACCEPTED, accepted)];
    let formation = Formation::new(
        &Config::default(),
        "node1",
        "127.0.0.1:7001",
        "127.0.0.1:8080",
        &records,
        Box::new(|| RandomId(7)),
    );
    if let Ok(mut formation) = formation {
        let _ = (formation.forming(), formation.targets(), formation.my_id());
        for now in [100, 200] {
            let _ = formation.tick(now);
        }
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("manifest"), manifest).expect("a file");
    let _ = Store::open(StoreOptions {
        dir: dir.path().to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules::default(),
    });
});
