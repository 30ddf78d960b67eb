//! A block of any bytes begins a unit, one of a later version, or nothing.

use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry, NodeRecord};
use mareedb_ipc::wire::{
    FIRST_DATA_GROUP, LogPosition, OperationId, RandomId, ReplicaId, Vote, encode,
};
use mareedb_storaged::log::unit::{Change, Checkpoint, Found, GroupMark, Record, Unit};

const KEY: u64 = 7;

/// A header with the right checksum before a payload.
fn sealed(words: [u64; 4], version: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = b"MAREEUNT".to_vec();
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let len = u32::try_from(payload.len()).expect("inputs are small");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&version.to_le_bytes());
    let key = KEY.to_le_bytes();
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&out), &key), payload);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&key);
    out.resize(64, 0);
    out.extend_from_slice(payload);
    out
}

/// The first byte: 0, the others are a block; 1, they are the payload of a unit; 2, of one of a later version.
pub fn run(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let block = match kind % 3 {
        0 => bytes.to_vec(),
        kind => sealed([1, 2, 1, u64::MAX], u32::from(kind - 1), bytes),
    };
    let _ = Unit::claim(&block, KEY);
    match Unit::decode(&block, KEY) {
        Found::Unit(unit, _) => {
            let encoded = unit.encode();
            let len = encoded.len();
            assert_eq!(Unit::decode(&encoded, KEY), Found::Unit(unit, len));
        }
        Found::Foreign { .. } => {}
        // Who wrote a right checksum is never taken for nothing (LOG-3).
        Found::Nothing => assert_eq!(kind % 3, 0),
    }
}

pub(crate) fn changes() -> Vec<Change> {
    let group = FIRST_DATA_GROUP;
    let replica = ReplicaId(1);
    let range = KeyRange::whole();
    let entry = |index, body| {
        let position = LogPosition { term: 1, index };
        LogEntry { position, body }
    };
    let vote = Vote {
        term: 1,
        voted_for: Some(replica),
        committed: true,
    };
    vec![
        Change::Create {
            group,
            replica,
            range,
        },
        Change::Vote { group, vote },
        Change::Append {
            group,
            entries: vec![
                entry(0, EntryBody::Membership(Bytes::from_static(b"m"))),
                entry(1, EntryBody::Normal(Bytes::from_static(b"command"))),
                entry(2, EntryBody::Blank),
            ],
        },
        Change::Truncate {
            group,
            last: Some(LogPosition { term: 1, index: 1 }),
        },
        Change::Purge {
            group,
            upto: LogPosition { term: 1, index: 0 },
        },
        Change::Committed {
            group,
            committed: Some(LogPosition { term: 1, index: 1 }),
        },
        Change::Node(NodeRecord {
            name: "identity".into(),
            value: Bytes::from_static(b"v"),
        }),
    ]
}

pub(crate) fn records() -> Vec<Record> {
    let group = FIRST_DATA_GROUP;
    let at = LogPosition { term: 1, index: 1 };
    let id = OperationId {
        generation: RandomId(1),
        position: 64,
    };
    let operation = |change| Record::Operation { id, change };
    let mark = GroupMark {
        group,
        replica: ReplicaId(1),
        range: KeyRange::whole(),
        vote: None,
        purged: None,
        last: Some(at),
        committed: Some(at),
    };
    let mut records: Vec<_> = changes().into_iter().map(operation).collect();
    records.extend([
        Record::Checkpoint(Checkpoint {
            groups: vec![mark],
            records: Vec::new(),
            last: Some(id),
        }),
        Record::Moved {
            group,
            entries: vec![LogEntry {
                position: at,
                body: EntryBody::Blank,
            }],
        },
        Record::Mark,
        Record::Installed {
            group,
            upto: at,
            alone: true,
        },
    ]);
    records
}

pub fn seeds() -> Vec<Vec<u8>> {
    let of = |kind: u8, records: &[Record]| [vec![kind], encode(&records.to_vec())].concat();
    let all = records();
    let mut seeds: Vec<_> = all.chunks(1).map(|one| of(1, one)).collect();
    seeds.push(of(1, &all));
    seeds.push(of(2, &all[..1]));
    let unit = Unit {
        segment: 1,
        lsn: 2,
        durable: 1,
        incarnation: 1,
        key: KEY,
        records: vec![Record::Mark],
    };
    seeds.push([vec![0], unit.encode()[..80].to_vec()].concat());
    seeds
}
