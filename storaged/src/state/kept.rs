//! Sessions and their outcomes, in memory.
//!
//! They change with nearly every entry and are soon forgotten, so that they would cost the tree more than the data itself: a
//! look that finds nothing, a version and a removal for each request. They are therefore kept here, all of them, and written
//! to the tree only where it has to be complete: when a memtable ends and when a snapshot is opened (SM-8). In between the
//! raft log has them, as it has everything that is not flushed.

use super::StoreError;
use super::engine::Pair;
use super::tree::{Changes, Pin, after_prefix};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Larger outcomes are in the tree at once, and read there. Tests see both kinds.
const VALUE_BYTES_MAX: usize = if cfg!(test) { 24 } else { 1 << 10 };

/// Whether pairs of this key's keyspace are kept.
pub(super) fn keeps(key: &[u8]) -> bool {
    matches!(key.first(), Some(b'o' | b'r'))
}

/// Whether a value is written to the tree with its batch.
pub(super) fn is_large(value: &[u8]) -> bool {
    value.len() > VALUE_BYTES_MAX
}

/// All pairs of the kept keyspaces.
#[derive(Default)]
pub(super) struct Kept {
    pairs: BTreeMap<Vec<u8>, Value>,
    /// Keys that the tree has and should not.
    gone: BTreeSet<Vec<u8>>,
}

struct Value {
    /// `None`: it is large.
    bytes: Option<Bytes>,
    /// Whether the tree has a value of this key, and whether that is this one.
    tree: InTree,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InTree {
    Nothing,
    Older,
    This,
}

impl Kept {
    /// Those of a tree.
    pub(super) fn of(pin: &Pin) -> Result<Kept, StoreError> {
        let mut kept = Kept::default();
        for space in [b"o", b"r"] {
            for pair in pin.range(Bound::Included(space.to_vec()), after_prefix(space)) {
                let (key, value) = pair?;
                // Not with the block that it was read from.
                let bytes = (!is_large(&value)).then(|| Bytes::copy_from_slice(&value));
                let tree = InTree::This;
                kept.pairs.insert(key, Value { bytes, tree });
            }
        }
        Ok(kept)
    }

    /// The value of a key; large ones are read from the tree.
    pub(super) fn get(&self, key: &[u8], tree: &Pin) -> Result<Option<Bytes>, StoreError> {
        match self.pairs.get(key) {
            None => Ok(None),
            Some(value) => value.read(key, tree).map(Some),
        }
    }

    /// Pairs of a range within one keyspace.
    pub(super) fn range<'a>(
        &'a self,
        from: Vec<u8>,
        to: Bound<Vec<u8>>,
        tree: &'a Pin,
    ) -> impl Iterator<Item = Result<Pair, StoreError>> + 'a {
        self.pairs
            .range((Bound::Included(from), to))
            .map(|(key, value)| Ok((key.clone(), value.read(key, tree)?)))
    }

    /// Keys of a range within one keyspace.
    pub(super) fn keys(
        &self,
        range: &(Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) -> impl Iterator<Item = &Vec<u8>> {
        self.pairs.range(range.clone()).map(|(key, _)| key)
    }

    /// Takes over a change, whose value is in the tree if it is large.
    pub(super) fn change(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        let before = self.pairs.remove(&key).map(|value| value.tree);
        let in_tree = before.is_some_and(|tree| tree != InTree::Nothing) || self.gone.remove(&key);
        let Some(value) = value else {
            if in_tree {
                self.gone.insert(key);
            }
            return;
        };
        let large = is_large(&value);
        let tree = match (large, in_tree) {
            (true, _) => InTree::This,
            (false, true) => InTree::Older,
            (false, false) => InTree::Nothing,
        };
        let bytes = (!large).then_some(value);
        self.pairs.insert(key, Value { bytes, tree });
    }

    /// What the tree lacks. Once it is written the tree is complete.
    pub(super) fn write_back(&mut self) -> Changes {
        let mut changes = Changes::new();
        for key in std::mem::take(&mut self.gone) {
            changes.insert(key, None);
        }
        for (key, value) in &mut self.pairs {
            if value.tree != InTree::This
                && let Some(bytes) = &value.bytes
            {
                changes.insert(key.clone(), Some(bytes.clone()));
                value.tree = InTree::This;
            }
        }
        changes
    }
}

impl Value {
    fn read(&self, key: &[u8], tree: &Pin) -> Result<Bytes, StoreError> {
        match &self.bytes {
            Some(bytes) => Ok(bytes.clone()),
            None => tree
                .get(key)?
                .ok_or_else(|| StoreError::Damaged("SM-8: a large outcome is not there".into())),
        }
    }
}
