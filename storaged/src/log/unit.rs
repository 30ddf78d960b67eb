//! The unit: what one device write holds. It starts at a block boundary, and no block with acknowledged bytes is ever
//! written again.
//!
//! Header, little-endian, 64 bytes: magic `MAREEUNT`, segment u64, LSN u64, durable-up-to LSN u64, incarnation u64, payload
//! length u32, version u32 (0), CRC-32C u32 over the header without this field and the payload, the log's key u64, 4 bytes 0.
//! The payload is the postcard of the records; the rest of the last block is 0 and means nothing.
//!
//! The key is drawn when the log is made, and nobody is told: bytes of a client, which lie in payloads as they came, can
//! never be taken for a unit.

use super::planted::{Fault, planted};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry, NodeRecord};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId, ReplicaId, Vote, decode, encode_into};
use serde::{Deserialize, Serialize};

/// Units start at multiples of this.
pub const BLOCK: usize = 4096;
/// Bytes of a unit's header.
pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"MAREEUNT";
const CRC_AT: usize = 48;
const KEY_AT: usize = 52;
/// Of the format of units.
const VERSION: u32 = 0;
/// Bytes that a record takes beside what in it may be of any length (entries, a range, a checkpoint), at most: its name, its group, a
/// vote or positions.
pub const RECORD_EXTRA_BYTES: usize = 64;
/// Bytes that an entry takes beside its payload, about: its position and the payload's length.
const ENTRY_EXTRA_BYTES: usize = 24;

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
    /// A received snapshot became the group's state: the entries that it covers are forgotten.
    Installed {
        /// The group.
        group: GroupId,
        /// The last entry that the snapshot covers.
        upto: LogPosition,
        /// Whether later ones are forgotten, too. Said here, for a reader of the log may not have met the entries yet.
        alone: bool,
    },
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
    /// The key of its log.
    pub key: u64,
    /// Its records.
    pub records: Vec<Record>,
}

fn checksum(header: &[u8], key: &[u8], payload: &[u8]) -> u32 {
    let before = crc32c::crc32c_append(crc32c::crc32c(header), key);
    crc32c::crc32c_append(before, payload)
}

/// Bytes that a record takes, about.
fn bytes_of(record: &Record) -> usize {
    let entries: &[LogEntry] = match record {
        Record::Operation {
            change: Change::Append { entries, .. },
            ..
        }
        | Record::Moved { entries, .. } => entries,
        _ => &[],
    };
    let entries = entries
        .iter()
        .map(|entry| ENTRY_EXTRA_BYTES + entry.body.payload_bytes());
    entries.sum::<usize>() + RECORD_EXTRA_BYTES
}

impl Unit {
    /// The bytes of the unit, whole blocks.
    pub fn encode(&self) -> Vec<u8> {
        let records: usize = self.records.iter().map(bytes_of).sum();
        let mut out = Vec::with_capacity((HEADER_BYTES + records).next_multiple_of(BLOCK));
        out.resize(HEADER_BYTES, 0);
        // Behind the header at once: a unit may be large.
        encode_into(&self.records, &mut out);
        let (header, payload) = out.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(MAGIC);
        for (at, word) in [self.segment, self.lsn, self.durable, self.incarnation]
            .into_iter()
            .enumerate()
        {
            header[8 + 8 * at..16 + 8 * at].copy_from_slice(&word.to_le_bytes());
        }
        let len = u32::try_from(payload.len()).expect("batches are capped");
        header[40..44].copy_from_slice(&len.to_le_bytes());
        header[44..48].copy_from_slice(&VERSION.to_le_bytes());
        let key = self.key.to_le_bytes();
        let crc = checksum(&header[..CRC_AT], &key, payload);
        header[CRC_AT..KEY_AT].copy_from_slice(&crc.to_le_bytes());
        header[KEY_AT..KEY_AT + 8].copy_from_slice(&key);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        out
    }

    /// The segment that a header names, and the bytes of its unit without what fills up the last block; nothing of it is
    /// checked.
    pub fn claim(header: &[u8], key: u64) -> Option<(u64, u64)> {
        let header = header.get(..HEADER_BYTES)?;
        if &header[..8] != MAGIC || header[KEY_AT..KEY_AT + 8] != key.to_le_bytes() {
            return None;
        }
        let segment = u64::from_le_bytes(header[8..16].try_into().ok()?);
        let len = u32::from_le_bytes(header[40..44].try_into().ok()?);
        Some((segment, HEADER_BYTES as u64 + u64::from(len)))
    }

    /// What is at the start of `bytes`, of the log with this key.
    pub fn decode(bytes: &[u8], key: u64) -> Found {
        Self::parse(bytes, key).unwrap_or(Found::Nothing)
    }

    fn parse(bytes: &[u8], key: u64) -> Option<Found> {
        let header = bytes.get(..HEADER_BYTES)?;
        if &header[..8] != MAGIC || header[KEY_AT..KEY_AT + 8] != key.to_le_bytes() {
            return None;
        }
        let word =
            |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let half =
            |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let len = half(40) as usize;
        let end = HEADER_BYTES.checked_add(len)?;
        let payload = bytes.get(HEADER_BYTES..end)?;
        if checksum(&header[..CRC_AT], &key.to_le_bytes(), payload) != half(CRC_AT)
            && !planted(Fault::Checksum)
        {
            return None;
        }
        let (segment, lsn) = (word(8), word(16));
        // From here on the bytes are what somebody wrote.
        let records = if half(44) == VERSION {
            decode(payload).ok()
        } else {
            None
        };
        let Some(records) = records else {
            return Some(Found::Foreign { segment, lsn });
        };
        let unit = Unit {
            segment,
            lsn,
            durable: word(24),
            incarnation: word(32),
            key,
            records,
        };
        Some(Found::Unit(unit, end.next_multiple_of(BLOCK)))
    }
}

/// What a block begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A unit, and the bytes that it takes.
    Unit(Unit, usize),
    /// A whole unit that this version cannot read: never to be taken for the end of a log.
    Foreign {
        /// The segment that it was written to.
        segment: u64,
        /// Its number.
        lsn: u64,
    },
    /// Nothing, or a part of a unit.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = 0x1234_5678_9ABC;
    use bytes::Bytes;
    use mareedb_ipc::wire::RandomId;
    use mareedb_ipc::wire::storage::EntryBody;
    use proptest::prelude::*;

    fn position() -> impl Strategy<Value = LogPosition> {
        (any::<u64>(), any::<u64>()).prop_map(|(term, index)| LogPosition { term, index })
    }

    fn entries() -> impl Strategy<Value = Vec<LogEntry>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..6000).prop_map(Bytes::from);
        let body = prop_oneof![
            Just(EntryBody::Blank),
            bytes().prop_map(EntryBody::Normal),
            bytes().prop_map(EntryBody::Membership),
        ];
        let entry = (position(), body).prop_map(|(position, body)| LogEntry { position, body });
        prop::collection::vec(entry, 0..6)
    }

    fn change() -> impl Strategy<Value = Change> {
        let group = || any::<u32>().prop_map(GroupId);
        prop_oneof![
            (group(), any::<u64>()).prop_map(|(group, id)| Change::Create {
                group,
                replica: ReplicaId(id),
                range: KeyRange::whole(),
            }),
            (group(), any::<u64>(), any::<bool>()).prop_map(|(group, term, committed)| {
                let vote = Vote {
                    term,
                    voted_for: Some(ReplicaId(term)),
                    committed,
                };
                Change::Vote { group, vote }
            }),
            (group(), entries()).prop_map(|(group, entries)| Change::Append { group, entries }),
            (group(), prop::option::of(position()))
                .prop_map(|(group, last)| Change::Truncate { group, last }),
            (group(), position()).prop_map(|(group, upto)| Change::Purge { group, upto }),
            (group(), prop::option::of(position()))
                .prop_map(|(group, committed)| Change::Committed { group, committed }),
            ("[a-z]{0,9}", entries()).prop_map(|(name, _)| Change::Node(NodeRecord {
                name,
                value: Bytes::from_static(b"value"),
            })),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            4 => (any::<u128>(), any::<u64>(), change()).prop_map(|(generation, position, change)| {
                let id = OperationId { generation: RandomId(generation), position };
                Record::Operation { id, change }
            }),
            1 => (any::<u32>(), entries())
                .prop_map(|(group, entries)| Record::Moved { group: GroupId(group), entries }),
            1 => (any::<u32>(), position(), any::<bool>()).prop_map(|(group, upto, alone)| {
                Record::Installed { group: GroupId(group), upto, alone }
            }),
            1 => Just(Record::Mark),
        ]
    }

    fn unit() -> impl Strategy<Value = Unit> {
        (any::<[u64; 4]>(), prop::collection::vec(record(), 0..5)).prop_map(|(words, records)| {
            Unit {
                segment: words[0],
                lsn: words[1],
                durable: words[2],
                incarnation: words[3],
                key: KEY,
                records,
            }
        })
    }

    /// Bytes that the checksum covers.
    fn covered(bytes: &[u8]) -> usize {
        HEADER_BYTES + u32::from_le_bytes(bytes[40..44].try_into().unwrap()) as usize
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_nothing(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            magic: bool,
        ) {
            if magic && bytes.len() > 8 {
                bytes[..8].copy_from_slice(MAGIC);
            }
            prop_assert_eq!(Unit::decode(&bytes, KEY), Found::Nothing);
        }

        #[test]
        fn a_unit_comes_back_as_whole_blocks(unit in unit()) {
            let bytes = unit.encode();
            prop_assert!(bytes.len().is_multiple_of(BLOCK));
            let whole = bytes.len();
            prop_assert_eq!(Unit::decode(&bytes, KEY), Found::Unit(unit, whole));
        }

        #[test]
        fn a_damaged_or_torn_unit_is_nothing(unit in unit(), at: prop::sample::Index, flip in 1..=255u8) {
            let bytes = unit.encode();
            let end = covered(&bytes);
            let mut bad = bytes.clone();
            let byte = at.index(end);
            bad[byte] ^= flip;
            // The last bytes of the header say nothing, and are not covered.
            if !(52..HEADER_BYTES).contains(&byte) {
                prop_assert_eq!(Unit::decode(&bad, KEY), Found::Nothing, "byte {}", byte);
            }
            prop_assert_eq!(Unit::decode(&bytes[..at.index(end)], KEY), Found::Nothing);
        }
    }

    #[test]
    fn a_whole_unit_of_another_version_is_never_nothing() {
        let unit = Unit {
            segment: 3,
            lsn: 9,
            durable: 8,
            incarnation: 1,
            key: KEY,
            records: vec![Record::Mark],
        };
        let foreign = Found::Foreign { segment: 3, lsn: 9 };
        let seal = |bytes: &mut Vec<u8>| {
            let end = covered(bytes);
            let crc = checksum(
                &bytes[..CRC_AT],
                &KEY.to_le_bytes(),
                &bytes[HEADER_BYTES..end],
            );
            bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        };
        let mut newer = unit.encode();
        newer[44] = 1;
        assert_eq!(
            Unit::decode(&newer, KEY),
            Found::Nothing,
            "not what its checksum says"
        );
        seal(&mut newer);
        assert_eq!(Unit::decode(&newer, KEY), foreign);
        // A record that this version does not know.
        let mut unknown = unit.encode();
        unknown[HEADER_BYTES + 1] = 99;
        seal(&mut unknown);
        assert_eq!(Unit::decode(&unknown, KEY), foreign);
    }

    #[test]
    fn what_a_client_writes_is_never_a_unit() {
        let forged = Unit {
            segment: 3,
            lsn: u64::MAX,
            durable: u64::MAX,
            incarnation: 0,
            key: 0,
            records: vec![Record::Mark],
        }
        .encode();
        assert_eq!(Unit::decode(&forged, KEY), Found::Nothing);
        assert_eq!(Unit::claim(&forged, KEY), None);
        assert!(matches!(Unit::decode(&forged, 0), Found::Unit(..)));
    }
}
