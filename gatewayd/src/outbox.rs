//! Messages that wait for room in a ring, and the main loop's alarm clock.

use mareedb_ipc::wire::encode;
use mareedb_ipc::{RingError, Sender};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;

/// Wakes the main loop from tasks of the same thread.
#[derive(Default)]
pub struct Wake(Notify);
impl Wake {
    /// Makes the main loop look at everything once more.
    pub fn wake(&self) {
        self.0.notify_one();
    }
    /// Waits for a wake.
    pub async fn wait(&self) {
        self.0.notified().await;
    }
}

/// A bounded queue in front of a ring. Whoever adds never waits, and the main loop moves what fits.
pub struct Outbox {
    queue: Mutex<Queue>,
    wake: Arc<Wake>,
    bytes_max: usize,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// The queue is full: the message was not taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Outbox {
    /// A queue of at most `bytes_max` bytes.
    pub fn new(wake: Arc<Wake>, bytes_max: usize) -> Arc<Outbox> {
        Arc::new(Outbox {
            queue: Mutex::default(),
            wake,
            bytes_max,
        })
    }

    /// Adds a message whose place was reserved by the call that it answers, however full the queue is.
    pub fn push<T: Serialize>(&self, message: &T) {
        self.push_encoded(encode(message));
    }

    /// [`Outbox::push`] of a message in its encoding.
    pub fn push_encoded(&self, message: Vec<u8>) {
        let mut queue = self.queue.lock();
        queue.bytes += message.len();
        queue.messages.push_back(message);
        drop(queue);
        self.wake.wake();
    }

    /// Adds a message unless the queue is full.
    ///
    /// # Errors
    /// It is.
    pub fn try_push<T: Serialize>(&self, message: &T) -> Result<(), Full> {
        if self.queue.lock().bytes >= self.bytes_max {
            return Err(Full);
        }
        self.push(message);
        Ok(())
    }

    /// Moves what fits into the ring and publishes it. `true`: nothing is left, or the consumer will ring when there is
    /// room.
    ///
    /// # Errors
    /// The ring is corrupt, or a message can never fit.
    pub fn flush(&self, sender: &mut Sender) -> Result<bool, RingError> {
        let mut queue = self.queue.lock();
        loop {
            let seen = sender.head()?;
            while let Some(message) = queue.messages.front() {
                if sender.try_send_encoded(message)?.is_none() {
                    break;
                }
                queue.bytes -= message.len();
                queue.messages.pop_front();
            }
            sender.publish();
            if queue.messages.is_empty() || sender.arm_progress(seen)? {
                return Ok(true);
            }
        }
    }
}
