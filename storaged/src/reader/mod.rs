//! A reader thread: serves gatewayd's reads on a ring of its own, and parks those whose index is not applied yet.
//!
//! It sleeps on one doorbell, which gatewayd rings for calls and for room, and the store for applied batches, but only while
//! something is parked. No wake-up is lost: the reader says that it parks, then looks at the store again, then sleeps; the
//! store changes, then looks whether somebody parks. A call whose time has passed is not carried out: calls that were given up must not
//! hold up those that are waited for. Non-goals: no order among calls, no index that it waits for without end.

use crate::state::Store;
use mareedb_ipc::wire::encode;
use mareedb_ipc::wire::read::{ReadCall, ReadError, ReadReply, ReadResponse, SentReadCall};
use mareedb_ipc::{Backlog, Bell, Receiver, RingError, Sender};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Replies in bytes that may wait for room before no further call is taken.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// A reader's ends.
pub struct Parts {
    /// State machines.
    pub store: Store,
    /// To gatewayd.
    pub sender: Sender,
    /// From gatewayd.
    pub receiver: Receiver,
    /// The reader's doorbell.
    pub bell: Bell,
    /// Its ringing end: the store rings it when something was applied.
    pub ringer: Arc<Bell>,
}

/// Starts a reader thread; it ends with an error only.
///
/// # Panics
/// The system gives no thread.
pub fn spawn(parts: Parts, name: &str) -> JoinHandle<RingError> {
    let parking = Arc::new(AtomicBool::new(false));
    let (ringer, parked) = (parts.ringer.clone(), parking.clone());
    parts.store.on_applied(Arc::new(move || {
        // Pairs with the fence in `Reader::serve_parked`.
        fence(Ordering::SeqCst);
        if parked.load(Ordering::Relaxed) {
            ringer.ring();
        }
    }));
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let mut reader = Reader {
                store: parts.store,
                sender: parts.sender,
                receiver: parts.receiver,
                parked: Vec::new(),
                parking,
                replies: Backlog::default(),
            };
            reader.reply(&ReadReply::Up {
                epoch: reader.sender.epoch(),
            });
            loop {
                match reader.turn() {
                    Ok(None) => {}
                    Ok(Some(sleep)) => drop(parts.bell.wait(Some(sleep))),
                    Err(error) => return error,
                }
            }
        })
        .expect("a thread")
}

struct Reader {
    store: Store,
    sender: Sender,
    receiver: Receiver,
    parked: Vec<(Instant, ReadCall)>,
    /// Whether `parked` holds anything, for the store's side.
    parking: Arc<AtomicBool>,
    /// What waits for room.
    replies: Backlog,
}

impl Reader {
    /// `Some`: sleep so long at most.
    fn turn(&mut self) -> Result<Option<Duration>, RingError> {
        while self.replies.bytes() < WAITING_BYTES_MAX {
            let Some((sent, end)) = self.receiver.try_recv::<SentReadCall>()? else {
                break;
            };
            // Before it is served: gatewayd asks a successor again by itself, and a call that ended this process is not found again.
            self.receiver.release(end);
            self.serve(Instant::now() + sent.left(), sent.call);
        }
        self.serve_parked();
        let rung = self.replies.flush(&mut self.sender)?;
        if !rung || (self.replies.bytes() < WAITING_BYTES_MAX && !self.receiver.arm()?) {
            return Ok(None);
        }
        let now = Instant::now();
        let sleep = self
            .parked
            .iter()
            .map(|(until, _)| until.saturating_duration_since(now))
            .min();
        Ok(Some(sleep.unwrap_or(Duration::from_secs(60))))
    }

    fn serve_parked(&mut self) {
        self.parking
            .store(!self.parked.is_empty(), Ordering::Relaxed);
        // Pairs with the fence of the store's listener: it sees that something is parked, or this look sees what it applied.
        fence(Ordering::SeqCst);
        for (until, call) in std::mem::take(&mut self.parked) {
            self.serve(until, call);
        }
    }

    fn serve(&mut self, until: Instant, call: ReadCall) {
        let read = if Instant::now() < until {
            self.store.read(&call.read)
        } else {
            Err(ReadError::NotApplied)
        };
        match read {
            Err(ReadError::NotApplied) if Instant::now() < until => self.parked.push((until, call)),
            result => {
                let reply = ReadReply::Reply {
                    call: call.call,
                    result: fitting(result, self.sender.max_message()),
                };
                self.reply(&reply);
            }
        }
    }

    fn reply(&mut self, reply: &ReadReply) {
        self.replies.push(encode(reply));
    }
}

/// Cuts a response that no message can carry: the caller asks on from where it ends.
fn fitting(result: Result<ReadResponse, ReadError>, max: usize) -> Result<ReadResponse, ReadError> {
    let mut response = result?;
    let mut bytes = 256;
    let fits = response
        .items
        .iter()
        .take_while(|item| {
            bytes += item.key.len() + item.value.len() + 64;
            bytes <= max
        })
        .count();
    if fits < response.items.len() {
        if fits == 0 {
            return Err(ReadError::Storage(
                "the value does not fit into a message".into(),
            ));
        }
        response.items.truncate(fits);
        response.more = true;
    }
    Ok(response)
}

#[cfg(test)]
mod tests;
