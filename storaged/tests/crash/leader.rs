//! A log of entries, and what a state machine must hold after each of them.

use crate::files::Dice;
use bytes::Bytes;
use mareedb_ipc::wire::command::{
    Command, IdempotencyKey, Op, Rules, SessionRef, Stamp, Txn, encode_command,
};
use mareedb_ipc::wire::read::{Query, ReadRequest};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{
    FIRST_DATA_GROUP, GroupId, LogPosition, NodeId, RandomId, ReplicaId, Revision,
};
use mareedb_storaged::state::{Store, StoreError, StoreOptions};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

pub const GROUP: GroupId = FIRST_DATA_GROUP;
const SESSION: RandomId = RandomId(7);

/// Every user key with its value.
pub type State = BTreeMap<Bytes, Bytes>;

/// See the module.
pub struct Leader {
    /// A store that never crashes.
    pub store: Store,
    /// All entries.
    pub log: Vec<LogEntry>,
    /// The digest after so many entries.
    digests: Vec<String>,
    /// The content after so many entries.
    states: Vec<State>,
    /// When the entry before was applied.
    revisions: Vec<Revision>,
    history_ms: u64,
    _dir: TempDir,
}

/// Options of a store below a directory.
pub fn options(dir: &Path, history_ms: u64) -> StoreOptions {
    StoreOptions {
        dir: dir.join("state"),
        cache_bytes: 1 << 20,
        unflushed_bytes_max: 1 << 20,
        first_rules: Rules {
            history_ms,
            quota_bytes: 0,
            idempotency_ttl_ms: 200,
            idempotency_keys_max: 1000,
            session_ttl_ms: 1 << 40,
        },
    }
}

/// Opens a store, and makes the replica that the log knows of, as storaged does.
pub fn open(options: StoreOptions) -> Result<Store, StoreError> {
    let store = Store::open(options)?;
    store.create_replica(GROUP, ReplicaId(1), KeyRange::whole())?;
    Ok(store)
}

/// What a look at a store says.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds what it must.
    Fine,
    /// It says that it is damaged.
    Told(String),
    /// It holds something else, and does not say so.
    Wrong(String),
}

fn a_txn(dice: &mut Dice, state: &mut State) -> Txn {
    let mut success = Vec::new();
    let mut keys: Vec<u64> = (0..12).collect();
    for _ in 0..1 + dice.roll(4) {
        let at = dice.roll(keys.len() as u64);
        let number = keys.remove(usize::try_from(at).expect("a small number"));
        let key = Bytes::from(format!("key-{number}"));
        if dice.roll(4) == 0 {
            state.remove(&key);
            success.push(Op::Delete { key });
        } else {
            let len = usize::try_from(dice.roll(1200)).expect("a small number");
            let value = Bytes::from(vec![u8::try_from(dice.roll(256)).expect("a byte"); len]);
            state.insert(key.clone(), value.clone());
            success.push(Op::Put { key, value });
        }
    }
    Txn {
        success,
        ..Txn::default()
    }
}

impl Leader {
    /// So many entries that follow from the dice.
    pub fn new(dice: &mut Dice, entries: u64) -> Leader {
        let dir = crate::scratch();
        let history_ms = if dice.roll(2) == 0 { 1 << 40 } else { 150 };
        let store = open(options(dir.path(), history_ms)).expect("a new store");
        let mut leader = Leader {
            store,
            log: Vec::new(),
            digests: vec![String::new()],
            states: vec![State::new()],
            revisions: Vec::new(),
            history_ms,
            _dir: dir,
        };
        for index in 0..entries {
            leader.add(index, dice);
        }
        leader
    }

    fn add(&mut self, index: u64, dice: &mut Dice) {
        let mut state = self.states.last().expect("the first one is there").clone();
        let position = LogPosition { term: 1, index };
        let stamp = Stamp {
            revision: Revision::from_unix_ms(1 + index * 10),
            elapsed_ms: 10,
        };
        let command = match dice.roll(12) {
            _ if index == 0 => Some(Command::OpenSession {
                session: SESSION,
                node: NodeId(1),
            }),
            0 => None,
            1 => Some(Command::Tick),
            _ => Some(Command::Write {
                origin: SessionRef {
                    session: SESSION,
                    sequence: index,
                    low_water: index.saturating_sub(3),
                },
                epoch: 1,
                idempotency: (dice.roll(3) == 0).then(|| IdempotencyKey {
                    key: format!("once-{index}"),
                    fingerprint: 1,
                }),
                txn: a_txn(dice, &mut state),
            }),
        };
        let body = match command {
            Some(command) => EntryBody::Normal(stamp.on(&encode_command(&command))),
            None if dice.roll(2) == 0 => EntryBody::Blank,
            None => EntryBody::Membership(Bytes::from(index.to_be_bytes().to_vec())),
        };
        self.log.push(LogEntry { position, body });
        let last = self.log.len() - 1;
        self.store
            .apply(GROUP, &self.log[last..], u64::MAX)
            .expect("an entry");
        self.digests
            .push(self.store.digest(GROUP).expect("a replica").1);
        let (_, now) = self
            .read(&self.store, None)
            .expect("the leader can be read");
        self.revisions.push(now);
        self.states.push(state);
    }

    /// Options of a store that follows.
    pub fn options(&self, dir: &Path) -> StoreOptions {
        options(dir, self.history_ms)
    }

    /// How many entries a store has applied.
    pub fn count(store: &Store) -> usize {
        let applied = store.applied(GROUP).and_then(|meta| meta.last_applied);
        applied.map_or(0, |at| {
            usize::try_from(at.index).expect("a small number") + 1
        })
    }

    fn read(&self, store: &Store, revision: Option<Revision>) -> Result<(State, Revision), String> {
        let query = Query::Range {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: u32::MAX,
            max_bytes: u32::MAX,
            keys_only: false,
            revision,
        };
        let request = ReadRequest {
            group: GROUP,
            epoch: 1,
            min_index: 0,
            query,
        };
        let response = store.read(&request).map_err(|error| format!("{error:?}"))?;
        let items = response.items.into_iter();
        Ok((
            items.map(|item| (item.key, item.value)).collect(),
            response.revision,
        ))
    }

    /// Compares a store with what it must hold after so many entries, and with what it held before.
    pub fn look(&self, store: &Store, dice: &mut Dice) -> Verdict {
        let count = Leader::count(store);
        if store.persisted(GROUP) != store.applied(GROUP) && count == 0 {
            return Verdict::Wrong("something is persisted, and nothing applied".into());
        }
        if count > 0
            && store.digest(GROUP).map(|digest| digest.1).as_ref() != Some(&self.digests[count])
        {
            return Verdict::Wrong(format!("DET-1: the digest after {count} entries"));
        }
        match self.read(store, None) {
            Err(told) => return Verdict::Told(told),
            Ok((state, _)) if state != self.states[count] => {
                return Verdict::Wrong(format!("{count} entries: {:?}", state.keys()));
            }
            Ok(_) => {}
        }
        if count == 0 || self.history_ms < 1 << 40 {
            return Verdict::Fine;
        }
        let past = usize::try_from(dice.roll(count as u64)).expect("a small number");
        match self.read(store, Some(self.revisions[past])) {
            Err(told) => Verdict::Told(told),
            Ok((state, _)) if state != self.states[past + 1] => {
                Verdict::Wrong(format!("{count} entries, as of {past}: {:?}", state.keys()))
            }
            Ok(_) => Verdict::Fine,
        }
    }
}
