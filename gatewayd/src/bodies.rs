//! How much of requests' bodies a node holds at once, and how long it waits for the rest of one.
//!
//! A body takes room when its bytes arrive, and gives it back when its request is answered: places for requests are only taken once they
//! are whole, so that without this a few connections with many unfinished bodies would take all memory. Non-goals: bytes that nobody has
//! read yet, which HTTP's flow control limits by connection.

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use mareedb_api::{ApiError, ErrorCode};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep, sleep_until};

/// What a request takes beside its body's bytes, so that there are not any number of them that have sent none.
pub(crate) const REQUEST_BYTES: usize = 4 << 10;

/// The room, of requests' bodies or of answers.
#[derive(Debug)]
pub struct Bodies {
    taken: AtomicUsize,
    max: usize,
    refused: AtomicU64,
}

/// Room that a request has taken.
#[derive(Debug)]
pub struct Room {
    bodies: Arc<Bodies>,
    bytes: AtomicUsize,
}

impl Bodies {
    /// Room for `max` bytes.
    pub fn new(max: usize) -> Arc<Bodies> {
        Arc::new(Bodies {
            taken: AtomicUsize::new(0),
            max,
            refused: AtomicU64::new(0),
        })
    }

    /// Room for a request whose body is still to come, if there is any.
    pub fn admit(self: &Arc<Self>) -> Option<Arc<Room>> {
        let room = Arc::new(Room {
            bodies: self.clone(),
            bytes: AtomicUsize::new(0),
        });
        room.grow(REQUEST_BYTES).then_some(room)
    }

    /// Takes so many bytes, unless more than `max` were taken then; `false`: they would be.
    pub(crate) fn take(&self, bytes: usize, max: usize) -> bool {
        let more = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                let after = taken.checked_add(bytes)?;
                (after <= max).then_some(after)
            });
        more.is_ok()
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Its bytes.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Whether an answer of so many bytes, the largest that there are, finds no room at this moment. Room is never taken to its last byte,
    /// so that to ask for less would be to read what is then refused.
    pub(crate) fn is_full(&self, largest: usize) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        let after = taken.saturating_add(largest).saturating_add(REQUEST_BYTES);
        after > self.max
    }

    /// Counts an answer that was there and found no room.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many answers found none.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Room {
    /// Takes more; `false`: there is none.
    fn grow(&self, bytes: usize) -> bool {
        let more = self.bodies.take(bytes, self.bodies.max);
        if more {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        more
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.bodies.give_back(self.bytes.load(Ordering::Relaxed));
    }
}

/// A body that takes room as it arrives, and must be whole by a time. Its errors carry an [`ApiError`].
#[derive(Debug)]
pub struct Metered<B = Incoming> {
    body: B,
    /// None: nothing comes.
    room: Option<Arc<Room>>,
    until: Instant,
    /// Set once somebody has to wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Metered<B> {
    /// A body that has so much time.
    pub fn new(body: B, room: Option<Arc<Room>>, until: Instant) -> Metered<B> {
        Metered {
            body,
            room,
            until,
            timer: None,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Metered<B>
where
    B::Error: std::error::Error + Send + Sync + 'static,
{
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            let until = self.until;
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(until)));
            return timer.as_mut().poll(context).map(|()| {
                let late = "the request's body did not come in time; nothing was done";
                Some(Err(ApiError::bad_request(late).to_status()))
            });
        };
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|broken| tonic::Status::from_error(Box::new(broken)))?;
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if self.room.as_ref().is_some_and(|room| !room.grow(bytes)) {
                return Err(full().to_status());
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is said when there is no room.
pub fn full() -> ApiError {
    ApiError::new(
        ErrorCode::Overloaded,
        "the bodies of the requests in flight take as much memory as this node has for them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};
    use std::convert::Infallible;
    use std::time::Duration;

    /// Says nothing, for ever.
    struct Silent;
    impl Body for Silent {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Pending
        }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn bodies_take_room_until_their_requests_are_answered() {
        let bodies = Bodies::new(3 * REQUEST_BYTES);
        let first = bodies.admit().unwrap();
        let body = Full::new(Bytes::from(vec![0; REQUEST_BYTES]));
        let whole = Metered::new(body.clone(), Some(first.clone()), later());
        let held = whole.collect().await.unwrap();
        let second = bodies.admit().unwrap();
        assert!(bodies.admit().is_none(), "all room is taken");
        let refused = Metered::new(body, Some(second), later()).collect().await;
        let told = ApiError::from_status(&refused.unwrap_err()).unwrap();
        assert_eq!(told.code, ErrorCode::Overloaded);
        drop((first, held));
        assert_eq!(bodies.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn there_is_no_room_once_the_largest_finds_none() {
        const ANSWER: usize = 100 << 10;
        let whole = ANSWER + REQUEST_BYTES;
        let bodies = Bodies::new(3 * whole + whole / 2);
        for held in 0..3 {
            assert!(!bodies.is_full(ANSWER), "{held} are held");
            assert!(bodies.take(whole, bodies.max()));
        }
        assert!(bodies.is_full(ANSWER));
        bodies.give_back(whole);
        assert!(!bodies.is_full(ANSWER));
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let until = Instant::now() + Duration::from_millis(20);
        let late = Metered::new(Silent, None, until).collect().await;
        let told = ApiError::from_status(&late.unwrap_err()).unwrap();
        assert_eq!(told.code, ErrorCode::BadRequest);
    }
}
