//! The open loop: requests are due at fixed moments, whatever comes back.
//!
//! What the generator could not send, because as many as it may have are outstanding, is counted and not made up for.

use super::Args;
use super::answer::Answer;
use super::wire::Wire;
use crate::load::histogram;
use bytes::Buf;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

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
    /// Of one connection.
    outstanding_max: usize,
    timeout_ms: u64,
    keys: u64,
    value: Vec<u8>,
    number: AtomicU64,
    outstanding: AtomicUsize,
    counts: Mutex<Counts>,
}

/// A running open loop.
pub struct Offer {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<Result<(), String>>>,
}

impl Offer {
    /// Starts it: `rate` requests a second to these nodes.
    ///
    /// # Errors
    /// No connection, or a value that is too large.
    pub async fn start(args: &Args, addrs: &[SocketAddr], rate: f64) -> Result<Offer, String> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            outstanding_max: args.outstanding.div_ceil(args.connections.max(1)),
            timeout_ms: args.timeout_ms,
            keys: args.keys.max(1),
            value: vec![b'v'; args.value_bytes],
            number: AtomicU64::new(0),
            outstanding: AtomicUsize::new(0),
            counts: Mutex::default(),
        });
        let every = Duration::from_secs_f64(args.connections as f64 / rate.max(1.0));
        let mut tasks = Vec::new();
        for connection in 0..args.connections {
            let line = Line::connect(shared.clone(), addrs[connection % addrs.len()]).await?;
            tasks.push(tokio::spawn(line.offer(every)));
        }
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
    ///
    /// # Errors
    /// A connection was lost and could not be made again.
    pub async fn stop(&mut self) -> Result<(), String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for task in self.tasks.drain(..) {
            let ended = task.await.map_err(|error| error.to_string());
            result = result.and(ended.and_then(|ended| ended));
        }
        result
    }
}

/// A connection and what it does.
struct Line {
    shared: Arc<Shared>,
    addr: SocketAddr,
    stream: TcpStream,
    wire: Wire,
}

impl Line {
    async fn connect(shared: Arc<Shared>, addr: SocketAddr) -> Result<Line, String> {
        let told = |error: io::Error| format!("{addr}: {error}");
        let stream = TcpStream::connect(addr).await.map_err(told)?;
        stream.set_nodelay(true).map_err(told)?;
        Ok(Line {
            wire: Wire::new(addr, &shared.value, shared.timeout_ms)?,
            shared,
            addr,
            stream,
        })
    }

    /// Sends what is due until told to stop, then waits for what is outstanding.
    async fn offer(mut self, every: Duration) -> Result<(), String> {
        let began = Instant::now();
        let mut done = 0u64;
        let mut turns = tokio::time::interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut input = vec![0; 64 << 10];
        loop {
            let writing = !self.wire.out.is_empty();
            let lost = tokio::select! {
                read = self.stream.readable() => read.and_then(|()| self.receive(&mut input)),
                written = self.stream.writable(), if writing => written.and_then(|()| self.send()),
                _ = turns.tick() => {
                    if self.shared.stop.load(Ordering::Relaxed) {
                        if self.wire.outstanding() == 0 {
                            return Ok(());
                        }
                    } else {
                        let due = began.elapsed().as_nanos() / every.as_nanos().max(1);
                        let due = u64::try_from(due).unwrap_or(u64::MAX);
                        self.begin(due - done);
                        done = due;
                    }
                    self.send().and_then(|()| self.in_time())
                }
            };
            if lost.is_err() || (self.wire.spent() && self.wire.outstanding() == 0) {
                self.reconnect().await?;
            }
        }
    }

    /// Begins as many of `due` calls as may be.
    fn begin(&mut self, due: u64) {
        let now = Instant::now();
        let mut sent = 0;
        while sent < due
            && self.wire.outstanding() < self.shared.outstanding_max
            && self.wire.open()
        {
            let number = self.shared.number.fetch_add(1, Ordering::Relaxed);
            // Neighbours in time are none in the tree.
            self.wire.put(
                number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.shared.keys,
                now,
            );
            sent += 1;
        }
        self.shared
            .outstanding
            .fetch_add(usize::try_from(sent).unwrap_or(0), Ordering::Relaxed);
        let mut counts = self.shared.counts.lock().expect("not poisoned");
        counts.sent += sent;
        counts.unsent += due - sent;
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.wire.out.is_empty() {
            match self.stream.try_write(&self.wire.out) {
                Ok(bytes) => self.wire.out.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self, input: &mut [u8]) -> io::Result<()> {
        let bytes = match self.stream.try_read(input) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let shared = &self.shared;
        let mut counts = shared.counts.lock().expect("not poisoned");
        self.wire
            .take(&input[..bytes], |began, answer| {
                shared.outstanding.fetch_sub(1, Ordering::Relaxed);
                counts.count(answer, now - began);
            })
            .map_err(io::Error::other)
    }

    /// The server answers within `timeout_ms`; a call that waits longer is one that it has forgotten.
    fn in_time(&self) -> io::Result<()> {
        let limit = Duration::from_millis(self.shared.timeout_ms) + GRACE;
        match self.wire.oldest() {
            Some(began) if began.elapsed() > limit => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    async fn reconnect(&mut self) -> Result<(), String> {
        {
            let shared = &self.shared;
            let mut counts = shared.counts.lock().expect("not poisoned");
            self.wire.lose(|_, answer| {
                shared.outstanding.fetch_sub(1, Ordering::Relaxed);
                counts.count(answer, Duration::ZERO);
            });
        }
        *self = Line::connect(self.shared.clone(), self.addr).await?;
        Ok(())
    }
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
