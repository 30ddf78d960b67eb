//! Identifiers and log positions.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A replication group. 0 is the meta group; data groups count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupId(pub u32);

/// The meta group: members, ids, range descriptors, settings.
pub const META_GROUP: GroupId = GroupId(0);
/// The first data group, which holds the whole key space until it is split.
pub const FIRST_DATA_GROUP: GroupId = GroupId(1);

impl GroupId {
    /// Whether this is the meta group.
    pub fn is_meta(self) -> bool {
        self == META_GROUP
    }
}
impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}

/// A replica of a group; allocated per placement and never reused. It is openraft's `NodeId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReplicaId(pub u64);
impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A node's internal id; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A random 128-bit value, drawn once and never reused: cluster ids, incarnations, link generations, start ids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RandomId(pub u128);
impl RandomId {
    /// Draws a fresh one from the kernel.
    ///
    /// # Panics
    /// If the kernel's random source fails, which Linux does not do after boot.
    pub fn draw() -> Self {
        let mut bytes = [0u8; 16];
        crate::world::draw(&mut bytes);
        RandomId(u128::from_le_bytes(bytes))
    }
    /// Parses what [`fmt::Display`] prints: 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(RandomId)
    }
}
impl fmt::Display for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The place of an entry in a group's log: the term that proposed it, and its index. Indexes start at 0 (openraft's
/// initial membership entry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// Index in the group's log.
    pub index: u64,
}
impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// A group's durable vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Term.
    pub term: u64,
    /// The replica voted for; `None` when the term was only seen.
    pub voted_for: Option<ReplicaId>,
    /// Whether a quorum granted it, so that `voted_for` leads the term.
    pub committed: bool,
}

/// Names an operation on a log ring for ever: the link's generation and the end position of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OperationId {
    /// Generation of the link.
    pub generation: RandomId,
    /// Position just past the operation's record.
    pub position: u64,
}

/// A 64-bit hybrid logical clock: milliseconds since 1970 in the upper 46 bits, a counter in the lower 18.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
pub struct Revision(pub u64);
impl Revision {
    /// Bits of the counter.
    pub const COUNTER_BITS: u32 = 18;
    /// The earliest revision of a millisecond.
    pub fn from_unix_ms(unix_ms: u64) -> Self {
        Revision(unix_ms << Self::COUNTER_BITS)
    }
    /// The millisecond that the revision belongs to.
    pub fn unix_ms(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }
    /// The next revision.
    pub fn next(self) -> Self {
        Revision(self.0 + 1)
    }
}
impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
