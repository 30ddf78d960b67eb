//! How much of answers a node holds at once, and how long it waits for clients that do not read them.
//!
//! An answer takes room until all of it is with the kernel: the place of its request is given back once it is known, so that without this a
//! few clients that ask and do not read would take all memory. It goes out in pieces, each of which is a sign of life when it leaves. While
//! HTTP/2's window is shut hyper does not ask a body for anything, so that it is the task around it that waits: a client that takes
//! nothing of an answer for as long as a request may take loses the stream, or the connection where its stream has ended. Non-goals: what
//! the kernel buffers; how fast a client reads.

use crate::bodies::{Bodies, REQUEST_BYTES, Room};
use axum::body::Body;
use bytes::Bytes;
use futures::task::AtomicWaker;
use http::HeaderMap;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::rt::Executor;
use mareedb_api::{ApiError, ErrorCode};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes of a piece: of HTTP/2 a frame.
const PIECE_BYTES: usize = 16 << 10;

/// What an answer tells, which says what becomes of it when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tells {
    /// What was read: it may be refused, and read again.
    Read,
    /// What was done, which must not be denied.
    Done,
    /// How the node is. There is as much room again for that, since it is asked for most when the rest is taken.
    State,
}

impl Tells {
    fn room(self, answers: &Arc<Bodies>, bytes: usize) -> Option<Arc<Room>> {
        let max = match self {
            Tells::Read => answers.max(),
            Tells::Done => usize::MAX,
            Tells::State => answers.max().saturating_mul(2),
        };
        answers.room(bytes.saturating_add(REQUEST_BYTES), max)
    }
}

tokio::task_local! {
    /// Of the stream, or of the connection of HTTP/1.1, that the task serves.
    static UNREAD: Arc<Unread>;
}

/// What has been given out of answers and is not taken yet.
struct Unread {
    bytes: AtomicUsize,
    /// When some was taken last, or given out after all had been.
    moved: Mutex<Instant>,
    /// Who waits until all is taken.
    waiter: AtomicWaker,
}

impl Default for Unread {
    fn default() -> Unread {
        Unread {
            bytes: AtomicUsize::new(0),
            moved: Mutex::new(Instant::now()),
            waiter: AtomicWaker::new(),
        }
    }
}

impl Unread {
    fn given(&self, bytes: usize) {
        if self.bytes.load(Ordering::Acquire) == 0 {
            *self.moved.lock() = Instant::now();
        }
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn taken(&self, bytes: usize) {
        *self.moved.lock() = Instant::now();
        if self.bytes.fetch_sub(bytes, Ordering::AcqRel) == bytes {
            self.waiter.wake();
        }
    }

    /// Since when nothing was taken of what is there to be taken.
    fn since(&self) -> Option<Instant> {
        (self.bytes.load(Ordering::Acquire) > 0).then(|| *self.moved.lock())
    }

    fn poll_all_taken(&self, context: &Context<'_>) -> Poll<()> {
        self.waiter.register(context.waker());
        match self.bytes.load(Ordering::Acquire) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

/// A piece of an answer, which lives until it is with the kernel or given up.
struct Piece {
    bytes: Bytes,
    unread: Arc<Unread>,
    _room: Option<Arc<Room>>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.unread.taken(self.bytes.len());
    }
}

/// The body of an answer.
pub struct Answer {
    body: Body,
    /// None: it takes no room.
    held: Option<Held>,
}

struct Held {
    answers: Arc<Bodies>,
    tells: Tells,
    unread: Arc<Unread>,
    /// What the body has given and is still to go out in pieces,
    rest: Bytes,
    /// with its room, which a body of known length has before.
    room: Option<Arc<Room>>,
    /// Bytes that have gone out.
    gone: usize,
    /// What comes after them, if that is known: trailers or nothing.
    end: Option<Option<Frame<Bytes>>>,
}

impl Answer {
    /// The body in pieces; `None`: its length is known, and there is no room for so much. The others take room as they come. They are gRPC's,
    /// which can still say so at their end.
    pub fn held(body: Body, answers: &Arc<Bodies>, tells: Tells) -> Option<Answer> {
        let room = match body.size_hint().exact() {
            Some(0) => return Some(Answer::small(body)),
            Some(bytes) => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                Some(tells.room(answers, bytes)?)
            }
            None => None,
        };
        let unread = UNREAD.try_with(Arc::clone).unwrap_or_default();
        Some(Answer {
            body,
            held: Some(Held {
                answers: answers.clone(),
                tells,
                unread,
                rest: Bytes::new(),
                room,
                gone: 0,
                end: None,
            }),
        })
    }

    /// A body that is no more than what a request takes anyway.
    pub fn small(body: Body) -> Answer {
        Answer { body, held: None }
    }
}

impl Held {
    fn piece(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        self.gone = self.gone.saturating_add(bytes.len());
        self.unread.given(bytes.len());
        // The room is that of the whole, which any of its pieces keeps in memory.
        let room = if self.rest.is_empty() {
            self.room.take()
        } else {
            self.room.clone()
        };
        Some(Bytes::from_owner(Piece {
            bytes,
            unread: self.unread.clone(),
            _room: room,
        }))
    }

    /// Takes what the body has given; `false`: there is no room for it.
    fn hold(&mut self, data: Bytes) -> bool {
        if self.room.is_none() && !data.is_empty() {
            self.room = self.tells.room(&self.answers, data.len());
            if self.room.is_none() {
                return false;
            }
        }
        self.rest = data;
        true
    }

    /// Whether the end may follow what has gone out. After several pieces it waits for them: a stream that has not ended can be ended alone.
    fn poll_end(&self, context: &Context<'_>) -> Poll<()> {
        if self.gone <= PIECE_BYTES {
            return Poll::Ready(());
        }
        self.unread.poll_all_taken(context)
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(held) = &mut this.held else {
            return Pin::new(&mut this.body).poll_frame(context);
        };
        loop {
            if let Some(piece) = held.piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if held.end.is_some() {
                ready!(held.poll_end(context));
                return Poll::Ready(held.end.take().flatten().map(Ok));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                None => held.end = Some(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if !held.hold(data) {
                            this.body = Body::empty();
                            held.end = Some(Some(Frame::trailers(refused())));
                        }
                    }
                    Err(trailers) => held.end = Some(Some(trailers)),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let ended = match &self.held {
            None => true,
            Some(held) => held.rest.is_empty() && held.end.is_none() && held.gone <= PIECE_BYTES,
        };
        ended && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.held.as_ref().map_or(0, |held| held.rest.len() as u64);
        let hint = self.body.size_hint();
        match hint.exact() {
            Some(bytes) => SizeHint::with_exact(bytes + rest),
            None => hint,
        }
    }
}

/// What is said when there is no room.
pub fn full() -> ApiError {
    ApiError::new(
        ErrorCode::Overloaded,
        "the answers that clients have not read yet take as much memory as this node has for them",
    )
}

/// The same at the end of an answer over gRPC.
fn refused() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // It has no bytes that a header cannot carry.
    let _ = full().to_status().add_header(&mut trailers);
    trailers
}

/// Watches over the answers of a stream, or of a connection of HTTP/1.1.
pub struct Watch {
    unread: Arc<Unread>,
    limit: Duration,
}

impl Watch {
    /// A client may take nothing of an answer for so long.
    pub fn new(limit: Duration) -> Watch {
        Watch {
            unread: Arc::default(),
            limit,
        }
    }

    /// Has answers given out. `None`: that was given up, since one of them is not read.
    pub async fn over<F: Future>(&self, work: F) -> Option<F::Output> {
        let work = UNREAD.scope(self.unread.clone(), work);
        tokio::pin!(work);
        self.unless_late(|context| work.as_mut().poll(context))
            .await
    }

    /// Waits until all is taken; `None`: it is not.
    async fn all_taken(&self) -> Option<()> {
        if self.unread.since().is_some() {
            // As a rule it is a moment later, without a timer.
            tokio::task::yield_now().await;
        }
        self.unless_late(|context| self.unread.poll_all_taken(context))
            .await
    }

    async fn unless_late<T>(&self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
        let mut timer = None;
        poll_fn(|context| match poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            // What it has given out it has given out before this look.
            Poll::Pending => self.poll_late(&mut timer, context).map(|()| None),
        })
        .await
    }

    fn poll_late(
        &self,
        timer: &mut Option<Pin<Box<Sleep>>>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        while let Some(since) = self.unread.since() {
            let until = since + self.limit;
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
            ready!(timer.as_mut().poll(context));
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// Runs the streams of an HTTP/2 connection for hyper.
#[derive(Clone)]
pub struct Streams {
    limit: Duration,
    /// Told when the connection is to end.
    unread: Arc<Notify>,
}

impl Streams {
    /// A client may take nothing of an answer for so long.
    pub fn new(limit: Duration) -> Streams {
        Streams {
            limit,
            unread: Arc::default(),
        }
    }

    /// Waits until there is an answer that is not read, and whose stream has ended: nothing but the connection's end takes it back.
    pub async fn unread(&self) {
        self.unread.notified().await;
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let streams = self.clone();
        tokio::spawn(async move {
            let watch = Watch::new(streams.limit);
            let ended = {
                let stream = pin!(stream);
                watch.over(stream).await.is_some()
            };
            if !ended {
                // It was dropped before its end, by which it is reset.
                tracing::debug!("a stream is reset whose client does not read");
            } else if watch.all_taken().await.is_none() {
                streams.unread.notify_one();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use http_body_util::BodyExt;
    use std::future::pending;
    use tokio::sync::oneshot;

    const SOON: Duration = Duration::from_millis(20);
    const LATER: Duration = Duration::from_secs(60);
    /// Some pieces, the last of them a short one.
    const BYTES: usize = 3 * PIECE_BYTES + 100;

    fn body(bytes: usize) -> Body {
        Body::from(vec![7; bytes])
    }

    /// Room for just one such answer.
    fn room_for(bytes: usize) -> Arc<Bodies> {
        Bodies::new(bytes + REQUEST_BYTES)
    }

    fn answer(bytes: usize) -> Answer {
        Answer::held(body(bytes), &room_for(bytes), Tells::Read).unwrap()
    }

    async fn piece(answer: &mut Answer) -> Bytes {
        let frame = answer.frame().await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    #[tokio::test]
    async fn an_answer_takes_room_until_its_last_piece_has_left() {
        let answers = room_for(BYTES);
        let held = |tells| Answer::held(body(BYTES), &answers, tells);
        let mut first = held(Tells::Read).unwrap();
        assert_eq!(first.size_hint().exact(), Some(BYTES as u64));
        let mut pieces = Vec::new();
        for _ in 0..BYTES.div_ceil(PIECE_BYTES) {
            pieces.push(piece(&mut first).await);
        }
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES));
        let whole: Vec<u8> = pieces.iter().flatten().copied().collect();
        assert_eq!(whole, vec![7; BYTES]);
        // Not even the end goes before they have.
        assert!(!first.is_end_stream());
        assert!(poll!(first.frame()).is_pending());
        pieces.truncate(1);
        assert!(poll!(first.frame()).is_pending());
        assert!(answers.is_full());
        assert!(held(Tells::Read).is_none());
        let state = held(Tells::State);
        assert!(state.is_some() && held(Tells::State).is_none());
        let done = held(Tells::Done);
        assert!(done.is_some());
        drop((state, done, pieces));
        assert!(first.frame().await.is_none());
        assert!(!answers.is_full());
        drop(first);
        assert!(held(Tells::Read).is_some());
    }

    #[tokio::test]
    async fn a_short_answer_ends_with_its_piece() {
        let mut short = answer(PIECE_BYTES);
        let _held = piece(&mut short).await;
        assert!(short.is_end_stream());
        assert!(short.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_answer_of_unknown_length_says_at_its_end_that_there_is_no_room() {
        let pages = || {
            let page = |bytes| Ok::<_, axum::Error>(Bytes::from(vec![7; bytes]));
            let pages = [page(BYTES), page(BYTES), page(BYTES)];
            Body::from_stream(futures::stream::iter(pages))
        };
        let answers = room_for(BYTES);
        // A page that has left makes room for the next one.
        let mut quick = Answer::held(pages(), &answers, Tells::Read).unwrap();
        for _ in 0..3 * BYTES.div_ceil(PIECE_BYTES) {
            drop(piece(&mut quick).await);
        }
        assert!(quick.frame().await.is_none());
        let mut slow = Answer::held(pages(), &answers, Tells::Read).unwrap();
        let mut pieces = Vec::new();
        for _ in 0..BYTES.div_ceil(PIECE_BYTES) {
            pieces.push(piece(&mut slow).await);
        }
        // The second page finds no room beside the first.
        assert!(poll!(slow.frame()).is_pending());
        drop(pieces);
        let end = slow.frame().await.unwrap().unwrap();
        let trailers = end.into_trailers().unwrap();
        let status = tonic::Status::from_header_map(&trailers).unwrap();
        let told = ApiError::from_status(&status).unwrap();
        assert_eq!(told.code, ErrorCode::Overloaded);
        assert!(slow.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_whose_answer_is_not_read_is_given_up() {
        let watch = Watch::new(SOON);
        let unread = watch.over(async {
            let mut answer = answer(BYTES);
            let _held = piece(&mut answer).await;
            pending::<()>().await;
        });
        assert_eq!(unread.await, None);
        // Nothing is there to be read: it is the node that takes its time.
        let watch = Watch::new(Duration::ZERO);
        let mut waits = Box::pin(watch.over(async {
            let mut answer = answer(BYTES);
            drop(piece(&mut answer).await);
            pending::<()>().await;
        }));
        assert!(poll!(waits.as_mut()).is_pending());
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_has_its_time_anew_with_each_piece() {
        let unread = Unread::default();
        unread.given(2);
        let before = unread.since().unwrap();
        while Instant::now() == before {}
        unread.given(1);
        assert_eq!(unread.since(), Some(before), "only the client gains time");
        unread.taken(2);
        assert!(unread.since().unwrap() > before);
        unread.taken(1);
        assert_eq!(unread.since(), None);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_read_after_its_streams_end_ends_the_connection() {
        for limit in [SOON, LATER] {
            let streams = Streams::new(limit);
            let (give, given) = oneshot::channel();
            streams.execute(async move {
                let mut short = answer(10);
                let piece = piece(&mut short).await;
                let _ = give.send(piece);
            });
            let piece = given.await.unwrap();
            if limit == SOON {
                streams.unread().await;
            }
            drop(piece);
            tokio::task::yield_now().await;
            assert!(poll!(Box::pin(streams.unread())).is_pending());
        }
    }
}
