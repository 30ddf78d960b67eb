//! Messages that found no room in a ring yet, in their order.

use crate::{RingError, Sender};
use std::collections::VecDeque;

/// A queue before a ring. It is as long as whoever adds to it lets it become.
#[derive(Default)]
pub struct Backlog {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backlog {
    /// Adds a message in its encoding.
    pub fn push(&mut self, message: Vec<u8>) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    /// Bytes of all that waits.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops all that waits.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
    }

    /// Moves what fits into the ring and publishes it. `true`: nothing is left, or the consumer will ring when there is room; `false`:
    /// room came meanwhile, and nobody will ring for it: call it again.
    ///
    /// No wake-up is lost: the head is read before the try and compared once the flag is up. Room that came in between shows as a head
    /// that has moved, and is the next try's; room that comes later finds the flag, and rings. A head that was read after the try would
    /// hide what came during it.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn flush(&mut self, sender: &mut Sender) -> Result<bool, RingError> {
        let seen = sender.head()?;
        while let Some(message) = self.messages.front() {
            if sender.try_send_encoded(message)?.is_none() {
                break;
            }
            self.bytes -= message.len();
            self.messages.pop_front();
        }
        sender.publish();
        Ok(self.messages.is_empty() || sender.arm_progress(seen)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::NodeInProcess;
    use crate::{Lane, Role, Waiter};
    use std::time::Duration;

    /// RING-5, with a consumer that frees one place at a time.
    #[test]
    fn each_place_that_becomes_free_is_rung_for_and_taken() {
        const MESSAGES: usize = 12;
        let node = NodeInProcess::small("{}");
        let mut gateway = node.attach(Role::Gateway);
        let mut consensus = node.attach(Role::Consensus);
        let mut sender = gateway.sender(Role::Consensus, Lane::Client);
        let bell = gateway.bell(Waiter::Gateway);
        let mut receiver = consensus.receiver(Role::Gateway, Lane::Client);
        let message = |number: usize| vec![u8::try_from(number).unwrap(); sender.max_message()];
        let messages: Vec<_> = (0..MESSAGES).map(message).collect();
        let mut backlog = Backlog::default();
        for message in &messages {
            backlog.push(message.clone());
        }
        let len = messages[0].len();
        // The ring takes four of the largest.
        assert!(backlog.flush(&mut sender).unwrap(), "armed");
        assert_eq!(backlog.bytes(), (MESSAGES - 4) * len);
        for (taken, message) in messages.iter().enumerate() {
            assert!(!bell.wait(Some(Duration::ZERO)), "nothing was freed");
            let (bytes, end) = receiver.try_recv_encoded().unwrap().unwrap();
            assert_eq!(bytes, message);
            receiver.release(end);
            let waited = backlog.bytes() > 0;
            assert_eq!(bell.wait(Some(Duration::ZERO)), waited, "RING-5");
            assert!(backlog.flush(&mut sender).unwrap());
            assert_eq!(backlog.bytes(), MESSAGES.saturating_sub(taken + 5) * len);
        }
        assert!(receiver.try_recv_encoded().unwrap().is_none());
    }
}
