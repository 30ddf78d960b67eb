//! The producing end of a ring.

use crate::bell::Bell;
use crate::protocol::{Real, announce, arm};
use crate::ring::{
    AT_SENDER_EPOCH, AT_SLEEPING, AT_TAIL, AT_WAITING, PAGE_BYTES, POSITION_MAX,
    RECORD_HEADER_BYTES, Ring, RingError, checksum, record_bytes,
};
use crate::wire::{RandomId, encode_into};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// After so many bytes, or a quarter of the ring, the memory of what was handled is given back. A ring would otherwise cost its whole capacity once it has been
/// around, for ever; this way it costs what is in it, and some of this.
const GIVE_BACK: u64 = 512 << 10;

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
    /// The memory of everything before is given back.
    given_back: u64,
    /// Where the next is.
    give_back_at: u64,
    scratch: Vec<u8>,
}

impl Sender {
    pub(crate) fn attach(ring: Ring, bell: Arc<Bell>) -> Result<Sender, RingError> {
        // RING-7.
        let epoch = ring
            .map
            .word(AT_SENDER_EPOCH)
            .fetch_add(1, Ordering::AcqRel)
            .wrapping_add(1);
        let published = ring.tail();
        let mut sender = Sender {
            head: 0,
            // What a predecessor kept lies up to a lap behind.
            given_back: published.saturating_sub(ring.capacity),
            give_back_at: published.saturating_add(GIVE_BACK.min(ring.capacity / 4)),
            bell,
            epoch,
            published,
            written: published,
            scratch: Vec::new(),
            ring,
        };
        if !published.is_multiple_of(8) || published > POSITION_MAX {
            return Err(sender.ring.corrupt(
                sender.ring.link.from,
                format!("tail {published} is no position"),
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
        if self.written >= self.give_back_at {
            self.give_back()?;
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

    /// Gives back the memory of what was handled since the last time. It is the producer's to do (RING-10).
    fn give_back(&mut self) -> Result<(), RingError> {
        let head = self.head()?;
        // What was handled a lap before what is written now has its place taken.
        let from = self
            .given_back
            .max(self.written.saturating_sub(self.ring.capacity));
        self.ring.forget(from, head);
        // A page that is begun is for the next time.
        self.given_back = head & !(PAGE_BYTES - 1);
        self.give_back_at = self
            .written
            .saturating_add(GIVE_BACK.min(self.ring.capacity / 4));
        Ok(())
    }

    /// Makes everything sent visible, which is whole by then (RING-1), and wakes the consumer if it sleeps.
    pub fn publish(&mut self) {
        if self.written == self.published {
            return;
        }
        self.published = self.written;
        let map = &self.ring.map;
        if announce::<Real>(map.word(AT_TAIL), map.half(AT_SLEEPING), self.written) {
            self.bell.ring();
        }
    }

    /// The consumer's head: on a log lane, everything before it is durable.
    ///
    /// # Errors
    /// The head goes back, is misaligned, or lies beyond the tail.
    pub fn head(&mut self) -> Result<u64, RingError> {
        let head = self.ring.head_after(self.head, self.published)?;
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
    /// again now. Publishes what was sent: room never comes while the consumer cannot see what fills it.
    ///
    /// `seen_head` must have been read *before* whatever was tried in vain ([`Sender::try_send`], completing what is
    /// acknowledged): a head that moved since then has to be looked at, not slept on.
    ///
    /// # Errors
    /// As [`Sender::head`].
    pub fn arm_progress(&mut self, seen_head: u64) -> Result<bool, RingError> {
        self.publish();
        let mut found = None;
        let Sender { ring, .. } = self;
        let sleep = arm::<Real, RingError>(ring.map.half(AT_WAITING), || {
            let head = ring.head_after(self.head, self.published)?;
            found = Some(head);
            Ok(head != seen_head)
        })?;
        self.head = found.unwrap_or(self.head);
        Ok(sleep)
    }
}

#[cfg(test)]
mod tests {
    use super::GIVE_BACK;
    use crate::mapping::{Mapping, sealed_memfd};
    use crate::ring::{HEADER_BYTES, Ring};
    use crate::topology::{Lane, LinkId, Role};
    use crate::wire::RandomId;
    use crate::{Bell, Receiver, Sender};
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::Arc;

    const CAPACITY_LEN: usize = 4 << 20;
    const CAPACITY: u64 = CAPACITY_LEN as u64;

    struct Memory(OwnedFd);
    impl Memory {
        fn new() -> Memory {
            let bytes = HEADER_BYTES as u64 + CAPACITY;
            let memory = Memory(sealed_memfd(c"ring", bytes).unwrap());
            Ring::format(&memory.map(), RandomId(1));
            memory
        }
        fn map(&self) -> Mapping {
            Mapping::new(&self.0, HEADER_BYTES + CAPACITY_LEN, true).unwrap()
        }
        fn ring(&self) -> Ring {
            let link = LinkId {
                from: Role::Consensus,
                to: Role::Storage,
                lane: Lane::Log(0),
            };
            Ring::open(self.map(), link, CAPACITY, RandomId(1)).unwrap()
        }
        fn bytes(&self) -> u64 {
            let stat = nix::sys::stat::fstat(self.0.as_fd()).unwrap();
            u64::try_from(stat.st_blocks).unwrap() * 512
        }
    }

    fn bell() -> Arc<Bell> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        Arc::new(Bell::new(event.into(), crate::bell::BellKind::Event))
    }

    fn message(number: u64) -> Vec<u8> {
        let len = 100 + usize::try_from(number % 3000).unwrap();
        number.to_le_bytes().repeat(len / 8)
    }

    /// RING-10: whatever is given back, nothing of what is not handled is, in a ring that is nearly empty, half full and full.
    #[test]
    fn a_ring_costs_what_is_in_it_and_loses_nothing() {
        for backlog in [0, CAPACITY / 2, CAPACITY] {
            let memory = Memory::new();
            let mut sender = Sender::attach(memory.ring(), bell()).unwrap();
            let mut receiver = Receiver::attach(memory.ring(), bell()).unwrap();
            let (mut sent, mut received) = (0, 0);
            let mut largest = 0;
            while sender.tail() < 5 * CAPACITY {
                let full = sender.try_send_encoded(&message(sent)).unwrap().is_none();
                sent += u64::from(!full);
                sender.publish();
                while sender.tail() - receiver.head() > backlog || (full && sent > received) {
                    let Some((bytes, end)) = receiver.try_recv_encoded().unwrap() else {
                        break;
                    };
                    assert_eq!(bytes, message(received));
                    received += 1;
                    receiver.release(end);
                }
                largest = largest.max(memory.bytes());
                if sent.is_multiple_of(700) {
                    // A successor finds what its predecessor has left.
                    sender = Sender::attach(memory.ring(), bell()).unwrap();
                }
            }
            let most = backlog + 3 * GIVE_BACK;
            assert!(
                largest <= most,
                "{largest} bytes with a backlog of {backlog}"
            );
        }
    }
}
