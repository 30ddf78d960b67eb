//! How long the state machine takes for an entry: `cargo bench -p mareedb-storaged --bench apply`.
//!
//! Puts of 256 bytes by sessions with some requests open, as gateways send them, applied in batches of several sizes.

use bytes::Bytes;
use mareedb_ipc::wire::command::{Command, Op, Rules, SessionRef, Stamp, Txn, encode_command};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, NodeId, RandomId, ReplicaId, Revision};
use mareedb_storaged::state::{Store, StoreOptions};
use std::io::Write;
use std::time::Instant;

const SESSIONS: u64 = 3;
/// Requests that a session has open.
const OPEN: u64 = 20;
const ENTRIES: u64 = 40_000;
const KEYS: u64 = 10_000;

fn entry(index: u64, command: &Command) -> LogEntry {
    let revision = Revision::from_unix_ms(1_700_000_000_000 + index);
    LogEntry {
        position: LogPosition { term: 1, index },
        body: EntryBody::Normal(Stamp::at(revision).on(&encode_command(command))),
    }
}

fn log() -> Vec<LogEntry> {
    let session = |number: u64| RandomId(u128::from(number + 1) << 70);
    let open = (0..SESSIONS).map(|number| Command::OpenSession {
        session: session(number),
        node: NodeId(number),
    });
    let writes = (0..ENTRIES).map(|number| {
        let sequence = number / SESSIONS + 1;
        let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % KEYS;
        Command::Write {
            origin: SessionRef {
                session: session(number % SESSIONS),
                sequence,
                low_water: sequence.saturating_sub(OPEN),
            },
            epoch: 1,
            idempotency: None,
            txn: Txn {
                compare: Vec::new(),
                success: vec![Op::Put {
                    key: Bytes::from(format!("key-{key:08}")),
                    value: Bytes::from(vec![b'v'; 256]),
                }],
                failure: Vec::new(),
            },
        }
    });
    let commands = open.chain(writes);
    commands
        .zip(0..)
        .map(|(command, index)| entry(index, &command))
        .collect()
}

fn main() {
    let log = log();
    for batch in [1, 8, 64, 512] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(StoreOptions {
            dir: dir.path().to_owned(),
            cache_bytes: 32 << 20,
            unflushed_bytes_max: 8 << 20,
            first_rules: Rules::default(),
        })
        .expect("a store");
        store
            .create_replica(FIRST_DATA_GROUP, ReplicaId(1), KeyRange::whole())
            .expect("a replica");
        let began = Instant::now();
        let mut flushing = 0;
        for entries in log.chunks(batch) {
            store
                .apply(FIRST_DATA_GROUP, entries, 0)
                .expect("entries apply");
            if store.unflushed_bytes() > 1 << 20 {
                let now = Instant::now();
                store.flush(FIRST_DATA_GROUP).expect("a flush");
                flushing += now.elapsed().as_micros();
            }
        }
        let took = began.elapsed().as_micros() - flushing;
        let figures = format!(
            "batches of {batch:>3}: {:>6.2} us an entry; flushes besides: {:>6.2} us an entry\n",
            took as f64 / log.len() as f64,
            flushing as f64 / log.len() as f64,
        );
        std::io::stdout()
            .write_all(figures.as_bytes())
            .expect("standard output");
    }
}
