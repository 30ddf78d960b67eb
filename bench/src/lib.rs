//! Real clusters for tests, benchmarks and the demo; loads; and the measurements of `maree-db-bench`.
//!
//! Everything here sees nodes as their users do: processes, signals, and the public API.

pub mod cluster;
pub mod demo;
pub mod directory;
pub mod failover;
pub mod footprint;
pub mod http;
pub mod load;
pub mod net;
pub mod overload;
pub mod preflight;
pub mod rounds;
pub mod stall;
pub mod system;
pub mod usage;
