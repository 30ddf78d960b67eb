//! Who was elected, when and why: the last [`KEPT`] elections of a group.

use super::StoreError;
use super::apply::Now;
use super::batch::Batch;
use super::keys;
use super::records;
use super::tree::{Pin, after_prefix};
use mareedb_ipc::wire::command::{Cause, Election};
use mareedb_ipc::wire::{NodeId, Revision};
use std::ops::Bound;

/// Elections that a group remembers.
pub(super) const KEPT: u64 = 1_000;

/// A leader has spoken. Only its first word in a term is an election: one that was restored speaks again.
pub(super) fn lead(
    batch: &mut Batch,
    node: NodeId,
    cause: Cause,
    now: &Now,
) -> Result<(), StoreError> {
    if batch.system.elected_term >= now.term {
        return Ok(());
    }
    batch.system.elected_term = now.term;
    let election = Election {
        term: now.term,
        node,
        cause,
    };
    batch.put(keys::election(now.revision), &election)?;
    batch.system.elections += 1;
    if batch.system.elections > KEPT {
        let oldest = batch.range(b"v".to_vec(), after_prefix(b"v"), 1)?;
        for (key, _) in oldest {
            batch.remove(key)?;
            batch.system.elections -= 1;
        }
    }
    Ok(())
}

/// The elections that a state remembers, newest first, with when they were.
pub(super) fn remembered(pin: &Pin) -> Result<Vec<(Revision, Election)>, StoreError> {
    let mut elections = Vec::new();
    for pair in pin.range(Bound::Included(b"v".to_vec()), after_prefix(b"v")) {
        let (key, value) = pair?;
        let at = keys::parse_election(&key)
            .ok_or_else(|| StoreError::Damaged("an election's key".into()))?;
        elections.push((at, records::read(&value)?));
    }
    elections.reverse();
    Ok(elections)
}
