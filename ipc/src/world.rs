//! What a daemon takes from the machine beside its links: time and randomness.
//!
//! Without the feature `simulation` these are the machine's, and nothing else is compiled. With it a thread may enter a
//! [`World`] of its own, in which time is virtual, what is drawn follows from a seed, and faults may be planted in the code;
//! a thread that has entered none has the machine's. The server is never built with it.

#[cfg(feature = "simulation")]
mod entered;
#[cfg(feature = "simulation")]
pub use entered::{Entered, Timer, World, clock, current, draw, enter, now, planted, wall_ms};

#[cfg(not(feature = "simulation"))]
pub use machine::{draw, now, planted, wall_ms};

/// Whether a simulation can take the machine's place: never in a server that is shipped.
pub const SIMULATED: bool = cfg!(feature = "simulation");

/// A safety rule that the code does not keep while the fault is planted, to show that the simulation finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A restarted leader goes on without an election whatever may be missing (RAFT-3, hazard A).
    RestoreAlways,
    /// Reads rest on leases (RAFT-4, hazard B).
    LeaseReads,
    /// A restored leader's read index is openraft's (LIN-1).
    RestoredReads,
    /// A vote is answered before it is durable (RAFT-1).
    VoteNotAwaited,
    /// An append is answered before it is durable (RAFT-2).
    AppendNotAwaited,
    /// The end of a log is not cut off on the disk (RAFT-2).
    TruncationIgnored,
    /// The ring's head passes what is not durable (LOG-1).
    HeadBeforeDurable,
    /// An operation that was recovered is taken again when it is delivered again (LOG-6).
    RedeliveryTaken,
    /// Entries are applied that are not committed (LIN-2).
    ApplyBeyondCommit,
    /// A request that was applied is applied again when it comes again (ONCE-1).
    RepeatsApplied,
    /// A write that was routed by another range epoch is applied.
    EpochIgnored,
    /// A read does not wait until its index is applied (LIN-1).
    ReadsUnapplied,
    /// What applying gives depends on the node's clock (DET-1).
    ClockInApply,
    /// A snapshot leaves out what was answered (ONCE-1, DET-1).
    SnapshotWithoutSessions,
    /// Sessions and idempotency keys expire by what the leader's wall clock says (ONCE-1).
    ExpiryByWallClock,
    /// What storaged forgets by dying while a replica starts is not applied again (LIVE-4).
    StartedUnapplied,
    /// It is applied again as far as openraft shows, which shows nothing yet (LIVE-4).
    StartedShown,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 17] = [
        Fault::RestoreAlways,
        Fault::LeaseReads,
        Fault::RestoredReads,
        Fault::VoteNotAwaited,
        Fault::AppendNotAwaited,
        Fault::TruncationIgnored,
        Fault::HeadBeforeDurable,
        Fault::RedeliveryTaken,
        Fault::ApplyBeyondCommit,
        Fault::RepeatsApplied,
        Fault::EpochIgnored,
        Fault::ReadsUnapplied,
        Fault::ClockInApply,
        Fault::SnapshotWithoutSessions,
        Fault::ExpiryByWallClock,
        Fault::StartedUnapplied,
        Fault::StartedShown,
    ];
}

mod machine {
    #![cfg_attr(
        feature = "simulation",
        allow(dead_code, reason = "the simulation switches")
    )]
    use super::Fault;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    /// Monotone time.
    #[inline]
    pub fn now() -> Instant {
        Instant::now()
    }

    /// Milliseconds since 1970 by the wall clock; it may jump.
    pub fn wall_ms() -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            })
    }

    /// Fills bytes with what nobody can foresee.
    ///
    /// # Panics
    /// The kernel's random source fails, which Linux does not do after boot.
    pub fn draw(bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("getrandom(2)");
    }

    /// Whether a fault is planted: never.
    #[inline]
    pub const fn planted(_: Fault) -> bool {
        false
    }
}
