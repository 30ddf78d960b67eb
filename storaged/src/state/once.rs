//! Sessions and idempotency keys: each command takes effect once, and a repeat gets the first outcome (ONCE-1).
//!
//! A session remembers the outcomes of its numbers from its low-water mark on; what lies below was answered, and is refused.
//! All time is logged time, which no wall clock moves. Nothing is forgotten before its time, whatever the pressure.

use super::StoreError;
use super::apply::Now;
use super::batch::Batch;
use super::keys;
use super::records::{self, Idempotent, NEVER, Session};
use super::tree::after_prefix;
use super::txn;
use bytes::Bytes;
use mareedb_config::bounds::IDEMPOTENCY_KEY_BYTES_MAX;
use mareedb_ipc::wire::command::{IdempotencyKey, Outcome, SessionRef, Txn};
use mareedb_ipc::wire::{NodeId, RandomId, encode};
use mareedb_ipc::world::{Fault, planted};
use std::ops::Bound;

/// Expired idempotency keys that one entry clears away. More than one, so that clearing is faster than filling: a command
/// is refused for too many keys only when that many are live.
const EXPIRE_AT_ONCE: usize = 64;
/// So many numbers are looked up one by one, which costs less than a range: that steps over all that was removed before.
const ONE_BY_ONE_MAX: u64 = 64;
/// While there is room for more keys, expired ones stay for so long, in logged time: one look finds many of them.
const EXPIRY_SLACK_MS: u64 = 1_000;

pub(super) fn open_session(
    batch: &mut Batch,
    id: RandomId,
    node: NodeId,
    now: &Now,
) -> Result<(), StoreError> {
    let key = keys::session(id);
    if batch.get(&key)?.is_none() {
        let session = Session {
            node,
            low_water: 0,
            used: now.ms,
        };
        batch.put(key, &session)?;
    }
    Ok(())
}

/// What a session remembers of a request that is applied already.
pub(super) fn remembered(batch: &Batch, origin: SessionRef) -> Result<Bytes, StoreError> {
    let result = keys::result(origin.session, origin.sequence);
    Ok(match batch.get(&result)? {
        Some(outcome) => outcome,
        None if batch.get(&keys::session(origin.session))?.is_none() => {
            encode(&Outcome::SessionUnknown).into()
        }
        None => encode(&Outcome::BelowLowWater).into(),
    })
}

/// Carries out a request, unless its session or its idempotency key says otherwise.
pub(super) fn write(
    batch: &mut Batch,
    origin: SessionRef,
    epoch: u64,
    idempotency: Option<IdempotencyKey>,
    txn: &Txn,
    now: &Now,
) -> Result<Bytes, StoreError> {
    if let Some(known) = check_session(batch, origin, now)? {
        return Ok(known);
    }
    let outcome = keyed(batch, idempotency, epoch, txn, now)?;
    let result = keys::result(origin.session, origin.sequence);
    batch.put_raw(result, outcome.clone())?;
    Ok(outcome)
}

/// The outcome if nothing is to be applied; otherwise notes that the session is in use.
fn check_session(
    batch: &mut Batch,
    origin: SessionRef,
    now: &Now,
) -> Result<Option<Bytes>, StoreError> {
    let key = keys::session(origin.session);
    let Some(mut session) = batch.read::<Session>(&key)? else {
        return Ok(Some(encode(&Outcome::SessionUnknown).into()));
    };
    // Before anything else: a repeat gets the first outcome for as long as it is known.
    if let Some(first) = batch.get(&keys::result(origin.session, origin.sequence))?
        && !planted(Fault::RepeatsApplied)
    {
        return Ok(Some(first));
    }
    // Its time is over, though no entry has cleared it away yet.
    if now.since(session.used) > now.rules.session_ttl_ms {
        return Ok(Some(encode(&Outcome::SessionUnknown).into()));
    }
    // Numbers count from 1; and who says that everything below N was answered has no open request below N.
    let low_water = session.low_water.max(origin.low_water);
    if origin.sequence < low_water.max(1) {
        return Ok(Some(encode(&Outcome::BelowLowWater).into()));
    }
    if low_water > session.low_water {
        forget_results(batch, origin.session, session.low_water, Some(low_water))?;
        session.low_water = low_water;
    }
    session.used = now.ms;
    batch.put(key, &session)?;
    Ok(None)
}

/// Forgets a session's results from a number on, below another if there is one.
fn forget_results(
    batch: &mut Batch,
    session: RandomId,
    from: u64,
    to: Option<u64>,
) -> Result<(), StoreError> {
    if let Some(to) = to
        && to - from <= ONE_BY_ONE_MAX
    {
        for number in from..to {
            let key = keys::result(session, number);
            if batch.get(&key)?.is_some() {
                batch.remove(key)?;
            }
        }
        return Ok(());
    }
    let from = keys::result(session, from);
    let end = match to {
        Some(to) => Bound::Excluded(keys::result(session, to)),
        None => after_prefix(&keys::results(session)),
    };
    for key in batch.keys(from, end) {
        batch.remove(key)?;
    }
    Ok(())
}

pub(super) fn expire_sessions(batch: &mut Batch, now: &Now) -> Result<(), StoreError> {
    for (key, value) in batch.range(b"o".to_vec(), after_prefix(b"o"), usize::MAX)? {
        let session: Session = records::read(&value)?;
        if now.since(session.used) > now.rules.session_ttl_ms {
            let id = keys::parse_session(&key)
                .ok_or_else(|| StoreError::Damaged("a session's key".into()))?;
            forget_results(batch, id, 0, None)?;
            batch.remove(key)?;
        }
    }
    Ok(())
}

pub(super) fn expire_keys(batch: &mut Batch, now: &Now) -> Result<(), StoreError> {
    let horizon = now.ms.saturating_sub(now.rules.idempotency_ttl_ms);
    // What is expired and still there counts for nothing but the number of keys.
    let full = batch.system.idempotent >= now.rules.idempotency_keys_max;
    let slack = if full { 0 } else { EXPIRY_SLACK_MS };
    let due = horizon.saturating_sub(slack);
    if horizon <= batch.system.expired || due <= batch.system.next_expiry {
        return Ok(());
    }
    // From where the last look ended: what was removed before it still costs time to step over.
    let from = keys::expiry(batch.system.expired, "");
    let old = batch.range(from, after_prefix(b"e"), EXPIRE_AT_ONCE + 1)?;
    let mut next = None;
    let mut last = horizon;
    for (count, (key, _)) in old.into_iter().enumerate() {
        let (at, name) = keys::parse_expiry(&key)
            .ok_or_else(|| StoreError::Damaged("an idempotency key's expiry".into()))?;
        if at >= horizon || count == EXPIRE_AT_ONCE {
            next = Some(at);
            break;
        }
        last = at;
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
    // Some may be left that are due.
    batch.system.expired = match next {
        Some(next) if next < horizon => last,
        _ => horizon,
    };
    batch.system.next_expiry = next.unwrap_or(NEVER);
    Ok(())
}

/// Carries out a request once for a client's idempotency key, whatever session it comes by.
fn keyed(
    batch: &mut Batch,
    idempotency: Option<IdempotencyKey>,
    epoch: u64,
    txn: &Txn,
    now: &Now,
) -> Result<Bytes, StoreError> {
    let Some(IdempotencyKey { key, fingerprint }) = idempotency else {
        return Ok(encode(&txn::transact(batch, epoch, txn, now)?).into());
    };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
        let message = format!(
            "an idempotency key of {} bytes, 1 to {IDEMPOTENCY_KEY_BYTES_MAX} are allowed",
            key.len()
        );
        return Ok(encode(&Outcome::Invalid { message }).into());
    }
    let record = keys::idempotency(&key);
    let known = batch.read::<Idempotent>(&record)?;
    let expired = known.is_some();
    if let Some(known) = known
        && now.since(known.at) <= now.rules.idempotency_ttl_ms
    {
        return Ok(if known.fingerprint == fingerprint {
            known.outcome
        } else {
            encode(&Outcome::IdempotencyKeyReused).into()
        });
    }
    if !expired && batch.system.idempotent >= now.rules.idempotency_keys_max {
        return Ok(encode(&Outcome::IdempotencyKeysExhausted).into());
    }
    let outcome = txn::transact(batch, epoch, txn, now)?;
    let encoded = Bytes::from(encode(&outcome));
    // What was refused had no effect, and may be tried again under the same key.
    if matches!(outcome, Outcome::Done(_)) {
        let used = Idempotent {
            fingerprint,
            at: now.ms,
            outcome: encoded.clone(),
        };
        batch.put(record, &used)?;
        batch.put(keys::expiry(now.ms, &key), &())?;
        batch.system.next_expiry = batch.system.next_expiry.min(now.ms);
        if !expired {
            batch.system.idempotent += 1;
        }
    }
    Ok(encoded)
}
