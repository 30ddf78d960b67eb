//! What is drawn: what entries say, and what happens between them.

use super::*;

#[derive(Clone, Debug)]
pub(super) enum Do {
    Open(u128),
    Tick,
    Blank,
    Membership(u8),
    /// A leader's first word; in a new term or, by one that was restored, in the same.
    Lead {
        rules: u8,
        restored: bool,
    },
    Write {
        session: u128,
        /// 0: the next number; else a number so far below it.
        back: u64,
        /// How far the low-water mark lies below the number.
        window: u64,
        idempotent: Option<(u8, bool)>,
        wrong_epoch: bool,
        txn: Txn,
    },
}

/// What happens between entries, and must not show.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Nothing,
    Flush,
    Maintain,
    Crash,
    Copy,
}

fn small_key() -> impl Strategy<Value = Bytes> {
    (0u8..6).prop_map(|number| Bytes::from(key(number)))
}

fn an_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (small_key(), prop::collection::vec(any::<u8>(), 0..4))
            .prop_map(|(key, value)| Op::Put { key, value: value.into() }),
        2 => small_key().prop_map(|key| Op::Delete { key }),
        1 => small_key().prop_map(|key| Op::Get { key }),
        1 => (small_key(), prop::option::of(small_key()), 0u32..4).prop_map(|(start, end, limit)| Op::Range {
            start, end: end.unwrap_or_default(), limit,
        }),
    ]
}

fn a_compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..2)
            .prop_map(|value| CompareTarget::Value(value.into())),
        (0u64..3).prop_map(CompareTarget::Version),
        Just(CompareTarget::CreateRevision(0)),
        Just(CompareTarget::ModRevision(0)),
    ];
    let op = prop_oneof![
        Just(CompareOp::Equal),
        Just(CompareOp::NotEqual),
        Just(CompareOp::Less),
        Just(CompareOp::Greater)
    ];
    (small_key(), target, op).prop_map(|(key, target, op)| Compare { key, target, op })
}

fn a_txn() -> impl Strategy<Value = Txn> {
    (
        prop::collection::vec(a_compare(), 0..2),
        prop::collection::vec(an_op(), 0..5),
        prop::collection::vec(an_op(), 0..3),
    )
        .prop_map(|(compare, success, failure)| Txn {
            compare,
            success,
            failure,
        })
}

/// What is done; how much later; how far the wall clock jumps; what happens then.
pub(super) fn a_step() -> impl Strategy<Value = (Do, u32, i64, Event)> {
    let action = prop_oneof![
        2 => (0..SESSIONS).prop_map(Do::Open),
        1 => Just(Do::Tick),
        1 => Just(Do::Blank),
        1 => any::<u8>().prop_map(Do::Membership),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(rules, restored)| Do::Lead { rules, restored }),
        16 => (
            0..SESSIONS,
            prop_oneof![3 => Just(0u64), 1 => 1u64..6],
            0u64..4,
            prop::option::weighted(0.4, (0u8..8, prop::bool::weighted(0.2))),
            prop::bool::weighted(0.05),
            a_txn(),
        )
            .prop_map(|(session, back, window, idempotent, wrong_epoch, txn)| Do::Write {
                session, back, window, idempotent, wrong_epoch, txn,
            }),
    ];
    let event = prop_oneof![
        6 => Just(Event::Nothing),
        2 => Just(Event::Flush),
        2 => Just(Event::Maintain),
        1 => Just(Event::Crash),
        1 => Just(Event::Copy),
    ];
    let ttl = u32::try_from(TTL_MS).unwrap();
    let advance =
        prop_oneof![4 => Just(0u32), 4 => 1u32..30, 1 => Just(ttl / 2), 1 => Just(ttl + 1)];
    let jump = prop_oneof![16 => Just(0i64), 1 => 1i64..100_000, 1 => -100_000i64..0];
    (action, advance, jump, event)
}
