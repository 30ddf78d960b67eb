//! The store against a model that keeps every version of everything in maps (ONCE-1, DET-1, and what transactions mean).

use super::*;
use mareedb_ipc::wire::command::{Cause, Election, Item, TxnResult};
use std::collections::BTreeSet;

const SESSIONS: u128 = 3;
const SESSION_TTL_MS: u64 = 1_500;
const KEYS_MAX: usize = 5;
const HISTORY_MS: u64 = 2_000;

/// Rules that leaders declare, the first before any has; each has something smaller and something larger than the others.
fn declared(number: u8) -> Rules {
    let by = u64::from(number % 3);
    Rules {
        history_ms: HISTORY_MS / 2 * (2 - by % 2),
        quota_bytes: 30 + 4 * by,
        idempotency_ttl_ms: TTL_MS - 200 * by,
        idempotency_keys_max: KEYS_MAX as u64 - by,
        session_ttl_ms: SESSION_TTL_MS + 500 * by,
    }
}

fn rules(dir: &Path) -> StoreOptions {
    StoreOptions {
        first_rules: declared(0),
        ..options(dir)
    }
}

fn fresh(dir: &Path) -> Store {
    let store = Store::open(rules(dir)).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    store
}

#[derive(Clone, Debug)]
enum Do {
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
enum Event {
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
fn a_step() -> impl Strategy<Value = (Do, u32, i64, Event)> {
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

#[derive(Clone, Debug)]
struct Kept {
    create: Revision,
    modified: Revision,
    version: u64,
    value: Bytes,
}

#[derive(Default)]
struct Remembering {
    low_water: u64,
    used: u64,
    results: BTreeMap<u64, Outcome>,
}

struct Model {
    clock: u64,
    logged_ms: u64,
    term: u64,
    rules: Rules,
    oldest: Revision,
    marks: Vec<(u64, Revision)>,
    elections: Vec<(Revision, Election)>,
    now: BTreeMap<Bytes, Kept>,
    past: Vec<(Revision, BTreeMap<Bytes, Kept>)>,
    sessions: BTreeMap<u128, Remembering>,
    keys: BTreeMap<String, (u64, u128, Outcome)>,
    uses: Vec<(u64, String)>,
    next: BTreeMap<u128, u64>,
}

fn shown(key: &Bytes, kept: &Kept) -> Item {
    Item {
        key: key.clone(),
        value: kept.value.clone(),
        create_revision: kept.create,
        mod_revision: kept.modified,
        version: kept.version,
    }
}

impl Model {
    fn new() -> Model {
        Model {
            clock: 0,
            logged_ms: 0,
            term: 1,
            rules: declared(0),
            oldest: Revision(0),
            marks: Vec::new(),
            elections: Vec::new(),
            now: BTreeMap::new(),
            past: Vec::new(),
            sessions: BTreeMap::new(),
            keys: BTreeMap::new(),
            uses: Vec::new(),
            next: BTreeMap::new(),
        }
    }

    fn expire_sessions(&mut self) {
        let ms = self.logged_ms;
        self.sessions
            .retain(|_, session| ms - session.used <= self.rules.session_ttl_ms);
    }

    fn apply(&mut self, stamp: Stamp, command: &Command) -> Outcome {
        let before = (self.logged_ms, Revision(self.clock));
        let outcome = self.run(stamp, command);
        // Versions are kept since the newest of some moments that is long enough ago.
        let (now, keep) = (self.logged_ms, self.rules.history_ms);
        let last = self.marks.last();
        if last.is_none_or(|(at, _)| now - at >= (keep / 8).max(1)) {
            match self.marks.last_mut() {
                Some(last) if last.0 == before.0 => last.1 = before.1,
                Some(last) if last.0 < before.0 && before.0 < now => self.marks.push(before),
                _ => {}
            }
            self.marks.push((now, Revision(self.clock)));
        }
        let past = self.marks.iter().rev().find(|(at, _)| now - at >= keep);
        self.oldest = past.map_or(self.oldest, |(_, revision)| self.oldest.max(*revision));
        outcome
    }

    /// What is expired may stay for a second while there is room: a leader with a longer time finds it live again.
    fn expire_keys(&mut self) {
        let horizon = self.logged_ms.saturating_sub(self.rules.idempotency_ttl_ms);
        let full = self.keys.len() as u64 >= self.rules.idempotency_keys_max;
        let due = horizon.saturating_sub(if full { 0 } else { 1_000 });
        if self.uses.iter().any(|(at, _)| *at < due) {
            for (at, key) in self.uses.extract_if(.., |(at, _)| *at < horizon) {
                if self.keys.get(&key).is_some_and(|(used, ..)| *used == at) {
                    self.keys.remove(&key);
                }
            }
        }
    }

    fn run(&mut self, stamp: Stamp, command: &Command) -> Outcome {
        self.clock = stamp.revision.0.max(self.clock + 1);
        self.logged_ms += u64::from(stamp.elapsed_ms);
        let ms = self.logged_ms;
        self.expire_keys();
        match command {
            Command::OpenSession { session, .. } => {
                self.expire_sessions();
                self.sessions.entry(session.0).or_insert(Remembering {
                    used: ms,
                    ..Remembering::default()
                });
                Outcome::SessionOpen
            }
            Command::Tick => {
                self.expire_sessions();
                Outcome::Ticked
            }
            Command::Split { .. } => Outcome::Unsupported,
            Command::Lead { node, cause, rules } => {
                let newest = self.elections.last().map(|(_, election)| election.term);
                if newest.is_none_or(|newest| newest < self.term) {
                    let election = Election {
                        term: self.term,
                        node: *node,
                        cause: *cause,
                    };
                    self.elections.push((Revision(self.clock), election));
                }
                self.rules = rules.clone();
                Outcome::Led
            }
            Command::Write {
                origin,
                epoch,
                idempotency,
                txn,
            } => {
                let Some(session) = self.sessions.get_mut(&origin.session.0) else {
                    return Outcome::SessionUnknown;
                };
                if let Some(first) = session.results.get(&origin.sequence) {
                    return first.clone();
                }
                if ms - session.used > self.rules.session_ttl_ms {
                    return Outcome::SessionUnknown;
                }
                if origin.sequence < session.low_water.max(origin.low_water).max(1) {
                    return Outcome::BelowLowWater;
                }
                session.low_water = session.low_water.max(origin.low_water);
                session.used = ms;
                let low_water = session.low_water;
                session.results.retain(|number, _| *number >= low_water);
                let outcome = self.keyed(*epoch, idempotency.as_ref(), txn);
                let session = self.sessions.get_mut(&origin.session.0).unwrap();
                session.results.insert(origin.sequence, outcome.clone());
                outcome
            }
        }
    }

    fn keyed(&mut self, epoch: u64, key: Option<&IdempotencyKey>, txn: &Txn) -> Outcome {
        let Some(key) = key else {
            return self.transact(epoch, txn);
        };
        let ttl_ms = self.rules.idempotency_ttl_ms;
        let known = self.keys.get(&key.key);
        if let Some((_, fingerprint, first)) =
            known.filter(|(at, ..)| self.logged_ms - at <= ttl_ms)
        {
            return if *fingerprint == key.fingerprint {
                first.clone()
            } else {
                Outcome::IdempotencyKeyReused
            };
        }
        if known.is_none() && self.keys.len() as u64 >= self.rules.idempotency_keys_max {
            return Outcome::IdempotencyKeysExhausted;
        }
        let outcome = self.transact(epoch, txn);
        if matches!(outcome, Outcome::Done(_)) {
            let kept = (self.logged_ms, key.fingerprint, outcome.clone());
            self.keys.insert(key.key.clone(), kept);
            self.uses.push((self.logged_ms, key.key.clone()));
        }
        outcome
    }

    fn bytes(of: &BTreeMap<Bytes, Kept>) -> usize {
        of.iter()
            .map(|(key, kept)| key.len() + kept.value.len())
            .sum()
    }

    fn transact(&mut self, epoch: u64, txn: &Txn) -> Outcome {
        if epoch != 1 {
            return Outcome::WrongEpoch { epoch: 1 };
        }
        for ops in [&txn.success, &txn.failure] {
            let mut written = BTreeSet::new();
            for op in ops {
                if let Op::Put { key, .. } | Op::Delete { key } = op
                    && !written.insert(key)
                {
                    return Outcome::Invalid {
                        message: "a key is written twice".into(),
                    };
                }
            }
        }
        let succeeded = txn.compare.iter().all(|compare| {
            let kept = self.now.get(&compare.key);
            let (left, right) = match &compare.target {
                CompareTarget::Value(value) => {
                    return kept.is_some_and(|kept| match compare.op {
                        CompareOp::Equal => kept.value == value,
                        CompareOp::NotEqual => kept.value != value,
                        CompareOp::Less => kept.value < value,
                        CompareOp::Greater => kept.value > value,
                    });
                }
                CompareTarget::Version(wanted) => (kept.map_or(0, |kept| kept.version), *wanted),
                CompareTarget::CreateRevision(wanted) => {
                    (kept.map_or(0, |kept| kept.create.0), *wanted)
                }
                CompareTarget::ModRevision(wanted) => {
                    (kept.map_or(0, |kept| kept.modified.0), *wanted)
                }
            };
            match compare.op {
                CompareOp::Equal => left == right,
                CompareOp::NotEqual => left != right,
                CompareOp::Less => left < right,
                CompareOp::Greater => left > right,
            }
        });
        let ops = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        let revision = Revision(self.clock);
        let mut next = self.now.clone();
        let mut results = Vec::new();
        for op in ops {
            results.push(match op {
                Op::Put { key, value } => {
                    let old = next.get(key);
                    let new = Kept {
                        create: old.map_or(revision, |old| old.create),
                        modified: revision,
                        version: old.map_or(0, |old| old.version) + 1,
                        value: value.clone(),
                    };
                    next.insert(key.clone(), new);
                    OpResult::Put
                }
                Op::Delete { key } => OpResult::Delete {
                    deleted: next.remove(key).is_some(),
                },
                Op::Get { key } => OpResult::Get {
                    item: next.get(key).map(|kept| shown(key, kept)),
                },
                Op::Range { start, end, limit } => {
                    let found: Vec<Item> = next
                        .iter()
                        .filter(|(key, _)| *key >= start && (end.is_empty() || *key < end))
                        .map(|(key, kept)| shown(key, kept))
                        .collect();
                    OpResult::Range {
                        more: found.len() > *limit as usize,
                        items: found.into_iter().take(*limit as usize).collect(),
                    }
                }
            });
        }
        let (before, after) = (Self::bytes(&self.now), Self::bytes(&next));
        if after > before && after as u64 > self.rules.quota_bytes {
            return Outcome::QuotaExceeded;
        }
        self.now = next;
        Outcome::Done(TxnResult {
            succeeded,
            revision,
            results,
        })
    }
}

fn command(action: &Do, model: &mut Model) -> Option<Command> {
    Some(match action {
        Do::Blank | Do::Membership(_) => return None,
        Do::Tick => Command::Tick,
        Do::Lead { rules, restored } => {
            model.term += u64::from(!restored);
            Command::Lead {
                node: NodeId(u64::from(*rules)),
                cause: Cause::Silence(NodeId(1)),
                rules: declared(*rules),
            }
        }
        Do::Open(session) => Command::OpenSession {
            session: RandomId(*session),
            node: NodeId(1),
        },
        Do::Write {
            session,
            back,
            window,
            idempotent,
            wrong_epoch,
            txn,
        } => {
            let next = model.next.entry(*session).or_insert(0);
            if *back == 0 {
                *next += 1;
            }
            let sequence = next.saturating_sub(*back);
            let idempotency = idempotent.map(|(number, other)| IdempotencyKey {
                key: format!("key-{number}"),
                fingerprint: u128::from(other),
            });
            Command::Write {
                origin: SessionRef {
                    session: RandomId(*session),
                    sequence,
                    low_water: sequence.saturating_sub(*window),
                },
                epoch: if *wrong_epoch { 2 } else { 1 },
                idempotency,
                txn: txn.clone(),
            }
        }
    })
}

/// The whole of a store, as of a revision.
fn everything(store: &Store, revision: Option<Revision>) -> Result<Vec<Item>, ReadError> {
    let request = ReadRequest {
        group: GROUP,
        epoch: 1,
        min_index: 0,
        query: Query::Range {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 1000,
            max_bytes: 1 << 20,
            revision,
            keys_only: false,
        },
    };
    store.read(&request).map(|response| response.items)
}

fn items(of: &BTreeMap<Bytes, Kept>) -> Vec<Item> {
    of.iter().map(|(key, kept)| shown(key, kept)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_store_is_a_map_with_a_memory(steps in prop::collection::vec(a_step(), 1..80), batch in 1usize..9) {
        let (first_dir, second_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        // One is disturbed after every entry; the other applies in batches, and is left alone.
        let mut first = fresh(first_dir.path());
        let second = fresh(second_dir.path());
        let mut model = Model::new();
        let mut log: Vec<LogEntry> = Vec::new();
        let mut membership = None;
        let mut wall_ms = 1u64;
        let mut sent = 0;
        for (at, (action, elapsed_ms, jump, event)) in steps.iter().enumerate() {
            wall_ms = wall_ms.saturating_add_signed(jump + i64::from(*elapsed_ms));
            let stamp = Stamp { revision: Revision::from_unix_ms(wall_ms), elapsed_ms: *elapsed_ms };
            let command = command(action, &mut model);
            let position = LogPosition { term: model.term, index: at as u64 };
            let body = match (&command, action) {
                (Some(command), _) => EntryBody::Normal(stamp.on(&encode_command(command))),
                (None, Do::Membership(number)) => {
                    membership = Some((position, Bytes::copy_from_slice(&[*number])));
                    EntryBody::Membership(Bytes::copy_from_slice(&[*number]))
                }
                _ => EntryBody::Blank,
            };
            log.push(LogEntry { position, body });
            let got = first.apply(GROUP, &log[at..], 0).unwrap();
            if let Some(command) = &command {
                let expected = model.apply(stamp, command);
                let outcome: Outcome = decode(&got[0].1).unwrap();
                prop_assert_eq!(&outcome, &expected, "ONCE-1: {:?}", command);
                model.past.push((Revision(model.clock), model.now.clone()));
            } else {
                prop_assert!(got.is_empty());
            }
            match event {
                Event::Nothing => {}
                Event::Flush => {
                    let meta = first.flush(GROUP).unwrap();
                    prop_assert_eq!(meta.last_applied, Some(position));
                    prop_assert_eq!(first.unflushed_bytes(), 0);
                }
                Event::Maintain => first.maintain().unwrap(),
                Event::Crash => {
                    // What is not in tree files is gone: exactly what was said to be persisted is there, and the log brings
                    // back the rest.
                    let persisted = first.persisted(GROUP).unwrap();
                    drop(first);
                    first = Store::open(rules(first_dir.path())).unwrap();
                    prop_assert_eq!(first.applied(GROUP).unwrap(), persisted.clone());
                    prop_assert_eq!(first.persisted(GROUP).unwrap(), persisted.clone());
                    let from = persisted.last_applied.map_or(0, |at| usize::try_from(at.index).unwrap() + 1);
                    first.apply(GROUP, &log[from..], u64::MAX).unwrap();
                }
                Event::Copy => {
                    let dir = TempDir::new().unwrap();
                    let third = fresh(dir.path());
                    copy(&first, &third);
                    prop_assert_eq!(third.digest(GROUP), first.digest(GROUP), "DET-1");
                    prop_assert_eq!(everything(&third, None).unwrap(), items(&model.now));
                    drop(third);
                    let third = Store::open(rules(dir.path())).unwrap();
                    prop_assert_eq!(third.digest(GROUP), first.digest(GROUP), "an installed state is durable");
                    prop_assert_eq!(third.applied(GROUP), first.applied(GROUP));
                }
            }
            prop_assert_eq!(&first.applied(GROUP).unwrap().membership, &membership);
            if log.len() - sent == batch || at + 1 == steps.len() {
                second.apply(GROUP, &log[sent..], u64::MAX).unwrap();
                sent = log.len();
                prop_assert_eq!(first.digest(GROUP), second.digest(GROUP), "DET-1");
            }
        }
        // The past, on both: what may be asked for is there, whatever was collected; what may not is refused.
        let oldest = model.oldest;
        let remembered: Vec<_> = model.elections.iter().rev().cloned().collect();
        for store in [&first, &second] {
            prop_assert_eq!(everything(store, None).unwrap(), items(&model.now));
            let request = ReadRequest { group: GROUP, epoch: 0, min_index: 0, query: Query::Elections };
            prop_assert_eq!(&store.read(&request).unwrap().elections, &remembered);
            for (revision, state) in &model.past {
                let expected = if *revision < oldest { Err(ReadError::Compacted { oldest }) } else { Ok(items(state)) };
                prop_assert_eq!(&everything(store, Some(*revision)), &expected, "SM-6: {}", revision);
                for number in 0..6 {
                    let key = Bytes::from(key(number));
                    let expected = expected.clone().map(|_| state.get(&key).map(|kept| shown(&key, kept)));
                    let query = Query::Get { key, revision: Some(*revision) };
                    let request = ReadRequest { group: GROUP, epoch: 1, min_index: 0, query };
                    let found = store.read(&request).map(|response| response.items.into_iter().next());
                    prop_assert_eq!(&found, &expected, "SM-6: {}", revision);
                }
            }
        }
        // Asked again, an entry that is applied gives what its session remembers, and changes nothing.
        let before = first.digest(GROUP);
        let again = first.apply(GROUP, &log, 0).unwrap();
        prop_assert_eq!(again.len(), log.iter().filter(|entry| matches!(entry.body, EntryBody::Normal(_))).count());
        prop_assert_eq!(first.digest(GROUP), before);
    }
}
