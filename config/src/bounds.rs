//! Bounds that no setting passes, since the code behind it could not. The daemons take theirs from here, so that none of them refuses
//! what a configuration allows.
//!
//! What storaged applies an entry under (keys, values, outcomes, idempotency keys) is the same in all nodes and in what they have
//! written (DET-1): another number there would be another answer to the same entry.

/// The longest key: the engine of the state machine takes no more once it is escaped.
pub const KEY_BYTES_MAX: usize = 32_000;
/// The largest value.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// The largest request, all keys and values together: a frame between nodes carries it, and what is around it.
pub const REQUEST_BYTES_MAX: usize = 7 << 20;
/// The longest idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// The largest outcome of a transaction: a largest value of the default settings, and its key. It is kept, sent over the rings, and a
/// pair of a snapshot.
pub const OUTCOME_BYTES_MAX: usize = 1600 << 10;
/// A batch of log entries, at most; a larger entry is a batch alone.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// The smallest ring of a node. Smaller ones can be made, and serve tests; a node would wait for room all the time.
pub const RING_BYTES_MIN: u64 = 1 << 20;
/// The largest ring.
pub const RING_BYTES_MAX: u64 = 4 << 30;
