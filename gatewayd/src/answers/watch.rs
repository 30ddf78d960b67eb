//! Watches over clients that do not read: ends their streams, or connections.

use super::client::{CLIENT, Client, Connection, Unread};
use hyper::rt::Executor;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Polls until it is done; `None`: before that the client of this task has taken nothing for too long.
pub(super) async fn unless_late<T>(
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

pub(super) fn poll_late(
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
pub(super) async fn all_taken(unread: &Unread, limit: Duration) -> Option<()> {
    if unread.since().is_some() {
        // As a rule it is a moment later, without a timer.
        tokio::task::yield_now().await;
    }
    unless_late(limit, |context| unread.poll_all_taken(context)).await
}

/// Watches over the answers of a connection.
pub struct Watch {
    pub(super) connection: Arc<Connection>,
    pub(super) limit: Duration,
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
    pub(super) connection: Arc<Connection>,
    pub(super) limit: Duration,
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
