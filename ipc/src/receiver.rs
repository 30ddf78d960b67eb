//! The consuming end of a ring.

use crate::bell::Bell;
use crate::protocol::{Real, announce, arm};
use crate::ring::{
    AT_HEAD, AT_RECEIVER_EPOCH, AT_SLEEPING, AT_WAITING, POSITION_MAX, RECORD_HEADER_BYTES, Ring,
    RingError, checksum, record_bytes,
};
use crate::wire::{RandomId, decode};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The consuming end; one a ring, in one process at a time.
///
/// Receiving advances a private cursor; [`Receiver::release`] publishes how far everything is handled. A process that
/// dies between the two is followed by one that receives the same messages again: at least once, in order.
pub struct Receiver {
    ring: Ring,
    bell: Arc<Bell>,
    epoch: u64,
    head: u64,
    cursor: u64,
    tail: u64,
}

impl Receiver {
    pub(crate) fn attach(ring: Ring, bell: Arc<Bell>) -> Result<Receiver, RingError> {
        // RING-7.
        let epoch = ring
            .map
            .word(AT_RECEIVER_EPOCH)
            .fetch_add(1, Ordering::AcqRel)
            .wrapping_add(1);
        let head = ring.head();
        let mut receiver = Receiver {
            bell,
            epoch,
            head,
            cursor: head,
            tail: head,
            ring,
        };
        if !head.is_multiple_of(8) || head > POSITION_MAX {
            return Err(receiver
                .ring
                .corrupt(receiver.ring.link.to, format!("head {head} is no position")));
        }
        receiver.tail()?;
        Ok(receiver)
    }

    /// This side's epoch: how often a receiver attached to this ring.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    /// Generation of the ring.
    pub fn generation(&self) -> RandomId {
        self.ring.generation
    }
    /// What is released.
    pub fn head(&self) -> u64 {
        self.head
    }
    /// End of what was received.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The producer's published tail.
    ///
    /// # Errors
    /// It goes back, is misaligned, or is further from the head than the ring is long.
    pub fn tail(&mut self) -> Result<u64, RingError> {
        let tail = self.ring.tail_after(self.tail, self.head)?;
        self.tail = tail;
        Ok(tail)
    }

    /// The next message and the end position of its record; `None`: there is none now.
    ///
    /// # Errors
    /// The ring is corrupt, or a whole record is no `T`.
    pub fn try_recv<T: DeserializeOwned>(&mut self) -> Result<Option<(T, u64)>, RingError> {
        let Some((bytes, end)) = self.try_recv_encoded()? else {
            return Ok(None);
        };
        let message = decode(&bytes).map_err(|source| RingError::Decode {
            link: self.ring.link,
            source,
        })?;
        Ok(Some((message, end)))
    }

    /// [`Receiver::try_recv`] without decoding.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn try_recv_encoded(&mut self) -> Result<Option<(Bytes, u64)>, RingError> {
        if self.cursor == self.tail && self.tail()? == self.cursor {
            return Ok(None);
        }
        let corrupt = |what: String| self.ring.corrupt(self.ring.link.from, what);
        let at = self.cursor;
        let available = self.tail - at;
        if available < RECORD_HEADER_BYTES as u64 {
            return Err(corrupt(format!("{available} bytes of a record at {at}")));
        }
        let header = self.ring.read_header(at);
        let position = u64::from_le_bytes(header[..8].try_into().expect("8 bytes"));
        // RING-3: the length is read once; what is checked is what is used.
        let len = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes")) as usize;
        let crc = u32::from_le_bytes(header[12..].try_into().expect("4 bytes"));
        if position != at || len > self.ring.max_message() || record_bytes(len) > available {
            return Err(corrupt(format!(
                "record at {at} claims position {position} and {len} bytes, {available} are there"
            )));
        }
        let payload = self.ring.read(at + RECORD_HEADER_BYTES as u64, len);
        if checksum(at, &payload) != crc {
            return Err(corrupt(format!("record at {at}: checksum does not match")));
        }
        self.cursor = at + record_bytes(len);
        Ok(Some((Bytes::from(payload), self.cursor)))
    }

    /// Says that everything before `upto` is handled: the room is the producer's again. A producer that waits for
    /// progress is woken.
    ///
    /// # Panics
    /// `upto` goes back, beyond what was received, or is no end position of a record.
    pub fn release(&mut self, upto: u64) {
        assert!(
            upto >= self.head && upto <= self.cursor && upto.is_multiple_of(8),
            "RING-2: release of {upto}, head {}, cursor {}",
            self.head,
            self.cursor
        );
        if upto == self.head {
            return;
        }
        self.head = upto;
        let map = &self.ring.map;
        if announce::<Real>(map.word(AT_HEAD), map.half(AT_WAITING), upto) {
            self.bell.ring();
        }
    }

    /// Announces that this side goes to sleep. `true`: nothing is there, sleep on the own bell; `false`: receive first.
    ///
    /// # Errors
    /// As [`Receiver::tail`].
    pub fn arm(&mut self) -> Result<bool, RingError> {
        let mut found = None;
        let Receiver { ring, .. } = self;
        let sleep = arm::<Real, RingError>(ring.map.half(AT_SLEEPING), || {
            let tail = ring.tail_after(self.tail, self.head)?;
            found = Some(tail);
            Ok(tail != self.cursor)
        })?;
        self.tail = found.unwrap_or(self.tail);
        Ok(sleep)
    }
}
