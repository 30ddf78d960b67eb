//! Faults that the crash tests plant in the log, to show that they would be found. Outside of tests there are none.

/// A rule that the log does not keep while the fault is planted.
#[allow(dead_code, reason = "planted by tests only")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A unit is taken whatever its checksum says.
    Checksum,
    /// A unit is taken whatever segment it was written to (LOG-7: recycled segments hold old ones).
    Segment,
    /// What a unit that ended acknowledges all before it (LOG-1).
    Prefix,
    /// A later unit's durable-up-to is not looked at (LOG-3).
    Confirmed,
    /// The beginning of a new segment at the start is not flushed (LOG-4).
    Seal,
    /// A segment is used again before it is durable that nothing in it is needed (LOG-7).
    Unneeded,
    /// A segment is used again although a plan points to it (LOG-7).
    Pinned,
    /// An entry leaves the memory before its unit is durable (LOG-8).
    Evicted,
}

#[cfg(not(test))]
pub(super) const fn planted(_: Fault) -> bool {
    false
}

#[cfg(test)]
pub(super) use seed::{plant, planted};

#[cfg(test)]
mod seed {
    use super::Fault;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    pub(in super::super) fn planted(fault: Fault) -> bool {
        PLANTED.get() == Some(fault)
    }

    /// From now on in this thread; `None`: as it should be.
    pub(in super::super) fn plant(fault: Option<Fault>) {
        PLANTED.set(fault);
    }
}
