//! How much of answers a node holds at once, and how long it waits for clients that do not read them.
//!
//! An answer takes room until all of it is with the kernel: the place of its request is given back once it is known, so that without this a
//! few clients that ask and do not read would take all memory. No connection takes more than its share. An answer goes out in pieces, each
//! of which is a sign of life when it leaves. While HTTP/2's window is shut hyper does not ask a body for anything, so that it is the task
//! around it that waits: a client that takes nothing of an answer for as long as a request may take loses the stream, or the connection
//! where its stream has ended, or does not end when it is reset. Non-goals: what the kernel buffers; how fast a client reads.

use crate::bodies::{Bodies, REQUEST_BYTES};
use axum::body::Body;
use bytes::Bytes;
use futures::task::AtomicWaker;
use http::HeaderMap;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::rt::Executor;
use mareedb_api::{ApiError, ErrorCode};
use parking_lot::Mutex;
use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Bytes of a piece: of HTTP/2 a frame.
const PIECE_BYTES: usize = 16 << 10;
/// Over HTTP/1.1, which has no frames. Not more: who takes less for as long as a request may take is given up.
const HTTP1_PIECE_BYTES: usize = 128 << 10;
/// So many connections that do not read take all the room.
const SHARES: usize = 4;
/// While others of its connection get on, a stream waits so many times as long for its turn.
const TURNS_MAX: u32 = 4;
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
    fn room(
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
    answers: Arc<Bodies>,
    connection: Arc<Connection>,
    bytes: usize,
}

impl Room {
    /// Unless all take more than `max` then, or the connection more than its `share`, of which one answer is part whatever its size.
    fn take(
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

tokio::task_local! {
    /// Who takes the answers that the task makes.
    static CLIENT: Client;
}

/// Who takes the answers of a task.
struct Client {
    connection: Arc<Connection>,
    /// `None`: the task serves all of the connection, so that it is HTTP/1.1 if it makes answers.
    stream: Option<Stream>,
}

/// What is common to the answers of a connection.
#[derive(Default)]
struct Connection {
    /// Over HTTP/2 of short answers only, whose streams have ended; but it moves with what is taken of any.
    unread: Unread,
    /// Bytes of room that they take.
    room: AtomicUsize,
    /// Told when the connection is to end, since nothing else takes back what was given out on a stream.
    late: Notify,
}

/// The answer of an HTTP/2 stream, as its task sees it.
#[derive(Default)]
struct Stream {
    /// Of a long answer.
    unread: OnceCell<Arc<Unread>>,
    /// Of a short one: a piece is out, and nothing shows yet that hyper has passed it on.
    short: Cell<bool>,
    /// Since when it was seen that hyper has not: the window is shut.
    stuck: Cell<Option<Instant>>,
}

/// What has been given out of answers and is not taken yet.
struct Unread {
    /// Less than none for a moment, if hyper drops a piece that it has not passed on.
    pieces: AtomicIsize,
    /// When one was taken last, or given out after all had been taken.
    moved: Mutex<Instant>,
    /// Who waits until all are taken.
    waiter: AtomicWaker,
    /// Of a stream: it is reset, and what is dropped from now on was not taken.
    given_up: AtomicBool,
}

impl Default for Unread {
    fn default() -> Unread {
        Unread {
            pieces: AtomicIsize::new(0),
            moved: Mutex::new(Instant::now()),
            waiter: AtomicWaker::new(),
            given_up: AtomicBool::new(false),
        }
    }
}

impl Unread {
    fn given(&self) {
        if self.pieces.load(Ordering::Acquire) == 0 {
            self.moves(Instant::now());
        }
        self.pieces.fetch_add(1, Ordering::AcqRel);
    }

    fn taken(&self) {
        self.moves(Instant::now());
        if self.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waiter.wake();
        }
    }

    fn moves(&self, at: Instant) {
        *self.moved.lock() = at;
    }

    fn moved(&self) -> Instant {
        *self.moved.lock()
    }

    /// Since when nothing was taken of what is there to be taken.
    fn since(&self) -> Option<Instant> {
        (self.pieces.load(Ordering::Acquire) > 0).then(|| self.moved())
    }

    /// The stream is reset, for which the connection has a limit of its own.
    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.moves(Instant::now());
    }

    fn poll_all_taken(&self, context: &Context<'_>) -> Poll<()> {
        self.waiter.register(context.waker());
        if self.pieces.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// When a stream is late of which something was taken last at `stream`, and of all its connection at `connection`.
fn late_at(stream: Instant, connection: Instant, limit: Duration) -> Instant {
    let turn = stream.max(connection) + limit;
    turn.min(stream + limit * TURNS_MAX)
}

impl Client {
    /// A stream of this connection.
    fn stream(connection: Arc<Connection>) -> Client {
        Client {
            connection,
            stream: Some(Stream::default()),
        }
    }

    /// Gives out the piece of a short answer. It is counted once it is passed on: until then it can be taken back.
    fn give_short(&self) {
        if let Some(stream) = &self.stream {
            stream.short.set(true);
        }
    }

    /// What was given out is passed on: with a short answer the stream ends, so that it is the connection's from here.
    fn passed_on(&self) {
        if let Some(stream) = &self.stream
            && stream.short.take()
        {
            stream.stuck.set(None);
            self.connection.unread.given();
        }
    }

    /// Looks at this, too, for a long answer.
    fn watch(&self, unread: &Arc<Unread>) {
        if let Some(stream) = &self.stream {
            // There is one answer on a stream.
            let _ = stream.unread.set(unread.clone());
        }
    }

    /// What there is of a long answer.
    fn long(&self) -> Option<Arc<Unread>> {
        self.stream.as_ref()?.unread.get().cloned()
    }

    /// When nothing will have been taken for too long; `None`: nothing is there to be taken.
    fn late_at(&self, limit: Duration) -> Option<Instant> {
        let connection = &self.connection.unread;
        let Some(stream) = &self.stream else {
            return connection.since().map(|moved| moved + limit);
        };
        let moved = if stream.short.get() {
            let since = stream.stuck.get().unwrap_or_else(Instant::now);
            stream.stuck.set(Some(since));
            since
        } else {
            stream.unread.get()?.since()?
        };
        Some(late_at(moved, connection.moved(), limit))
    }
}

/// The room of a piece.
enum Share {
    /// It is all of its answer.
    Own(Room),
    /// Any of an answer's pieces keeps the whole in memory.
    Part(Arc<Room>),
}

impl Share {
    fn connection(&self) -> &Connection {
        match self {
            Share::Own(room) => &room.connection,
            Share::Part(room) => &room.connection,
        }
    }

    fn into_part(self) -> Arc<Room> {
        match self {
            Share::Own(room) => Arc::new(room),
            Share::Part(room) => room,
        }
    }
}

/// A piece of an answer, which lives until it is with the kernel or given up.
struct Piece {
    bytes: Bytes,
    /// Of a long answer over HTTP/2; the others are the connection's.
    unread: Option<Arc<Unread>>,
    room: Share,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let connection = &self.room.connection().unread;
        let Some(unread) = &self.unread else {
            connection.taken();
            return;
        };
        unread.taken();
        if !unread.given_up.load(Ordering::Acquire) {
            connection.moves(Instant::now());
        }
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
    connection: Arc<Connection>,
    http1: bool,
    /// Of a long answer over HTTP/2, from its first piece on.
    unread: Option<Arc<Unread>>,
    /// The room of a body of known length, until it gives its bytes.
    room: Option<Room>,
    rest: Option<Rest>,
    /// Bytes that have gone out.
    gone: usize,
    /// What comes after them, if that is known: trailers or nothing.
    end: Option<Option<Frame<Bytes>>>,
}

/// What a body has given and is still to go out in pieces, with its room.
struct Rest {
    bytes: Bytes,
    room: Share,
}

impl Answer {
    /// The body in pieces; `None`: its length is known, and there is no room for so much. The others take room as they come. They are gRPC's,
    /// which can still say so at their end.
    pub fn held(body: Body, answers: &Arc<Bodies>, tells: Tells) -> Option<Answer> {
        let exact = body.size_hint().exact();
        if exact == Some(0) {
            return Some(Answer::small(body));
        }
        let client = CLIENT.try_with(|client| (client.connection.clone(), client.stream.is_none()));
        let (connection, http1) = client.unwrap_or_default();
        let mut room = None;
        if let Some(bytes) = exact {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            room = tells.room(answers, &connection, bytes);
            if room.is_none() {
                answers.refuse();
                return None;
            }
        }
        Some(Answer {
            body,
            held: Some(Held {
                answers: answers.clone(),
                tells,
                connection,
                http1,
                unread: None,
                room,
                rest: None,
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
        let mut rest = self.rest.take()?;
        let most = if self.http1 {
            HTTP1_PIECE_BYTES
        } else {
            PIECE_BYTES
        };
        let (bytes, room) = if rest.bytes.len() <= most {
            (rest.bytes, rest.room)
        } else {
            let bytes = rest.bytes.split_to(most);
            let room = rest.room.into_part();
            self.rest = Some(Rest {
                bytes: rest.bytes,
                room: Share::Part(room.clone()),
            });
            (bytes, Share::Part(room))
        };
        self.gone = self.gone.saturating_add(bytes.len());
        let unread = self.given();
        Some(Bytes::from_owner(Piece {
            bytes,
            unread,
            room,
        }))
    }

    /// Counts a piece that goes out: with its stream, which is looked at by itself, or with the connection. An answer of one piece, as most
    /// are, ends its stream with it, and costs nothing more.
    fn given(&mut self) -> Option<Arc<Unread>> {
        if self.http1 {
            self.connection.unread.given();
            return None;
        }
        let short = self.unread.is_none() && self.rest.is_none() && self.gone <= PIECE_BYTES;
        if short {
            let _ = CLIENT.try_with(Client::give_short);
            return None;
        }
        let unread = self.unread.get_or_insert_with(|| {
            let unread = Arc::default();
            let _ = CLIENT.try_with(|client| client.watch(&unread));
            unread
        });
        unread.given();
        Some(unread.clone())
    }

    /// Takes what the body has given; `false`: there is no room for it.
    fn hold(&mut self, data: Bytes) -> bool {
        if data.is_empty() {
            return true;
        }
        let room = self.room.take();
        let room = room.or_else(|| self.tells.room(&self.answers, &self.connection, data.len()));
        let Some(room) = room else {
            self.answers.refuse();
            return false;
        };
        self.rest = Some(Rest {
            bytes: data,
            room: Share::Own(room),
        });
        true
    }

    /// Whether the end may follow what has gone out. That of a long answer waits for it: a stream that has not ended can be ended alone.
    fn poll_end(&self, context: &Context<'_>) -> Poll<()> {
        match &self.unread {
            Some(unread) => unread.poll_all_taken(context),
            None => Poll::Ready(()),
        }
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
        if held.gone > 0 {
            // Who asks for more has passed on what it had.
            let _ = CLIENT.try_with(Client::passed_on);
        }
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
            Some(held) => held.rest.is_none() && held.end.is_none() && held.unread.is_none(),
        };
        ended && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.held.as_ref().and_then(|held| held.rest.as_ref());
        let rest = rest.map_or(0, |rest| rest.bytes.len() as u64);
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
        "the answers that clients have not read yet take as much memory as this node has for them, or those of this connection its share of that",
    )
}

/// The same at the end of an answer over gRPC.
fn refused() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // It has no bytes that a header cannot carry.
    let _ = full().to_status().add_header(&mut trailers);
    trailers
}

/// Polls until it is done; `None`: before that the client of this task has taken nothing for too long.
async fn unless_late<T>(
    limit: Duration,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let mut timer = None;
    poll_fn(|context| match poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        // What it has given out it has given out before this look.
        Poll::Pending => poll_late(limit, &mut timer, context).map(|()| None),
    })
    .await
}

fn poll_late(
    limit: Duration,
    timer: &mut Option<Pin<Box<Sleep>>>,
    context: &mut Context<'_>,
) -> Poll<()> {
    while let Some(until) = CLIENT.with(|client| client.late_at(limit)) {
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(timer.as_mut().poll(context));
        if Instant::now() >= until {
            return Poll::Ready(());
        }
        timer.as_mut().reset(until);
    }
    Poll::Pending
}

/// Waits until all of a long answer is taken; `None`: it is not.
async fn all_taken(unread: &Unread, limit: Duration) -> Option<()> {
    if unread.since().is_some() {
        // As a rule it is a moment later, without a timer.
        tokio::task::yield_now().await;
    }
    unless_late(limit, |context| unread.poll_all_taken(context)).await
}

/// Watches over the answers of a connection.
pub struct Watch {
    connection: Arc<Connection>,
    limit: Duration,
}

impl Watch {
    /// A client may take nothing of an answer for so long.
    pub fn new(limit: Duration) -> Watch {
        Watch {
            connection: Arc::default(),
            limit,
        }
    }

    /// What runs the connection's streams, if it is one of HTTP/2.
    pub fn streams(&self) -> Streams {
        Streams {
            connection: self.connection.clone(),
            limit: self.limit,
        }
    }

    /// Serves the connection. `None`: that was given up, since an answer is not read whose stream cannot be ended alone.
    pub async fn over<F: Future>(&self, work: F) -> Option<F::Output> {
        let client = Client {
            connection: self.connection.clone(),
            stream: None,
        };
        tokio::pin!(work);
        let watched = unless_late(self.limit, |context| work.as_mut().poll(context));
        CLIENT.scope(client, watched).await
    }

    /// Waits until there is a long answer that is not read, and whose stream has ended or is reset in vain: nothing but the connection's
    /// end takes it back.
    pub async fn unread(&self) {
        self.connection.late.notified().await;
    }
}

/// Runs the streams of an HTTP/2 connection for hyper.
#[derive(Clone)]
pub struct Streams {
    connection: Arc<Connection>,
    limit: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let Streams { connection, limit } = self.clone();
        let client = Client::stream(connection.clone());
        tokio::spawn(CLIENT.scope(client, async move {
            let given_up = {
                let mut stream = pin!(stream);
                let ended = unless_late(limit, |context| stream.as_mut().poll(context)).await;
                ended.is_none().then(|| connection.unread.moved())
            };
            if let Some(moved) = given_up {
                // It was dropped before its end, by which it is reset. What went with it was not taken.
                tracing::debug!("a stream is reset whose client does not read");
                connection.unread.moves(moved);
            }
            let long = CLIENT.with(|client| {
                client.passed_on();
                client.long()
            });
            let Some(unread) = long else { return };
            if given_up.is_some() {
                // That is only asked for: while the connection takes nothing its pieces stay where they are.
                unread.give_up();
            }
            if all_taken(&unread, limit).await.is_none() {
                connection.late.notify_one();
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use http_body_util::BodyExt;
    use std::future::pending;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(20);
    const LATER: Duration = Duration::from_secs(60);
    /// Some pieces, the last of them a short one.
    const BYTES: usize = 3 * PIECE_BYTES + 100;

    fn body(bytes: usize) -> Body {
        Body::from(vec![7; bytes])
    }

    /// A body of unknown length that gives these.
    fn pages(pages: &[usize]) -> Body {
        let page = |bytes: &usize| Ok::<_, axum::Error>(Bytes::from(vec![7; *bytes]));
        let pages: Vec<_> = pages.iter().map(page).collect();
        Body::from_stream(futures::stream::iter(pages))
    }

    /// Room for just one such answer.
    fn room_of(bytes: usize) -> Arc<Bodies> {
        Bodies::new(bytes + REQUEST_BYTES)
    }

    fn answer(bytes: usize) -> Answer {
        Answer::held(body(bytes), &room_of(bytes), Tells::Read).unwrap()
    }

    async fn piece(answer: &mut Answer) -> Bytes {
        let frame = answer.frame().await.unwrap().unwrap();
        frame.into_data().unwrap()
    }

    /// Runs what a stream of the connection does.
    async fn on_stream<F: Future>(watch: &Watch, work: F) -> F::Output {
        let client = Client::stream(watch.connection.clone());
        CLIENT.scope(client, work).await
    }

    /// Waits until no stream runs, and no answer is held.
    async fn all_ended(watch: &Watch) {
        while Arc::strong_count(&watch.connection) > 1 {
            tokio::task::yield_now().await;
        }
    }

    /// Another moment than this one.
    fn after(moment: Instant) -> Instant {
        loop {
            let now = Instant::now();
            if now > moment {
                return now;
            }
        }
    }

    #[tokio::test]
    async fn an_answer_takes_room_until_its_last_piece_has_left() {
        let answers = room_of(BYTES);
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
        assert!(answers.is_full(BYTES));
        assert!(held(Tells::Read).is_none());
        let state = held(Tells::State);
        assert!(state.is_some() && held(Tells::State).is_none());
        let done = held(Tells::Done);
        assert!(done.is_some());
        drop((state, done, pieces));
        assert!(first.frame().await.is_none());
        assert!(!answers.is_full(BYTES));
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
    async fn over_http_1_pieces_are_larger() {
        let watch = Watch::new(LATER);
        let first = watch.over(async {
            let mut long = answer(HTTP1_PIECE_BYTES + 1);
            piece(&mut long).await.len()
        });
        assert_eq!(first.await, Some(HTTP1_PIECE_BYTES));
    }

    #[test]
    fn large_answers_that_nobody_reads_leave_room_for_small_ones() {
        const LARGE: usize = 256 << 10;
        let answers = Bodies::new(20 * LARGE);
        let held = |bytes, tells| Answer::held(body(bytes), &answers, tells);
        // Each of another connection.
        let large = std::iter::from_fn(|| held(LARGE, Tells::Read));
        let large: Vec<_> = large.take(100).collect();
        assert_eq!(large.len(), 19);
        assert!(answers.is_full(LARGE));
        let small = std::iter::from_fn(|| held(1, Tells::Read));
        let small: Vec<_> = small.take(10_000).collect();
        assert!((500..10_000).contains(&small.len()), "{}", small.len());
        // Nor do these leave none for how the node is.
        assert!(held(LARGE, Tells::State).is_some());
    }

    #[test]
    fn a_connection_takes_no_more_than_its_share_but_for_one_answer() {
        let answers = Bodies::new(8 * SHARES * (BYTES + REQUEST_BYTES));
        let watches = [Watch::new(LATER), Watch::new(LATER)];
        let held = |at: usize, bytes, tells| {
            let client = Client::stream(watches[at].connection.clone());
            CLIENT.sync_scope(client, || Answer::held(body(bytes), &answers, tells))
        };
        let mut share: Vec<_> = std::iter::from_fn(|| held(0, BYTES, Tells::Read))
            .take(100)
            .collect();
        assert_eq!(share.len(), 8);
        assert!(held(0, 1, Tells::Read).is_none());
        assert!(held(0, 1, Tells::State).is_none());
        assert!(held(0, BYTES, Tells::Done).is_some());
        assert!(held(1, BYTES, Tells::Read).is_some());
        share.pop();
        assert!(held(0, BYTES, Tells::Read).is_some());
        share.clear();
        // However large it is.
        assert!(held(0, 9 * (BYTES + REQUEST_BYTES), Tells::Read).is_some());
    }

    #[tokio::test]
    async fn an_answer_of_unknown_length_says_at_its_end_that_there_is_no_room() {
        let three = || pages(&[BYTES, BYTES, BYTES]);
        let answers = room_of(BYTES);
        // A page that has left makes room for the next one.
        let mut quick = Answer::held(three(), &answers, Tells::Read).unwrap();
        for _ in 0..3 * BYTES.div_ceil(PIECE_BYTES) {
            drop(piece(&mut quick).await);
        }
        assert!(quick.frame().await.is_none());
        assert_eq!(answers.refused(), 0);
        let mut slow = Answer::held(three(), &answers, Tells::Read).unwrap();
        let mut pieces = Vec::new();
        for _ in 0..BYTES.div_ceil(PIECE_BYTES) {
            pieces.push(piece(&mut slow).await);
        }
        // The second page finds no room beside the first.
        assert!(poll!(slow.frame()).is_pending());
        assert_eq!(answers.refused(), 1);
        assert!(Answer::held(body(BYTES), &answers, Tells::Read).is_none());
        assert_eq!(answers.refused(), 2, "over REST, too");
        drop(pieces);
        let end = slow.frame().await.unwrap().unwrap();
        let trailers = end.into_trailers().unwrap();
        let status = tonic::Status::from_header_map(&trailers).unwrap();
        let told = ApiError::from_status(&status).unwrap();
        assert_eq!(told.code, ErrorCode::Overloaded);
        assert!(slow.frame().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_for_room_has_it_once_it_is_given_back_or_its_time_is_over() {
        let answers = room_of(BYTES);
        let later = Instant::now() + LATER;
        let held = room_for(&answers, BYTES, later).await;
        assert!(held.is_some());
        let late = room_for(&answers, BYTES, Instant::now());
        assert!(late.await.is_none());
        let mut waits = pin!(room_for(&answers, BYTES, later));
        assert!(poll!(waits.as_mut()).is_pending());
        drop(held);
        assert!(waits.await.is_some());
        assert_eq!(answers.refused(), 0, "it was not there yet");
    }

    #[tokio::test]
    async fn a_connection_whose_answer_is_not_read_is_given_up() {
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
        unread.given();
        let before = unread.since().unwrap();
        after(before);
        unread.given();
        assert_eq!(unread.since(), Some(before), "only the client gains time");
        unread.taken();
        assert!(unread.since().unwrap() > before);
        unread.taken();
        assert_eq!(unread.since(), None);
    }

    #[tokio::test]
    async fn a_stream_is_not_late_while_its_connection_gets_on() {
        let watch = Watch::new(LATER);
        let mut long = answer(BYTES);
        let (before, got_on, moved) = on_stream(&watch, async {
            let _held = piece(&mut long).await;
            let late = || CLIENT.with(|client| client.late_at(LATER)).unwrap();
            let before = late();
            after(Instant::now());
            // Of another stream.
            on_stream(&watch, async {
                let mut long = answer(BYTES);
                drop(piece(&mut long).await);
            })
            .await;
            (before, late(), watch.connection.unread.moved())
        })
        .await;
        assert!(got_on > before);
        assert_eq!(got_on, moved + LATER);
        // It has its turn some time.
        let stream = Instant::now();
        let most = stream + TURNS_MAX * LATER;
        assert_eq!(
            late_at(stream, stream + 2 * LATER, LATER),
            stream + 3 * LATER
        );
        assert_eq!(late_at(stream, stream + 9 * LATER, LATER), most);
    }

    #[tokio::test]
    async fn a_short_answer_that_is_not_read_ends_the_connection_and_costs_its_stream_nothing() {
        for limit in [SOON, LATER] {
            let watch = Watch::new(limit);
            let (give, given) = oneshot::channel();
            watch.streams().execute(async move {
                let mut short = answer(10);
                let _ = give.send(piece(&mut short).await);
            });
            let piece = given.await.unwrap();
            // The piece has one; the stream's task is at its end.
            assert_eq!(Arc::strong_count(&watch.connection), 2);
            if limit == SOON {
                let connection = timeout(LATER, watch.over(pending::<()>()));
                assert_eq!(connection.await, Ok(None));
            } else {
                assert!(watch.connection.unread.since().is_some());
                drop(piece);
                assert_eq!(watch.connection.unread.since(), None);
            }
        }
    }

    #[tokio::test]
    async fn a_short_answer_is_the_connections_once_it_is_passed_on() {
        let watch = Watch::new(LATER);
        let _held = on_stream(&watch, async {
            let mut short = Answer::held(pages(&[10]), &room_of(10), Tells::Read).unwrap();
            let held = piece(&mut short).await;
            assert_eq!(watch.connection.unread.since(), None);
            assert!(short.frame().await.is_none());
            held
        })
        .await;
        assert!(watch.connection.unread.since().is_some());
    }

    #[tokio::test]
    async fn a_short_answer_that_no_window_lets_out_is_given_up_alone() {
        let watch = Watch::new(SOON);
        let before = watch.connection.unread.moved();
        let (alive, reset) = oneshot::channel::<()>();
        watch.streams().execute(async move {
            let _alive = alive;
            let mut short = answer(10);
            let _held = piece(&mut short).await;
            pending::<()>().await;
        });
        let ended = timeout(LATER, reset).await;
        assert!(ended.unwrap().is_err());
        all_ended(&watch).await;
        assert_eq!(watch.connection.unread.since(), None);
        assert_eq!(watch.connection.unread.moved(), before, "nothing was taken");
    }

    #[tokio::test]
    async fn a_stream_that_is_reset_in_vain_ends_the_connection() {
        for kept in [true, false] {
            let watch = Watch::new(SOON);
            let (give, given) = oneshot::channel();
            let (alive, reset) = oneshot::channel::<()>();
            watch.streams().execute(async move {
                let _alive = alive;
                let mut long = answer(BYTES);
                let _ = give.send(piece(&mut long).await);
                pending::<()>().await;
            });
            let piece = given.await.unwrap();
            let ended = timeout(LATER, reset).await;
            assert!(ended.unwrap().is_err());
            if kept {
                let unread = timeout(LATER, watch.unread()).await;
                assert!(unread.is_ok());
            } else {
                drop(piece);
                all_ended(&watch).await;
                assert!(poll!(pin!(watch.unread())).is_pending());
            }
        }
    }
}
