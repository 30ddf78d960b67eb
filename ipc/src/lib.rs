//! Links between the daemons of a node: rings in shared memory that outlive both ends, doorbells, status boards, and how
//! a daemon inherits them. [`wire`] has all messages.
//!
//! Invariants are in docs/formats/ring.md. Non-goals: no async runtime, no knowledge of what messages mean.

mod backlog;
mod bell;
mod board;
mod exit;
mod histogram;
#[cfg(test)]
mod hostile;
mod inherit;
mod mapping;
mod memory;
#[cfg(test)]
mod model;
mod outbox;
mod protocol;
mod receiver;
mod ring;
mod sender;
mod status;
pub mod testing;
mod topology;
pub mod wire;
pub mod world;

pub use backlog::Backlog;
pub use bell::Bell;
pub use board::{BoardReader, BoardWriter, CELL_BYTES_MAX, Cell, Gauge};
pub use exit::ExitCode;
pub use histogram::{BOUNDS_US, Counted, Histogram};
pub use inherit::{ENV, InheritError, Inheritance, Listeners};
pub use memory::{Extras, InheritPlan, NodeMemory};
pub use outbox::{Outbox, Refusal};
pub use receiver::Receiver;
pub use ring::RingError;
pub use sender::Sender;
pub use status::{
    CorruptLink, DaemonState, DaemonStatus, GroupDigest, LastExit, LinkUsage, LogEnd, NodeStatus,
};
pub use topology::{Lane, LinkId, RING_BYTES, RingSizes, Role, Topology, Waiter};
