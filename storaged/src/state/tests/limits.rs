//! Bounds: of requests, of answers, of what is remembered; and what is forgotten when.

use super::*;
use crate::state::keys::{BOUND_BYTES_MAX, KEY_BYTES_MAX};
use std::collections::BTreeSet;

fn txn(ops: Vec<Op>) -> Txn {
    Txn {
        success: ops,
        ..Txn::default()
    }
}

fn keyed(name: &str, fingerprint: u128) -> Option<IdempotencyKey> {
    Some(IdempotencyKey {
        key: name.into(),
        fingerprint,
    })
}

/// A store whose entries get their index and number by themselves.
struct Writer {
    _dir: TempDir,
    store: Store,
    index: u64,
    ms: u64,
}

impl Writer {
    fn new() -> Writer {
        let dir = TempDir::new().unwrap();
        let store = store(dir.path());
        outcome(&store, &entry(0, 1, &open_session()));
        Writer {
            _dir: dir,
            store,
            index: 0,
            ms: 1,
        }
    }

    fn command(&mut self, ms: u64, command: &Command) -> Outcome {
        self.index += 1;
        let elapsed = u32::try_from(ms.saturating_sub(self.ms)).unwrap();
        self.ms = ms.max(self.ms);
        outcome(&self.store, &later(self.index, ms, elapsed, command))
    }

    fn write(&mut self, ms: u64, idempotency: Option<IdempotencyKey>, txn: Txn) -> Outcome {
        let number = self.index + 1;
        self.command(ms, &write(number, number, idempotency, txn))
    }
}

#[test]
fn a_key_repeated_through_another_session_gets_the_first_outcome() {
    // ONCE-1
    let mut writer = Writer::new();
    let other = RandomId(8);
    let first = writer.write(2, keyed("a", 1), txn(vec![put(b"k", b"1")]));
    assert!(matches!(first, Outcome::Done(_)));
    let open = Command::OpenSession {
        session: other,
        node: NodeId(2),
    };
    assert_eq!(writer.command(3, &open), Outcome::SessionOpen);
    let mut again = |sequence, fingerprint| {
        let origin = SessionRef {
            session: other,
            sequence,
            low_water: 1,
        };
        let command = Command::Write {
            origin,
            epoch: 1,
            idempotency: keyed("a", fingerprint),
            txn: txn(vec![put(b"k", b"2")]),
        };
        writer.command(4, &command)
    };
    assert_eq!(again(1, 1), first);
    assert_eq!(again(2, 2), Outcome::IdempotencyKeyReused);
    assert_eq!(
        get(&writer.store, b"k", None),
        Some((Bytes::from_static(b"1"), 1))
    );
}

#[test]
fn none_is_dropped_early_and_a_new_key_is_refused_only_when_as_many_are_live() {
    let mut writer = Writer::new();
    // All of one moment, so that they all expire at once; more than one entry clears away. The limit is 20.
    for number in 0..20 {
        let name = format!("key-{number}");
        let done = writer.write(10, keyed(&name, 1), txn(vec![put(b"k", b"v")]));
        assert!(matches!(done, Outcome::Done(_)), "{done:?}");
    }
    let more = |writer: &mut Writer, ms: u64, name: &str| {
        writer.write(ms, keyed(name, 1), txn(vec![put(b"k", b"v")]))
    };
    assert_eq!(
        more(&mut writer, 10 + TTL_MS, "more"),
        Outcome::IdempotencyKeysExhausted
    );
    // Live to the last millisecond.
    for number in 0..20 {
        let first = more(&mut writer, 10 + TTL_MS, &format!("key-{number}"));
        let Outcome::Done(done) = first else {
            panic!("{first:?}");
        };
        assert!(done.revision < Revision::from_unix_ms(11), "the first one");
    }
    for number in 0..20 {
        let new = more(&mut writer, 11 + TTL_MS, &format!("key-{number}"));
        let Outcome::Done(done) = new else {
            panic!("{new:?}");
        };
        assert!(
            done.revision > Revision::from_unix_ms(10 + TTL_MS),
            "expired counts as new"
        );
    }
    assert_eq!(
        more(&mut writer, 11 + TTL_MS, "more"),
        Outcome::IdempotencyKeysExhausted
    );
}

#[test]
fn no_wall_clock_that_jumps_lets_a_repeat_take_effect_again() {
    // ONCE-1
    let mut writer = Writer::new();
    let first = writer.write(2, keyed("a", 1), txn(vec![put(b"k", b"1")]));
    // A leader whose clock is days ahead, then one whose clock is not: the revisions follow, time does not.
    for ms in [9 * TTL_MS, 2, 1 << 40, 3] {
        writer.ms = ms;
        let again = writer.write(ms, keyed("a", 1), txn(vec![put(b"k", b"2")]));
        assert_eq!(again, first);
    }
    // And what has passed has passed, whatever the wall clock says.
    writer.ms = 3;
    writer.command(4 + TTL_MS, &Command::Tick);
    let new = writer.write(4 + TTL_MS, keyed("a", 1), txn(vec![put(b"k", b"3")]));
    assert!(matches!(&new, Outcome::Done(_)) && new != first, "{new:?}");
}

#[test]
fn numbers_that_contradict_themselves_are_refused() {
    let mut writer = Writer::new();
    let done = txn(vec![put(b"k", b"v")]);
    let mut ask =
        |sequence, low_water| writer.command(5, &write(sequence, low_water, None, done.clone()));
    assert_eq!(ask(0, 0), Outcome::BelowLowWater);
    assert_eq!(ask(3, 7), Outcome::BelowLowWater);
    assert!(matches!(ask(3, 3), Outcome::Done(_)), "7 was not believed");
    assert_eq!(ask(u64::MAX - 1, u64::MAX), Outcome::BelowLowWater);
    assert!(matches!(ask(u64::MAX, u64::MAX), Outcome::Done(_)));
    assert_eq!(ask(3, 3), Outcome::BelowLowWater);
}

#[test]
fn a_session_whose_time_is_over_applies_nothing_but_still_repeats() {
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path());
    options.first_rules.session_ttl_ms = 100;
    let store = Store::open(options).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    outcome(&store, &entry(0, 1, &open_session()));
    let first = outcome(
        &store,
        &entry(1, 2, &write(1, 1, None, txn(vec![put(b"k", b"1")]))),
    );
    let late = write(2, 1, None, txn(vec![put(b"k", b"2")]));
    assert_eq!(
        outcome(&store, &later(2, 103, 101, &late)),
        Outcome::SessionUnknown
    );
    assert_eq!(
        outcome(
            &store,
            &entry(3, 104, &write(1, 1, None, txn(vec![put(b"k", b"1")])))
        ),
        first
    );
    assert_eq!(
        outcome(&store, &entry(4, 105, &open_session())),
        Outcome::SessionOpen
    );
    assert!(matches!(
        outcome(&store, &entry(5, 106, &late)),
        Outcome::Done(_)
    ));
    assert_eq!(get(&store, b"k", None), Some((Bytes::from_static(b"2"), 2)));
}

#[test]
fn an_answer_that_is_too_large_takes_the_whole_transaction_back() {
    // TXN-1
    let mut writer = Writer::new();
    let large = vec![7u8; 900 << 10];
    for key in [b"a", b"b"] {
        let done = writer.write(2, None, txn(vec![put(key, &large)]));
        assert!(matches!(done, Outcome::Done(_)));
    }
    let key = |key: &'static [u8]| Bytes::from_static(key);
    let quota = |writer: &Writer| writer.store.replica(GROUP).unwrap().data_bytes();
    let before = quota(&writer);
    let refused = writer.write(
        3,
        keyed("key", 1),
        txn(vec![
            put(b"new", b"value"),
            Op::Delete { key: key(b"a") },
            Op::Get { key: key(b"b") },
            put(b"a2", b"value"),
            Op::Range {
                start: Bytes::new(),
                end: Bytes::new(),
                limit: 10,
            },
        ]),
    );
    assert!(
        matches!(&refused, Outcome::Invalid { message } if message.contains("nothing of it was done")),
        "{refused:?}"
    );
    assert_eq!(quota(&writer), before, "SM-5");
    assert_eq!(get(&writer.store, b"new", None), None);
    assert_eq!(get(&writer.store, b"a2", None), None);
    assert_eq!(
        get(&writer.store, b"a", None),
        Some((Bytes::from(large.clone()), 1))
    );
    // It had no effect, so that the same key may be tried again.
    let done = writer.write(4, keyed("key", 2), txn(vec![Op::Get { key: key(b"a") }]));
    assert!(matches!(done, Outcome::Done(_)), "{done:?}");
    // A range alone is cut, not refused.
    let range = Op::Range {
        start: Bytes::new(),
        end: Bytes::new(),
        limit: u32::MAX,
    };
    let writes: Vec<Op> = (0..5u8)
        .map(|number| put(&[b'c', number], &large[..300 << 10]))
        .collect();
    writer.write(5, None, txn(writes));
    let start = |start: &'static [u8]| match range.clone() {
        Op::Range { end, limit, .. } => Op::Range {
            start: key(start),
            end,
            limit,
        },
        other => other,
    };
    let Outcome::Done(done) = writer.write(6, None, txn(vec![start(b"c")])) else {
        panic!("a range is cut");
    };
    let [OpResult::Range { items, more }] = &done.results[..] else {
        panic!("{:?}", done.results.len());
    };
    assert!(*more && items.len() < 5, "{}", items.len());
}

/// TXN-1, DET-1
#[test]
fn what_is_taken_back_leaves_what_the_entries_before_it_in_the_batch_made() {
    let mut writer = Writer::new();
    let large = vec![7u8; 900 << 10];
    for key in [b"a", b"b"] {
        writer.write(2, None, txn(vec![put(key, &large)]));
    }
    let read = |key: &'static [u8]| Op::Get {
        key: Bytes::from_static(key),
    };
    let delete = |key: &'static [u8]| Op::Delete {
        key: Bytes::from_static(key),
    };
    let made = vec![put(b"k", b"1"), put(b"gone", b"1")];
    let refused = vec![
        put(b"k", b"22"),
        delete(b"gone"),
        put(b"new", b"value"),
        read(b"a"),
        read(b"b"),
    ];
    let entries: Vec<LogEntry> = [made, refused]
        .into_iter()
        .zip(writer.index + 1..)
        .map(|(ops, number)| entry(number, 3, &write(number, number, None, txn(ops))))
        .collect();
    let outcomes = writer.store.apply(GROUP, &entries, 0).unwrap();
    let outcomes: Vec<Outcome> = outcomes
        .iter()
        .map(|(_, outcome)| decode(outcome).unwrap())
        .collect();
    assert!(
        matches!(&outcomes[..], [Outcome::Done(_), Outcome::Invalid { .. }]),
        "{outcomes:?}"
    );
    let one = Some((Bytes::from_static(b"1"), 1));
    assert_eq!(get(&writer.store, b"k", None), one);
    assert_eq!(get(&writer.store, b"gone", None), one);
    assert_eq!(get(&writer.store, b"new", None), None);
    // Who receives the state counts its digest and its bytes anew.
    let dir = TempDir::new().unwrap();
    copy(&writer.store, &store(dir.path()));
}

/// It is carried out without a way back.
#[test]
fn the_largest_transaction_that_only_writes_has_an_answer() {
    let mut writer = Writer::new();
    let writes = (0..4096u32).map(|number| put(&number.to_be_bytes(), b"v"));
    let done = writer.write(2, None, txn(writes.collect()));
    assert!(
        matches!(&done, Outcome::Done(done) if done.results.len() == 4096),
        "{done:?}"
    );
}

#[test]
fn what_no_setting_allows_is_invalid_and_changes_nothing() {
    let mut writer = Writer::new();
    let get_of = |key: Bytes| Op::Get { key };
    let long = Bytes::from(vec![0u8; 40_000]);
    let bad = [
        txn(vec![put(b"", b"v")]),
        txn(vec![put(&long, b"v")]),
        txn(vec![get_of(long.clone())]),
        txn(vec![put(b"k", &vec![0; (8 << 20) + 1])]),
        txn((0..3u8).map(|key| put(&[key], &vec![0; 6 << 20])).collect()),
        txn((0..4097)
            .map(|_| get_of(Bytes::from_static(b"k")))
            .collect()),
        txn(vec![
            put(b"k", b"v"),
            Op::Delete {
                key: Bytes::from_static(b"k"),
            },
        ]),
        Txn {
            compare: vec![Compare {
                key: long,
                target: CompareTarget::Version(0),
                op: CompareOp::Equal,
            }],
            ..Txn::default()
        },
    ];
    let count = bad.len();
    let mut messages = BTreeSet::new();
    for txn in bad {
        match writer.write(2, None, txn) {
            Outcome::Invalid { message } => messages.insert(message),
            other => panic!("{other:?}"),
        };
    }
    assert!(messages.len() >= count - 2, "{messages:?}");
    for name in [String::new(), "x".repeat(256)] {
        let outcome = writer.write(3, keyed(&name, 1), txn(vec![put(b"k", b"v")]));
        assert!(matches!(outcome, Outcome::Invalid { .. }));
    }
    assert_eq!(get(&writer.store, b"k", None), None);
    // The longest key that is taken, of the bytes that escaping doubles, through all of its life.
    let longest = vec![0u8; 32_000];
    for value in [b"1", b"2"] {
        writer.write(4, None, txn(vec![put(&longest, value)]));
    }
    let delete = Op::Delete {
        key: longest.clone().into(),
    };
    assert!(matches!(
        writer.write(5, None, txn(vec![delete])),
        Outcome::Done(_)
    ));
    writer.store.flush(GROUP).unwrap();
    writer.store.maintain().unwrap();
    assert_eq!(get(&writer.store, &longest, None), None);
}

/// A longer one would end the process in the engine, and then its successor, which is asked again.
#[test]
fn a_key_or_bound_that_no_key_reaches_is_refused_to_readers() {
    let mut writer = Writer::new();
    let longest = vec![0u8; KEY_BYTES_MAX];
    let Outcome::Done(done) = writer.write(1, None, txn(vec![put(&longest, b"v")])) else {
        panic!("not done");
    };
    writer.write(2, None, txn(vec![put(&longest, b"w")]));
    let read = |query| {
        writer.store.read(&ReadRequest {
            group: GROUP,
            epoch: 1,
            min_index: 0,
            query,
        })
    };
    for revision in [None, Some(done.revision)] {
        let get = |key: &[u8]| Query::Get {
            key: Bytes::copy_from_slice(key),
            revision,
        };
        let range = |start: &[u8], end: &[u8]| Query::Range {
            start: Bytes::copy_from_slice(start),
            end: Bytes::copy_from_slice(end),
            limit: 10,
            max_bytes: 1 << 20,
            revision,
            keys_only: false,
        };
        assert_eq!(read(get(&longest)).unwrap().items.len(), 1);
        // The cursor after the longest key.
        let next = [&longest[..], &[0]].concat();
        assert_eq!(read(range(&longest, &next)).unwrap().items.len(), 1);
        assert_eq!(read(range(&next, b"")).unwrap().items.len(), 0);
        for bytes in [BOUND_BYTES_MAX + 1, 1 << 16, 1 << 20] {
            let long = vec![b'z'; bytes];
            for query in [get(&long), range(b"a", &long), range(&long, b"")] {
                let told = read(query);
                assert!(
                    matches!(told, Err(ReadError::KeyTooLarge { .. })),
                    "{told:?}"
                );
            }
        }
    }
    let (snapshot, _) = writer.store.open_snapshot(GROUP).unwrap();
    let told = writer
        .store
        .read_snapshot(snapshot, &vec![b'z'; 1 << 16], 10);
    assert!(matches!(told, Err(StoreError::Refused(_))));
}

/// What a gateway takes by its settings a replica takes, too.
#[test]
fn no_configuration_allows_a_longer_key_than_the_state_machine() {
    let text = |bytes: usize| format!("[limits]\nkey_bytes_max = {bytes}\n");
    assert!(mareedb_config::parse(&text(KEY_BYTES_MAX), "x").is_ok());
    assert!(mareedb_config::parse(&text(KEY_BYTES_MAX + 1), "x").is_err());
}

#[test]
fn a_proposed_revision_never_goes_back_and_never_overflows() {
    // LIN-3
    let mut writer = Writer::new();
    let mut last = Revision(0);
    for ms in [100, 5, 5, 200, 1] {
        let Outcome::Done(done) = writer.write(ms, None, txn(vec![put(b"k", b"v")])) else {
            panic!("not done");
        };
        assert!(done.revision > last && done.revision >= Revision::from_unix_ms(ms));
        last = done.revision;
    }
    let at = |index, revision| LogEntry {
        position: LogPosition { term: 1, index },
        body: EntryBody::Normal(Stamp::at(revision).on(&encode_command(&Command::Tick))),
    };
    let next = writer.index + 1;
    writer
        .store
        .apply(GROUP, &[at(next, Revision(u64::MAX))], 0)
        .unwrap();
    let before = writer.store.digest(GROUP);
    let error = writer.store.apply(GROUP, &[at(next + 1, Revision(1))], 0);
    assert!(matches!(error, Err(StoreError::Damaged(_))));
    assert_eq!(writer.store.digest(GROUP), before);
}

#[test]
fn an_entry_that_cannot_be_read_is_damage_and_changes_nothing() {
    let writer = Writer::new();
    let before = writer.store.digest(GROUP);
    let entries = [
        entry(1, 2, &write(1, 1, None, txn(vec![put(b"k", b"v")]))),
        LogEntry {
            position: LogPosition { term: 1, index: 2 },
            body: EntryBody::Normal(Bytes::from_static(b"12345678\xff")),
        },
    ];
    assert!(matches!(
        writer.store.apply(GROUP, &entries, 0),
        Err(StoreError::Damaged(_))
    ));
    assert_eq!(writer.store.digest(GROUP), before);
    assert_eq!(get(&writer.store, b"k", None), None);
}

#[test]
fn entries_that_supersede_much_are_applied_in_parts_and_give_the_same_state() {
    let value = vec![b'v'; 1 << 20];
    let key = |number: u64| format!("key-{number}").into_bytes();
    let mut log = vec![entry(0, 1, &open_session())];
    for number in 1..=40 {
        let put = put(&key(number), &value);
        log.push(entry(number, 1, &write(number, 1, None, txn(vec![put]))));
    }
    for number in 41..=80 {
        let delete = Op::Delete {
            key: key(number - 40).into(),
        };
        log.push(entry(number, 2, &write(number, 1, None, txn(vec![delete]))));
    }
    let (dir, other_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (whole, single) = (store(dir.path()), store(other_dir.path()));
    whole.apply(GROUP, &log[..41], u64::MAX).unwrap();
    let outcomes = whole.apply(GROUP, &log[41..], 0).unwrap();
    assert_eq!(outcomes.len(), 40);
    for entry in log.chunks(1) {
        single.apply(GROUP, entry, u64::MAX).unwrap();
    }
    assert_eq!(whole.digest(GROUP), single.digest(GROUP), "DET-1");
    assert_eq!(whole.applied(GROUP), single.applied(GROUP));
    assert_eq!(get(&whole, b"key-7", None), None);
}
