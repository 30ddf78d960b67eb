//! Time as consensusd sees it, behind a trait: the simulation brings its own.

use mareedb_ipc::wire::Revision;
use mareedb_ipc::world::wall_ms;
use std::sync::atomic::{AtomicU64, Ordering};

/// Source of proposed revisions.
pub trait Clock: Send + Sync {
    /// A revision above every one that this clock gave before, at the current time or after it.
    fn revision(&self) -> Revision;
}

/// A hybrid logical clock over the system's clock.
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
    /// A file with milliseconds, which may be negative, that the system's clock is off by.
    #[cfg(feature = "faults")]
    off_by: Option<std::path::PathBuf>,
}

impl HybridClock {
    /// A clock that is set by the file `clock` in this directory.
    #[cfg(feature = "faults")]
    pub fn set_by(data_dir: &str) -> HybridClock {
        HybridClock {
            off_by: Some(std::path::Path::new(data_dir).join("clock")),
            ..HybridClock::default()
        }
    }

    fn now_ms(&self) -> u64 {
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

impl Clock for HybridClock {
    fn revision(&self) -> Revision {
        let now = Revision::from_unix_ms(self.now_ms()).0;
        let before = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
                Some(now.max(last + 1))
            })
            .unwrap_or(0);
        Revision(now.max(before + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_only_grow() {
        let clock = HybridClock::default();
        let mut last = Revision(0);
        for _ in 0..10_000 {
            let next = clock.revision();
            assert!(next > last);
            last = next;
        }
    }
}
