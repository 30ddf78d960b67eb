//! The producing end of a ring.

use crate::bell::Bell;
use crate::ring::{
    AT_HEAD, AT_SENDER_EPOCH, AT_SLEEPING, AT_TAIL, AT_WAITING, RECORD_HEADER_BYTES, Ring,
    RingError, checksum, record_bytes,
};
use crate::wire::{RandomId, encode_into};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// The producing end; one a ring, in one process at a time.
///
/// What is sent becomes visible by [`Sender::publish`]. A process that dies before leaves nothing: its successor goes on
/// at the published tail.
pub struct Sender {
    ring: Ring,
    bell: Arc<Bell>,
    epoch: u64,
    published: u64,
    written: u64,
    head: u64,
    scratch: Vec<u8>,
}

impl Sender {
    pub(crate) fn attach(ring: Ring, bell: Arc<Bell>) -> Result<Sender, RingError> {
        let epoch = ring
            .map
            .word(AT_SENDER_EPOCH)
            .fetch_add(1, Ordering::AcqRel)
            + 1;
        let published = ring.tail();
        let mut sender = Sender {
            head: 0,
            bell,
            epoch,
            published,
            written: published,
            scratch: Vec::new(),
            ring,
        };
        if !published.is_multiple_of(8) {
            return Err(sender.ring.corrupt(
                sender.ring.link.from,
                format!("tail {published} is misaligned"),
            ));
        }
        sender.head()?;
        Ok(sender)
    }

    /// This side's epoch: how often a sender attached to this ring.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    /// Generation of the ring.
    pub fn generation(&self) -> RandomId {
        self.ring.generation
    }
    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.ring.capacity
    }
    /// The longest message, in bytes.
    pub fn max_message(&self) -> usize {
        self.ring.max_message()
    }
    /// The published tail.
    pub fn tail(&self) -> u64 {
        self.published
    }
    /// End of what was sent, published or not.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Sends a message and returns the end position of its record; `None`: no room now. Invisible until
    /// [`Sender::publish`].
    ///
    /// # Errors
    /// The message is too large, or the consumer's head is corrupt.
    pub fn try_send<T: Serialize>(&mut self, message: &T) -> Result<Option<u64>, RingError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        encode_into(message, &mut scratch);
        let sent = self.try_send_encoded(&scratch);
        // A rare large message must not pin its buffer for ever.
        scratch.shrink_to(256 << 10);
        self.scratch = scratch;
        sent
    }

    /// [`Sender::try_send`] of a message in its encoding.
    ///
    /// # Errors
    /// As [`Sender::try_send`].
    pub fn try_send_encoded(&mut self, bytes: &[u8]) -> Result<Option<u64>, RingError> {
        if bytes.len() > self.max_message() {
            return Err(RingError::TooLarge {
                link: self.ring.link,
                bytes: bytes.len(),
                max: self.max_message(),
            });
        }
        let need = record_bytes(bytes.len());
        if self.written - self.head + need > self.ring.capacity {
            self.head()?;
            if self.written - self.head + need > self.ring.capacity {
                return Ok(None);
            }
        }
        let mut header = [0; RECORD_HEADER_BYTES];
        let len = u32::try_from(bytes.len()).expect("bounded by max_message");
        header[..8].copy_from_slice(&self.written.to_le_bytes());
        header[8..12].copy_from_slice(&len.to_le_bytes());
        header[12..].copy_from_slice(&checksum(self.written, bytes).to_le_bytes());
        self.ring.write(self.written, &header);
        self.ring
            .write(self.written + RECORD_HEADER_BYTES as u64, bytes);
        self.written += need;
        Ok(Some(self.written))
    }

    /// Makes everything sent visible, and wakes the consumer if it sleeps.
    pub fn publish(&mut self) {
        if self.written == self.published {
            return;
        }
        self.published = self.written;
        self.ring
            .map
            .word(AT_TAIL)
            .store(self.written, Ordering::Release);
        // RING-5: pairs with the fence in `Receiver::arm`: either we see `sleeping`, or it sees `tail`.
        fence(Ordering::SeqCst);
        if self.ring.map.half(AT_SLEEPING).swap(0, Ordering::AcqRel) != 0 {
            self.bell.ring();
        }
    }

    /// The consumer's head: on a log lane, everything before it is durable.
    ///
    /// # Errors
    /// The head goes back, is misaligned, or lies beyond the tail.
    pub fn head(&mut self) -> Result<u64, RingError> {
        let head = self.ring.head();
        let valid = head >= self.head
            && head <= self.published
            && head.is_multiple_of(8)
            && self.published - head <= self.ring.capacity;
        if !valid {
            return Err(self.ring.corrupt(
                self.ring.link.to,
                format!(
                    "head {head} after {}, tail {}, capacity {}",
                    self.head, self.published, self.ring.capacity
                ),
            ));
        }
        self.head = head;
        Ok(head)
    }

    /// Bytes between head and what was sent.
    ///
    /// # Errors
    /// As [`Sender::head`].
    pub fn used(&mut self) -> Result<u64, RingError> {
        Ok(self.written - self.head()?)
    }

    /// Asks to be rung when the head moves beyond `seen_head`. `true`: it has not, sleep on the own bell; `false`: look
    /// again now.
    ///
    /// # Errors
    /// As [`Sender::head`].
    pub fn arm_progress(&mut self, seen_head: u64) -> Result<bool, RingError> {
        let waiting = self.ring.map.half(AT_WAITING);
        waiting.store(1, Ordering::Release);
        // RING-5: pairs with the fence in `Receiver::release`.
        fence(Ordering::SeqCst);
        if self.head()? != seen_head {
            self.ring.map.half(AT_WAITING).store(0, Ordering::Release);
            return Ok(false);
        }
        Ok(true)
    }
}

const _: () = assert!(
    AT_HEAD.abs_diff(AT_TAIL) >= 128,
    "each word has its own cache lines"
);
