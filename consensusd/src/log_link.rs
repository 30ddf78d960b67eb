//! The log lane to a storage shard: operations go out in one order, the ring's head acknowledges them, requests are
//! answered by number and asked again when storaged is born anew.
//!
//! Everything here runs on one thread; locks are never held across an await.

use crate::raft::C;
use crate::wake::Wake;
use mareedb_ipc::wire::storage::{FromStorage, StorageAnswer, StorageRequest, ToStorage};
use mareedb_ipc::wire::{RandomId, encode};
use mareedb_ipc::{Alarm, RingError, Sender};
use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, oneshot};

/// The producing end, shared by all groups of the shard.
pub struct LogLink {
    inner: Mutex<Inner>,
    /// Told when the head moved.
    room: Notify,
    wake: Arc<Wake>,
    generation: RandomId,
    epoch: u64,
    capacity: u64,
    message_max: usize,
}

struct Inner {
    sender: Sender,
    waiting: VecDeque<(u64, Done)>,
    /// Requests without an answer.
    requests: BTreeMap<u64, Request>,
    /// Those of them that are not in the ring, or are there in vain; sent in order, as room allows.
    unsent: BTreeSet<u64>,
    next_request: u64,
    error: Option<RingError>,
}

struct Request {
    message: Vec<u8>,
    reply: oneshot::Sender<StorageAnswer>,
}

/// Whom to tell when an operation is durable.
pub enum Done {
    /// openraft's callback of an append, and where to note how far the log is durable: the index after its last entry.
    Append(IOFlushed<C>, Arc<AtomicU64>, u64),
    /// Somebody who waits.
    Waiter(oneshot::Sender<()>),
    /// Nobody.
    Nobody,
}

impl LogLink {
    /// Takes over the producing end.
    pub fn new(sender: Sender, wake: Arc<Wake>) -> Arc<LogLink> {
        Arc::new(LogLink {
            generation: sender.generation(),
            epoch: sender.epoch(),
            capacity: sender.capacity(),
            message_max: sender.max_message(),
            inner: Mutex::new(Inner {
                sender,
                waiting: VecDeque::new(),
                requests: BTreeMap::new(),
                unsent: BTreeSet::new(),
                // Far from where a predecessor was: storaged's threads may answer that late.
                next_request: u64::try_from(RandomId::draw().0 >> 65).expect("63 bits"),
                error: None,
            }),
            room: Notify::new(),
            wake,
        })
    }

    /// Generation of the ring.
    pub fn generation(&self) -> RandomId {
        self.generation
    }

    /// The side's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of the largest operation.
    pub fn message_max(&self) -> usize {
        self.message_max
    }

    /// Whether more than half of the ring waits for the disk: then no new work is accepted.
    pub fn congested(&self) -> bool {
        let mut inner = self.inner.lock();
        let half = inner.sender.capacity() / 2;
        inner.sender.used().map_or(true, |used| used > half)
    }

    /// Waits until less than half of the ring waits for the disk: peers' appends are held back before openraft sees
    /// them, so that its core never waits for room while votes are due.
    pub async fn uncongested(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if !self.congested() {
                return;
            }
            room.await;
        }
    }

    /// Sends an operation; it is in the ring, visible to storaged, when this returns. Waits for room.
    ///
    /// Cancellation: before the operation is sent nothing happened.
    pub async fn send(&self, operation: &ToStorage, done: Done) {
        let message = encode(operation);
        let mut done = Some(done);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before the try, so that a head that moves in between is not missed.
            room.as_mut().enable();
            if self.try_send(&message, &mut done) {
                return;
            }
            room.await;
        }
    }

    fn try_send(&self, message: &[u8], done: &mut Option<Done>) -> bool {
        let mut inner = self.inner.lock();
        match inner.sender.try_send_encoded(message) {
            Ok(Some(end)) => {
                inner.sender.publish();
                inner
                    .waiting
                    .push_back((end, done.take().unwrap_or(Done::Nobody)));
                // The main loop arms itself for the head's progress.
                self.wake.wake();
                true
            }
            Ok(None) => {
                self.wake.wake();
                false
            }
            Err(error) => {
                inner.error.get_or_insert(error);
                self.wake.wake();
                false
            }
        }
    }

    /// Sends an operation and waits until it is durable.
    pub async fn durable(&self, operation: &ToStorage) {
        let (tell, told) = oneshot::channel();
        self.send(operation, Done::Waiter(tell)).await;
        // The other end lives in `waiting`, which lives as long as this link.
        let _ = told.await;
    }

    /// Asks storaged, across its restarts.
    ///
    /// Cancellation: the answer is dropped when it comes, and the question is not repeated.
    pub async fn request(&self, body: StorageRequest) -> StorageAnswer {
        let (reply, answer) = oneshot::channel();
        let number = {
            let mut inner = self.inner.lock();
            let number = inner.next_request;
            inner.next_request += 1;
            let message = encode(&ToStorage::Request {
                request: number,
                body,
            });
            inner.requests.insert(number, Request { message, reply });
            inner.unsent.insert(number);
            inner.send_requests();
            number
        };
        // The main loop arms itself for the head's progress.
        self.wake.wake();
        let guard = ForgetRequest { link: self, number };
        let answer = answer.await.unwrap_or_else(|_| StorageAnswer::Failed {
            message: "the request was dropped".into(),
        });
        drop(guard);
        answer
    }

    /// Takes a message of storaged: what answers a request ends here; anything else is the caller's too.
    pub fn receive(&self, message: FromStorage) -> Option<FromStorage> {
        match message {
            FromStorage::Answer { request, body } => {
                let mut inner = self.inner.lock();
                let waiting = inner.requests.remove(&request);
                inner.unsent.remove(&request);
                drop(inner);
                if let Some(waiting) = waiting {
                    // Who asked may have gone.
                    let _ = waiting.reply.send(body);
                }
                None
            }
            FromStorage::Up { epoch } => {
                tracing::info!(epoch, "storaged is up");
                // Its predecessor has lost the answers that it owed.
                let mut inner = self.inner.lock();
                inner.unsent = inner.requests.keys().copied().collect();
                inner.send_requests();
                Some(FromStorage::Up { epoch })
            }
            other => Some(other),
        }
    }

    /// Completes what the head has passed. `true`: nothing more will happen without a ring of the doorbell.
    ///
    /// # Errors
    /// The ring is corrupt.
    pub fn progress(&self) -> Result<bool, RingError> {
        let mut completed = Vec::new();
        let quiet = {
            let mut inner = self.inner.lock();
            if let Some(error) = inner.error.take() {
                return Err(error);
            }
            let head = inner.sender.head()?;
            while inner.waiting.front().is_some_and(|(end, _)| *end <= head) {
                completed.extend(inner.waiting.pop_front().map(|(_, done)| done));
            }
            inner.send_requests();
            if head < inner.sender.tail() {
                inner.sender.arm_progress(head)?
            } else {
                true
            }
        };
        if !completed.is_empty() {
            self.room.notify_waiters();
        }
        for done in completed {
            match done {
                Done::Append(callback, durable, next) => {
                    durable.store(next, Ordering::Relaxed);
                    callback.io_completed(Ok(()));
                }
                Done::Waiter(tell) => drop(tell.send(())),
                Done::Nobody => {}
            }
        }
        Ok(quiet)
    }
}

impl Inner {
    /// Sends what fits of the requests that are due.
    fn send_requests(&mut self) {
        while let Some(number) = self.unsent.first().copied() {
            let Some(request) = self.requests.get(&number) else {
                self.unsent.remove(&number);
                continue;
            };
            match self.sender.try_send_encoded(&request.message) {
                Ok(Some(end)) => {
                    self.unsent.remove(&number);
                    self.waiting.push_back((end, Done::Nobody));
                }
                Ok(None) => break,
                Err(found) => {
                    self.error.get_or_insert(found);
                    break;
                }
            }
        }
        self.sender.publish();
    }
}

/// A request whose asker was cancelled is not asked again.
struct ForgetRequest<'a> {
    link: &'a LogLink,
    number: u64,
}
impl Drop for ForgetRequest<'_> {
    fn drop(&mut self) {
        let mut inner = self.link.inner.lock();
        inner.requests.remove(&self.number);
        inner.unsent.remove(&self.number);
    }
}
