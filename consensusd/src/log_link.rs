//! The log lane to a storage shard: operations go out in one order, the ring's head acknowledges them, requests are
//! answered by number and asked again when storaged is born anew.
//!
//! Everything here runs on one thread; locks are never held across an await.

use crate::raft::C;
use mareedb_ipc::wire::storage::{FromStorage, StorageAnswer, StorageRequest, ToStorage};
use mareedb_ipc::wire::{RandomId, encode};
use mareedb_ipc::{RingError, Sender};
use openraft::storage::IOFlushed;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::{Notify, oneshot};

/// The producing end, shared by all groups of the shard.
pub struct LogLink {
    inner: Mutex<Inner>,
    /// Told when the head moved.
    room: Notify,
    /// Makes the main loop turn once more.
    wake: Arc<Notify>,
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
    /// `None`: nobody waits.
    reply: Option<oneshot::Sender<StorageAnswer>>,
    /// Set when who asks has ended, see [`crate::tenure`].
    ended: Option<Arc<AtomicBool>>,
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
    pub fn new(sender: Sender, wake: Arc<Notify>) -> Arc<LogLink> {
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
                self.wake.notify_one();
                true
            }
            Ok(None) => {
                self.wake.notify_one();
                false
            }
            Err(error) => {
                inner.error.get_or_insert(error);
                self.wake.notify_one();
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
        self.request_of(None, body).await
    }

    /// The same for somebody who may end, and whose questions end with him: [`LogLink::forget_ended`].
    pub async fn request_of(
        &self,
        ended: Option<Arc<AtomicBool>>,
        body: StorageRequest,
    ) -> StorageAnswer {
        let (reply, answer) = oneshot::channel();
        let number = {
            let mut inner = self.inner.lock();
            let number = inner.add(body, Some(reply), ended);
            inner.send_requests();
            number
        };
        // The main loop arms itself for the head's progress.
        self.wake.notify_one();
        let guard = ForgetRequest { link: self, number };
        let answer = answer.await.unwrap_or_else(|_| StorageAnswer::Failed {
            message: "the request was dropped".into(),
        });
        drop(guard);
        answer
    }

    /// Leaves a request that nobody waits for to the main loop. Nothing is sent here, so that it may be called while tasks are dropped.
    pub fn leave(&self, body: StorageRequest) {
        self.inner.lock().add(body, None, None);
        self.wake.notify_one();
    }

    /// Who has ended gets no answer any more, and what he asked is not sent again.
    pub fn forget_ended(&self) {
        let gone = |request: &Request| {
            let ended = request.ended.as_ref();
            ended.is_some_and(|ended| ended.load(Ordering::Relaxed))
        };
        let mut inner = self.inner.lock();
        let forgotten: Vec<(u64, Request)> = inner
            .requests
            .extract_if(.., |_, request| gone(request))
            .collect();
        for (number, _) in &forgotten {
            inner.unsent.remove(number);
        }
    }

    /// Takes a message of storaged: what answers a request ends here; anything else is the caller's too.
    pub fn receive(&self, message: FromStorage) -> Option<FromStorage> {
        match message {
            FromStorage::Answer { request, body } => {
                let mut inner = self.inner.lock();
                let waiting = inner.requests.remove(&request);
                inner.unsent.remove(&request);
                drop(inner);
                if let Some(reply) = waiting.and_then(|waiting| waiting.reply) {
                    // Who asked may have gone.
                    let _ = reply.send(body);
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

    /// Completes what the head has passed, and nothing else: openraft counts it as this replica's part of a quorum (DUR-1). `true`:
    /// nothing more will happen without a ring of the doorbell.
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
    /// Notes a request that is due; its number.
    fn add(
        &mut self,
        body: StorageRequest,
        reply: Option<oneshot::Sender<StorageAnswer>>,
        ended: Option<Arc<AtomicBool>>,
    ) -> u64 {
        let number = self.next_request;
        self.next_request += 1;
        let message = encode(&ToStorage::Request {
            request: number,
            body,
        });
        let request = Request {
            message,
            reply,
            ended,
        };
        self.requests.insert(number, request);
        self.unsent.insert(number);
        number
    }

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
