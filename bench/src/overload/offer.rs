//! The open loop: requests are due at fixed moments, whatever comes back.
//!
//! What the generator could not send, because as many as it may have are outstanding, is counted and not made up for.

use super::Args;
use super::call::{Answer, Caller};
use crate::load::histogram;
use bytes::Bytes;
use hdrhistogram::Histogram;
use mareedb_api::v1;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Requests of a connection that have become due are sent together so often.
const TURN: Duration = Duration::from_millis(4);
/// The server answers within `timeout_ms`; beyond so much more nobody waits.
const GRACE: Duration = Duration::from_secs(3);

/// What happened in some time.
#[derive(Debug)]
pub struct Counts {
    /// Requests that were sent.
    pub sent: u64,
    /// Requests that were due, but not sent.
    pub unsent: u64,
    /// Answered with success.
    pub accepted: u64,
    /// Answered with OVERLOADED.
    pub overloaded: u64,
    /// Of these: those that do not say when to come again.
    pub without_retry_after: u64,
    /// Everything else, by code.
    pub others: BTreeMap<String, u64>,
    /// Of the accepted, from sending to the answer, in microseconds.
    pub accepted_us: Histogram<u64>,
    /// Of the refused.
    pub refused_us: Histogram<u64>,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            sent: 0,
            unsent: 0,
            accepted: 0,
            overloaded: 0,
            without_retry_after: 0,
            others: BTreeMap::new(),
            accepted_us: histogram(),
            refused_us: histogram(),
        }
    }
}

impl Counts {
    fn count(&mut self, answer: Answer, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match answer {
            Answer::Accepted => {
                self.accepted += 1;
                self.accepted_us.saturating_record(us);
            }
            Answer::Overloaded { retry_after } => {
                self.overloaded += 1;
                self.without_retry_after += u64::from(!retry_after);
                self.refused_us.saturating_record(us);
            }
            Answer::Other(code) => *self.others.entry(code).or_default() += 1,
        }
    }

    /// Takes another's counts in.
    pub fn add(&mut self, other: &Counts) {
        self.sent += other.sent;
        self.unsent += other.unsent;
        self.accepted += other.accepted;
        self.overloaded += other.overloaded;
        self.without_retry_after += other.without_retry_after;
        for (code, count) in &other.others {
            *self.others.entry(code.clone()).or_default() += count;
        }
        // All have the same bounds.
        let _ = self.accepted_us.add(&other.accepted_us);
        let _ = self.refused_us.add(&other.refused_us);
    }
}

struct Shared {
    stop: AtomicBool,
    outstanding: AtomicUsize,
    outstanding_max: usize,
    timeout_ms: u64,
    keys: u64,
    value: Bytes,
    number: AtomicU64,
    counts: Mutex<Counts>,
}

/// A running open loop.
pub struct Offer {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Offer {
    /// Starts it: `rate` requests a second to these nodes.
    ///
    /// # Errors
    /// No connection.
    pub async fn start(args: &Args, addrs: &[SocketAddr], rate: f64) -> Result<Offer, String> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            outstanding: AtomicUsize::new(0),
            outstanding_max: args.outstanding,
            timeout_ms: args.timeout_ms,
            keys: args.keys,
            value: Bytes::from(vec![b'v'; args.value_bytes]),
            number: AtomicU64::new(0),
            counts: Mutex::default(),
        });
        let mut callers = Vec::new();
        for connection in 0..args.connections {
            let addr = addrs[connection % addrs.len()];
            callers.push((addr, Caller::connect(addr).await?));
        }
        let every = Duration::from_secs_f64(args.connections as f64 / rate.max(1.0));
        let tasks = callers
            .into_iter()
            .map(|(addr, caller)| tokio::spawn(offer(shared.clone(), addr, caller, every)))
            .collect();
        Ok(Offer { shared, tasks })
    }

    /// What happened since the last call.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut *self.shared.counts.lock().expect("not poisoned"))
    }

    /// Requests without an answer at this moment.
    pub fn outstanding(&self) -> usize {
        self.shared.outstanding.load(Ordering::Relaxed)
    }

    /// Sends no more; what is outstanding is still answered and counted.
    pub async fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            // A connection's task has nothing to panic about, and its end is all that is waited for.
            let _ = task.await;
        }
    }
}

async fn offer(shared: Arc<Shared>, addr: SocketAddr, mut caller: Caller, every: Duration) {
    let began = Instant::now();
    let mut done = 0u64;
    let mut turns = tokio::time::interval(TURN);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        if caller.closed()
            && let Ok(again) = Caller::connect(addr).await
        {
            caller = again;
        }
        let due = began.elapsed().as_nanos() / every.as_nanos().max(1);
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        let (mut sent, mut unsent) = (0, 0);
        for _ in done..due {
            let before = shared.outstanding.fetch_add(1, Ordering::Relaxed);
            if before >= shared.outstanding_max {
                shared.outstanding.fetch_sub(1, Ordering::Relaxed);
                unsent += 1;
                continue;
            }
            sent += 1;
            tokio::spawn(call(shared.clone(), caller.clone()));
        }
        done = due;
        let mut counts = shared.counts.lock().expect("not poisoned");
        counts.sent += sent;
        counts.unsent += unsent;
    }
}

async fn call(shared: Arc<Shared>, caller: Caller) {
    let number = shared.number.fetch_add(1, Ordering::Relaxed);
    // Neighbours in time are none in the tree.
    let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % shared.keys.max(1);
    let request = v1::PutRequest {
        key: format!("key-{key:08}").into(),
        value: shared.value.clone(),
        timeout_ms: shared.timeout_ms,
        ..v1::PutRequest::default()
    };
    let limit = Duration::from_millis(shared.timeout_ms) + GRACE;
    let began = Instant::now();
    let answer = tokio::time::timeout(limit, caller.put(request)).await;
    let answer = answer.unwrap_or_else(|_| Answer::Other("no answer".into()));
    shared.outstanding.fetch_sub(1, Ordering::Relaxed);
    let mut counts = shared.counts.lock().expect("not poisoned");
    counts.count(answer, began.elapsed());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let ms = Duration::from_millis;
        let mut all = Counts::default();
        let mut some = Counts::default();
        some.count(Answer::Accepted, ms(5));
        some.count(Answer::Overloaded { retry_after: false }, ms(1));
        some.count(Answer::Other("NO_QUORUM".into()), ms(1));
        all.add(&some);
        all.add(&some);
        assert_eq!(
            (all.accepted, all.overloaded, all.without_retry_after),
            (2, 2, 2)
        );
        assert_eq!(all.others["NO_QUORUM"], 2);
        assert_eq!(all.accepted_us.len(), 2);
    }
}
