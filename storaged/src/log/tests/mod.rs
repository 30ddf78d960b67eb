//! The log over a simulated disk, against a model that forgets nothing.
//!
//! `CRASH_SEEDS` says how many seeds the crash tests run, `CRASH_SEED` names a single one. A failure prints the seed, what was
//! done, and the command that does it again.

use super::*;
use crate::io::SimDisk;
use mareedb_ipc::wire::{FIRST_DATA_GROUP, META_GROUP};
use std::ops::RangeInclusive;

mod crash;
mod damage;
mod faults;
mod model;
mod numbers;
mod recovery;
mod rules;
mod space;
mod steps;
mod world;

const SEGMENT: u64 = 128 << 10;
const CACHE: usize = 8 << 10;
const GROUPS: [GroupId; 2] = [META_GROUP, FIRST_DATA_GROUP];

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT,
        cache_bytes_max: CACHE,
        incarnation: 1,
        acknowledged: 0,
    }
}

fn open(disk: &mut SimDisk) -> Result<Log, LogError> {
    Log::open(disk, options(), &|| {})
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
