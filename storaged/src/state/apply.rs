//! What an entry does. Deterministic: no clock, no randomness; logged time is the revision clock (DET-1).

use super::StoreError;
use super::batch::Batch;
use super::keys;
use super::records::{Idempotent, Session, Version};
use super::tree::after_prefix;
use bytes::Bytes;
use mareedb_ipc::wire::command::{
    Command, Compare, CompareOp, CompareTarget, IdempotencyKey, Item, Op, OpResult, Outcome,
    SessionRef, Txn, TxnResult, unstamp,
};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{NodeId, RandomId, Revision, encode};
use std::collections::BTreeSet;
use std::ops::Bound;

/// Settings that the outcome depends on: the same on all nodes.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Data bytes beyond which growth is refused; 0: none.
    pub quota_bytes: u64,
    /// Live idempotency keys.
    pub idempotency_keys_max: u64,
    /// How long one is kept, in logged time.
    pub idempotency_ttl_ms: u64,
    /// How long an unused session is kept, in logged time.
    pub session_ttl_ms: u64,
}

/// Most operations of a transaction that any version applies; gateways enforce the smaller configured limit.
const OPERATIONS_MAX: usize = 4096;
/// Bytes that a range inside a transaction may give.
const RANGE_BYTES_MAX: usize = 1 << 20;
/// Expired idempotency keys that one entry clears away.
const EXPIRE_AT_ONCE: usize = 64;

/// Applies an entry; gives the outcome of a command.
pub(super) fn apply(
    batch: &mut Batch,
    entry: &LogEntry,
    range: &KeyRange,
    rules: &Rules,
) -> Result<Option<Bytes>, StoreError> {
    let outcome = match &entry.body {
        EntryBody::Blank => None,
        EntryBody::Membership(bytes) => {
            batch.system.meta.membership = Some((entry.position, bytes.clone()));
            None
        }
        EntryBody::Normal(payload) => {
            // An entry is in the log by a quorum's word: one that cannot be read is damage, not bad input.
            let (proposed, command) = unstamp(payload).map_err(|error| {
                StoreError::Damaged(format!("entry {}: {error}", entry.position))
            })?;
            let now = Revision(proposed.0.max(batch.system.clock.0 + 1));
            batch.system.clock = now;
            expire_keys(batch, now, rules)?;
            Some(Bytes::from(run(batch, command, now, range, rules)?))
        }
    };
    batch.system.meta.last_applied = Some(entry.position);
    Ok(outcome)
}

/// The outcome of an entry that is applied already, from what its session remembers (ONCE-1).
pub(super) fn remembered(batch: &Batch, entry: &LogEntry) -> Result<Option<Bytes>, StoreError> {
    let EntryBody::Normal(payload) = &entry.body else {
        return Ok(None);
    };
    let (_, command) = unstamp(payload)
        .map_err(|error| StoreError::Damaged(format!("entry {}: {error}", entry.position)))?;
    let outcome = match command {
        Command::OpenSession { .. } => encode(&Outcome::SessionOpen),
        Command::Tick => encode(&Outcome::Ticked),
        Command::Split { .. } => encode(&Outcome::Unsupported),
        Command::Write { origin, .. } => {
            match batch.get(&keys::result(origin.session, origin.sequence))? {
                Some(outcome) => outcome,
                None if batch.get(&keys::session(origin.session))?.is_none() => {
                    encode(&Outcome::SessionUnknown)
                }
                None => encode(&Outcome::BelowLowWater),
            }
        }
    };
    Ok(Some(outcome.into()))
}

fn run(
    batch: &mut Batch,
    command: Command,
    now: Revision,
    range: &KeyRange,
    rules: &Rules,
) -> Result<Vec<u8>, StoreError> {
    Ok(match command {
        Command::OpenSession { session, node } => {
            expire_sessions(batch, now, rules)?;
            open_session(batch, session, node, now)?;
            encode(&Outcome::SessionOpen)
        }
        Command::Tick => {
            expire_sessions(batch, now, rules)?;
            encode(&Outcome::Ticked)
        }
        Command::Split { .. } => encode(&Outcome::Unsupported),
        Command::Write {
            origin,
            epoch,
            idempotency,
            txn,
        } => {
            if let Some(known) = check_session(batch, origin, now)? {
                return Ok(known);
            }
            let outcome = once(batch, idempotency, epoch, &txn, now, range, rules)?;
            batch.put_raw(
                keys::result(origin.session, origin.sequence),
                outcome.clone(),
            )?;
            outcome
        }
    })
}

fn open_session(
    batch: &mut Batch,
    id: RandomId,
    node: NodeId,
    now: Revision,
) -> Result<(), StoreError> {
    let key = keys::session(id);
    if batch.get(&key)?.is_none() {
        let session = Session {
            node,
            low_water: 0,
            used: now,
        };
        batch.put(key, &session)?;
    }
    Ok(())
}

/// The outcome if nothing is to be applied; otherwise notes that the session is in use.
fn check_session(
    batch: &mut Batch,
    origin: SessionRef,
    now: Revision,
) -> Result<Option<Vec<u8>>, StoreError> {
    let key = keys::session(origin.session);
    let Some(mut session) = batch.read::<Session>(&key)? else {
        return Ok(Some(encode(&Outcome::SessionUnknown)));
    };
    if let Some(first) = batch.get(&keys::result(origin.session, origin.sequence))? {
        return Ok(Some(first));
    }
    if origin.sequence < session.low_water {
        return Ok(Some(encode(&Outcome::BelowLowWater)));
    }
    if origin.low_water > session.low_water {
        forget_results(batch, origin.session, session.low_water, origin.low_water)?;
        session.low_water = origin.low_water;
    }
    session.used = now;
    batch.put(key, &session)?;
    Ok(None)
}

fn forget_results(
    batch: &mut Batch,
    session: RandomId,
    from: u64,
    to: u64,
) -> Result<(), StoreError> {
    let end = Bound::Excluded(keys::result(session, to));
    for (key, _) in batch.range(keys::result(session, from), end, usize::MAX)? {
        batch.remove(key)?;
    }
    Ok(())
}

fn expire_sessions(batch: &mut Batch, now: Revision, rules: &Rules) -> Result<(), StoreError> {
    for (key, value) in batch.range(b"o".to_vec(), after_prefix(b"o"), usize::MAX)? {
        let session: Session = super::records::read(&value)?;
        if now.unix_ms().saturating_sub(session.used.unix_ms()) > rules.session_ttl_ms {
            let id = keys::parse_session(&key)
                .ok_or_else(|| StoreError::Damaged("a session's key".into()))?;
            forget_results(batch, id, 0, u64::MAX)?;
            batch.remove(keys::result(id, u64::MAX))?;
            batch.remove(key)?;
        }
    }
    Ok(())
}

fn expire_keys(batch: &mut Batch, now: Revision, rules: &Rules) -> Result<(), StoreError> {
    let horizon = Revision::from_unix_ms(now.unix_ms().saturating_sub(rules.idempotency_ttl_ms));
    let end = Bound::Excluded(keys::expiry(horizon, ""));
    for (key, _) in batch.range(b"e".to_vec(), end, EXPIRE_AT_ONCE)? {
        let (at, name) = keys::parse_expiry(&key)
            .ok_or_else(|| StoreError::Damaged("an idempotency key's expiry".into()))?;
        let record = keys::idempotency(name);
        // A key that expired and was used again has a later expiry of its own.
        if batch
            .read::<Idempotent>(&record)?
            .is_some_and(|live| live.at == at)
        {
            batch.remove(record)?;
            batch.system.idempotent -= 1;
        }
        batch.remove(key)?;
    }
    Ok(())
}

/// ONCE-1 for a client's idempotency key.
fn once(
    batch: &mut Batch,
    idempotency: Option<IdempotencyKey>,
    epoch: u64,
    txn: &Txn,
    now: Revision,
    range: &KeyRange,
    rules: &Rules,
) -> Result<Vec<u8>, StoreError> {
    let Some(IdempotencyKey { key, fingerprint }) = idempotency else {
        return Ok(encode(&transact(batch, epoch, txn, now, range, rules)?));
    };
    let record = keys::idempotency(&key);
    let known = batch.read::<Idempotent>(&record)?;
    let mut replaced = false;
    if let Some(known) = known {
        let age = now.unix_ms().saturating_sub(known.at.unix_ms());
        if age <= rules.idempotency_ttl_ms {
            return Ok(if known.fingerprint == fingerprint {
                known.outcome.to_vec()
            } else {
                encode(&Outcome::IdempotencyKeyReused)
            });
        }
        replaced = true;
    }
    if !replaced && batch.system.idempotent >= rules.idempotency_keys_max {
        return Ok(encode(&Outcome::IdempotencyKeysExhausted));
    }
    let outcome = transact(batch, epoch, txn, now, range, rules)?;
    let encoded = encode(&outcome);
    if matches!(outcome, Outcome::Done(_)) {
        batch.put(
            record,
            &Idempotent {
                fingerprint,
                at: now,
                outcome: encoded.clone().into(),
            },
        )?;
        batch.put(keys::expiry(now, &key), &())?;
        if !replaced {
            batch.system.idempotent += 1;
        }
    }
    Ok(encoded)
}

fn transact(
    batch: &mut Batch,
    epoch: u64,
    txn: &Txn,
    now: Revision,
    range: &KeyRange,
    rules: &Rules,
) -> Result<Outcome, StoreError> {
    if epoch != range.epoch || !inside(txn, range) {
        return Ok(Outcome::WrongEpoch { epoch: range.epoch });
    }
    if let Some(message) = fault(txn) {
        return Ok(Outcome::Invalid { message });
    }
    let mut succeeded = true;
    for compare in &txn.compare {
        succeeded &= holds(batch, compare)?;
    }
    let ops = if succeeded {
        &txn.success
    } else {
        &txn.failure
    };
    if rules.quota_bytes > 0 {
        let mut growth = 0u64;
        for op in ops {
            if let Op::Put { key, value } = op {
                let old = version(batch, key)?
                    .and_then(|old| old.value)
                    .map_or(0, |value| key.len() + value.len());
                growth += ((key.len() + value.len()).saturating_sub(old)) as u64;
            }
        }
        if growth > 0 && batch.system.data_bytes + growth > rules.quota_bytes {
            return Ok(Outcome::QuotaExceeded);
        }
    }
    let mut results = Vec::with_capacity(ops.len());
    for op in ops {
        results.push(operate(batch, op, now)?);
    }
    Ok(Outcome::Done(TxnResult {
        succeeded,
        revision: now,
        results,
    }))
}

fn inside(txn: &Txn, range: &KeyRange) -> bool {
    let op = |op: &Op| match op {
        Op::Put { key, .. } | Op::Delete { key } | Op::Get { key } => range.contains(key),
        Op::Range { start, end, .. } => {
            start >= &range.start
                && (range.end.is_empty() || (!end.is_empty() && end <= &range.end))
        }
    };
    txn.compare
        .iter()
        .all(|compare| range.contains(&compare.key))
        && txn.success.iter().all(op)
        && txn.failure.iter().all(op)
}

fn fault(txn: &Txn) -> Option<String> {
    for ops in [&txn.success, &txn.failure] {
        if ops.len() > OPERATIONS_MAX {
            return Some(format!(
                "{} operations, at most {OPERATIONS_MAX}",
                ops.len()
            ));
        }
        let mut written = BTreeSet::new();
        for op in ops {
            if let Op::Put { key, .. } | Op::Delete { key } = op
                && !written.insert(key)
            {
                return Some("a key is written twice".into());
            }
        }
    }
    None
}

fn version(batch: &Batch, key: &[u8]) -> Result<Option<Version>, StoreError> {
    batch.read(&keys::current(key))
}

fn holds(batch: &Batch, compare: &Compare) -> Result<bool, StoreError> {
    let version = version(batch, &compare.key)?;
    let number = |of: fn(&Version) -> u64| version.as_ref().map_or(0, of);
    let ordering = match &compare.target {
        CompareTarget::Value(wanted) => {
            match version.as_ref().and_then(|version| version.value.as_ref()) {
                None => return Ok(false),
                Some(value) => value.cmp(wanted),
            }
        }
        CompareTarget::Version(wanted) => number(|version| version.version).cmp(wanted),
        CompareTarget::CreateRevision(wanted) => number(|version| version.create.0).cmp(wanted),
        CompareTarget::ModRevision(wanted) => number(|version| version.modified.0).cmp(wanted),
    };
    Ok(match compare.op {
        CompareOp::Equal => ordering.is_eq(),
        CompareOp::NotEqual => ordering.is_ne(),
        CompareOp::Less => ordering.is_lt(),
        CompareOp::Greater => ordering.is_gt(),
    })
}

fn operate(batch: &mut Batch, op: &Op, now: Revision) -> Result<OpResult, StoreError> {
    Ok(match op {
        Op::Put { key, value } => {
            let old = version(batch, key)?;
            let (create, number) = old
                .as_ref()
                .map_or((now, 1), |old| (old.create, old.version + 1));
            batch.system.data_bytes += (key.len() + value.len()) as u64;
            if let Some(old) = old {
                supersede(batch, key, &old, now)?;
            }
            let new = Version {
                create,
                modified: now,
                version: number,
                value: Some(value.clone()),
            };
            batch.put(keys::current(key), &new)?;
            OpResult::Put
        }
        Op::Delete { key } => {
            let old = version(batch, key)?;
            let deleted = old.is_some();
            if let Some(old) = old {
                supersede(batch, key, &old, now)?;
                batch.remove(keys::current(key))?;
                let gone = Version {
                    create: old.create,
                    modified: now,
                    version: old.version,
                    value: None,
                };
                let history = keys::history(key, now);
                // A deletion is history from the moment on at which it happens.
                batch.put(keys::garbage(now, &history), &())?;
                batch.put(history, &gone)?;
            }
            OpResult::Delete { deleted }
        }
        Op::Get { key } => OpResult::Get {
            item: version(batch, key)?.and_then(|version| item(key, version)),
        },
        Op::Range { start, end, limit } => {
            let to = if end.is_empty() {
                after_prefix(b"d")
            } else {
                Bound::Excluded(keys::current(end))
            };
            let limit = *limit as usize;
            let mut items = Vec::new();
            let mut bytes = 0;
            let mut more = false;
            for (key, value) in batch.range(keys::current(start), to, limit.saturating_add(1))? {
                if items.len() == limit || bytes > RANGE_BYTES_MAX {
                    more = true;
                    break;
                }
                bytes += key.len() + value.len();
                items.extend(item(&key[1..], super::records::read(&value)?));
            }
            OpResult::Range { items, more }
        }
    })
}

/// Moves the current version into the history.
fn supersede(
    batch: &mut Batch,
    key: &[u8],
    old: &Version,
    now: Revision,
) -> Result<(), StoreError> {
    let bytes = (key.len() + old.value.as_ref().map_or(0, Bytes::len)) as u64;
    batch.system.data_bytes = batch.system.data_bytes.saturating_sub(bytes);
    let history = keys::history(key, old.modified);
    batch.put(keys::garbage(now, &history), &())?;
    batch.put(history, old)
}

/// A version as an item; `None` for a deletion.
pub(super) fn item(key: &[u8], version: Version) -> Option<Item> {
    Some(Item {
        key: Bytes::copy_from_slice(key),
        value: version.value?,
        create_revision: version.create,
        mod_revision: version.modified,
        version: version.version,
    })
}
