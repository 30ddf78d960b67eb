//! Snapshots on their way out and in. A received one is a tree of its own, which one manifest record makes the replica's.

use super::StoreError;
use super::keys;
use super::records::{self, System};
use super::tree::{Changes, Pin, Tree};
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::storage::{SnapshotChunk, SnapshotMeta};
use std::sync::Arc;

/// An opened snapshot.
pub(super) struct Opened {
    pub(super) pin: Pin,
}

/// A snapshot that is being received.
pub(super) struct Receiving {
    pub(super) group: GroupId,
    pub(super) tree_number: u64,
    pub(super) tree: Arc<Tree>,
    next: u64,
}

impl Receiving {
    pub(super) fn new(group: GroupId, tree_number: u64, tree: Arc<Tree>) -> Receiving {
        Receiving {
            group,
            tree_number,
            tree,
            next: 0,
        }
    }

    /// Takes the next chunk; a repeated one changes nothing.
    pub(super) fn take(&mut self, number: u64, chunk: &SnapshotChunk) -> Result<(), StoreError> {
        if number < self.next {
            return Ok(());
        }
        if number > self.next {
            return Err(StoreError::Refused(format!(
                "chunk {number} came, chunk {} is due",
                self.next
            )));
        }
        let mut changes = Changes::new();
        for (key, value) in &chunk.entries {
            changes.insert(key.to_vec(), Some(value.to_vec()));
        }
        self.tree.write(changes);
        self.tree.rotate();
        self.tree.flush()?;
        self.next += 1;
        Ok(())
    }

    /// Checks that all is there, and makes it durable.
    pub(super) fn complete(&self, meta: &SnapshotMeta) -> Result<(), StoreError> {
        let system: System = match self.tree.pin().get(keys::SYSTEM)? {
            Some(bytes) => records::read(&bytes)?,
            None => System::default(),
        };
        if system.meta != *meta {
            return Err(StoreError::Refused(format!(
                "the received state is at {:?}, its description says {:?}",
                system.meta.last_applied, meta.last_applied
            )));
        }
        self.tree.rotate();
        self.tree.flush()
    }
}
