//! Crashes of the state machine and of the segment files, over a file system that keeps live and durable apart.
//!
//! The log's own crash tests are in `storaged/src/log/tests`. All together, with as many seeds as wanted:
//! `CRASH_SEEDS=5000 cargo test --release -p mareedb-storaged crash`. `CRASH_SEED=n` runs a single one. See docs/crash-suite.md.

mod calls;
mod files;
mod leader;
mod node;
mod recorder;
mod rot;
mod segments_in_a_crash;
mod state_in_a_crash;

use std::ops::RangeInclusive;

/// A directory that is gone afterwards; in memory where there is such a place, for nothing has to last.
fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let place = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::TempDir::new_in(place).expect("a directory")
}

/// The seeds of a run, so many unless the environment says otherwise.
fn seeds(default: u64) -> RangeInclusive<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} is a number")),
        )
    };
    match number("CRASH_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("CRASH_SEEDS").unwrap_or(default),
    }
}
