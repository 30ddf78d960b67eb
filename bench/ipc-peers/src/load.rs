//! The two sides of a load, without what carries it: what to send next, and what to make of what came.

use crate::job::{Job, Load};
use crate::message::{Message, Phase, check};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Before anything is measured: connections are made, memory is touched, caches and clocks are warm.
const WARM: Duration = Duration::from_millis(60);
/// The clock of round trips is not looked at more often than so.
const ROUND_TRIPS_MAX: usize = 4_000_000;

/// What a run found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Figure {
    /// Messages a second.
    Rate(f64),
    /// Nanoseconds of a round trip.
    Latency {
        /// Median.
        p50: u64,
        /// Of a hundred, one takes longer.
        p99: u64,
    },
}

/// Makes messages until its time is over; the last one says so.
pub(crate) struct Source {
    message: Message,
    next: u64,
    batch: u64,
    phase: Phase,
    began: Instant,
    measured: Option<Instant>,
    time: Duration,
    done: bool,
}

impl Source {
    pub(crate) fn new(job: &Job) -> Source {
        let load = job.case.load;
        Source {
            message: Message::new(load.bytes()),
            next: 0,
            batch: load.batch(),
            phase: Phase::Warm,
            began: Instant::now(),
            measured: None,
            time: Duration::from_millis(job.ms),
            done: false,
        }
    }

    /// Whether the last message has been made.
    pub(crate) fn done(&self) -> bool {
        self.done
    }

    /// Whether the message that comes next begins a batch.
    pub(crate) fn begins_batch(&self) -> bool {
        self.next.is_multiple_of(self.batch)
    }

    /// The next message.
    pub(crate) fn next(&mut self) -> &[u8] {
        if self.begins_batch() {
            let now = Instant::now();
            if self.measured.is_some_and(|since| now - since > self.time) {
                self.phase = Phase::End;
                self.done = true;
            } else if self.measured.is_none() && now - self.began > WARM {
                self.phase = Phase::Measured;
                self.measured = Some(now);
            }
        }
        let number = self.next;
        self.next += 1;
        self.message.stamp(number, self.phase)
    }
}

/// Checks what comes.
pub(crate) struct Sink {
    bytes: usize,
    next: u64,
    /// When the first measured message came, and its number.
    first: Option<(Instant, u64)>,
    rate: Option<f64>,
}

impl Sink {
    pub(crate) fn new(load: Load) -> Sink {
        Sink {
            bytes: load.bytes(),
            next: 0,
            first: None,
            rate: None,
        }
    }

    /// Takes a message. `true`: it was the last one.
    ///
    /// # Errors
    /// It is not the one that follows.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<bool, String> {
        let phase = check(bytes, self.bytes, self.next)?;
        match (phase, self.first) {
            (Phase::Measured, None) => self.first = Some((Instant::now(), self.next)),
            (Phase::End, Some((at, first))) => {
                let count = (self.next - first) as f64;
                self.rate = Some(count / at.elapsed().as_secs_f64());
            }
            (Phase::End, None) => return Err("nothing was measured".into()),
            _ => {}
        }
        self.next += 1;
        Ok(phase == Phase::End)
    }

    pub(crate) fn figure(&self) -> Result<Figure, String> {
        let rate = self.rate.ok_or("the last message has not come")?;
        Ok(Figure::Rate(rate))
    }
}

/// Asks, and times the answers.
pub(crate) struct Asker {
    source: Source,
    sink: Sink,
    asked: Instant,
    took: Vec<u64>,
}

impl Asker {
    pub(crate) fn new(job: &Job) -> Asker {
        Asker {
            source: Source::new(job),
            sink: Sink::new(job.case.load),
            asked: Instant::now(),
            took: Vec::with_capacity(ROUND_TRIPS_MAX),
        }
    }

    /// The next request.
    pub(crate) fn ask(&mut self) -> &[u8] {
        self.asked = Instant::now();
        self.source.next()
    }

    /// Takes its answer. `true`: it was the last one.
    ///
    /// # Errors
    /// It is another one.
    pub(crate) fn answered(&mut self, bytes: &[u8]) -> Result<bool, String> {
        let took = self.asked.elapsed();
        let last = self.sink.take(bytes)?;
        if self.sink.first.is_some() && !last && self.took.len() < ROUND_TRIPS_MAX {
            self.took
                .push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        Ok(last)
    }

    pub(crate) fn figure(mut self) -> Result<Figure, String> {
        self.took.sort_unstable();
        let last = self
            .took
            .len()
            .checked_sub(1)
            .ok_or("nothing was measured")?;
        Ok(Figure::Latency {
            p50: self.took[last / 2],
            p99: self.took[last * 99 / 100],
        })
    }
}

/// Answers each request with its own number.
pub(crate) struct Answerer {
    bytes: usize,
    next: u64,
    message: Message,
}

impl Answerer {
    pub(crate) fn new(load: Load) -> Answerer {
        Answerer {
            bytes: load.bytes(),
            next: 0,
            message: Message::new(load.bytes()),
        }
    }

    /// The answer, and whether it is the last one.
    ///
    /// # Errors
    /// The request is not the one that follows.
    pub(crate) fn answer(&mut self, request: &[u8]) -> Result<(&[u8], bool), String> {
        let phase = check(request, self.bytes, self.next)?;
        let number = self.next;
        self.next += 1;
        Ok((self.message.stamp(number, phase), phase == Phase::End))
    }
}

/// Looks once more, politely: a pair that shares a core for a moment must not starve itself.
pub(crate) fn relax(looks: &mut u32) {
    *looks = looks.wrapping_add(1);
    if looks.is_multiple_of(4096) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}
