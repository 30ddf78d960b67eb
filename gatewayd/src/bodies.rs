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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::time::{Instant, Sleep, sleep_until};

/// What a request takes beside its body's bytes, so that there are not any number of them that have sent none.
pub(crate) const REQUEST_BYTES: usize = 4 << 10;

/// The room, of requests' bodies or of answers.
#[derive(Debug)]
pub struct Bodies {
    taken: AtomicUsize,
    max: usize,
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
        })
    }

    /// Room for a request whose body is still to come, if there is any.
    pub fn admit(self: &Arc<Self>) -> Option<Arc<Room>> {
        self.room(REQUEST_BYTES, self.max)
    }

    /// Room for so many bytes, unless more than `max` were taken then.
    pub(crate) fn room(self: &Arc<Self>, bytes: usize, max: usize) -> Option<Arc<Room>> {
        let room = Arc::new(Room {
            bodies: self.clone(),
            bytes: AtomicUsize::new(0),
        });
        room.grow_within(bytes, max).then_some(room)
    }

    /// Its bytes.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Whether all is taken at this moment.
    pub(crate) fn is_full(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.max
    }
}

impl Room {
    /// Takes more; `false`: there is none.
    fn grow(&self, bytes: usize) -> bool {
        self.grow_within(bytes, self.bodies.max)
    }

    fn grow_within(&self, bytes: usize, max: usize) -> bool {
        let taken = &self.bodies.taken;
        let more = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            let after = taken.checked_add(bytes)?;
            (after <= max).then_some(after)
        });
        if more.is_ok() {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        more.is_ok()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.bodies.taken.fetch_sub(bytes, Ordering::Relaxed);
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

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let until = Instant::now() + Duration::from_millis(20);
        let late = Metered::new(Silent, None, until).collect().await;
        let told = ApiError::from_status(&late.unwrap_err()).unwrap();
        assert_eq!(told.code, ErrorCode::BadRequest);
    }
}
