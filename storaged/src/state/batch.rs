//! One batch of applied entries: reads see its own writes, and nothing is visible to others before all of it is.

use super::StoreError;
use super::engine::Pair;
use super::kept::{self, Kept};
use super::records::{self, System};
use super::tree::{Change, Changes, Pin, weight};
use bytes::Bytes;
use mareedb_ipc::wire::encode;
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

/// Keyspaces whose content replicas must agree on (DET-1). History and garbage differ by when they are collected, and what
/// expires when follows from the idempotency keys.
pub(super) fn counts(key: &[u8]) -> bool {
    matches!(key.first(), Some(b'd' | b'i' | b'o' | b'r' | b'v'))
}

/// What a pair adds to the digest.
pub(super) fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest128()
}

/// What the batch has for a key: a value, a deletion, or nothing yet.
type Had = Option<Option<Bytes>>;

/// What to restore when a transaction is taken back: of the state what it changes, and changed keys with what the batch had for
/// them.
struct Undo {
    digest: u128,
    data_bytes: u64,
    changes: Vec<(Vec<u8>, Had)>,
}

/// Larger values are read again.
const KNOWN_BYTES_MAX: usize = 4 << 10;

/// An open batch.
pub(super) struct Batch<'a> {
    base: Pin,
    kept: &'a Kept,
    /// What was read from below: an entry looks at the same pairs several times, and so does the next.
    known: RefCell<HashMap<Vec<u8>, Option<Bytes>>>,
    changes: Changes,
    /// Bytes of keys and values that were put into either.
    bytes: Cell<usize>,
    undo: Option<Undo>,
    pub(super) system: System,
}

/// What a batch comes to.
pub(super) struct Finished {
    /// For the tree.
    pub(super) changes: Vec<Change>,
    /// For what is kept in memory; large values are in `changes`, too.
    pub(super) kept: Vec<Change>,
    /// The new state.
    pub(super) system: System,
    /// Bytes of all that, about.
    pub(super) bytes: u64,
}

impl<'a> Batch<'a> {
    pub(super) fn new(base: Pin, kept: &'a Kept, system: System) -> Batch<'a> {
        Batch {
            base,
            kept,
            known: RefCell::default(),
            changes: Changes::new(),
            bytes: Cell::new(0),
            undo: None,
            system,
        }
    }

    fn count(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// Bytes that the batch holds, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.clone()),
            None if kept::keeps(key) => self.kept.get(key, &self.base),
            None => {
                if let Some(known) = self.known.borrow().get(key) {
                    return Ok(known.clone());
                }
                let found = self.base.get(key)?;
                let size = found.as_ref().map_or(0, Bytes::len);
                if size <= KNOWN_BYTES_MAX {
                    self.count(key.len() + size);
                    self.known.borrow_mut().insert(key.to_vec(), found.clone());
                }
                Ok(found)
            }
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
        self.change(key, Some(encode(value).into()))
    }

    pub(super) fn put_raw(&mut self, key: Vec<u8>, value: Bytes) -> Result<(), StoreError> {
        self.change(key, Some(value))
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) -> Result<(), StoreError> {
        self.change(key, None)
    }

    fn change(&mut self, key: Vec<u8>, value: Option<Bytes>) -> Result<(), StoreError> {
        if counts(&key) {
            // The digest is a sum, so that order does not matter and an old value can be taken out again.
            if let Some(old) = self.get(&key)? {
                self.system.digest = self.system.digest.wrapping_sub(hash(&key, &old));
            }
            if let Some(new) = &value {
                self.system.digest = self.system.digest.wrapping_add(hash(&key, new));
            }
        }
        if let Some(undo) = &mut self.undo {
            let before = self.changes.get(&key).cloned();
            undo.changes.push((key.clone(), before));
        }
        self.count(key.len() + value.as_ref().map_or(0, Bytes::len));
        self.changes.insert(key, value);
        Ok(())
    }

    /// From here on changes can be taken back: those of pairs, of the digest and of the bytes that are counted.
    pub(super) fn begin(&mut self) {
        self.undo = Some(Undo {
            digest: self.system.digest,
            data_bytes: self.system.data_bytes,
            changes: Vec::new(),
        });
    }

    /// Keeps the changes since [`Batch::begin`], if that was called.
    pub(super) fn keep(&mut self) {
        self.undo = None;
    }

    /// Takes back the changes since [`Batch::begin`].
    ///
    /// # Panics
    /// That was not called.
    pub(super) fn take_back(&mut self) {
        let undo = self
            .undo
            .take()
            .expect("TXN-1: what is taken back was begun");
        self.system.digest = undo.digest;
        self.system.data_bytes = undo.data_bytes;
        for (key, before) in undo.changes.into_iter().rev() {
            match before {
                Some(change) => self.changes.insert(key, change),
                None => self.changes.remove(&key),
            };
        }
    }

    /// Pairs of `[from, to)` as the batch sees them, at most `limit`.
    pub(super) fn range(
        &self,
        from: Vec<u8>,
        to: Bound<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        let mut out = Vec::new();
        self.scan(from, to, |key, value| {
            if out.len() < limit {
                out.push((key, value));
            }
            Ok(out.len() < limit)
        })?;
        Ok(out)
    }

    /// Keys of a range within a keyspace that is kept in memory; values may be large, and are not read.
    pub(super) fn keys(&self, from: Vec<u8>, to: Bound<Vec<u8>>) -> BTreeSet<Vec<u8>> {
        let range = (Bound::Included(from), to);
        let mut keys: BTreeSet<Vec<u8>> = self.kept.keys(&range).cloned().collect();
        for (key, change) in self.changes.range(range) {
            match change {
                Some(_) => keys.insert(key.clone()),
                None => keys.remove(key),
            };
        }
        keys
    }

    /// Visits the pairs of `[from, to)` as the batch sees them, while `visit` says `true`.
    pub(super) fn scan(
        &self,
        from: Vec<u8>,
        to: Bound<Vec<u8>>,
        mut visit: impl FnMut(Vec<u8>, Bytes) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        if matches!(&to, Bound::Excluded(to) if *to <= from) {
            return Ok(());
        }
        let mut own = self
            .changes
            .range((Bound::Included(from.clone()), to.clone()))
            .peekable();
        let below: Box<dyn Iterator<Item = Result<Pair, StoreError>> + '_> = if kept::keeps(&from) {
            Box::new(self.kept.range(from, to, &self.base))
        } else {
            Box::new(self.base.range(Bound::Included(from), to))
        };
        for pair in below {
            let (key, value) = pair?;
            while let Some((before, change)) = own.next_if(|(own, _)| **own < key) {
                if let Some(value) = change
                    && !visit(before.clone(), value.clone())?
                {
                    return Ok(());
                }
            }
            let next = match own.next_if(|(own, _)| **own == key) {
                Some((_, change)) => change.clone(),
                None => Some(value),
            };
            if let Some(value) = next
                && !visit(key, value)?
            {
                return Ok(());
            }
        }
        for (key, change) in own {
            if let Some(value) = change
                && !visit(key.clone(), value.clone())?
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Ends the batch: what is to be written.
    pub(super) fn finish(self) -> Finished {
        let mut finished = Finished {
            changes: Vec::with_capacity(self.changes.len()),
            kept: Vec::new(),
            system: self.system,
            bytes: 0,
        };
        for (key, value) in self.changes {
            finished.bytes += weight(&key, value.as_deref());
            if !kept::keeps(&key) {
                finished.changes.push((key, value));
                continue;
            }
            if let Some(large) = value.as_ref().filter(|value| kept::is_large(value)) {
                finished.changes.push((key.clone(), Some(large.clone())));
            }
            finished.kept.push((key, value));
        }
        finished
    }
}
