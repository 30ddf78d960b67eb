//! Tasks and timers: tokio's, and openraft's are the same.
//!
//! With the feature `simulation` both are those of the world that the thread has entered, if it has (ADR 18). All code of
//! this crate takes them from here, so that nothing of it goes past the simulation; `clippy.toml` sees to it.

#[cfg(feature = "simulation")]
#[expect(
    clippy::disallowed_methods,
    reason = "outside of a world they are tokio's"
)]
mod switch;
#[cfg(feature = "simulation")]
pub use switch::{Runtime, sleep, sleep_until, spawn, timeout};

#[cfg(not(feature = "simulation"))]
pub use openraft_rt_tokio::TokioRuntime as Runtime;
#[cfg(not(feature = "simulation"))]
pub use tokio_only::{sleep, sleep_until, spawn, timeout};

pub use mareedb_ipc::world::now;

#[cfg(not(feature = "simulation"))]
#[expect(
    clippy::disallowed_methods,
    reason = "without a world they are tokio's"
)]
mod tokio_only {
    use std::future::Future;
    use std::time::{Duration, Instant};
    pub use tokio::time::timeout;

    /// Runs a task that nobody waits for.
    pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(task));
    }

    /// Ends after so long.
    pub fn sleep(duration: Duration) -> tokio::time::Sleep {
        tokio::time::sleep(duration)
    }

    /// Ends at a time.
    pub fn sleep_until(at: Instant) -> tokio::time::Sleep {
        tokio::time::sleep_until(at.into())
    }
}
