//! Who takes the answers of a task, and what of them is not taken yet.

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// While others of its connection get on, a stream waits so many times as long for its turn.
pub(super) const TURNS_MAX: u32 = 4;

tokio::task_local! {
    /// Who takes the answers that the task makes.
    pub(super) static CLIENT: Client;
}

/// Who takes the answers of a task.
pub(super) struct Client {
    pub(super) connection: Arc<Connection>,
    /// `None`: the task serves all of the connection, so that it is HTTP/1.1 if it makes answers.
    pub(super) stream: Option<Stream>,
}

/// What is common to the answers of a connection.
#[derive(Default)]
pub(super) struct Connection {
    /// Over HTTP/2 of short answers only, whose streams have ended; but it moves with what is taken of any.
    pub(super) unread: Unread,
    /// Bytes of room that they take.
    pub(super) room: AtomicUsize,
    /// Told when the connection is to end, since nothing else takes back what was given out on a stream.
    pub(super) late: Notify,
}

/// The answer of an HTTP/2 stream, as its task sees it.
#[derive(Default)]
pub(super) struct Stream {
    /// Of a long answer.
    pub(super) unread: OnceCell<Arc<Unread>>,
    /// Of a short one: a piece is out, and nothing shows yet that hyper has passed it on.
    pub(super) short: Cell<bool>,
    /// Since when it was seen that hyper has not: the window is shut.
    pub(super) stuck: Cell<Option<Instant>>,
}

/// What has been given out of answers and is not taken yet.
pub(super) struct Unread {
    /// Less than none for a moment, if hyper drops a piece that it has not passed on.
    pub(super) pieces: AtomicIsize,
    /// When one was taken last, or given out after all had been taken.
    pub(super) moved: Mutex<Instant>,
    /// Who waits until all are taken.
    pub(super) waiter: AtomicWaker,
    /// Of a stream: it is reset, and what is dropped from now on was not taken.
    pub(super) given_up: AtomicBool,
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
    pub(super) fn given(&self) {
        if self.pieces.load(Ordering::Acquire) == 0 {
            self.moves(Instant::now());
        }
        self.pieces.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn taken(&self) {
        self.moves(Instant::now());
        if self.pieces.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waiter.wake();
        }
    }

    pub(super) fn moves(&self, at: Instant) {
        *self.moved.lock() = at;
    }

    pub(super) fn moved(&self) -> Instant {
        *self.moved.lock()
    }

    /// Since when nothing was taken of what is there to be taken.
    pub(super) fn since(&self) -> Option<Instant> {
        (self.pieces.load(Ordering::Acquire) > 0).then(|| self.moved())
    }

    /// The stream is reset, for which the connection has a limit of its own.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.moves(Instant::now());
    }

    pub(super) fn poll_all_taken(&self, context: &Context<'_>) -> Poll<()> {
        self.waiter.register(context.waker());
        if self.pieces.load(Ordering::Acquire) > 0 {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

/// When a stream is late of which something was taken last at `stream`, and of all its connection at `connection`.
pub(super) fn late_at(stream: Instant, connection: Instant, limit: Duration) -> Instant {
    let turn = stream.max(connection) + limit;
    turn.min(stream + limit * TURNS_MAX)
}

impl Client {
    /// A stream of this connection.
    pub(super) fn stream(connection: Arc<Connection>) -> Client {
        Client {
            connection,
            stream: Some(Stream::default()),
        }
    }

    /// Gives out the piece of a short answer. It is counted once it is passed on: until then it can be taken back.
    pub(super) fn give_short(&self) {
        if let Some(stream) = &self.stream {
            stream.short.set(true);
        }
    }

    /// What was given out is passed on: with a short answer the stream ends, so that it is the connection's from here.
    pub(super) fn passed_on(&self) {
        if let Some(stream) = &self.stream
            && stream.short.take()
        {
            stream.stuck.set(None);
            self.connection.unread.given();
        }
    }

    /// Looks at this, too, for a long answer.
    pub(super) fn watch(&self, unread: &Arc<Unread>) {
        if let Some(stream) = &self.stream {
            // There is one answer on a stream.
            let _ = stream.unread.set(unread.clone());
        }
    }

    /// What there is of a long answer.
    pub(super) fn long(&self) -> Option<Arc<Unread>> {
        self.stream.as_ref()?.unread.get().cloned()
    }

    /// When nothing will have been taken for too long; `None`: nothing is there to be taken.
    pub(super) fn late_at(&self, limit: Duration) -> Option<Instant> {
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
