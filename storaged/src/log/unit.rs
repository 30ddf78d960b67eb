//! The unit: what one device write holds. It starts at a block boundary, and no block with acknowledged bytes is ever
//! written again.
//!
//! Header, little-endian, 64 bytes: magic `MAREEUNT`, segment u64, LSN u64, durable-up-to LSN u64, incarnation u64, payload
//! length u32, flags u32 (0), CRC-32C u32 over the header without this field and the payload, 12 bytes 0. The payload is the
//! postcard of the records.

use mareedb_ipc::wire::storage::{KeyRange, LogEntry, NodeRecord};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId, ReplicaId, Vote, decode, encode};
use serde::{Deserialize, Serialize};

/// Units start at multiples of this.
pub const BLOCK: usize = 4096;
/// Bytes of a unit's header.
pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"MAREEUNT";
const CRC_AT: usize = 48;

/// A record. On disk: variants are only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// An operation of the log lane.
    Operation {
        /// Its name.
        id: OperationId,
        /// What it does.
        change: Change,
    },
    /// All small state at this moment: what was written before need not be read for it.
    Checkpoint(Checkpoint),
    /// Entries moved forward from a segment that is to be recycled.
    Moved {
        /// The group.
        group: GroupId,
        /// The entries.
        entries: Vec<LogEntry>,
    },
    /// Nothing: makes the durable-up-to mark of a quiet log catch up.
    Mark,
}

/// A change of one group's log, or of the node's records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// A replica exists.
    Create {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
        /// Its range.
        range: KeyRange,
    },
    /// A vote.
    Vote {
        /// The group.
        group: GroupId,
        /// The vote.
        vote: Vote,
    },
    /// Entries at the end.
    Append {
        /// The group.
        group: GroupId,
        /// The entries.
        entries: Vec<LogEntry>,
    },
    /// Entries after `last` are gone.
    Truncate {
        /// The group.
        group: GroupId,
        /// The last one kept.
        last: Option<LogPosition>,
    },
    /// Entries up to `upto` are forgotten.
    Purge {
        /// The group.
        group: GroupId,
        /// The last one forgotten.
        upto: LogPosition,
    },
    /// A commit position.
    Committed {
        /// The group.
        group: GroupId,
        /// The position.
        committed: Option<LogPosition>,
    },
    /// A record of the node.
    Node(NodeRecord),
}

/// Small state of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Groups.
    pub groups: Vec<GroupMark>,
    /// Records of the node.
    pub records: Vec<NodeRecord>,
    /// The last operation that is in the log.
    pub last: Option<OperationId>,
}

/// Small state of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMark {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its range.
    pub range: KeyRange,
    /// Its vote, and the operation that wrote it.
    pub vote: Option<(Vote, OperationId)>,
    /// Purge mark.
    pub purged: Option<LogPosition>,
    /// Last entry.
    pub last: Option<LogPosition>,
    /// Commit position.
    pub committed: Option<LogPosition>,
}

/// A unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The segment that it is in.
    pub segment: u64,
    /// Its number; each unit's is one above the one before.
    pub lsn: u64,
    /// Every unit up to this one was durable when this one was written.
    pub durable: u64,
    /// Incarnation of storaged that wrote it.
    pub incarnation: u64,
    /// Its records.
    pub records: Vec<Record>,
}

impl Unit {
    /// The bytes of the unit, whole blocks.
    pub fn encode(&self) -> Vec<u8> {
        let payload = encode(&self.records);
        let mut out = Vec::with_capacity((HEADER_BYTES + payload.len()).next_multiple_of(BLOCK));
        out.extend_from_slice(MAGIC);
        for word in [self.segment, self.lsn, self.durable, self.incarnation] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let len = u32::try_from(payload.len()).expect("batches are capped");
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&out), &payload);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(HEADER_BYTES, 0);
        out.extend_from_slice(&payload);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    /// The unit at the start of `bytes`, and how many bytes it takes; `None`: there is none.
    pub fn decode(bytes: &[u8]) -> Option<(Unit, usize)> {
        let header = bytes.get(..HEADER_BYTES)?;
        if &header[..8] != MAGIC {
            return None;
        }
        let word =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let half =
            |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let len = half(40) as usize;
        let payload = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(len)?)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..CRC_AT]), payload);
        if crc != half(CRC_AT) || half(44) != 0 {
            return None;
        }
        let unit = Unit {
            segment: word(8),
            lsn: word(16),
            durable: word(24),
            incarnation: word(32),
            records: decode(payload).ok()?,
        };
        Some((unit, (HEADER_BYTES + len).next_multiple_of(BLOCK)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_unit_comes_back_and_every_flipped_bit_is_noticed() {
        let unit = Unit {
            segment: 3,
            lsn: 9,
            durable: 8,
            incarnation: 1,
            records: vec![
                Record::Mark,
                Record::Moved {
                    group: GroupId(1),
                    entries: vec![],
                },
            ],
        };
        let bytes = unit.encode();
        assert_eq!(bytes.len(), BLOCK);
        assert_eq!(Unit::decode(&bytes), Some((unit, BLOCK)));
        let used = HEADER_BYTES + 8;
        for bit in (0..used * 8).filter(|bit| !(52..64).contains(&(bit / 8))) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let decoded = Unit::decode(&bad);
            assert!(
                decoded.is_none() || bit / 8 >= HEADER_BYTES + 4,
                "bit {bit}"
            );
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_none(mut bytes in prop::collection::vec(any::<u8>(), 0..200), magic: bool) {
            if magic && bytes.len() > 8 {
                bytes[..8].copy_from_slice(MAGIC);
            }
            prop_assert_eq!(Unit::decode(&bytes), None);
        }
    }
}
