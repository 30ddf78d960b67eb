//! The layout of a ring, and what both ends check of it.

use crate::mapping::Mapping;
use crate::protocol::{Atomics, Real};
use crate::topology::LinkId;
use crate::wire::{RandomId, WireError};

/// The header page in front of the data.
pub(crate) const HEADER_BYTES: usize = 4096;
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"MAREERNG");
pub(crate) const AT_MAGIC: usize = 0;
pub(crate) const AT_GENERATION: usize = 16;
// One cache line a word that one side writes and the other reads.
pub(crate) const AT_TAIL: usize = 128;
pub(crate) const AT_HEAD: usize = 256;
pub(crate) const AT_SLEEPING: usize = 384;
pub(crate) const AT_WAITING: usize = 512;
pub(crate) const AT_SENDER_EPOCH: usize = 640;
pub(crate) const AT_RECEIVER_EPOCH: usize = 768;

/// Memory is given back in pages of this size, or of the machine's when those are larger.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// No position gets here in the life of a machine; what lies beyond was not counted but written by accident. Keeps sums
/// of positions and lengths far from overflow.
pub(crate) const POSITION_MAX: u64 = 1 << 62;
const _: () = assert!(
    AT_HEAD.abs_diff(AT_TAIL) >= 128,
    "each word has its own cache lines"
);

/// position u64, length u32, crc u32.
pub(crate) const RECORD_HEADER_BYTES: usize = 16;

/// Why a ring cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Shared memory holds what no correct peer writes: both ends need a new link.
    #[error("link {link} is corrupt, written by {}: {what}", .blame)]
    Corrupt {
        /// Which.
        link: LinkId,
        /// Who wrote the bad word.
        blame: crate::Role,
        /// What was found.
        what: String,
    },
    /// A message beyond [`crate::Sender::max_message`].
    #[error("a message of {bytes} bytes on link {link}, which takes at most {max}")]
    TooLarge {
        /// Which.
        link: LinkId,
        /// The message.
        bytes: usize,
        /// The most that fits.
        max: usize,
    },
    /// A whole record that is no message: the peer's code is at fault.
    #[error("link {link}: {source}")]
    Decode {
        /// Which.
        link: LinkId,
        /// What the decoder met.
        source: WireError,
    },
}

pub(crate) struct Ring {
    pub(crate) map: Mapping,
    pub(crate) link: LinkId,
    pub(crate) capacity: u64,
    pub(crate) generation: RandomId,
}

impl Ring {
    /// `capacity` and `generation` come from the supervisor, never from the memory that a peer can write: the memory must
    /// agree with them (RING-4).
    pub(crate) fn open(
        map: Mapping,
        link: LinkId,
        capacity: u64,
        generation: RandomId,
    ) -> Result<Ring, RingError> {
        let ring = Ring {
            generation,
            map,
            link,
            capacity,
        };
        let magic = ring.load(AT_MAGIC);
        if magic != MAGIC {
            return Err(ring.corrupt(crate::Role::Supervisor, format!("magic {magic:#x}")));
        }
        let found = read_generation(&ring.map);
        if found != generation {
            return Err(ring.corrupt(
                crate::Role::Supervisor,
                format!("generation {found}, {generation} expected"),
            ));
        }
        Ok(ring)
    }

    /// Prepares fresh memory; done once, by the supervisor, before anybody maps it.
    pub(crate) fn format(map: &Mapping, generation: RandomId) {
        map.write(AT_GENERATION, &generation.0.to_le_bytes());
        map.word(AT_MAGIC)
            .store(MAGIC, std::sync::atomic::Ordering::Release);
    }

    fn load(&self, at: usize) -> u64 {
        Real::look(self.map.word(at))
    }

    /// The consumer's head, RING-3: aligned, not behind `seen`, not beyond `published`, at most a ring behind it.
    pub(crate) fn head_after(&self, seen: u64, published: u64) -> Result<u64, RingError> {
        let head = self.head();
        let valid = head >= seen
            && head <= published
            && head.is_multiple_of(8)
            && published - head <= self.capacity;
        if valid {
            return Ok(head);
        }
        Err(self.corrupt(
            self.link.to,
            format!(
                "head {head} after {seen}, tail {published}, capacity {}",
                self.capacity
            ),
        ))
    }

    /// The producer's tail, RING-3: aligned, not behind `seen`, at most a ring beyond `head` (which is not beyond `seen`).
    pub(crate) fn tail_after(&self, seen: u64, head: u64) -> Result<u64, RingError> {
        let tail = self.tail();
        let valid = tail >= seen
            && tail.is_multiple_of(8)
            && tail <= POSITION_MAX
            && tail - head <= self.capacity;
        if valid {
            return Ok(tail);
        }
        Err(self.corrupt(
            self.link.from,
            format!(
                "tail {tail} after {seen}, head {head}, capacity {}",
                self.capacity
            ),
        ))
    }

    pub(crate) fn tail(&self) -> u64 {
        self.load(AT_TAIL)
    }
    pub(crate) fn head(&self) -> u64 {
        self.load(AT_HEAD)
    }

    pub(crate) fn corrupt(&self, blame: crate::Role, what: String) -> RingError {
        RingError::Corrupt {
            link: self.link,
            blame,
            what,
        }
    }

    pub(crate) fn max_message(&self) -> usize {
        usize::try_from(self.capacity / 4).expect("rings fit into memory") - RECORD_HEADER_BYTES
    }

    fn place(&self, position: u64) -> (usize, usize) {
        let at = usize::try_from(position & (self.capacity - 1)).expect("rings fit into memory");
        let room = usize::try_from(self.capacity).expect("rings fit into memory") - at;
        (at, room)
    }

    /// Copies bytes in at a position, around the end.
    #[inline]
    pub(crate) fn write(&self, position: u64, bytes: &[u8]) {
        let (at, room) = self.place(position);
        // Nearly always: then a header's length is known here, and its copy is two stores.
        if bytes.len() <= room {
            self.map.write(HEADER_BYTES + at, bytes);
            return;
        }
        let (first, second) = bytes.split_at(room);
        self.map.write(HEADER_BYTES + at, first);
        self.map.write(HEADER_BYTES, second);
    }

    /// Gives the memory of the whole pages between two positions back, around the end.
    pub(crate) fn forget(&self, from: u64, to: u64) {
        let (from, to) = (from.next_multiple_of(PAGE_BYTES), to & !(PAGE_BYTES - 1));
        if from >= to {
            return;
        }
        let (at, room) = self.place(from);
        let len = usize::try_from(to - from).expect("rings fit into memory");
        let first = len.min(room);
        self.map.forget(HEADER_BYTES + at, first);
        if len > first {
            self.map.forget(HEADER_BYTES, len - first);
        }
    }

    /// Copies a record's header out from a position, around the end.
    #[inline]
    pub(crate) fn read_header(&self, position: u64) -> [u8; RECORD_HEADER_BYTES] {
        let mut header = [0; RECORD_HEADER_BYTES];
        let (at, room) = self.place(position);
        if RECORD_HEADER_BYTES <= room {
            self.map.read(HEADER_BYTES + at, &mut header);
            return header;
        }
        let (first, second) = header.split_at_mut(room);
        self.map.read(HEADER_BYTES + at, first);
        self.map.read(HEADER_BYTES, second);
        header
    }

    /// Copies so many bytes out from a position, around the end.
    pub(crate) fn read(&self, position: u64, len: usize) -> Vec<u8> {
        let (at, room) = self.place(position);
        let mut bytes = Vec::with_capacity(len);
        self.map
            .append_to(&mut bytes, HEADER_BYTES + at, len.min(room));
        if len > room {
            self.map.append_to(&mut bytes, HEADER_BYTES, len - room);
        }
        bytes
    }
}

fn read_generation(map: &Mapping) -> RandomId {
    let mut bytes = [0; 16];
    map.read(AT_GENERATION, &mut bytes);
    RandomId(u128::from_le_bytes(bytes))
}

/// Bytes that a record with `len` payload bytes takes.
pub(crate) fn record_bytes(len: usize) -> u64 {
    (RECORD_HEADER_BYTES + len).next_multiple_of(8) as u64
}

/// Without it sixteen zero bytes at position 0 would be a whole record.
const NOT_ZEROS: u32 = 0x4D41_5245;

/// The checksum of a record: CRC-32C of the payload that begins with its absolute position and length instead of 0, so that
/// a stale lap never validates.
///
/// They are the beginning and not the first twelve bytes, since a second run over so few bytes costs as much as one over a
/// short message. Different beginnings give different sums for the same bytes, and the position is compared anyway.
pub(crate) fn checksum(position: u64, payload: &[u8]) -> u32 {
    let len = u32::try_from(payload.len()).expect("messages are bounded");
    // Positions are multiples of 8. Both halves are meant.
    #[allow(clippy::cast_possible_truncation)]
    let folded = (position >> 3) as u32 ^ (position >> 35) as u32;
    crc32c::crc32c_append(folded ^ len.rotate_left(16) ^ NOT_ZEROS, payload)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn zeros_are_no_record() {
        assert_ne!(checksum(0, b""), 0);
    }
}
