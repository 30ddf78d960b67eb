//! The switch: one thread that carries packets between the nodes, and does to them what the links say.

use super::packet;
use super::tun::MTU;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that wait on a slow link; more are dropped, as a router's buffer would.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Packets taken from one node before the next one has its turn.
const TURN: usize = 64;

/// What becomes of packets from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Nothing arrives.
    pub cut: bool,
    /// So many of a thousand packets are lost.
    pub loss_permille: u32,
    /// Each packet takes so long.
    pub delay: Duration,
    /// And up to so much longer, so that packets overtake each other.
    pub jitter: Duration,
    /// Bytes a second; 0: without limit.
    pub bytes_per_s: u64,
    /// Connections are reset when they send.
    pub reset: bool,
    /// New connections are refused, as if nobody listened.
    pub refuse: bool,
}

impl Link {
    /// A link in order.
    pub const WHOLE: Link = Link {
        cut: false,
        loss_permille: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        bytes_per_s: 0,
        reset: false,
        refuse: false,
    };
}

/// Packets of a switch's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Delivered, at once or later.
    pub delivered: u64,
    /// Dropped.
    pub dropped: u64,
}

/// A running switch.
pub struct Switch {
    shared: Arc<Shared>,
    nodes: usize,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// From `a` to `b` at `a * nodes + b`.
    links: Mutex<Vec<Link>>,
    carried: Mutex<Carried>,
    stop: AtomicBool,
    woken: EventFd,
}

impl Switch {
    /// Carries packets between these interfaces.
    pub(super) fn start(tuns: Vec<(Ipv4Addr, File)>) -> io::Result<Switch> {
        let nodes = tuns.len();
        let shared = Arc::new(Shared {
            links: Mutex::new(vec![Link::WHOLE; nodes * nodes]),
            carried: Mutex::default(),
            stop: AtomicBool::new(false),
            woken: EventFd::new()?,
        });
        let worker = Worker {
            shared: shared.clone(),
            tuns,
            waiting: BinaryHeap::new(),
            free_at: vec![Instant::now(); nodes * nodes],
            number: 0,
            random: 0x9E37_79B9_7F4A_7C15,
        };
        let thread = std::thread::Builder::new()
            .name("switch".into())
            .spawn(move || worker.run())?;
        Ok(Switch {
            shared,
            nodes,
            thread: Some(thread),
        })
    }

    fn links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.shared.links.lock().expect("not poisoned")
    }

    /// What the link from one node to another does.
    pub fn link(&self, from: usize, to: usize) -> Link {
        self.links()[from * self.nodes + to]
    }

    /// Changes what the link from one node to another does; packets that wait keep their time.
    pub fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.links()[from * self.nodes + to]);
    }

    /// Puts all links in order.
    pub fn heal(&self) {
        self.links().fill(Link::WHOLE);
    }

    /// What it has carried so far.
    pub fn carried(&self) -> Carried {
        *self.shared.carried.lock().expect("not poisoned")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A full event counter has woken it, too.
        let _ = self.shared.woken.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet on its way, ordered by when it is due, then by when it came.
type Waiting = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Worker {
    shared: Arc<Shared>,
    tuns: Vec<(Ipv4Addr, File)>,
    waiting: BinaryHeap<Waiting>,
    /// When a slow link has sent what it was given.
    free_at: Vec<Instant>,
    number: u64,
    random: u64,
}

impl Worker {
    fn run(mut self) {
        let mut buffer = vec![0u8; MTU + 64];
        while !self.shared.stop.load(Ordering::Relaxed) {
            for from in 0..self.tuns.len() {
                for _ in 0..TURN {
                    // Would block, or the namespace is about to go.
                    let Ok(len) = (&self.tuns[from].1).read(&mut buffer) else {
                        break;
                    };
                    self.carry(from, &buffer[..len]);
                }
            }
            self.deliver_due();
            self.sleep();
        }
    }

    /// Until there is a packet, one is due, or somebody wakes us.
    fn sleep(&self) {
        let files = self.tuns.iter().map(|(_, file)| file.as_fd());
        let mut polled: Vec<PollFd> = files
            .chain([self.shared.woken.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let limit = match self.waiting.peek() {
            Some(Reverse((due, ..))) => due.saturating_duration_since(Instant::now()),
            None => Duration::from_secs(1),
        };
        // An interruption is as good as a wake-up.
        let _ = ppoll(&mut polled, Some(TimeSpec::from_duration(limit)), None);
    }

    fn carry(&mut self, from: usize, packet: &[u8]) {
        let to = packet::ends(packet)
            .and_then(|(_, to)| self.tuns.iter().position(|(addr, _)| *addr == to));
        // Broadcasts and what is for nobody here.
        let Some(to) = to.filter(|to| *to != from) else {
            return;
        };
        let way = from * self.tuns.len() + to;
        let link = self.shared.links.lock().expect("not poisoned")[way];
        if link.cut || self.below(1000) < u64::from(link.loss_permille) {
            return self.drop_one();
        }
        if link.reset
            && let Some([forth, back]) = packet::resets(packet)
        {
            self.write(to, &forth);
            self.write(from, &back);
            return self.drop_one();
        }
        if link.refuse
            && let Some(refusal) = packet::refusal(packet)
        {
            self.write(from, &refusal);
            return self.drop_one();
        }
        if link.delay.is_zero() && link.jitter.is_zero() && link.bytes_per_s == 0 {
            return self.write(to, packet);
        }
        let now = Instant::now();
        let mut due = now + link.delay;
        if link.bytes_per_s > 0 {
            let rate = link.bytes_per_s as f64;
            let free = self.free_at[way].max(now);
            if (free - now).as_secs_f64() * rate > QUEUE_BYTES_MAX as f64 {
                return self.drop_one();
            }
            self.free_at[way] = free + Duration::from_secs_f64(packet.len() as f64 / rate);
            due = self.free_at[way] + link.delay;
        }
        let jitter_us = u64::try_from(link.jitter.as_micros()).unwrap_or(u64::MAX);
        due += Duration::from_micros(self.below(jitter_us.saturating_add(1)));
        self.number += 1;
        self.waiting
            .push(Reverse((due, self.number, to, packet.to_vec())));
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while self
            .waiting
            .peek()
            .is_some_and(|Reverse((due, ..))| *due <= now)
        {
            if let Some(Reverse((_, _, to, packet))) = self.waiting.pop() {
                self.write(to, &packet);
            }
        }
    }

    fn write(&self, to: usize, packet: &[u8]) {
        let written = (&self.tuns[to].1).write(packet).is_ok();
        let mut carried = self.shared.carried.lock().expect("not poisoned");
        // A full queue of the interface drops, as a real one would.
        carried.delivered += u64::from(written);
        carried.dropped += u64::from(!written);
    }

    fn drop_one(&self) {
        self.shared.carried.lock().expect("not poisoned").dropped += 1;
    }

    /// Xorshift; which packet is lost decides nothing that has to be repeated.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }
}
