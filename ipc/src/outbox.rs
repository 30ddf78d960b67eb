//! Messages that wait for room in a ring.
//!
//! Tasks of a daemon add from wherever they are and never wait; its main loop, which alone owns the ring's producing end,
//! moves what fits.

use crate::wire::encode;
use crate::{Backlog, RingError, Sender};
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;

/// A bounded queue in front of a ring.
pub struct Outbox {
    backlog: Mutex<Backlog>,
    alarm: Box<dyn Fn() + Send + Sync>,
    bytes_max: usize,
    message_max: usize,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue is full.
    #[error("too much waits for room in the ring")]
    Full,
    /// It has so many bytes, and would never fit the ring.
    #[error("a message of {0} bytes does not fit the ring")]
    TooLarge(usize),
}

impl Outbox {
    /// A queue as large as the ring behind it, which takes no message that the ring cannot carry. `alarm` makes the main loop look at
    /// its outboxes once more; it is called from any thread, and must not wait.
    pub fn before(sender: &Sender, alarm: impl Fn() + Send + Sync + 'static) -> Arc<Outbox> {
        Arc::new(Outbox {
            backlog: Mutex::default(),
            alarm: Box::new(alarm),
            bytes_max: usize::try_from(sender.capacity()).unwrap_or(usize::MAX),
            message_max: sender.max_message(),
        })
    }

    /// Bytes of the largest message.
    pub fn message_max(&self) -> usize {
        self.message_max
    }

    /// Adds a message whose place was reserved by the call that it answers, however full the queue is.
    ///
    /// # Errors
    /// It can never fit, and was not taken.
    pub fn push<T: Serialize>(&self, message: &T) -> Result<(), Refusal> {
        self.push_encoded(encode(message))
    }

    /// [`Outbox::push`] of a message in its encoding.
    ///
    /// # Errors
    /// It can never fit, and was not taken.
    pub fn push_encoded(&self, message: Vec<u8>) -> Result<(), Refusal> {
        if message.len() > self.message_max {
            return Err(Refusal::TooLarge(message.len()));
        }
        self.backlog.lock().push(message);
        (self.alarm)();
        Ok(())
    }

    /// Adds a message unless the queue is full.
    ///
    /// # Errors
    /// It is, or the message can never fit.
    pub fn try_push<T: Serialize>(&self, message: &T) -> Result<(), Refusal> {
        if self.backlog.lock().bytes() >= self.bytes_max {
            return Err(Refusal::Full);
        }
        self.push(message)
    }

    /// Drops all that waits: nobody is there who would understand it.
    pub fn clear(&self) {
        self.backlog.lock().clear();
    }

    /// [`Backlog::flush`]
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn flush(&self, sender: &mut Sender) -> Result<bool, RingError> {
        self.backlog.lock().flush(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::NodeInProcess;
    use crate::{Lane, Role};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn what_does_not_fit_waits_in_order_and_what_never_fits_is_refused() {
        let node = NodeInProcess::small("{}");
        let mut gateway = node.attach(Role::Gateway);
        let mut consensus = node.attach(Role::Consensus);
        let mut sender = gateway.sender(Role::Consensus, Lane::Client);
        let mut receiver = consensus.receiver(Role::Gateway, Lane::Client);
        let rings = Arc::new(AtomicUsize::new(0));
        let alarm = rings.clone();
        let outbox = Outbox::before(&sender, move || {
            alarm.fetch_add(1, Ordering::Relaxed);
        });
        let huge = vec![0_u8; sender.max_message() + 1];
        assert!(matches!(
            outbox.try_push(&huge),
            Err(Refusal::TooLarge(bytes)) if bytes > sender.max_message()
        ));
        assert!(outbox.push(&huge).is_err());
        let mut added = 0_u64;
        let filler = vec![7_u8; 512];
        while outbox.try_push(&(added, &filler)).is_ok() {
            added += 1;
        }
        assert_eq!(outbox.try_push(&(added, &filler)), Err(Refusal::Full));
        assert_eq!(rings.load(Ordering::Relaxed) as u64, added);
        let mut taken = 0_u64;
        while taken < added {
            assert!(outbox.flush(&mut sender).unwrap());
            while let Some(((number, _), end)) = receiver.try_recv::<(u64, Vec<u8>)>().unwrap() {
                receiver.release(end);
                assert_eq!(number, taken);
                taken += 1;
            }
        }
        assert_eq!(outbox.push(&(added, &filler)), Ok(()), "however full it is");
        outbox.clear();
        assert!(outbox.flush(&mut sender).unwrap());
        assert!(receiver.try_recv::<(u64, Vec<u8>)>().unwrap().is_none());
    }
}
