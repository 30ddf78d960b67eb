//! The room that answers take, of all and of a connection.

use super::body::PIECE_BYTES;
use super::client::{CLIENT, Connection};
use crate::bodies::{Bodies, REQUEST_BYTES};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// So many connections that do not read take all the room.
pub(super) const SHARES: usize = 4;
/// Who waits for room looks for it so often. It is no event: room is given back with every answer, and mostly too little of it.
const ROOM_PAUSE: Duration = Duration::from_millis(50);

/// What an answer tells, which says what becomes of it when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// What was read: it may be refused, and read again. There is half as much room again for what is no longer than a piece, so that
    /// large answers that nobody takes do not refuse the small ones.
    Read,
    /// What was done, which must not be denied.
    Done,
    /// How the node is. There is as much room again for that, since it is asked for most when the rest is taken.
    State,
}

impl Tells {
    pub(super) fn room(
        self,
        answers: &Arc<Bodies>,
        connection: &Arc<Connection>,
        bytes: usize,
    ) -> Option<Room> {
        let max = answers.max();
        let (max, share) = match self {
            Tells::Read if bytes > PIECE_BYTES => (max, max / SHARES),
            Tells::Read => (max.saturating_add(max / 2), max / SHARES),
            Tells::Done => (usize::MAX, usize::MAX),
            Tells::State => (max.saturating_mul(2), max / SHARES),
        };
        let bytes = bytes.saturating_add(REQUEST_BYTES);
        Room::take(answers, connection, bytes, max, share)
    }
}

/// Room that an answer has taken.
pub(crate) struct Room {
    pub(super) answers: Arc<Bodies>,
    pub(super) connection: Arc<Connection>,
    pub(super) bytes: usize,
}

impl Room {
    /// Unless all take more than `max` then, or the connection more than its `share`, of which one answer is part whatever its size.
    pub(super) fn take(
        answers: &Arc<Bodies>,
        connection: &Arc<Connection>,
        bytes: usize,
        max: usize,
        share: usize,
    ) -> Option<Room> {
        let own = &connection.room;
        let more = own.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |own| {
            let after = own.checked_add(bytes)?;
            (own == 0 || after <= share).then_some(after)
        });
        more.ok()?;
        if !answers.take(bytes, max) {
            own.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(Room {
            answers: answers.clone(),
            connection: connection.clone(),
            bytes,
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.answers.give_back(self.bytes);
        self.connection
            .room
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Room for an answer of so many bytes that is still to be read, waited for until `deadline`; who has it gives it back, and the answer
/// takes its own. `None`: there is none.
pub(crate) async fn room_for(
    answers: &Arc<Bodies>,
    bytes: usize,
    deadline: Instant,
) -> Option<Room> {
    let connection = CLIENT.try_with(|client| client.connection.clone());
    let connection = connection.unwrap_or_default();
    loop {
        if let Some(room) = Tells::Read.room(answers, &connection, bytes) {
            return Some(room);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        sleep(ROOM_PAUSE.min(left)).await;
    }
}
