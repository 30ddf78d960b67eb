//! Values of a replica's tree. On disk and in snapshots: fields are only added at the end, behind a version.

use super::StoreError;
use bytes::Bytes;
use mareedb_ipc::wire::storage::SnapshotMeta;
use mareedb_ipc::wire::{NodeId, Revision, decode, encode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) create: Revision,
    pub(super) modified: Revision,
    pub(super) version: u64,
    /// `None`: the key was deleted at `modified`.
    pub(super) value: Option<Bytes>,
}

/// A client's idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Idempotent {
    pub(super) fingerprint: u128,
    pub(super) at: Revision,
    pub(super) outcome: Bytes,
}

/// A gateway session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) node: NodeId,
    pub(super) low_water: u64,
    pub(super) used: Revision,
}

/// The replica's own record: part of each batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct System {
    pub(super) meta: SnapshotMeta,
    /// The revision clock, which also is logged time.
    pub(super) clock: Revision,
    /// Bytes of current keys and values.
    pub(super) data_bytes: u64,
    /// Idempotency keys that are kept.
    pub(super) idempotent: u64,
    /// Sum of the hashes of everything that replicas must agree on.
    pub(super) digest: u128,
}

impl Default for System {
    fn default() -> Self {
        System {
            meta: SnapshotMeta {
                last_applied: None,
                membership: None,
            },
            clock: Revision(0),
            data_bytes: 0,
            idempotent: 0,
            digest: 0,
        }
    }
}

pub(super) fn write<T: Serialize>(value: &T) -> Vec<u8> {
    encode(value)
}

pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    decode(bytes).map_err(|error| StoreError::Damaged(error.to_string()))
}
