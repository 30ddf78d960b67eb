//! How many requests are served at once: never more than memory is there for, and fewer when even the quickest of them waits long.
//!
//! A queue that is always there makes everybody wait and serves nobody sooner. It shows in the *shortest* time that any request of a
//! while took: in a burst some are still quick, in a standing queue none is (the thought behind CoDel, RFC 8289). Then the limit falls, and
//! rises again once it is reached and the queue is gone. What is long depends on disks and on how far apart the nodes are, so that it is
//! measured: several times what requests take while few are there.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The shortest time is taken over so long.
const WINDOW: Duration = Duration::from_millis(100);
/// The limit falls no lower: so many requests fill the batches of a node and its disk, whatever they wait.
const LIMIT_MIN: usize = 64;
/// So many times what requests take while few are there is long, if that is more than the target.
const LONG: u32 = 4;

/// What is waited for. Reads are quick where writes wait for disks, so that they are looked at apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A log entry.
    Write,
    /// One key.
    Get,
    /// As much as it asks for, or of this node alone: how long it takes says nothing.
    Other,
}

/// The places of a node.
#[derive(Debug)]
pub struct Admission {
    taken: AtomicUsize,
    limit: AtomicUsize,
    max: usize,
    /// None: the limit never falls.
    target: Option<Duration>,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    shortest: [Option<Duration>; 2],
    /// What the shortest is while few are there.
    alone: [Option<Duration>; 2],
    /// Whether a request was refused in it.
    reached: bool,
}

/// A taken place.
#[derive(Debug)]
pub struct Place<'a> {
    admission: &'a Admission,
    kind: Kind,
    began: Instant,
}

impl Admission {
    /// `max` places; fewer while the shortest time is long, which `target` never is; with zero none is.
    pub fn new(max: usize, target: Duration) -> Admission {
        Admission {
            taken: AtomicUsize::new(0),
            limit: AtomicUsize::new(max),
            max,
            target: (target > Duration::ZERO).then_some(target),
            window: Mutex::new(Window {
                began: Instant::now(),
                shortest: [None; 2],
                alone: [None; 2],
                reached: false,
            }),
        }
    }

    /// A place, if there is one.
    pub fn take(&self, kind: Kind) -> Option<Place<'_>> {
        let limit = self.limit.load(Ordering::Relaxed);
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < limit).then_some(taken + 1)
            });
        if taken.is_err() {
            self.refused(Instant::now());
            return None;
        }
        Some(Place {
            admission: self,
            kind,
            began: Instant::now(),
        })
    }

    /// Whether all places are taken at this moment; counts as a refusal when they are.
    pub fn is_full(&self) -> bool {
        let full = self.taken.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed);
        if full {
            self.refused(Instant::now());
        }
        full
    }

    /// What requests take while few are there is to be learnt anew: the way to a leader is another one.
    pub fn forget(&self) {
        self.window.lock().alone = [None; 2];
    }

    /// While nothing at all is served, which says nothing of a queue, the limit rises: those that hold all places must not keep out what
    /// could be served.
    fn refused(&self, now: Instant) {
        let mut window = self.window.lock();
        window.reached = true;
        if now.saturating_duration_since(window.began) >= 2 * WINDOW {
            self.close(&mut window, now);
        }
    }

    /// Places at this moment.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    fn served(&self, kind: Kind, took: Duration, now: Instant) {
        if self.target.is_none() {
            return;
        }
        let at = match kind {
            Kind::Write => 0,
            Kind::Get => 1,
            Kind::Other => return,
        };
        let mut window = self.window.lock();
        let shortest = &mut window.shortest[at];
        *shortest = Some(shortest.map_or(took, |shortest| shortest.min(took)));
        if now.saturating_duration_since(window.began) < WINDOW {
            return;
        }
        self.close(&mut window, now);
    }

    fn close(&self, window: &mut Window, now: Instant) {
        let Some(target) = self.target else { return };
        let taken = self.taken.load(Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        let (waits, reached) = (window.judge(target, taken), window.reached);
        *window = Window {
            began: now,
            shortest: [None; 2],
            alone: window.alone,
            reached: false,
        };
        self.limit
            .store(self.next(limit, taken, waits, reached), Ordering::Relaxed);
    }

    fn next(&self, limit: usize, taken: usize, waits: bool, reached: bool) -> usize {
        let next = if waits {
            // From what is really there: a limit that is far away limits nothing.
            limit.min(taken) * 7 / 8
        } else if reached {
            limit + limit.div_ceil(16)
        } else {
            limit
        };
        next.clamp(LIMIT_MIN.min(self.max), self.max)
    }
}

impl Window {
    /// Whether requests waited long in this window, at whose end `taken` are there.
    fn judge(&mut self, target: Duration, taken: usize) -> bool {
        let few = taken < LIMIT_MIN && !self.reached;
        let mut waits = false;
        for (shortest, alone) in self.shortest.iter().zip(&mut self.alone) {
            let Some(shortest) = *shortest else { continue };
            let known = alone.get_or_insert(shortest);
            if shortest < *known {
                *known = shortest;
            } else if few {
                // Slowly: one slow moment is none of the disk's or the network's habits.
                *known += (shortest - *known) / 16;
            }
            waits |= shortest > target.max(*known * LONG);
        }
        // A few slow ones are no queue.
        waits && !few
    }
}

impl Place<'_> {
    /// The request was served: how long it took says how long others wait. One that fails says nothing of the kind.
    pub fn served(&self) {
        self.admission
            .served(self.kind, self.began.elapsed(), Instant::now());
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.admission.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(30);

    /// A window in which every request took at least `ms`; all places are asked for if `pressed`.
    fn pass(admission: &Admission, at: &mut Instant, ms: u64, pressed: bool) {
        let held: Vec<_> = std::iter::from_fn(|| admission.take(Kind::Write))
            .take(if pressed { usize::MAX } else { 10 })
            .collect();
        *at += WINDOW;
        for more in [3, 0, 2] {
            admission.served(Kind::Write, Duration::from_millis(ms + more), *at);
        }
        drop(held);
    }

    #[test]
    fn no_more_places_than_there_are() {
        let admission = Admission::new(2, TARGET);
        let first = admission.take(Kind::Write).unwrap();
        let _second = admission.take(Kind::Other).unwrap();
        assert!(admission.is_full() && admission.take(Kind::Get).is_none());
        drop(first);
        assert!(!admission.is_full() && admission.take(Kind::Get).is_some());
    }

    #[test]
    fn a_standing_queue_lowers_the_limit_to_its_floor_and_no_further() {
        let admission = Admission::new(4096, TARGET);
        let mut at = Instant::now();
        pass(&admission, &mut at, 2, false);
        let mut last = admission.limit();
        for _ in 0..60 {
            pass(&admission, &mut at, 31, true);
            assert!(admission.limit() <= last);
            last = admission.limit();
        }
        assert_eq!(last, LIMIT_MIN);
    }

    #[test]
    fn the_limit_rises_once_it_is_reached_and_nobody_waits() {
        let admission = Admission::new(1000, TARGET);
        let mut at = Instant::now();
        pass(&admission, &mut at, 2, false);
        for _ in 0..60 {
            pass(&admission, &mut at, 31, true);
        }
        pass(&admission, &mut at, 5, false);
        assert_eq!(admission.limit(), LIMIT_MIN, "nobody asked for more");
        for _ in 0..60 {
            pass(&admission, &mut at, 5, true);
        }
        assert_eq!(admission.limit(), 1000);
    }

    #[test]
    fn a_slow_moment_of_a_quiet_node_is_no_queue() {
        let admission = Admission::new(4096, TARGET);
        let mut at = Instant::now();
        pass(&admission, &mut at, 2, false);
        for _ in 0..9 {
            pass(&admission, &mut at, 400, false);
        }
        assert_eq!(admission.limit(), 4096);
    }

    #[test]
    fn places_that_nobody_gives_back_do_not_keep_all_others_out() {
        let admission = Admission::new(4096, TARGET);
        let mut at = Instant::now();
        pass(&admission, &mut at, 2, false);
        for _ in 0..60 {
            pass(&admission, &mut at, 300, true);
        }
        assert_eq!(admission.limit(), LIMIT_MIN);
        let _held: Vec<_> = (0..LIMIT_MIN)
            .map(|_| admission.take(Kind::Write))
            .collect();
        assert!(admission.take(Kind::Other).is_none());
        // The first of these windows still has seen something.
        for _ in 0..2 {
            at += 2 * WINDOW;
            admission.refused(at);
        }
        assert!(admission.take(Kind::Other).is_some());
    }

    #[test]
    fn one_quick_request_in_a_window_is_no_queue() {
        let admission = Admission::new(4096, TARGET);
        let mut at = Instant::now();
        for _ in 0..60 {
            admission.served(Kind::Write, TARGET / 2, at);
            pass(&admission, &mut at, 500, true);
        }
        assert_eq!(admission.limit(), 4096);
    }

    #[test]
    fn where_requests_always_take_long_they_do_not_wait() {
        let admission = Admission::new(4096, TARGET);
        let mut at = Instant::now();
        // Nodes of three continents.
        pass(&admission, &mut at, 120, false);
        for _ in 0..60 {
            pass(&admission, &mut at, 300, true);
        }
        assert_eq!(admission.limit(), 4096);
        for _ in 0..60 {
            pass(&admission, &mut at, 600, true);
        }
        assert_eq!(admission.limit(), LIMIT_MIN);
    }

    #[test]
    fn a_longer_way_is_learnt_while_few_are_there_and_not_under_load() {
        let admission = Admission::new(4096, TARGET);
        let mut at = Instant::now();
        pass(&admission, &mut at, 2, false);
        for _ in 0..600 {
            pass(&admission, &mut at, 100, true);
        }
        assert_eq!(admission.limit(), LIMIT_MIN, "a queue is no way");
        for _ in 0..100 {
            pass(&admission, &mut at, 100, false);
        }
        for _ in 0..200 {
            pass(&admission, &mut at, 110, true);
        }
        assert_eq!(admission.limit(), 4096);
    }

    #[test]
    fn slow_writes_show_beside_quick_reads_and_others_never_do() {
        let admission = Admission::new(4096, TARGET);
        let mut at = Instant::now();
        pass(&admission, &mut at, 2, false);
        let _held: Vec<_> = (0..100).map(|_| admission.take(Kind::Write)).collect();
        for _ in 0..3 {
            at += WINDOW;
            admission.served(Kind::Other, TARGET * 100, at);
        }
        assert_eq!(admission.limit(), 4096);
        admission.served(Kind::Get, TARGET / 10, at);
        admission.served(Kind::Get, TARGET / 10, at + WINDOW / 2);
        admission.served(Kind::Write, TARGET * 2, at + WINDOW);
        assert_eq!(admission.limit(), 87);
    }

    #[test]
    fn without_a_target_and_below_the_floor_the_limit_stays() {
        let mut at = Instant::now();
        for admission in [
            Admission::new(4096, Duration::ZERO),
            Admission::new(5, TARGET),
        ] {
            let max = admission.limit();
            for _ in 0..9 {
                pass(&admission, &mut at, 1000, true);
            }
            assert_eq!(admission.limit(), max);
        }
    }
}
