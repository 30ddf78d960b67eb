//! The store against a model that keeps every version of everything in maps (ONCE-1, DET-1, and what transactions mean).

use super::*;
use mareedb_ipc::wire::command::{Cause, Election, Item, TxnResult};
use reference::{Kept, Model, shown};
use steps::{Do, Event, a_step};

mod reference;
mod steps;

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
    read_all(store, revision).map(|response| response.items)
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
                    // SM-8: what is not in tree files is gone: exactly what was said to be persisted is there, and the log brings
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
                    prop_assert_eq!(third.digest(GROUP), first.digest(GROUP), "DET-1, SM-8");
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
