//! A snapshot of any parts is a whole state or refused, and never changes the state that is there; a state that was installed
//! bears what is done with it next.
//!
//! The input says what the pairs are; their order, the digest and the counts of the state record are made right here, except
//! for what the input wants wrong.

use super::{command, next, stream};
use bytes::Bytes;
use mareedb_ipc::wire::command::{Command, Election, Outcome, Rules, Stamp, encode_command};
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::wire::storage::{EntryBody, LogEntry, SnapshotChunk, SnapshotMeta};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, NodeId, RandomId, Revision, encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const GROUP: mareedb_ipc::wire::GroupId = FIRST_DATA_GROUP;

/// What is in front of the pairs.
#[derive(Serialize, Deserialize)]
struct Head {
    meta: SnapshotMeta,
    clock: u64,
    expired: u64,
    next_expiry: u64,
    rules: Rules,
    oldest: u64,
    elected_term: u64,
    /// Added to what is counted.
    wrong: [u8; 4],
    /// Pairs of a chunk.
    chunk: u8,
}

/// A pair of the tree (docs/formats/state.md).
#[derive(Serialize, Deserialize)]
enum Piece {
    Current(Bytes, (u64, u64, u64, Option<Bytes>)),
    History(Bytes, u64, (u64, u64, u64, Option<Bytes>)),
    Garbage(u64, Bytes, u64),
    Idempotent(String, (u128, u64, Outcome)),
    Expiry(u64, String),
    Session(u8, (u64, u64, u64)),
    Result(u8, u64, Outcome),
    Election(u64, Election),
    Raw(Bytes, Bytes),
    /// The end of the pairs: what follows are steps.
    End,
}

fn history(key: &[u8], revision: u64) -> Vec<u8> {
    let mut out = b"h".to_vec();
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&(!revision).to_be_bytes());
    out
}

fn session(number: u8) -> [u8; 16] {
    u128::from(number % 4).to_be_bytes()
}

impl Piece {
    fn pair(self) -> Option<(Vec<u8>, Vec<u8>)> {
        Some(match self {
            Piece::Current(key, version) => ([&b"d"[..], &key[..]].concat(), encode(&version)),
            Piece::History(key, revision, version) => (history(&key, revision), encode(&version)),
            Piece::Garbage(at, key, revision) => (
                [&b"g"[..], &at.to_be_bytes()[..], &history(&key, revision)].concat(),
                Vec::new(),
            ),
            Piece::Idempotent(key, (fingerprint, at, outcome)) => (
                [&b"i"[..], key.as_bytes()].concat(),
                encode(&(fingerprint, at, Bytes::from(encode(&outcome)))),
            ),
            Piece::Expiry(at, key) => (
                [&b"e"[..], &at.to_be_bytes()[..], key.as_bytes()].concat(),
                Vec::new(),
            ),
            Piece::Session(number, value) => {
                ([&b"o"[..], &session(number)[..]].concat(), encode(&value))
            }
            Piece::Result(number, sequence, outcome) => (
                [&b"r"[..], &session(number)[..], &sequence.to_be_bytes()].concat(),
                encode(&outcome),
            ),
            Piece::Election(at, election) => (
                [&b"v"[..], &at.to_be_bytes()[..]].concat(),
                encode(&election),
            ),
            Piece::Raw(key, value) => (key.to_vec(), value.to_vec()),
            Piece::End => return None,
        })
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest128()
}

/// The state record of these pairs.
fn system(head: &Head, pairs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let (mut digest, mut data, mut idempotent, mut elections) = (0u128, 0u64, 0u64, 0u64);
    for (key, value) in pairs {
        match key.first() {
            Some(b'd') => {
                let mut rest = &value[..];
                let version = next::<(u64, u64, u64, Option<Bytes>)>(&mut rest);
                let len = version
                    .and_then(|version| version.3)
                    .map_or(0, |value| value.len());
                data += (key.len() - 1 + len) as u64;
            }
            Some(b'i') => idempotent += 1,
            Some(b'v') => elections += 1,
            _ => {}
        }
        if matches!(key.first(), Some(b'd' | b'i' | b'o' | b'r' | b'v')) {
            digest = digest.wrapping_add(hash(key, value));
        }
    }
    let [a, b, c, d] = head
        .wrong
        .map(|by| if by < 0xf0 { 0 } else { u64::from(by) });
    let body = encode(&(
        &head.meta,
        head.clock,
        // Logged time.
        head.clock,
        data.wrapping_add(a),
        idempotent.wrapping_add(b),
        head.expired,
        head.next_expiry,
        digest.wrapping_add(c.into()),
        &head.rules,
        head.oldest,
        vec![(head.clock / 2, head.oldest / 2), (head.clock, head.oldest)],
        head.elected_term,
        elections.wrapping_add(d),
    ));
    let mut out = vec![4];
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
    out
}

pub fn run(mut bytes: &[u8]) {
    let Some(head) = next::<Head>(&mut bytes) else {
        return;
    };
    let mut pairs = BTreeMap::new();
    let mut state = true;
    while let Some(piece) = next::<Piece>(&mut bytes) {
        let Some((key, value)) = piece.pair() else {
            break;
        };
        state &= key != b"s-state";
        pairs.insert(key, value);
    }
    if state {
        pairs.insert(b"s-state".to_vec(), system(&head, &pairs));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let store = command::open(dir.path());
    command::create(&store);
    let before = store.digest(GROUP);
    let install = RandomId(1);
    store.begin_install(GROUP, install).expect("it begins");
    let mut pairs: Vec<_> = pairs
        .into_iter()
        .map(|(key, value)| (Bytes::from(key), Bytes::from(value)))
        .collect();
    let mut taken = 0;
    for (number, entries) in (0..).zip(pairs.chunks(usize::from(head.chunk).max(1))) {
        let after = pairs.get(taken + entries.len());
        let chunk = SnapshotChunk {
            entries: entries.to_vec(),
            next: after.map(|(key, _)| key.clone()),
        };
        if store.install_chunk(install, number, &chunk).is_err() {
            break;
        }
        taken += entries.len();
    }
    // A chunk that is refused is not taken, and what came before it may happen to be whole.
    pairs.truncate(taken);
    let Ok(installed) = store.finish_install(GROUP, install, &head.meta) else {
        assert_eq!(store.digest(GROUP), before);
        return;
    };
    // A state that is not ahead of what is there is not put in its place.
    if installed != head.meta || head.meta.last_applied.is_none() {
        assert_eq!(store.digest(GROUP), before);
        return;
    }
    // What was received goes on to others, and is the same there.
    let (snapshot, meta) = store.open_snapshot(GROUP).expect("it opens");
    let chunk = store
        .read_snapshot(snapshot, &[], u32::MAX)
        .expect("it is read");
    assert_eq!(chunk.entries, pairs);
    store.close_snapshot(snapshot);
    assert_eq!(Some(&meta), store.persisted(GROUP).as_ref());
    // The next entries of the log; some end in an error, as on every other replica.
    let mut at = meta.last_applied;
    let mut ms = Revision(head.clock).unix_ms();
    let mut failed = false;
    while let Some(step) = next::<command::Step>(&mut bytes) {
        let body = match step {
            command::Step::Apply(later, given) => {
                ms += u64::from(later);
                let given = encode_command(&command::common(given));
                let stamp = Stamp {
                    revision: Revision::from_unix_ms(ms),
                    elapsed_ms: later,
                };
                EntryBody::Normal(stamp.on(&given))
            }
            command::Step::At(revision, given) => {
                let given = encode_command(&command::common(given));
                EntryBody::Normal(Stamp::at(Revision(revision)).on(&given))
            }
            command::Step::Read(query) => {
                let _ = command::read(&store, query);
                continue;
            }
            command::Step::Flush => {
                let _ = store.flush(GROUP);
                continue;
            }
            command::Step::Maintain => {
                let _ = store.maintain();
                continue;
            }
            command::Step::Blank => EntryBody::Blank,
            _ => continue,
        };
        let index = at.map_or(0, |at| at.index.wrapping_add(1));
        let term = at.map_or(1, |at| at.term);
        let position = LogPosition { term, index };
        let entry = LogEntry { position, body };
        failed |= store.apply(GROUP, &[entry], 0).is_err();
        if failed {
            break;
        }
        at = Some(position);
    }
    for query in [
        Query::Elections,
        Query::Range {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: u32::MAX,
            max_bytes: u32::MAX,
            revision: Some(Revision(head.clock)),
            keys_only: false,
        },
    ] {
        let _ = command::read(&store, query);
    }
    let _ = store.maintain();
}

pub fn seeds() -> Vec<Vec<u8>> {
    let at = LogPosition { term: 2, index: 9 };
    let head = |index: u64, wrong: u8| Head {
        meta: SnapshotMeta {
            last_applied: Some(LogPosition { index, ..at }),
            membership: Some((at, Bytes::from_static(b"m"))),
        },
        clock: 5 << 18,
        expired: 0,
        next_expiry: 1 << 18,
        rules: Rules {
            history_ms: 1000,
            ..Rules::default()
        },
        oldest: 1 << 18,
        elected_term: 2,
        wrong: [wrong, 0, 0, 0],
        chunk: 3,
    };
    let key = |text: &'static str| Bytes::from_static(text.as_bytes());
    let pieces = || {
        let value = Some(key("v"));
        vec![
            Piece::Current(key("a"), (1 << 18, 4 << 18, 2, value.clone())),
            Piece::Current(key("b"), (2 << 18, 2 << 18, 1, value.clone())),
            Piece::History(key("a"), 1 << 18, (1 << 18, 1 << 18, 1, value)),
            Piece::Garbage(4 << 18, key("a"), 1 << 18),
            Piece::Idempotent("k".into(), (5, 3 << 18, Outcome::Ticked)),
            Piece::Expiry(3 << 18, "k".into()),
            Piece::Session(1, (1, 2, 3 << 18)),
            Piece::Result(1, 2, Outcome::SessionOpen),
            Piece::Election(
                1 << 18,
                Election {
                    term: 2,
                    node: NodeId(1),
                    cause: mareedb_ipc::wire::command::Cause::NoLeader,
                },
            ),
            Piece::End,
        ]
    };
    let steps = || {
        let writes = command::txns().into_iter().zip(2..);
        let mut steps: Vec<_> = writes
            .map(|(txn, number)| command::Step::Apply(1, command::write(number, Some("k"), txn)))
            .collect();
        steps.push(command::Step::Maintain);
        steps.push(command::Step::Apply(700_000, Command::Tick));
        steps.push(command::Step::Apply(1, command::lead(Rules::default())));
        steps.push(command::Step::Read(Query::Get {
            key: key("a"),
            revision: Some(Revision(2 << 18)),
        }));
        steps.push(command::Step::Apply(700_000, Command::Tick));
        steps.push(command::Step::Maintain);
        steps
    };
    let of = |head: Head, pieces: Vec<Piece>| {
        [encode(&head), stream(&pieces), stream(&steps())].concat()
    };
    let worn = Piece::Current(key("a"), (1 << 18, 4 << 18, u64::MAX, Some(key("v"))));
    let raw = Piece::Raw(key("xk"), key("v"));
    vec![
        of(head(9, 0), pieces()),
        of(head(0, 0), vec![Piece::End]),
        of(head(9, 0xff), pieces()),
        of(head(9, 0), vec![raw, Piece::End]),
        // Numbers after which none is left.
        of(head(u64::MAX, 0), pieces()),
        of(head(9, 0), vec![worn, Piece::End]),
    ]
}
