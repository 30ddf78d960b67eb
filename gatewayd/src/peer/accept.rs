//! Serves a stream that another node has dialled.

use super::frame::{Call, Codec, Frame, Reply};
use super::{Peers, WAITING_BYTES_MAX, objection, weight};
use crate::core::Core;
use futures::{SinkExt, StreamExt};
use mareedb_ipc::wire::command::Command;
use mareedb_ipc::wire::gateway::{AdminRequest, ConsensusError};
use mareedb_ipc::wire::peer::{PeerHello, PeerIn, Way};
use mareedb_ipc::wire::{NodeId, decode};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::{Framed, FramedRead, FramedWrite};

/// A hello that does not come by then ends the connection.
const HELLO_LIMIT: Duration = Duration::from_secs(2);
/// Forwarded calls that one stream may have open.
const CALLS_MAX: usize = 4096;
/// What a read may give, about: the largest page that a configuration allows. The largest values are longer.
const READ_BYTES: usize = 2 << 20;

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

/// Bytes of replies that wait for a stream, about.
#[derive(Clone, Default)]
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// Counts a reply in. Beyond the limit a read has given nothing: who asked asks again, and others are told what has become of writes.
    fn enters(&self, number: u64, reply: Reply) -> Frame {
        let read = matches!(reply, Reply::Read(_));
        let mut frame = Frame::Reply(number, Box::new(reply));
        if read && self.0.load(Ordering::Relaxed) + weight(&frame) > WAITING_BYTES_MAX {
            let refused = Reply::Read(Err(ConsensusError::Overloaded));
            frame = Frame::Reply(number, Box::new(refused));
        }
        self.0.fetch_add(weight(&frame), Ordering::Relaxed);
        frame
    }

    /// Whether a read would hardly find room for what it gives.
    fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) + READ_BYTES > WAITING_BYTES_MAX
    }

    fn leaves(&self, frame: &Frame) {
        self.0.fetch_sub(weight(frame), Ordering::Relaxed);
    }
}

async fn serve_calls(core: Arc<Core>, framed: Framed<TcpStream, Codec>) -> io::Result<()> {
    let (read, write) = framed.into_inner().into_split();
    let (mut source, mut sink) = (FramedRead::new(read, Codec), FramedWrite::new(write, Codec));
    let (replies, mut queue) = mpsc::channel::<Frame>(CALLS_MAX);
    let waiting = Waiting::default();
    let writer = async {
        let mut batch = Vec::with_capacity(64);
        while queue.recv_many(&mut batch, 64).await > 0 {
            for frame in batch.drain(..) {
                waiting.leaves(&frame);
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
            let (core, waiting) = (core.clone(), waiting.clone());
            tokio::spawn(async move {
                let until = Instant::now() + Duration::from_millis(u64::from(ms));
                // Later nobody waits for it.
                if let Ok(reply) = timeout_at(until, reply(&core, &waiting, *call, until)).await {
                    place.send(waiting.enters(number, reply));
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

/// What is replied to a call. Nothing is read that would only be thrown away, and asked for again.
async fn reply(core: &Core, waiting: &Waiting, call: Call, until: Instant) -> Reply {
    if matches!(call, Call::Read(_)) && waiting.is_full() {
        return Reply::Read(Err(ConsensusError::Overloaded));
    }
    answer(core, call, until).await
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
        Call::Read(read) => Reply::Read(core.read_here(read, until).await).fitting(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::Bed;
    use crate::links::tests::later;
    use bytes::Bytes;
    use futures::poll;
    use mareedb_config::Config;
    use mareedb_ipc::wire::command::Item;
    use mareedb_ipc::wire::gateway::ToConsensus;
    use mareedb_ipc::wire::read::{Query, ReadRequest, ReadResponse};
    use mareedb_ipc::wire::{FIRST_DATA_GROUP, Revision};
    use std::pin::pin;
    use std::task::Poll;

    /// A page of a megabyte.
    fn page() -> Reply {
        Reply::Read(Ok(Ok(ReadResponse {
            items: vec![Item {
                key: Bytes::from_static(b"k"),
                value: Bytes::from(vec![0; 1 << 20]),
                create_revision: Revision(1),
                mod_revision: Revision(1),
                version: 1,
            }],
            elections: Vec::new(),
            more: false,
            revision: Revision(1),
            applied_index: 1,
        })))
    }

    fn refused() -> Reply {
        Reply::Read(Err(ConsensusError::Overloaded))
    }

    /// What has found room of as many pages as there is room for.
    fn filled(waiting: &Waiting) -> Vec<Frame> {
        let mut kept = Vec::new();
        loop {
            let frame = waiting.enters(7, page());
            if frame == Frame::Reply(7, Box::new(refused())) {
                waiting.leaves(&frame);
                return kept;
            }
            kept.push(frame);
            assert!(kept.len() < 1_000, "what waits has no bound");
        }
    }

    #[test]
    fn replies_wait_for_a_slow_stream_up_to_a_limit_and_only_reads_are_refused() {
        let waiting = Waiting::default();
        let mut kept = filled(&waiting);
        assert!(kept.len() > 16);
        let outcome = Reply::Proposed(Ok(Bytes::from(vec![0; 1 << 20])));
        let written = waiting.enters(7, outcome.clone());
        assert_eq!(written, Frame::Reply(7, Box::new(outcome)));
        kept.push(written);
        for frame in &kept {
            waiting.leaves(frame);
        }
        assert_eq!(waiting.0.load(Ordering::Relaxed), 0);
        let again = Frame::Reply(7, Box::new(page()));
        assert_eq!(waiting.enters(7, page()), again);
    }

    #[tokio::test]
    async fn nothing_is_read_while_replies_find_no_room() {
        let mut bed = Bed::new(Config::default());
        bed.led_by(1, 1);
        let core = bed.core.clone();
        let read = || {
            Call::Read(ReadRequest {
                group: FIRST_DATA_GROUP,
                epoch: 1,
                min_index: 0,
                query: Query::Elections,
            })
        };
        let (full, room) = (Waiting::default(), Waiting::default());
        filled(&full);
        let told = poll!(pin!(reply(&core, &full, read(), later())));
        assert_eq!(told, Poll::Ready(refused()));
        assert!(bed.unasked());
        let mut served = pin!(reply(&core, &room, read(), later()));
        let asked = bed.asked(served.as_mut()).await;
        assert!(matches!(asked, ToConsensus::ReadIndex { .. }), "{asked:?}");
    }
}
