//! Tasks and timers: tokio's, and openraft's are the same.
//!
//! With the feature `simulation` both are those of the world that the thread has entered, if it has (ADR 18). All code of
//! this crate takes them from here, so that nothing of it goes past the simulation.

#[cfg(feature = "simulation")]
mod switch;
#[cfg(feature = "simulation")]
pub use switch::{Runtime, sleep, sleep_until, spawn, timeout};

#[cfg(not(feature = "simulation"))]
pub use openraft_rt_tokio::TokioRuntime as Runtime;
#[cfg(not(feature = "simulation"))]
pub use tokio_only::{sleep, sleep_until, spawn, timeout};

pub use mareedb_ipc::world::now;

#[cfg(not(feature = "simulation"))]
mod tokio_only {
    use std::future::Future;
    use std::time::Instant;
    pub use tokio::time::{sleep, timeout};

    /// Runs a task that nobody waits for.
    pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(task));
    }

    /// Ends at a time.
    pub fn sleep_until(at: Instant) -> tokio::time::Sleep {
        tokio::time::sleep_until(at.into())
    }
}
