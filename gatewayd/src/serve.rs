//! The listening sockets: who is let in, and what a connection turns out to be.

use crate::answers::Watch;
use crate::core::Core;
use crate::gate::Gate;
use crate::peer::{self, Peers, frame::MAGIC};
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A client that does not say anything for so long after connecting is let go.
const FIRST_BYTES_LIMIT: Duration = Duration::from_secs(10);
/// Request headers must be whole by then.
const HEADERS_LIMIT: Duration = Duration::from_secs(10);
/// What HTTP/2 begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 256;
/// An HTTP/2 connection is pinged so often: one whose client hangs, though its kernel answers, is closed and gives its place back.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A connection without traffic for so long is asked for a sign of life.
const KEEPALIVE_IDLE_S: u32 = 30;
/// It is asked again so often,
const KEEPALIVE_INTERVAL_S: u32 = 10;
/// and is closed when it was asked so many times in vain.
const KEEPALIVE_PROBES: u32 = 3;
/// The kernel takes no more of answers than this beyond what it has sent. Left alone it takes some megabytes at once, of whatever streams
/// have their turn, and then nothing of any for as long as a slow client needs for those: the others would look unread.
const UNSENT_BYTES_MAX: u32 = 128 << 10;
/// A pause after an accept that failed: for want of descriptors the next one fails, too, until some connection has ended.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// What is in flight at a graceful stop has so long to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// What both ports share.
#[derive(Clone)]
pub struct Doors {
    /// Requests.
    pub core: Arc<Core>,
    /// Peers.
    pub peers: Arc<Peers>,
    /// Turns true at a graceful stop.
    pub stop: watch::Receiver<bool>,
}

/// Serves one port until the stop; then what is in flight ends, within limits.
///
/// `peers_too`: connections may be peer streams.
pub async fn serve(doors: Doors, listener: TcpListener, router: Router, peers_too: bool) {
    let places = usize::try_from(doors.core.config.limits.connections_max).unwrap_or(usize::MAX);
    let places = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
    let gate = Gate::before(router, doors.core.clone());
    let mut connections = JoinSet::new();
    let mut stop = doors.stop.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, or a connection that was gone before it was accepted.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A peer must get in however many clients there are, so that the place is taken once it is known who it is.
        let (doors, gate, places) = (doors.clone(), gate.clone(), places.clone());
        connections.spawn(async move {
            if let Err(error) = connection(doors, stream, gate, places, peers_too).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    let drained = timeout(DRAIN_LIMIT, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::info!("connections that did not end in time are closed");
    }
}

async fn connection(
    doors: Doors,
    mut stream: TcpStream,
    gate: Gate,
    places: Arc<Semaphore>,
    peers_too: bool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    let Ok(first) = timeout(FIRST_BYTES_LIMIT, first_bytes(&mut stream)).await? else {
        // Gone before it had said what it is: a look whether the port is open, as often as not.
        return Ok(());
    };
    if peers_too && first == MAGIC {
        let mut stop = doors.stop.clone();
        tokio::select! {
            served = peer::serve(doors.core, doors.peers, stream) => served?,
            _ = stop.wait_for(|stop| *stop) => {}
        }
        return Ok(());
    }
    // More connections than limits.connections_max are closed at once: a client sees it and can go elsewhere.
    let Ok(_place) = places.try_acquire_owned() else {
        return Ok(());
    };
    SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    let io = TokioIo::new(Prefixed { first, stream });
    // An answer may wait for its client as long as a request may for its answer.
    let limit = Duration::from_millis(doors.core.config.limits.timeout_ms_max);
    let watch = Watch::new(limit);
    let mut builder = auto::Builder::new(watch.streams());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX);
    let mut serving = pin!(builder.serve_connection(io, gate));
    let mut stop = doors.stop.clone();
    let talk = async {
        tokio::select! {
            served = serving.as_mut() => return served,
            _ = stop.wait_for(|stop| *stop) => serving.as_mut().graceful_shutdown(),
        }
        serving.as_mut().await
    };
    let unread = "the client does not read what it has asked for";
    tokio::select! {
        served = watch.over(talk) => served.unwrap_or_else(|| Err(unread.into())),
        () = watch.unread() => Err(unread.into()),
    }
}

/// As much as shows what the connection is: the shortest request has more than eight bytes, and the preface of HTTP/2 is waited for whole,
/// since who serves it would wait for the rest without end.
async fn first_bytes(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut first = vec![0; MAGIC.len()];
    stream.read_exact(&mut first).await?;
    if PREFACE.starts_with(&first) {
        let mut rest = [0; PREFACE.len() - MAGIC.len()];
        stream.read_exact(&mut rest).await?;
        first.extend_from_slice(&rest);
    }
    Ok(first)
}

/// A host that is gone without a word must not keep its place.
fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)
}

/// A stream whose first bytes were read already.
struct Prefixed {
    first: Vec<u8>,
    stream: TcpStream,
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let some = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..some]);
            self.first.drain(..some);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
