//! Messages to consensusd, from any thread of the shard.

use mareedb_ipc::wire::encode;
use mareedb_ipc::wire::storage::{FromStorage, StorageAnswer};
use mareedb_ipc::{Backlog, RingError, Sender};
use parking_lot::Mutex;

/// The producing end, with what waits for room. Bounded by consensusd, which asks no more than it wants answered.
pub struct Answers(Mutex<Inner>);

struct Inner {
    sender: Sender,
    waiting: Backlog,
    error: Option<RingError>,
}

impl Answers {
    /// Takes over the producing end.
    pub fn new(sender: Sender) -> Answers {
        Answers(Mutex::new(Inner {
            sender,
            waiting: Backlog::default(),
            error: None,
        }))
    }

    /// Epoch of the side.
    pub fn epoch(&self) -> u64 {
        self.0.lock().sender.epoch()
    }

    /// Sends a message now, or when there is room.
    pub fn send(&self, message: &FromStorage) {
        self.push(encode(message));
    }

    fn push(&self, message: Vec<u8>) {
        let mut inner = self.0.lock();
        inner.waiting.push(message);
        // Not every thread comes back to it: so until nothing is left or consensusd will ring.
        loop {
            match inner.flush() {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    inner.error.get_or_insert(error);
                    return;
                }
            }
        }
    }

    /// Answers a request.
    pub fn answer(&self, request: u64, body: StorageAnswer) {
        let mut encoded = encode(&FromStorage::Answer { request, body });
        let max = self.message_max();
        if encoded.len() > max {
            // The ring would not take it, and asking again would not make it smaller.
            let message = format!(
                "an answer of {} bytes, the ring carries {max}",
                encoded.len()
            );
            tracing::error!(request, message);
            let body = StorageAnswer::Failed { message };
            encoded = encode(&FromStorage::Answer { request, body });
        }
        self.push(encoded);
    }

    /// Bytes of the largest message that the ring carries.
    pub fn message_max(&self) -> usize {
        self.0.lock().sender.max_message()
    }

    /// [`Backlog::flush`]
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn flush(&self) -> Result<bool, RingError> {
        let mut inner = self.0.lock();
        if let Some(error) = inner.error.take() {
            return Err(error);
        }
        inner.flush()
    }
}

impl Inner {
    fn flush(&mut self) -> Result<bool, RingError> {
        self.waiting.flush(&mut self.sender)
    }
}
