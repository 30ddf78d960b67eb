//! Serves a stream that another node has dialled.

use super::frame::{Call, Codec, Frame, Reply};
use super::{Peers, objection};
use crate::core::Core;
use futures::{SinkExt, StreamExt};
use mareedb_ipc::wire::command::Command;
use mareedb_ipc::wire::gateway::{AdminRequest, ConsensusError};
use mareedb_ipc::wire::peer::{PeerHello, PeerIn, Way};
use mareedb_ipc::wire::{NodeId, decode};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::{Framed, FramedRead, FramedWrite};

/// A hello that does not come by then ends the connection.
const HELLO_LIMIT: Duration = Duration::from_secs(2);
/// Forwarded calls that one stream may have open.
const CALLS_MAX: usize = 4096;

/// Serves the stream until it ends. The magic word has been read.
///
/// # Errors
/// The stream broke, or its bytes are none of the protocol's.
pub async fn serve(core: Arc<Core>, peers: Arc<Peers>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut framed = Framed::new(stream, Codec);
    let first = timeout(HELLO_LIMIT, framed.next())
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
    let Some(Frame::Open(open)) = first.transpose()? else {
        return Err(io::Error::other("a peer stream begins with a hello"));
    };
    let (purpose, hello) = *open;
    // This process is younger than its port: a moment, and consensusd has told who this node is. Turning the peer away
    // would look like another cluster, and make it wait longer.
    let _ = timeout(HELLO_LIMIT, peers.known()).await;
    let Some(mine) = peers.hello(hello.identity.id) else {
        return Err(io::Error::other("consensusd has not told who this node is"));
    };
    if let Some(why) = objection(&mine.identity, &hello) {
        tracing::warn!(
            peer = hello.identity.name,
            addr = hello.identity.addr,
            why,
            "a peer is turned away"
        );
        return framed.send(Frame::Reject(why)).await;
    }
    framed.send(Frame::Accept(Box::new(mine))).await?;
    match purpose.way() {
        Some(way) => serve_frames(&peers, hello, way, framed).await,
        None => serve_calls(core, framed).await,
    }
}

async fn serve_frames(
    peers: &Peers,
    hello: PeerHello,
    way: Way,
    mut framed: Framed<TcpStream, Codec>,
) -> io::Result<()> {
    // It goes into each message, and comes back.
    let mut from = Box::new(hello);
    while let Some(frame) = framed.next().await {
        let Frame::Peer(frame) = frame? else {
            return Err(io::Error::other(
                "a stream of peer frames has another frame",
            ));
        };
        let message = PeerIn::Frame { from, frame };
        peers.tell(&message, way);
        let PeerIn::Frame { from: back, .. } = message else {
            unreachable!("it was made a frame");
        };
        from = back;
    }
    Ok(())
}

async fn serve_calls(core: Arc<Core>, framed: Framed<TcpStream, Codec>) -> io::Result<()> {
    let (read, write) = framed.into_inner().into_split();
    let (mut source, mut sink) = (FramedRead::new(read, Codec), FramedWrite::new(write, Codec));
    let (replies, mut waiting) = mpsc::channel::<Frame>(CALLS_MAX);
    let writer = async {
        let mut batch = Vec::with_capacity(64);
        while waiting.recv_many(&mut batch, 64).await > 0 {
            for frame in batch.drain(..) {
                sink.feed(frame).await?;
            }
            sink.flush().await?;
        }
        Ok(())
    };
    let reader = async {
        while let Some(frame) = source.next().await {
            let Frame::Call(number, ms, call) = frame? else {
                return Err(io::Error::other("a stream of calls has another frame"));
            };
            // A place for the reply is taken before the call is served: no more than CALLS_MAX are open.
            let Ok(place) = replies.clone().reserve_owned().await else {
                return Ok(());
            };
            let core = core.clone();
            tokio::spawn(async move {
                let until = Instant::now() + Duration::from_millis(u64::from(ms));
                // Later nobody waits for it.
                if let Ok(reply) = timeout_at(until, answer(&core, *call, until)).await {
                    place.send(Frame::Reply(number, Box::new(reply)));
                }
            });
        }
        Ok(())
    };
    tokio::select! {
        ended = writer => ended,
        ended = reader => ended,
    }
}

async fn answer(core: &Core, call: Call, until: Instant) -> Reply {
    match call {
        Call::Propose { group, command } => Reply::Proposed(match decode(&command) {
            // What is in the log is applied by all: nothing gets there that cannot be read, or that no gateway asks for.
            Ok(Command::Write { .. } | Command::OpenSession { .. }) => {
                core.calls().propose(group, command).await
            }
            Ok(_) => Err(ConsensusError::Refused("no command of a gateway".into())),
            Err(error) => Err(ConsensusError::Refused(error.to_string())),
        }),
        Call::Read(read) => Reply::Read(core.read_here(read, until).await),
        Call::Transfer { to } => {
            let to = to.map(NodeId);
            Reply::Transferred(
                core.calls()
                    .admin(AdminRequest::TransferLeadership { to })
                    .await,
            )
        }
    }
}
