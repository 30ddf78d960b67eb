//! The switch between the machine and the world that this thread has entered.

use super::{Fault, machine};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Time, randomness and tasks of a simulation. All of it belongs to one thread.
pub trait World {
    /// Monotone time of whoever runs now.
    fn now(&self) -> Instant;
    /// Wall time of whoever runs now, in milliseconds since 1970.
    fn wall_ms(&self) -> u64;
    /// Fills bytes by the seed.
    fn draw(&self, bytes: &mut [u8]);
    /// Runs a task beside the one that runs now; it ends with the process that this one belongs to.
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>);
    /// Wakes at a time of whoever runs now. What it gives cancels it.
    fn wake_at(&self, at: Instant, waker: &Waker) -> (u64, u64);
    /// Forgets a wake that has not come.
    fn cancel(&self, timer: (u64, u64));
    /// Rings a doorbell of the node that runs now.
    fn ring(&self, waiter: crate::Waiter);
    /// Whether a fault is planted.
    fn planted(&self, fault: Fault) -> bool;
}

thread_local! {
    static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
}

/// A world that this thread is in until this is dropped.
#[must_use = "dropping it leaves the world"]
pub struct Entered(());

impl Drop for Entered {
    fn drop(&mut self) {
        WORLD.set(None);
    }
}

/// Enters a world.
///
/// # Panics
/// This thread is in one.
pub fn enter(world: Rc<dyn World>) -> Entered {
    let before = WORLD.replace(Some(world));
    assert!(before.is_none(), "one world at a time");
    Entered(())
}

/// The world that this thread is in.
pub fn current() -> Option<Rc<dyn World>> {
    WORLD.with_borrow(Clone::clone)
}

/// Monotone time.
pub fn now() -> Instant {
    clock().unwrap_or_else(machine::now)
}

/// Monotone time of the world that this thread is in.
pub fn clock() -> Option<Instant> {
    WORLD.with_borrow(|world| world.as_ref().map(|world| world.now()))
}

/// Milliseconds since 1970 by the wall clock; it may jump.
pub fn wall_ms() -> u64 {
    current().map_or_else(machine::wall_ms, |world| world.wall_ms())
}

/// Fills bytes with what nobody can foresee, or by the seed.
pub fn draw(bytes: &mut [u8]) {
    match current() {
        Some(world) => world.draw(bytes),
        None => machine::draw(bytes),
    }
}

/// Whether a fault is planted.
pub fn planted(fault: Fault) -> bool {
    WORLD.with_borrow(|world| world.as_ref().is_some_and(|world| world.planted(fault)))
}

/// Ends at a time of the world that this thread is in.
pub struct Timer {
    at: Instant,
    /// What cancels it, and who waits.
    set: Option<((u64, u64), Waker)>,
}

impl Timer {
    /// One that ends at `at`.
    pub fn at(at: Instant) -> Timer {
        Timer { at, set: None }
    }

    /// One that ends after so long.
    pub fn after(duration: Duration) -> Timer {
        // What lies beyond the clock never ends.
        let now = now();
        let at = now.checked_add(duration);
        Timer::at(at.unwrap_or(now + Duration::from_secs(1 << 30)))
    }

    fn unset(&mut self) {
        if let (Some((timer, _)), Some(world)) = (self.set.take(), current()) {
            world.cancel(timer);
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // Who is left outside of its world, or in none, is about to be dropped.
        let Some(world) = current() else {
            return Poll::Pending;
        };
        if world.now() >= self.at {
            self.unset();
            return Poll::Ready(());
        }
        let waits = |waker: &Waker| waker.will_wake(context.waker());
        if !self.set.as_ref().is_some_and(|(_, waker)| waits(waker)) {
            self.unset();
            let timer = world.wake_at(self.at, context.waker());
            self.set = Some((timer, context.waker().clone()));
        }
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.unset();
    }
}
