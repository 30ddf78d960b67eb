//! Chaos: real nodes, real disks and seeded faults under mixed clients, and the judgement of what the clients saw.
//!
//! A [`round`] has a seed. The seed decides the [`schedule`] of faults (from the table in [`fault`]) and what clients choose
//! ([`workload`]); the machine decides the rest. Clients ([`client`]) speak REST and gRPC through all nodes and record what they did. Then
//! the cluster is healed and [`judge`]d: it lives, its replicas agree, and the history keeps every promise. Safety is judged
//! always; how long nobody could write ([`gaps`]) is told for faults that a cluster must bear.
//!
//! Invariant: only processes that a [`bed`] has started are signalled, and nothing outlives it.

pub mod bed;
pub mod campaign;
pub mod client;
pub mod disk;
pub mod fault;
pub mod gaps;
pub mod inject;
pub mod judge;
pub mod random;
pub mod results;
pub mod round;
pub mod schedule;
pub mod trees;
pub mod workload;
