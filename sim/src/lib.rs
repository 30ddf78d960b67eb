//! Deterministic simulation: clusters of real consensus hosts, logs and state machines in one thread, with virtual time, a
//! simulated network and disk, and faults by a seed (docs/simulation.md).
//!
//! Invariant: what a seed does follows from the seed and the code alone. Non-goals: gatewayd, the supervisor and the kernel
//! are not here; how fast anything is on a real machine is not told.

pub mod checks;
pub mod client;
pub mod cluster;
pub mod consensus;
pub mod disk;
pub mod executor;
pub mod gateway;
pub mod hook;
mod judge;
pub mod nemesis;
pub mod network;
pub mod node;
pub mod plan;
pub mod planted;
pub mod rng;
pub mod run;
pub mod storage;
pub mod summary;
pub mod trace;
