//! How much of answers a node holds at once, and how long it waits for clients that do not read them.
//!
//! An answer takes room until all of it is with the kernel: the place of its request is given back once it is known, so that without this a
//! few clients that ask and do not read would take all memory. No connection takes more than its share. An answer goes out in pieces, each
//! of which is a sign of life when it leaves. While HTTP/2's window is shut hyper does not ask a body for anything, so that it is the task
//! around it that waits: a client that takes nothing of an answer for as long as a request may take loses the stream, or the connection
//! where its stream has ended, or does not end when it is reset. Non-goals: what the kernel buffers; how fast a client reads.

mod body;
mod client;
mod room;
#[cfg(test)]
mod tests;
mod watch;

pub use body::Answer;
pub use room::Tells;
pub(crate) use room::room_for;
pub use watch::{Streams, Watch};

use mareedb_api::{ApiError, ErrorCode};

/// What is said when there is no room.
pub fn full() -> ApiError {
    ApiError::new(
        ErrorCode::Overloaded,
        "the answers that clients have not read yet take as much memory as this node has for them, or those of this connection its share of that",
    )
}
