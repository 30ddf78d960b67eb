//! Shared memory between the daemons of a node: rings, doorbells, the status board, and the messages on the rings.
pub mod wire;
