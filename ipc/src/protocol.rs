//! The sleep and wake-up protocol of a ring: one side announces that its position moved, the other asks to be rung.
//!
//! Both directions of a ring are the same protocol: `tail` with `sleeping` (the consumer waits for records) and `head`
//! with `waiting` (the producer waits for room, or for an acknowledgement).
//!
//! ```text
//! announce:  position = value (Release)         arm:  flag = 1
//!            fence SeqCst          (RING-5)           fence SeqCst          (RING-5)
//!            flag == 1? take it and ring              position moved? lower the flag, look : sleep on the bell
//! ```
//!
//! Of two sequentially consistent fences one comes first, so either the announcer sees the flag, or the other side sees
//! the new position. Without the fences both may read the old value, and nobody wakes the sleeper.
//!
//! The protocol is written over a trait so that the very code that runs in a daemon is what the model checker explores
//! (`model`, in ordinary `cargo test`). What the model leaves out: the bell is the model's own notification there, not a
//! descriptor, and several rings that share a bell are one ring.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The atomic operations that the protocol needs.
pub(crate) trait Atomics {
    /// A position that one side writes.
    type Position;
    /// A flag that one side raises and the other takes.
    type Flag;
    /// Release store: everything written before is visible to who loads the value.
    fn publish(position: &Self::Position, value: u64);
    /// Acquire load.
    fn look(position: &Self::Position) -> u64;
    /// Sets a flag.
    fn raise(flag: &Self::Flag);
    /// Clears one's own flag.
    fn lower(flag: &Self::Flag);
    /// Whether the flag is up, cheaply: a read that leaves the cache line shared.
    fn is_up(flag: &Self::Flag) -> bool;
    /// Clears the other side's flag; whether it was up.
    fn take(flag: &Self::Flag) -> bool;
    /// The fence of RING-5.
    fn fence();
}

/// The processor's.
pub(crate) enum Real {}

impl Atomics for Real {
    type Position = AtomicU64;
    type Flag = AtomicU32;
    fn publish(position: &AtomicU64, value: u64) {
        position.store(value, Ordering::Release);
    }
    fn look(position: &AtomicU64) -> u64 {
        position.load(Ordering::Acquire)
    }
    fn raise(flag: &AtomicU32) {
        flag.store(1, Ordering::Relaxed);
    }
    fn lower(flag: &AtomicU32) {
        flag.store(0, Ordering::Relaxed);
    }
    fn is_up(flag: &AtomicU32) -> bool {
        flag.load(Ordering::Relaxed) != 0
    }
    fn take(flag: &AtomicU32) -> bool {
        flag.swap(0, Ordering::AcqRel) != 0
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Publishes a position. `true`: the other side sleeps, ring its bell.
#[must_use = "the other side sleeps until its bell is rung"]
pub(crate) fn announce<A: Atomics>(position: &A::Position, flag: &A::Flag, value: u64) -> bool {
    A::publish(position, value);
    A::fence();
    A::is_up(flag) && A::take(flag)
}

/// Asks to be rung. `moved` looks at the other side's position. `true`: it has not moved, sleep now.
///
/// # Errors
/// What `moved` says; the flag is then left up, which costs at most one needless ring.
pub(crate) fn arm<A: Atomics, E>(
    flag: &A::Flag,
    moved: impl FnOnce() -> Result<bool, E>,
) -> Result<bool, E> {
    A::raise(flag);
    A::fence();
    if moved()? {
        A::lower(flag);
        return Ok(false);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// RING-5 on this processor: two threads meet in each round, one announces, the other arms. If it then sleeps, it must
    /// have been rung. (Without the fence in [`Real`] this fails in those runs in which each thread has a core of its own.)
    #[test]
    fn ring_5_holds_on_this_machine() {
        const ROUNDS: u64 = 100_000;
        let (position, flag) = (AtomicU64::new(0), AtomicU32::new(0));
        let (turn, met, rung) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let reach = |counter: &AtomicU64, value: u64| {
            let mut looks = 0u32;
            while counter.load(Ordering::Acquire) < value {
                looks += 1;
                if looks.is_multiple_of(200) {
                    std::thread::yield_now();
                }
            }
        };
        // A different distance between the two in each round: somewhere they meet within a few nanoseconds.
        let linger = |steps: u64| {
            for _ in 0..steps {
                std::hint::black_box(steps);
            }
        };
        let mut asleep = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    turn.fetch_add(1, Ordering::AcqRel);
                    reach(&turn, 2 * round);
                    linger(round % 61 * 4);
                    if announce::<Real>(&position, &flag, round) {
                        rung.store(round, Ordering::Relaxed);
                    }
                    met.fetch_add(1, Ordering::AcqRel);
                    reach(&met, 2 * round);
                }
            });
            for round in 1..=ROUNDS {
                turn.fetch_add(1, Ordering::AcqRel);
                reach(&turn, 2 * round);
                linger(round % 67 * 4);
                let moved = || Ok::<_, Infallible>(Real::look(&position) == round);
                let sleeps = arm::<Real, _>(&flag, moved).unwrap();
                met.fetch_add(1, Ordering::AcqRel);
                reach(&met, 2 * round);
                if sleeps && rung.load(Ordering::Relaxed) != round {
                    asleep += 1;
                    Real::lower(&flag);
                }
            }
        });
        assert_eq!(asleep, 0, "RING-5: sleepers of {ROUNDS} that nobody wakes");
    }
}
