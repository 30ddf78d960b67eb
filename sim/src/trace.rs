//! What happened: a digest over every step, and the last events in words.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Events that a failure shows.
const TAIL: usize = 400;

/// A running digest, and the tail.
pub struct Trace {
    digest: Cell<u64>,
    tail: RefCell<VecDeque<(u64, String)>>,
    /// Whether events are printed as they come.
    aloud: Cell<bool>,
}

impl Trace {
    /// Nothing has happened.
    #[expect(clippy::new_without_default, reason = "a beginning, not a default")]
    pub fn new() -> Trace {
        Trace {
            digest: Cell::new(0xCBF2_9CE4_8422_2325),
            tail: RefCell::default(),
            aloud: Cell::new(false),
        }
    }

    /// Prints events as they come.
    pub fn aloud(&self) {
        self.aloud.set(true);
    }

    /// Takes a number into the digest.
    pub fn mix(&self, number: u64) {
        let mixed = (self.digest.get() ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.digest.set(mixed ^ (mixed >> 29));
    }

    /// Takes bytes into the digest.
    pub fn mix_bytes(&self, bytes: &[u8]) {
        self.mix(xxhash_rust::xxh3::xxh3_64(bytes));
    }

    /// Takes an event into digest and tail.
    pub fn note(&self, ns: u64, what: impl FnOnce() -> String) {
        let what = what();
        self.mix(ns);
        self.mix_bytes(what.as_bytes());
        if self.aloud.get() {
            print(ns, &what);
        }
        let mut tail = self.tail.borrow_mut();
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back((ns, what));
    }

    /// The digest so far.
    pub fn digest(&self) -> u64 {
        self.digest.get()
    }

    /// The last `count` events, a line each.
    pub fn tail(&self, count: usize) -> String {
        let tail = self.tail.borrow();
        let skip = tail.len().saturating_sub(count);
        tail.iter()
            .skip(skip)
            .map(|(ns, what)| line(*ns, what) + "\n")
            .collect()
    }
}

/// Prints what the daemons log, between the events.
pub fn listen() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(VirtualTime)
        .with_ansi(false)
        .init();
}

/// The time that the daemon itself sees.
struct VirtualTime;

impl tracing_subscriber::fmt::time::FormatTime for VirtualTime {
    fn format_time(
        &self,
        writer: &mut tracing_subscriber::fmt::format::Writer<'_>,
    ) -> std::fmt::Result {
        write!(
            writer,
            "{:>5}.......",
            mareedb_ipc::world::wall_ms() / 1000 % 100_000
        )
    }
}

fn line(ns: u64, what: &str) -> String {
    let us = ns / 1000;
    format!("{:>5}.{:06} {what}", us / 1_000_000, us % 1_000_000)
}

#[expect(clippy::print_stdout, reason = "asked for on the command line")]
fn print(ns: u64, what: &str) {
    println!("{}", line(ns, what));
}
