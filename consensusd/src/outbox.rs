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
    message_max: usize,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// Why a message was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full.
    Full,
    /// It has so many bytes, and would never fit the ring.
    TooLarge(usize),
}

impl Outbox {
    /// A queue of at most `bytes_max` bytes, in front of a ring that carries messages of up to `message_max` bytes.
    pub fn new(wake: Arc<Wake>, bytes_max: usize, message_max: usize) -> Arc<Outbox> {
        Arc::new(Outbox {
            queue: Mutex::default(),
            wake,
            bytes_max,
            message_max,
        })
    }

    /// A queue as large as the ring behind it.
    pub fn before(sender: &Sender, wake: Arc<Wake>) -> Arc<Outbox> {
        let bytes = usize::try_from(sender.capacity()).unwrap_or(usize::MAX);
        Outbox::new(wake, bytes, sender.max_message())
    }

    /// Adds a message whose place was reserved by the call that it answers, however full the queue is.
    pub fn push<T: Serialize>(&self, message: &T) {
        self.add(encode(message));
    }

    fn add(&self, message: Vec<u8>) {
        let mut queue = self.queue.lock();
        queue.bytes += message.len();
        queue.messages.push_back(message);
        drop(queue);
        self.wake.wake();
    }

    /// Adds a message unless the queue is full.
    ///
    /// # Errors
    /// It is, or the message can never fit.
    pub fn try_push<T: Serialize>(&self, message: &T) -> Result<(), Refusal> {
        if self.queue.lock().bytes >= self.bytes_max {
            return Err(Refusal::Full);
        }
        let message = encode(message);
        if message.len() > self.message_max {
            return Err(Refusal::TooLarge(message.len()));
        }
        self.add(message);
        Ok(())
    }

    /// Drops all that waits: nobody is there who would understand it.
    pub fn clear(&self) {
        let mut queue = self.queue.lock();
        queue.messages.clear();
        queue.bytes = 0;
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
