//! One batch of applied entries: reads see its own writes, and nothing is visible to others before all of it is.

use super::StoreError;
use super::keys;
use super::records::{self, System};
use super::tree::{Changes, Pair, Pin};
use serde::Serialize;
use std::ops::Bound;

/// Keyspaces whose content replicas must agree on (DET-1). History and garbage differ by when they are collected.
fn counts(key: &[u8]) -> bool {
    matches!(key.first(), Some(b'd' | b'i' | b'o' | b'r'))
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest128()
}

/// An open batch.
pub(super) struct Batch {
    base: Pin,
    changes: Changes,
    pub(super) system: System,
}

impl Batch {
    pub(super) fn new(base: Pin, system: System) -> Batch {
        Batch {
            base,
            changes: Changes::new(),
            system,
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None => self.base.get(key),
        }
    }

    pub(super) fn read<T: serde::de::DeserializeOwned>(
        &self,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        self.get(key)?
            .map(|bytes| records::read(&bytes))
            .transpose()
    }

    pub(super) fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Result<(), StoreError> {
        self.change(key, Some(records::write(value)))
    }

    pub(super) fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.change(key, Some(value))
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) -> Result<(), StoreError> {
        self.change(key, None)
    }

    fn change(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        if counts(&key) {
            // The digest is a sum, so that order does not matter and an old value can be taken out again.
            if let Some(old) = self.get(&key)? {
                self.system.digest = self.system.digest.wrapping_sub(hash(&key, &old));
            }
            if let Some(new) = &value {
                self.system.digest = self.system.digest.wrapping_add(hash(&key, new));
            }
        }
        self.changes.insert(key, value);
        Ok(())
    }

    /// Pairs of `[from, to)` as the batch sees them, at most `limit`.
    pub(super) fn range(
        &self,
        from: Vec<u8>,
        to: Bound<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        if matches!(&to, Bound::Excluded(to) if *to <= from) {
            return Ok(Vec::new());
        }
        let mut out = Vec::new();
        let mut own = self
            .changes
            .range((Bound::Included(from.clone()), to.clone()))
            .peekable();
        let mut base = self.base.range(Bound::Included(from), to).peekable();
        while out.len() < limit {
            let base_key = match base.peek() {
                Some(Ok((key, _))) => Some(key.clone()),
                Some(Err(_)) => {
                    return Err(base.next().and_then(Result::err).expect("peeked an error"));
                }
                None => None,
            };
            match (own.peek(), base_key) {
                (None, None) => break,
                (Some((key, _)), other) if other.as_ref().is_none_or(|other| *key <= other) => {
                    if other.as_ref() == Some(*key) {
                        base.next();
                    }
                    let (key, change) = own.next().expect("peeked");
                    if let Some(value) = change {
                        out.push((key.clone(), value.clone()));
                    }
                }
                _ => {
                    if let Some(pair) = base.next() {
                        out.push(pair?);
                    }
                }
            }
        }
        Ok(out)
    }

    /// Ends the batch: what is to be written.
    pub(super) fn finish(mut self) -> (Changes, System) {
        self.changes
            .insert(keys::SYSTEM.to_vec(), Some(records::write(&self.system)));
        (self.changes, self.system)
    }
}
