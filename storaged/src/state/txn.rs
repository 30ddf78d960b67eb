//! Transactions: comparisons, then operations in order, each of which sees the ones before, all in one revision.

use super::StoreError;
use super::apply::Now;
use super::batch::Batch;
use super::keys::{self, KEY_BYTES_MAX};
use super::records::{self, Version, VersionRef};
use super::tree::after_prefix;
use bytes::Bytes;
use mareedb_config::bounds;
use mareedb_ipc::wire::command::{
    Compare, CompareOp, CompareTarget, Item, Op, OpResult, Outcome, Txn, TxnResult,
};
use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::{Revision, encode_into};
use mareedb_ipc::world::{Fault, planted};
use std::collections::BTreeSet;
use std::ops::Bound;

// Limits that no setting can pass. Gateways enforce the configured ones; were they checked here, nodes that are restarted one
// by one with a raised limit would meanwhile disagree about the same entry (DET-1).

/// Largest value.
const VALUE_BYTES_MAX: usize = bounds::VALUE_BYTES_MAX;
/// All keys and values of a transaction.
const TXN_BYTES_MAX: usize = 16 << 20;
/// Comparisons, and operations of a branch.
const OPERATIONS_MAX: usize = 4096;
/// Bytes that one range inside a transaction may give before it is cut.
const RANGE_BYTES_MAX: usize = 1 << 20;
/// What a transaction may answer: one largest value of the default settings, and its keys. An outcome is kept, sent over
/// the rings, and is a pair of a snapshot.
const RESULT_BYTES_MAX: usize = bounds::OUTCOME_BYTES_MAX;
/// What the result of a put or delete takes.
const WRITE_RESULT_BYTES: usize = 2;
// Hence a branch that only writes never comes to an answer that is too large, and is never taken back.
const _: () = assert!(OPERATIONS_MAX * WRITE_RESULT_BYTES <= RESULT_BYTES_MAX);
/// What a version takes besides its value, at most.
const VERSION_EXTRA_BYTES: usize = 40;
/// What an item takes besides its key and value, at most: three revisions and versions, two lengths.
const ITEM_BYTES: usize = 48;

pub(super) fn transact(
    batch: &mut Batch,
    epoch: u64,
    txn: &Txn,
    now: &Now,
) -> Result<Outcome, StoreError> {
    if (epoch != now.range.epoch && !planted(Fault::EpochIgnored)) || !inside(txn, now.range) {
        return Ok(Outcome::WrongEpoch {
            epoch: now.range.epoch,
        });
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
    if !within_quota(batch, ops, now.rules.quota_bytes)? {
        return Ok(Outcome::QuotaExceeded);
    }
    // TXN-1: from here on all of it, at one revision, or nothing. Only what is read can come to more than an answer may hold: without a
    // read there is nothing to take back.
    let reads = |op: &Op| matches!(op, Op::Get { .. } | Op::Range { .. });
    if ops.iter().any(reads) {
        batch.begin();
    }
    let mut results = Vec::with_capacity(ops.len());
    let mut bytes = 0;
    for op in ops {
        let result = operate(batch, op, now.revision)?;
        bytes += result_bytes(&result);
        if bytes > RESULT_BYTES_MAX {
            batch.take_back();
            let message = format!(
                "the transaction reads more than {RESULT_BYTES_MAX} bytes: nothing of it was done"
            );
            return Ok(Outcome::Invalid { message });
        }
        results.push(result);
    }
    batch.keep();
    Ok(Outcome::Done(TxnResult {
        succeeded,
        revision: now.revision,
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

/// What is wrong with a transaction, whatever the state.
fn fault(txn: &Txn) -> Option<String> {
    let counts = [txn.compare.len(), txn.success.len(), txn.failure.len()];
    if let Some(count) = counts.iter().find(|count| **count > OPERATIONS_MAX) {
        return Some(format!("{count} operations, at most {OPERATIONS_MAX}"));
    }
    let mut sizes = Vec::new();
    for compare in &txn.compare {
        let value = match &compare.target {
            CompareTarget::Value(value) => value.len(),
            _ => 0,
        };
        sizes.push((compare.key.len(), value));
    }
    for ops in [&txn.success, &txn.failure] {
        let mut written = BTreeSet::new();
        for op in ops {
            sizes.push(match op {
                Op::Put { key, value } => (key.len(), value.len()),
                Op::Delete { key } | Op::Get { key } => (key.len(), 0),
                // Bounds of a range may be empty, and are no keys.
                Op::Range { start, end, .. } => (start.len().max(end.len()).max(1), 0),
            });
            if let Op::Put { key, .. } | Op::Delete { key } = op
                && !written.insert(key)
            {
                return Some("a key is written twice".into());
            }
        }
    }
    let mut sum = 0;
    for (key, value) in sizes {
        if key == 0 || key > KEY_BYTES_MAX {
            return Some(format!("a key of {key} bytes, 1 to {KEY_BYTES_MAX}"));
        }
        if value > VALUE_BYTES_MAX {
            return Some(format!(
                "a value of {value} bytes, at most {VALUE_BYTES_MAX}"
            ));
        }
        sum += key + value;
    }
    (sum > TXN_BYTES_MAX)
        .then(|| format!("{sum} bytes of keys and values, at most {TXN_BYTES_MAX}"))
}

/// Whether the operations leave the data within the quota, or at least do not make it larger. Counted in bytes of keys and
/// values, which are the same on all replicas, never in bytes on a disk.
fn within_quota(batch: &Batch, ops: &[Op], quota: u64) -> Result<bool, StoreError> {
    if quota == 0 {
        return Ok(true);
    }
    let (mut more, mut less) = (0, 0);
    for op in ops {
        if let Op::Put { key, value } = op {
            more += (key.len() + value.len()) as u64;
        }
    }
    if batch.system.data_bytes + more <= quota {
        return Ok(true);
    }
    for op in ops {
        let (Op::Put { key, .. } | Op::Delete { key }) = op else {
            continue;
        };
        if let Some(old) = batch.get(&keys::current(key))? {
            less += size(key, records::read::<VersionRef>(&old)?.value);
        }
    }
    Ok(more <= less || batch.system.data_bytes + (more - less) <= quota)
}

fn size(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64
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
            put(batch, key, value, now)?;
            OpResult::Put
        }
        Op::Delete { key } => OpResult::Delete {
            deleted: delete(batch, key, now)?,
        },
        Op::Get { key } => OpResult::Get {
            item: version(batch, key)?.and_then(|version| item(key, version)),
        },
        Op::Range { start, end, limit } => range(batch, start, end, *limit)?,
    })
}

fn put(batch: &mut Batch, key: &[u8], value: &Bytes, now: Revision) -> Result<(), StoreError> {
    let current = keys::current(key);
    let (create, number) = match batch.get(&current)? {
        None => (now, 1),
        Some(raw) => {
            let old = records::read::<VersionRef>(&raw)?;
            supersede(batch, key, &old, &raw, now)?;
            (old.create, old.version + 1)
        }
    };
    batch.system.data_bytes += size(key, Some(value));
    let new = Version {
        create,
        modified: now,
        version: number,
        value: Some(value.clone()),
    };
    let mut encoded = Vec::with_capacity(value.len() + VERSION_EXTRA_BYTES);
    encode_into(&new, &mut encoded);
    batch.put_raw(current, encoded.into())
}

fn delete(batch: &mut Batch, key: &[u8], now: Revision) -> Result<bool, StoreError> {
    let current = keys::current(key);
    let Some(raw) = batch.get(&current)? else {
        return Ok(false);
    };
    let old = records::read::<VersionRef>(&raw)?;
    supersede(batch, key, &old, &raw, now)?;
    batch.remove(current)?;
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
    Ok(true)
}

/// Moves the current version into the history, in the encoding that it has.
fn supersede(
    batch: &mut Batch,
    key: &[u8],
    old: &VersionRef<'_>,
    raw: &Bytes,
    now: Revision,
) -> Result<(), StoreError> {
    // SM-5: what goes was counted when it came.
    batch.system.data_bytes = batch
        .system
        .data_bytes
        .checked_sub(size(key, old.value))
        .ok_or_else(|| StoreError::Damaged("SM-5: less is counted than is there".into()))?;
    let history = keys::history(key, old.modified);
    batch.put(keys::garbage(now, &history), &())?;
    batch.put_raw(history, raw.clone())
}

fn range(batch: &Batch, start: &[u8], end: &[u8], limit: u32) -> Result<OpResult, StoreError> {
    let to = if end.is_empty() {
        after_prefix(b"d")
    } else {
        Bound::Excluded(keys::current(end))
    };
    let mut items: Vec<Item> = Vec::new();
    let mut bytes = 0;
    let mut more = false;
    batch.scan(keys::current(start), to, |key, value| {
        if items.len() == limit as usize || bytes > RANGE_BYTES_MAX {
            more = true;
            return Ok(false);
        }
        bytes += key.len() + value.len();
        items.extend(item(&key[1..], records::read(&value)?));
        Ok(true)
    })?;
    Ok(OpResult::Range { items, more })
}

fn result_bytes(result: &OpResult) -> usize {
    let item = |item: &Item| item.key.len() + item.value.len() + ITEM_BYTES;
    match result {
        OpResult::Put | OpResult::Delete { .. } => WRITE_RESULT_BYTES,
        OpResult::Get { item: found } => 2 + found.as_ref().map_or(0, item),
        OpResult::Range { items, .. } => 8 + items.iter().map(item).sum::<usize>(),
    }
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
