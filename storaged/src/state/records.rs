//! Values of a replica's tree. On disk and in snapshots: the state record carries a version, which stands for all of them.

use super::StoreError;
use super::tree::Pin;
use super::{batch, history, keys};
use bytes::Bytes;
use mareedb_ipc::wire::command::{Election, Outcome, Rules};
use mareedb_ipc::wire::storage::SnapshotMeta;
use mareedb_ipc::wire::{NodeId, Revision, decode, encode_into};
use serde::{Deserialize, Serialize};

/// Version of all records, the first byte of the state record.
const VERSION: u8 = 4;

/// Bytes of the state record before its body: the version, and a CRC-32C of the body.
const HEAD_BYTES: usize = 5;

/// Later than any logged time.
pub(super) const NEVER: u64 = u64::MAX;

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) create: Revision,
    pub(super) modified: Revision,
    pub(super) version: u64,
    /// `None`: the key was deleted at `modified`.
    pub(super) value: Option<Bytes>,
}

/// A [`Version`], without a copy of its value.
#[derive(Debug, Deserialize)]
pub(super) struct VersionRef<'a> {
    pub(super) create: Revision,
    pub(super) modified: Revision,
    pub(super) version: u64,
    #[serde(borrow)]
    pub(super) value: Option<&'a [u8]>,
}

/// A client's idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Idempotent {
    pub(super) fingerprint: u128,
    /// Logged time of its use.
    pub(super) at: u64,
    pub(super) outcome: Bytes,
}

/// A gateway session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) node: NodeId,
    pub(super) low_water: u64,
    /// Logged time of its last use.
    pub(super) used: u64,
}

/// The replica's own record: part of each batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct System {
    pub(super) meta: SnapshotMeta,
    /// The revision clock.
    pub(super) clock: Revision,
    /// Logged time in ms: what leaders have measured.
    pub(super) ms: u64,
    /// Bytes of current keys and values.
    pub(super) data_bytes: u64,
    /// Idempotency keys that are kept.
    pub(super) idempotent: u64,
    /// Idempotency keys used before this logged time have expired and are gone: where to look for the next.
    pub(super) expired: u64,
    /// No idempotency key that is kept was used before this logged time.
    pub(super) next_expiry: u64,
    /// Sum of the hashes of everything that replicas must agree on.
    pub(super) digest: u128,
    /// What outcomes depend on, as the last leader declared it.
    pub(super) rules: Rules,
    /// The oldest revision that a read may ask for: by logged time, so that it is the same on all replicas, whatever was
    /// collected when.
    pub(super) oldest: Revision,
    /// Logged times and the revisions at them, later ones last.
    pub(super) marks: Vec<(u64, Revision)>,
    /// The term of the last election that is remembered.
    pub(super) elected_term: u64,
    /// Elections that are remembered.
    pub(super) elections: u64,
}

impl System {
    /// That of a replica that has applied nothing.
    pub(super) fn first(rules: &Rules) -> Self {
        System {
            meta: SnapshotMeta {
                last_applied: None,
                membership: None,
            },
            clock: Revision(0),
            ms: 0,
            data_bytes: 0,
            idempotent: 0,
            expired: 0,
            next_expiry: NEVER,
            digest: 0,
            rules: rules.clone(),
            oldest: Revision(0),
            marks: Vec::new(),
            elected_term: 0,
            elections: 0,
        }
    }

    /// The one of a tree; that of an empty tree is the first one.
    pub(super) fn of(pin: &Pin, first: &Rules) -> Result<System, StoreError> {
        match pin.get(keys::SYSTEM)? {
            Some(bytes) => System::parse(&bytes),
            None => Ok(System::first(first)),
        }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = vec![VERSION, 0, 0, 0, 0];
        encode_into(self, &mut out);
        let sum = crc32c::crc32c(&out[HEAD_BYTES..]);
        out[1..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<System, StoreError> {
        let version = bytes.first().copied();
        if version != Some(VERSION) {
            return Err(StoreError::Damaged(format!(
                "a state of version {version:?}, this program knows {VERSION}"
            )));
        }
        let Some((head, body)) = bytes.split_at_checked(HEAD_BYTES) else {
            return Err(StoreError::Damaged("a state that is cut short".into()));
        };
        if head[1..] != crc32c::crc32c(body).to_le_bytes() {
            return Err(StoreError::Damaged(
                "a state whose checksum is wrong".into(),
            ));
        }
        let system: System = read(body)?;
        if !history::is_sound(&system) {
            return Err(StoreError::Damaged(
                "a state whose moments contradict its clock".into(),
            ));
        }
        Ok(system)
    }

    /// The digest of everything that replicas must agree on (DET-1).
    pub(super) fn digest(&self) -> String {
        format!("{:032x}", batch::hash(keys::SYSTEM, &self.write()))
    }
}

pub(super) fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, StoreError> {
    decode(bytes).map_err(|error| StoreError::Damaged(error.to_string()))
}

/// Whether a raw pair is one that this version writes.
pub(super) fn is_record(key: &[u8], value: &[u8]) -> bool {
    let version = |gone: bool| {
        read::<Version>(value).is_ok_and(|version| {
            // A key that is written so often would have no next version.
            version.version < u64::MAX && (gone || version.value.is_some())
        })
    };
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
        Some(b'v') => keys::parse_election(key).is_some() && read::<Election>(value).is_ok(),
        Some(b's') => key == keys::SYSTEM && System::parse(value).is_ok(),
        _ => false,
    }
}
