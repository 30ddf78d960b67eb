//! Commands of any kind, in a log of any length, have an outcome, the same on two replicas, however they are batched, flushed
//! and collected (DET-1, SM-6); a repeat changes nothing (ONCE-1).

use super::{next, stream};
use bytes::Bytes;
use mareedb_ipc::wire::command::{
    Cause, Command, Compare, CompareOp, CompareTarget, IdempotencyKey, Op, Rules, SessionRef,
    Stamp, Txn, encode_command,
};
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest, ReadResponse};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, NodeId, RandomId, ReplicaId, Revision};
use mareedb_storaged::state::{Store, StoreOptions};
use serde::{Deserialize, Serialize};
use std::path::Path;

const GROUP: mareedb_ipc::wire::GroupId = FIRST_DATA_GROUP;

#[derive(Serialize, Deserialize)]
pub(crate) enum Step {
    /// So many milliseconds later.
    Apply(u32, Command),
    /// With a revision of the proposer's choice.
    At(u64, Command),
    Blank,
    Membership(Bytes),
    /// A later term.
    Term(u8),
    /// Only one replica does these.
    Flush,
    Maintain,
    Reopen,
    /// Both answer.
    Read(Query),
}

pub(crate) fn open(dir: &Path) -> Store {
    Store::open(StoreOptions {
        dir: dir.to_owned(),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 10,
        first_rules: Rules::default(),
    })
    .expect("a store")
}

pub(crate) fn create(store: &Store) {
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .expect("a replica");
}

/// Few sessions, and mostly the epoch in force: or hardly any command would get as far as a transaction.
pub(crate) fn common(mut command: Command) -> Command {
    match &mut command {
        Command::OpenSession { session, .. } => session.0 %= 4,
        Command::Write { origin, epoch, .. } => {
            origin.session.0 %= 4;
            if *epoch % 8 != 7 {
                *epoch = 1;
            }
        }
        _ => {}
    }
    command
}

pub(crate) fn read(store: &Store, query: Query) -> Result<ReadResponse, ReadError> {
    store.read(&ReadRequest {
        group: GROUP,
        epoch: 0,
        min_index: 0,
        query,
    })
}

pub fn run(mut bytes: &[u8]) {
    let (first, second) = (tempfile::tempdir(), tempfile::tempdir());
    let (first, second) = (first.expect("a directory"), second.expect("a directory"));
    let mut one = open(first.path());
    create(&one);
    let mut log: Vec<LogEntry> = Vec::new();
    let mut outcomes = Vec::new();
    let mut reads = Vec::new();
    let (mut ms, mut term) = (1u64, 1u64);
    while let Some(step) = next::<Step>(&mut bytes) {
        let body = match step {
            Step::Apply(later, command) => {
                ms += u64::from(later);
                let command = encode_command(&common(command));
                let stamp = Stamp {
                    revision: Revision::from_unix_ms(ms),
                    elapsed_ms: later,
                };
                EntryBody::Normal(stamp.on(&command))
            }
            // The last revisions of all are refused, which is the end of a group.
            Step::At(revision, command) => {
                let command = encode_command(&common(command));
                EntryBody::Normal(Stamp::at(Revision(revision >> 1)).on(&command))
            }
            Step::Blank => EntryBody::Blank,
            Step::Membership(bytes) => EntryBody::Membership(bytes),
            Step::Term(by) => {
                term += u64::from(by);
                continue;
            }
            Step::Flush => {
                one.flush(GROUP).expect("it is flushed");
                continue;
            }
            Step::Maintain => {
                one.maintain().expect("it is maintained");
                continue;
            }
            Step::Reopen => {
                one.flush(GROUP).expect("it is flushed");
                let digest = one.digest(GROUP);
                drop(one);
                one = open(first.path());
                assert_eq!(one.digest(GROUP), digest);
                continue;
            }
            Step::Read(query) => {
                reads.push(query);
                continue;
            }
        };
        let index = log.len() as u64;
        let entry = LogEntry {
            position: LogPosition { term, index },
            body,
        };
        outcomes.extend(
            one.apply(GROUP, std::slice::from_ref(&entry), 0)
                .expect("it applies"),
        );
        log.push(entry);
    }
    if log.is_empty() {
        return;
    }
    let other = open(second.path());
    create(&other);
    let same = other.apply(GROUP, &log, 0).expect("it applies");
    assert_eq!(same, outcomes, "DET-1");
    let digest = one.digest(GROUP);
    assert_eq!(other.digest(GROUP), digest, "DET-1");
    // A client may ask late, and the entries come again.
    one.apply(GROUP, &log, 0).expect("it applies");
    assert_eq!(one.digest(GROUP), digest, "ONCE-1");
    one.maintain().expect("it is maintained");
    reads.push(Query::Range {
        start: Bytes::new(),
        end: Bytes::new(),
        limit: u32::MAX,
        max_bytes: u32::MAX,
        revision: None,
        keys_only: false,
    });
    reads.push(Query::Elections);
    for query in reads {
        let (here, there) = (read(&one, query.clone()), read(&other, query.clone()));
        assert_eq!(here, there, "SM-6: {query:?}");
    }
}

fn key(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn put(text: &'static str, value: &'static str) -> Op {
    Op::Put {
        key: key(text),
        value: key(value),
    }
}

pub(crate) fn write(sequence: u64, idempotency: Option<&str>, txn: Txn) -> Command {
    Command::Write {
        origin: SessionRef {
            session: RandomId(1),
            sequence,
            low_water: sequence.saturating_sub(3),
        },
        epoch: 1,
        idempotency: idempotency.map(|key| IdempotencyKey {
            key: key.into(),
            fingerprint: 5,
        }),
        txn,
    }
}

pub(crate) fn txns() -> Vec<Txn> {
    let success = |ops: Vec<Op>| Txn {
        success: ops,
        ..Txn::default()
    };
    let compare = |target, op| Compare {
        key: key("a"),
        target,
        op,
    };
    vec![
        success(vec![put("a", "1")]),
        success(vec![put("a", "22"), put("b", "x"), put("\0", "")]),
        Txn {
            compare: vec![
                compare(CompareTarget::Value(key("22")), CompareOp::Equal),
                compare(CompareTarget::Version(2), CompareOp::Less),
            ],
            success: vec![put("c", "")],
            failure: vec![
                Op::Get { key: key("a") },
                Op::Delete { key: key("b") },
                Op::Range {
                    start: Bytes::new(),
                    end: key("z"),
                    limit: 2,
                },
            ],
        },
        success(vec![Op::Delete { key: key("a") }, put("a\0", "v")]),
        success(vec![put("a", "1"), put("a", "2")]),
        success(vec![put("a", "again")]),
    ]
}

pub(crate) fn lead(rules: Rules) -> Command {
    Command::Lead {
        node: NodeId(1),
        cause: Cause::NoLeader,
        rules,
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let session = || Command::OpenSession {
        session: RandomId(1),
        node: NodeId(1),
    };
    let writes = |idempotency: Option<&'static str>, later: u32| {
        txns()
            .into_iter()
            .zip(1..)
            .map(move |(txn, number)| Step::Apply(later, write(number, idempotency, txn)))
    };
    let tight = Rules {
        quota_bytes: 5,
        idempotency_keys_max: 1,
        idempotency_ttl_ms: 100,
        session_ttl_ms: 1000,
        history_ms: 50,
    };
    let read = |revision: u64| {
        Step::Read(Query::Get {
            key: key("a"),
            revision: Some(Revision(revision)),
        })
    };
    let mut plain = vec![Step::Blank, Step::Apply(1, session())];
    plain.extend(writes(None, 1));
    plain.extend([Step::Flush, read(3), Step::Reopen]);
    plain.extend(writes(Some("k"), 400_000));
    plain.extend([Step::Maintain, Step::Apply(700_000, Command::Tick)]);
    let mut ruled = vec![
        Step::Membership(key("m")),
        Step::Apply(1, lead(tight)),
        Step::Apply(1, session()),
    ];
    ruled.extend(writes(Some("k"), 60));
    ruled.extend([Step::Flush, Step::Maintain, Step::Term(1)]);
    ruled.extend([
        Step::Apply(9, lead(Rules::default())),
        Step::Apply(0, Command::Split { at: key("m") }),
        Step::At(1 << 40, Command::Tick),
        Step::Apply(5000, Command::Tick),
    ]);
    ruled.extend(writes(None, 1));
    let mut short = vec![Step::Apply(0, session())];
    short.extend(writes(Some("i"), 0).take(2));
    vec![stream(&plain), stream(&ruled), stream(&short)]
}
