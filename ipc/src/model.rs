//! The wake-up protocol and the reuse of room under the model checker: every interleaving and every stale read that the
//! memory model allows.
//!
//! A lost wake-up ends in both threads asleep, which loom reports as a deadlock. The slot is a checked cell, so reading a
//! record before it is whole, or overwriting one that is not handled, is reported as a race.

use crate::protocol::{Atomics, announce, arm};
use loom::cell::UnsafeCell;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;

/// The protocol's operations with the real orderings.
struct Fenced;
/// The same without the fences of RING-5.
struct Unfenced;
/// The same with positions published by a relaxed store.
struct Unordered;

macro_rules! loom_atomics {
    ($name:ty, publish: $publish:expr, fence: $fence:block) => {
        impl Atomics for $name {
            type Position = AtomicU64;
            type Flag = AtomicU32;
            fn publish(position: &AtomicU64, value: u64) {
                position.store(value, $publish);
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
                $fence
            }
        }
    };
}
loom_atomics!(Fenced, publish: Ordering::Release, fence: { fence(Ordering::SeqCst) });
loom_atomics!(Unfenced, publish: Ordering::Release, fence: {});
loom_atomics!(Unordered, publish: Ordering::Relaxed, fence: { fence(Ordering::SeqCst) });

/// A ring with room for one record. The bells are as an eventfd: rings add up to one readiness, and a wait takes it.
struct Ring<A> {
    slot: UnsafeCell<u64>,
    tail: AtomicU64,
    head: AtomicU64,
    sleeping: AtomicU32,
    waiting: AtomicU32,
    consumer: Notify,
    producer: Notify,
    atomics: PhantomData<fn() -> A>,
}
impl<A: Atomics<Position = AtomicU64, Flag = AtomicU32> + 'static> Ring<A> {
    fn new() -> Arc<Ring<A>> {
        Arc::new(Ring {
            slot: UnsafeCell::new(0),
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            sleeping: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            consumer: Notify::new(),
            producer: Notify::new(),
            atomics: PhantomData,
        })
    }

    fn wait_for_room(&self, written: u64) {
        loop {
            let head = A::look(&self.head);
            if head == written {
                return;
            }
            let moved = || Ok::<_, Infallible>(A::look(&self.head) != head);
            if arm::<A, _>(&self.waiting, moved).unwrap() {
                self.producer.wait();
            }
        }
    }

    /// `dies`: between publishing and ringing.
    fn send(&self, number: u64, dies: bool) {
        self.wait_for_room(number - 1);
        self.slot.with_mut(|slot| {
            // SAFETY: loom runs one thread at a time and reports an unordered access instead of performing it.
            unsafe { *slot = number }
        });
        if announce::<A>(&self.tail, &self.sleeping, number) && !dies {
            self.consumer.notify();
        }
    }

    fn receive_up_to(&self, last: u64) {
        let mut cursor = A::look(&self.head);
        while cursor < last {
            if A::look(&self.tail) == cursor {
                let moved = || Ok::<_, Infallible>(A::look(&self.tail) != cursor);
                if arm::<A, _>(&self.sleeping, moved).unwrap() {
                    self.consumer.wait();
                }
                continue;
            }
            let number = self.slot.with(|slot| {
                // SAFETY: as in `send`.
                unsafe { *slot }
            });
            cursor += 1;
            assert_eq!(number, cursor, "RING-1");
            if announce::<A>(&self.head, &self.waiting, cursor) {
                self.producer.notify();
            }
        }
    }
}

fn explore(body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(body);
}

/// Two records through room for one: both sides have to sleep and be woken in some interleavings.
fn both_sides_wait<A: Atomics<Position = AtomicU64, Flag = AtomicU32> + 'static>() {
    explore(|| {
        let ring = Ring::<A>::new();
        let producer = {
            let ring = ring.clone();
            loom::thread::spawn(move || {
                ring.send(1, false);
                ring.send(2, false);
            })
        };
        ring.receive_up_to(2);
        producer.join().unwrap();
    });
}

/// A producer that dies after publishing; its successor attaches while the consumer goes to sleep.
fn producer_dies(successor_rings: bool) {
    explore(move || {
        let ring = Ring::<Fenced>::new();
        let producer = {
            let ring = ring.clone();
            loom::thread::spawn(move || {
                ring.send(1, true);
                if successor_rings {
                    ring.consumer.notify();
                }
            })
        };
        ring.receive_up_to(1);
        producer.join().unwrap();
    });
}

/// A consumer that dies between publishing its head and ringing; the producer waits for room.
fn consumer_dies(successor_rings: bool) {
    explore(move || {
        let ring = Ring::<Fenced>::new();
        let consumer = {
            let ring = ring.clone();
            loom::thread::spawn(move || {
                while Fenced::look(&ring.tail) == 0 {
                    let moved = || Ok::<_, Infallible>(Fenced::look(&ring.tail) != 0);
                    if arm::<Fenced, _>(&ring.sleeping, moved).unwrap() {
                        ring.consumer.wait();
                    }
                }
                let _dies_before_ringing = announce::<Fenced>(&ring.head, &ring.waiting, 1);
                if successor_rings {
                    ring.producer.notify();
                }
            })
        };
        ring.send(1, false);
        ring.wait_for_room(1);
        consumer.join().unwrap();
    });
}

#[test]
fn ring_5_no_wake_up_is_lost() {
    both_sides_wait::<Fenced>();
}

#[test]
#[should_panic(expected = "deadlock")]
fn ring_5_without_the_fences_a_wake_up_is_lost() {
    both_sides_wait::<Unfenced>();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn ring_1_without_the_release_store_a_record_is_read_before_it_is_whole() {
    both_sides_wait::<Unordered>();
}

#[test]
fn ring_6_a_successor_that_rings_wakes_whom_the_dead_did_not() {
    producer_dies(true);
    consumer_dies(true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn ring_6_a_dead_producers_sleeper_needs_the_successors_ring() {
    producer_dies(false);
}

#[test]
#[should_panic(expected = "deadlock")]
fn ring_6_a_dead_consumers_sleeper_needs_the_successors_ring() {
    consumer_dies(false);
}
