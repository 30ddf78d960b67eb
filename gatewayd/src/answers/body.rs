//! The body of an answer, which goes out in pieces.

use super::client::{CLIENT, Client, Connection, Unread};
use super::full;
use super::room::{Room, Tells};
use crate::bodies::Bodies;
use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// Bytes of a piece: of HTTP/2 a frame.
pub(super) const PIECE_BYTES: usize = 16 << 10;
/// Over HTTP/1.1, which has no frames. Not more: who takes less for as long as a request may take is given up.
pub(super) const HTTP1_PIECE_BYTES: usize = 128 << 10;

/// The room of a piece.
pub(super) enum Share {
    /// It is all of its answer.
    Own(Room),
    /// Any of an answer's pieces keeps the whole in memory.
    Part(Arc<Room>),
}

impl Share {
    pub(super) fn connection(&self) -> &Connection {
        match self {
            Share::Own(room) => &room.connection,
            Share::Part(room) => &room.connection,
        }
    }

    pub(super) fn into_part(self) -> Arc<Room> {
        match self {
            Share::Own(room) => Arc::new(room),
            Share::Part(room) => room,
        }
    }
}

/// A piece of an answer, which lives until it is with the kernel or given up.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// Of a long answer over HTTP/2; the others are the connection's.
    pub(super) unread: Option<Arc<Unread>>,
    pub(super) room: Share,
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
    pub(super) body: Body,
    /// None: it takes no room.
    pub(super) held: Option<Held>,
}

pub(super) struct Held {
    pub(super) answers: Arc<Bodies>,
    pub(super) tells: Tells,
    pub(super) connection: Arc<Connection>,
    http1: bool,
    /// Of a long answer over HTTP/2, from its first piece on.
    pub(super) unread: Option<Arc<Unread>>,
    /// The room of a body of known length, until it gives its bytes.
    pub(super) room: Option<Room>,
    pub(super) rest: Option<Rest>,
    /// Bytes that have gone out.
    pub(super) gone: usize,
    /// What comes after them, if that is known: trailers or nothing.
    pub(super) end: Option<Option<Frame<Bytes>>>,
}

/// What a body has given and is still to go out in pieces, with its room.
pub(super) struct Rest {
    pub(super) bytes: Bytes,
    pub(super) room: Share,
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
    pub(super) fn piece(&mut self) -> Option<Bytes> {
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
    pub(super) fn given(&mut self) -> Option<Arc<Unread>> {
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
    pub(super) fn hold(&mut self, data: Bytes) -> bool {
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
    pub(super) fn poll_end(&self, context: &Context<'_>) -> Poll<()> {
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

/// The same at the end of an answer over gRPC.
fn refused() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // It has no bytes that a header cannot carry.
    let _ = full().to_status().add_header(&mut trailers);
    trailers
}
