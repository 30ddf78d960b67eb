//! Bounded waiting for what a predecessor may still hold: the lock of the data directory, the ports.
//!
//! Linux releases a dying supervisor's files before its daemons are dead, and a daemon may hold a descriptor a moment longer. So a start
//! that follows a kill directly has to wait a little, but never without an end.

use crate::fault::StartError;
use crate::signals::Signals;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(20);

/// The outcome of one attempt.
pub(crate) enum Attempt<T, E> {
    /// Got it.
    Done(T),
    /// Not yet; `E` is the reason, kept for the last attempt.
    Later(E),
    /// No use in waiting.
    Never(E),
}

/// Tries until it works, is hopeless, or `limit` has passed.
pub(crate) fn wait_for<T, E: Into<StartError>>(
    signals: &Signals,
    limit: Duration,
    mut attempt: impl FnMut() -> Attempt<T, E>,
) -> Result<T, StartError> {
    let start = Instant::now();
    loop {
        match attempt() {
            Attempt::Done(value) => return Ok(value),
            Attempt::Never(error) => return Err(error.into()),
            Attempt::Later(error) if start.elapsed() >= limit => return Err(error.into()),
            Attempt::Later(_) => {
                if signals.pause(STEP) {
                    return Err(StartError::Stopped);
                }
            }
        }
    }
}
