//! What a store is held to: every version of everything in maps.

use super::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
pub(super) struct Kept {
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

pub(super) struct Model {
    pub(super) clock: u64,
    logged_ms: u64,
    pub(super) term: u64,
    rules: Rules,
    pub(super) oldest: Revision,
    marks: Vec<(u64, Revision)>,
    pub(super) elections: Vec<(Revision, Election)>,
    pub(super) now: BTreeMap<Bytes, Kept>,
    pub(super) past: Vec<(Revision, BTreeMap<Bytes, Kept>)>,
    sessions: BTreeMap<u128, Remembering>,
    keys: BTreeMap<String, (u64, u128, Outcome)>,
    uses: Vec<(u64, String)>,
    pub(super) next: BTreeMap<u128, u64>,
}

pub(super) fn shown(key: &Bytes, kept: &Kept) -> Item {
    Item {
        key: key.clone(),
        value: kept.value.clone(),
        create_revision: kept.create,
        mod_revision: kept.modified,
        version: kept.version,
    }
}

impl Model {
    pub(super) fn new() -> Model {
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

    pub(super) fn apply(&mut self, stamp: Stamp, command: &Command) -> Outcome {
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
