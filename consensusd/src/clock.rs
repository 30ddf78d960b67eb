//! Time as consensusd sees it, behind a trait: the simulation brings its own.

use mareedb_ipc::wire::Revision;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Source of proposed revisions.
pub trait Clock: Send + Sync {
    /// A revision above every one that this clock gave before, at the current time or after it.
    fn revision(&self) -> Revision;
}

/// A hybrid logical clock over the system's clock.
#[derive(Debug, Default)]
pub struct HybridClock {
    last: AtomicU64,
}

impl Clock for HybridClock {
    fn revision(&self) -> Revision {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
        let now = Revision::from_unix_ms(now).0;
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
