//! How many writes are let in: as many as are done in good time.
//!
//! A request more than a cluster can carry is not carried sooner because it was let in; it makes all wait. What tells is the *shortest* time
//! that any write took in a while: it contains no queue that comes and goes, only one that stands. When it stays above what is good for
//! some whiles in a row, fewer are let in, and more again when it does not. Each gateway sees only its own writes, and that is
//! enough: those of all wait in the same queue.
//!
//! Writes that nobody could answer (no leader, no quorum) say nothing about a queue and are not measured; what waits for an election is
//! not to be refused for that.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// A while.
const WHILE: Duration = Duration::from_millis(100);
/// A while with fewer writes than this says nothing.
const SERVED_MIN: u32 = 4;
/// So many in a row must be slow: what has waited for an election comes in one burst.
const SLOW_MIN: u32 = 3;
/// So many are let in always.
const LIMIT_MIN: usize = 16;
/// A write may take so many times what it takes without a queue, however slow the disk is.
const TIMES_UNLOADED: u32 = 4;
/// What a write takes without a queue is forgotten by so much a while, should the disk have become slower for good.
const FORGET: u32 = 4096;

/// Lets writes in.
pub struct Admission {
    most: usize,
    good: Duration,
    state: Mutex<State>,
}

struct State {
    limit: usize,
    inside: usize,
    began: Instant,
    /// Shortest time of a write in this while.
    least: Duration,
    served: u32,
    /// Most that were inside at the same time.
    peak: usize,
    slow: u32,
    /// What a write takes without a queue.
    unloaded: Duration,
}

/// A write that was let in; it leaves when this is dropped.
pub struct Inside<'a> {
    admission: &'a Admission,
    since: Instant,
}

impl Admission {
    /// At most `most` at the same time, and fewer while even the quickest take longer than `good`; zero: never fewer.
    pub fn new(most: usize, good: Duration) -> Admission {
        Admission {
            most,
            good,
            state: Mutex::new(State {
                limit: most,
                inside: 0,
                began: Instant::now(),
                least: Duration::MAX,
                served: 0,
                peak: 0,
                slow: 0,
                unloaded: Duration::MAX,
            }),
        }
    }

    /// A place, or how many have one.
    ///
    /// # Errors
    /// None is free.
    pub fn enter(&self, now: Instant) -> Result<Inside<'_>, usize> {
        let mut state = self.state.lock();
        self.look(&mut state, now);
        if state.inside >= state.limit {
            return Err(state.limit);
        }
        state.inside += 1;
        state.peak = state.peak.max(state.inside);
        Ok(Inside {
            admission: self,
            since: now,
        })
    }

    /// Ends a while, if it is over.
    fn look(&self, state: &mut State, now: Instant) {
        if self.good.is_zero() || now.saturating_duration_since(state.began) < WHILE {
            return;
        }
        let free = state.limit == self.most;
        if state.served < SERVED_MIN {
            // Nobody waits for nothing: there is room.
            if state.inside < LIMIT_MIN {
                state.slow = 0;
                state.limit = self.more(state.limit);
            }
        } else {
            if free {
                let forgotten = state.unloaded.saturating_add(state.unloaded / FORGET);
                state.unloaded = forgotten.min(state.least);
            }
            let good = self.good.max(state.unloaded.saturating_mul(TIMES_UNLOADED));
            if state.least <= good {
                state.slow = 0;
                state.limit = self.more(state.limit);
            } else {
                state.slow += 1;
                if state.slow >= SLOW_MIN {
                    let fewer = state.limit.min(state.peak) / 8 * 7;
                    state.limit = fewer.clamp(LIMIT_MIN.min(self.most), self.most);
                }
            }
        }
        state.began = now;
        state.least = Duration::MAX;
        state.served = 0;
        state.peak = state.inside;
    }

    fn more(&self, limit: usize) -> usize {
        (limit + limit / 16 + 1).min(self.most)
    }
}

impl Inside<'_> {
    /// The write was done, or refused for what it says.
    pub fn served(self, now: Instant) {
        let took = now.saturating_duration_since(self.since);
        let mut state = self.admission.state.lock();
        state.served += 1;
        state.least = state.least.min(took);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.admission.state.lock().inside -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const MS: Duration = Duration::from_millis(1);

    /// A server that does `per_ms` writes in a millisecond, in the order in which they came, each taking `least` at least.
    struct Server<'a> {
        admission: &'a Admission,
        now: Instant,
        waiting: VecDeque<(Instant, Inside<'a>)>,
    }

    impl Server<'_> {
        /// Offers `offered` writes a millisecond for `time`; the longest that one of the second half took.
        fn run(
            &mut self,
            offered: usize,
            per_ms: usize,
            least: Duration,
            time: Duration,
        ) -> (Duration, usize) {
            let (mut longest, mut refused) = (Duration::ZERO, 0);
            let end = self.now + time;
            while self.now < end {
                self.now += MS;
                for _ in 0..offered {
                    match self.admission.enter(self.now) {
                        Ok(place) => self.waiting.push_back((self.now, place)),
                        Err(_) => refused += 1,
                    }
                }
                for _ in 0..per_ms {
                    let due = self
                        .waiting
                        .front()
                        .is_some_and(|(at, _)| self.now >= *at + least);
                    let Some((at, place)) = self.waiting.pop_front().filter(|_| due) else {
                        break;
                    };
                    if self.now > end - time / 2 {
                        longest = longest.max(self.now - at);
                    }
                    place.served(self.now);
                }
            }
            (longest, refused)
        }
    }

    fn server(admission: &Admission) -> Server<'_> {
        Server {
            admission,
            now: Instant::now(),
            waiting: VecDeque::new(),
        }
    }

    #[test]
    fn what_can_be_served_is_let_in() {
        let admission = Admission::new(4096, 40 * MS);
        let (_, refused) = server(&admission).run(4, 5, 2 * MS, 3000 * MS);
        assert_eq!(refused, 0);
    }

    #[test]
    fn of_ten_times_as_much_the_rest_is_refused_and_what_is_let_in_is_quick() {
        let admission = Admission::new(4096, 40 * MS);
        let mut server = server(&admission);
        server.run(3, 5, 2 * MS, 500 * MS);
        let (longest, refused) = server.run(50, 5, 2 * MS, 10_000 * MS);
        assert!(longest < 100 * MS, "{longest:?}");
        assert!(refused > 400_000, "{refused}");
        // Nothing of it is left when the load is gone.
        server.run(0, 5, 2 * MS, 200 * MS);
        let (longest, refused) = server.run(3, 5, 2 * MS, 2000 * MS);
        assert_eq!((longest <= 5 * MS, refused), (true, 0), "{longest:?}");
    }

    #[test]
    fn a_slow_disk_is_no_queue() {
        let admission = Admission::new(4096, 40 * MS);
        let (_, refused) = server(&admission).run(4, 5, 90 * MS, 10_000 * MS);
        assert_eq!(refused, 0);
    }

    #[test]
    fn what_waits_for_an_election_is_not_refused() {
        let admission = Admission::new(4096, 40 * MS);
        let mut server = server(&admission);
        server.run(2, 20, 2 * MS, 1000 * MS);
        // Nothing is served for a second; then all of it is, quickly.
        let (_, refused) = server.run(2, 0, 2 * MS, 1000 * MS);
        let (_, after) = server.run(2, 20, 2 * MS, 1000 * MS);
        assert_eq!((refused, after), (0, 0));
    }

    #[test]
    fn with_nothing_called_good_only_the_number_counts() {
        let admission = Admission::new(100, Duration::ZERO);
        let (longest, _) = server(&admission).run(50, 1, MS, 3000 * MS);
        assert!(longest >= 99 * MS, "{longest:?}");
    }
}
