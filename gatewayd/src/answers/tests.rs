use super::body::*;
use super::client::*;
use super::room::*;
use super::watch::*;
use super::*;
use crate::bodies::{Bodies, REQUEST_BYTES};
use axum::body::Body;
use bytes::Bytes;
use futures::poll;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::rt::Executor;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
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
