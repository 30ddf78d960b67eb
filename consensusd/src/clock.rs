//! Time as consensusd sees it, behind a trait: the simulation brings its own.

use crate::rt;
use mareedb_ipc::wire::Revision;
use mareedb_ipc::world::wall_ms;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// A wall clock that jumps ahead is not followed before it has stayed there for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody has looked for so long: what was seen before says nothing of what stayed.
const UNSEEN: Duration = Duration::from_secs(3);

/// Source of proposed revisions.
pub trait Clock: Send + Sync {
    /// A revision above every one that this clock gave before, at the current time or after it.
    fn revision(&self) -> Revision;

    /// The node's wall clock, in milliseconds since 1970. It may jump.
    fn wall_ms(&self) -> u64;

    /// Looks at the wall clock, once a second, and hears by how many milliseconds it is known to be ahead of a
    /// majority's: while it is, no revision follows it, nor what was followed of it before that was known.
    ///
    /// Returns what it is ahead of the time that is followed, in milliseconds.
    fn watch(&self, ahead_ms: Option<u64>) -> u64;
}

/// A hybrid logical clock over the system's clock.
#[derive(Debug)]
pub struct HybridClock {
    state: Mutex<State>,
    /// A jump ahead by more is not followed at once, in milliseconds.
    jump_ms: u64,
    /// A file with milliseconds, which may be negative, that the system's clock is off by.
    #[cfg(feature = "faults")]
    off_by: Option<std::path::PathBuf>,
}

#[derive(Debug)]
struct State {
    last: Revision,
    /// The wall clock as it was last followed, and when.
    followed: (u64, Instant),
    /// Since when it is too far ahead.
    ahead_since: Option<Instant>,
    /// When it was last looked at.
    seen: Instant,
    /// It is known to be ahead of a majority's.
    hold: bool,
}

impl State {
    /// The time that is followed.
    fn expected(&self, now: Instant) -> u64 {
        let (before, at) = self.followed;
        let passed = now.saturating_duration_since(at).as_millis();
        before.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// The wall clock in milliseconds, without a jump that is too young.
    fn pace(&mut self, wall: u64, now: Instant, jump_ms: u64) -> u64 {
        let unseen = now.saturating_duration_since(std::mem::replace(&mut self.seen, now)) > UNSEEN;
        let expected = self.expected(now);
        if wall > expected && (self.hold || wall - expected > jump_ms) {
            if self.hold || unseen {
                self.ahead_since = Some(now);
            }
            let since = *self.ahead_since.get_or_insert(now);
            if self.hold || now.saturating_duration_since(since) < PATIENCE {
                return expected;
            }
        }
        self.ahead_since = None;
        self.followed = (wall, now);
        wall
    }
}

impl HybridClock {
    /// A clock that follows jumps ahead by more than `jump_ms` with some patience only. `held_ms`: what the wall clock was ahead of the
    /// time that the predecessor of this process followed.
    pub fn new(jump_ms: u64, held_ms: u64) -> HybridClock {
        HybridClock {
            state: Mutex::new(State {
                last: Revision(0),
                followed: (wall_ms().saturating_sub(held_ms), rt::now()),
                ahead_since: None,
                seen: rt::now(),
                hold: false,
            }),
            jump_ms,
            #[cfg(feature = "faults")]
            off_by: None,
        }
    }

    /// One that is set by the file `clock` in this directory.
    #[cfg(feature = "faults")]
    pub fn set_by(data_dir: &str, jump_ms: u64, held_ms: u64) -> HybridClock {
        let mut clock = HybridClock::new(jump_ms, held_ms);
        clock.off_by = Some(std::path::Path::new(data_dir).join("clock"));
        clock.state.get_mut().followed = (clock.wall_ms().saturating_sub(held_ms), rt::now());
        clock
    }
}

impl Clock for HybridClock {
    fn revision(&self) -> Revision {
        let (wall, now) = (self.wall_ms(), rt::now());
        let mut state = self.state.lock();
        let paced = Revision::from_unix_ms(state.pace(wall, now, self.jump_ms));
        state.last = paced.max(state.last.next());
        state.last
    }

    fn watch(&self, ahead_ms: Option<u64>) -> u64 {
        let (wall, now) = (self.wall_ms(), rt::now());
        let mut state = self.state.lock();
        state.hold = ahead_ms.is_some();
        let before = state.expected(now);
        let expected = state.pace(wall, now, self.jump_ms);
        // What is known of a clock that has just been set back is from before.
        let set_back = wall.saturating_add(self.jump_ms) < before;
        if let Some(ahead_ms) = ahead_ms.filter(|_| !set_back) {
            state.followed = (expected.min(wall.saturating_sub(ahead_ms)), now);
        }
        wall.saturating_sub(state.pace(wall, now, self.jump_ms))
    }

    fn wall_ms(&self) -> u64 {
        let now = wall_ms();
        #[cfg(feature = "faults")]
        if let Some(file) = &self.off_by
            && let Ok(text) = std::fs::read_to_string(file)
        {
            return now.saturating_add_signed(text.trim().parse().unwrap_or(0));
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_only_grow() {
        let clock = HybridClock::new(500, 0);
        let mut last = Revision(0);
        for _ in 0..10_000 {
            let next = clock.revision();
            assert!(next > last);
            last = next;
        }
    }

    /// A restart of the process is no way to follow a wall clock that is known to be wrong.
    #[test]
    fn what_the_wall_clock_is_ahead_by_outlives_the_process() {
        let hour_ms = 3_600_000;
        let clock = HybridClock::new(500, hour_ms);
        let behind_ms = clock.wall_ms().saturating_sub(clock.revision().unix_ms());
        let minute_ms = 60_000;
        assert!(behind_ms.abs_diff(hour_ms) < minute_ms, "{behind_ms}");
    }

    /// A clock that shows a million milliseconds now.
    fn state(now: Instant) -> State {
        State {
            last: Revision(0),
            followed: (1_000_000, now),
            ahead_since: None,
            seen: now,
            hold: false,
        }
    }

    #[test]
    fn a_jump_ahead_is_followed_when_it_stays_and_a_drift_and_a_step_back_at_once() {
        let began = rt::now();
        let mut state = state(began);
        let mut at =
            |wall: u64, seconds: u64| state.pace(wall, began + Duration::from_secs(seconds), 500);
        assert_eq!(at(1_001_400, 1), 1_001_400, "a drift");
        assert_eq!(at(9_000_000, 2), 1_002_400, "a jump");
        assert_eq!(at(9_001_000, 3), 1_003_400, "a jump that is too young");
        assert_eq!(at(1_004_000, 4), 1_004_000, "and is over");
        for second in 5..15 {
            assert_eq!(at(9_000_000, second), 1_000_000 + second * 1000, "a jump");
        }
        assert_eq!(at(9_010_000, 15), 9_010_000, "that stays");
        assert_eq!(at(1_000_000, 16), 1_000_000, "a step back");
    }

    #[test]
    fn what_nobody_saw_has_not_stayed_and_what_is_known_to_be_wrong_is_never_followed() {
        let began = rt::now();
        let mut state = state(began);
        let at = |state: &mut State, wall: u64, seconds: u64| {
            state.pace(wall, began + Duration::from_secs(seconds), 500)
        };
        assert_eq!(at(&mut state, 9_000_000, 1), 1_001_000);
        // The process stood still.
        assert_eq!(at(&mut state, 9_000_000, 60), 1_060_000);
        state.hold = true;
        for second in 61..100 {
            assert_eq!(at(&mut state, 9_000_000, second), 1_000_000 + second * 1000);
        }
        state.hold = false;
        assert_eq!(at(&mut state, 9_000_000, 100), 1_100_000, "from now on");
        assert_eq!(at(&mut state, 1_100_900, 101), 1_100_900, "set right");
        state.hold = true;
        assert_eq!(
            at(&mut state, 1_102_000, 102),
            1_101_900,
            "not even a drift"
        );
    }
}
