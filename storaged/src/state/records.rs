//! Values of a replica's tree. On disk and in snapshots: the state record carries a version, which stands for all of them.

use super::StoreError;
use super::tree::Pin;
use super::{batch, keys};
use bytes::Bytes;
use mareedb_ipc::wire::command::Outcome;
use mareedb_ipc::wire::storage::SnapshotMeta;
use mareedb_ipc::wire::{NodeId, Revision, decode, encode, encode_into};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of all records, the first byte of the state record.
const VERSION: u8 = 2;

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
    /// Idempotency keys used before this have expired and are gone: where to look for the next.
    pub(super) expired: Revision,
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
            expired: Revision(0),
            digest: 0,
        }
    }
}

impl System {
    /// The one of a tree; that of an empty tree is the first one.
    pub(super) fn of(pin: &Pin) -> Result<System, StoreError> {
        match pin.get(keys::SYSTEM)? {
            Some(bytes) => System::parse(&bytes),
            None => Ok(System::default()),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        encode_into(self, &mut out);
        out
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<System, StoreError> {
        match bytes.split_first() {
            Some((&VERSION, body)) => read(body),
            first => Err(StoreError::Damaged(format!(
                "a state of version {:?}, this program knows {VERSION}",
                first.map(|(version, _)| version)
            ))),
        }
    }

    /// The digest of everything that replicas must agree on (DET-1).
    pub(super) fn digest(&self) -> String {
        format!("{:032x}", batch::hash(keys::SYSTEM, &self.write()))
    }
}

pub(super) fn write<T: Serialize>(value: &T) -> Vec<u8> {
    encode(value)
}

pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    decode(bytes).map_err(|error| StoreError::Damaged(error.to_string()))
}

/// Whether a raw pair is one that this version writes.
pub(super) fn is_record(key: &[u8], value: &[u8]) -> bool {
    let version =
        |gone: bool| read::<Version>(value).is_ok_and(|version| gone || version.value.is_some());
    match key.first() {
        Some(b'd') => version(false),
        Some(b'h') => keys::parse_history(key).is_some() && version(true),
        Some(b'g') => {
            keys::parse_garbage(key).is_some_and(|(_, key)| keys::parse_history(key).is_some())
                && value.is_empty()
        }
        Some(b'i') => {
            std::str::from_utf8(&key[1..]).is_ok()
                && read::<Idempotent>(value)
                    .is_ok_and(|record| read::<Outcome>(&record.outcome).is_ok())
        }
        Some(b'e') => keys::parse_expiry(key).is_some() && value.is_empty(),
        Some(b'o') => keys::parse_session(key).is_some() && read::<Session>(value).is_ok(),
        Some(b'r') => keys::parse_result(key).is_some() && read::<Outcome>(value).is_ok(),
        Some(b's') => key == keys::SYSTEM && System::parse(value).is_ok(),
        _ => false,
    }
}
