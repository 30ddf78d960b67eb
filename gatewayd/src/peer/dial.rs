//! Keeps one stream to one target for one purpose.

use super::frame::{Codec, Frame, MAGIC, Purpose};
use super::{Live, Peers, Queue, objection, reason, weight};
use futures::{SinkExt, StreamExt};
use mareedb_ipc::wire::NodeId;
use mareedb_ipc::wire::peer::{DownReason, PeerHello, PeerIn};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;
use tokio_util::codec::Framed;

/// A connection that is not made by then is given up.
const CONNECT_LIMIT: Duration = Duration::from_millis(1_000);
/// So is a hello that is not answered.
const HELLO_LIMIT: Duration = Duration::from_millis(1_000);
/// Unacknowledged bytes end a connection after so long: a dead host is noticed.
const UNACKNOWLEDGED_MS: u32 = 1_500;
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(200);
/// Frames written before the socket is flushed.
const BATCH: usize = 64;

pub(super) struct Dial {
    pub(super) peers: Arc<Peers>,
    pub(super) addr: String,
    pub(super) node: Option<NodeId>,
    pub(super) purpose: Purpose,
    pub(super) queue: Queue,
}

/// Tells consensusd of the end of the stream, also when the task is aborted.
struct Up<'a>(&'a Dial);
impl Drop for Up<'_> {
    fn drop(&mut self) {
        // Dropping the table fails the open calls.
        self.0.queue.up.lock().take();
        self.0.down(DownReason::Closed);
    }
}

impl Dial {
    fn down(&self, why: DownReason) {
        if let Some(way) = self.purpose.way() {
            let message = PeerIn::Down {
                addr: self.addr.clone(),
                why,
            };
            self.peers.tell(&message, way);
        }
    }

    /// Dials for ever.
    pub(super) async fn run(self, mut waiting: UnboundedReceiver<Frame>) {
        let mut backoff = BACKOFF_MIN;
        let mut told = None;
        loop {
            match self.connect().await {
                Ok((stream, hello)) => {
                    backoff = BACKOFF_MIN;
                    told = None;
                    // What waited for the last stream is lost with it.
                    while waiting.try_recv().is_ok() {}
                    self.queue.bytes.store(0, Ordering::Relaxed);
                    let hello = Box::new(hello);
                    *self.queue.up.lock() = Some(Live {
                        hello: hello.clone(),
                        calls: HashMap::new(),
                    });
                    let up = Up(&self);
                    if let Some(way) = self.purpose.way() {
                        let message = PeerIn::Up {
                            addr: self.addr.clone(),
                            peer: hello,
                        };
                        self.peers.tell(&message, way);
                    }
                    if let Err(error) = self.talk(stream, &mut waiting).await {
                        tracing::debug!(addr = self.addr, purpose = ?self.purpose, %error, "stream ended");
                    }
                    drop(up);
                }
                Err(error) => {
                    let why = reason(&error);
                    let again = told == Some(why);
                    if !again {
                        told = Some(why);
                        tracing::debug!(addr = self.addr, purpose = ?self.purpose, %error, "not connected");
                    }
                    // A refusal is evidence that late frames of the dead node take back, and that a new consensusd has not heard of.
                    let evidence = why == DownReason::Refused && self.purpose == Purpose::Peer;
                    if !again || evidence {
                        self.down(why);
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    async fn connect(&self) -> io::Result<(Framed<TcpStream, Codec>, PeerHello)> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let mine = self
            .peers
            .hello(self.node)
            .ok_or_else(|| io::Error::other("no identity yet"))?;
        let mut stream = timeout(CONNECT_LIMIT, TcpStream::connect(&self.addr))
            .await
            .map_err(late)??;
        stream.set_nodelay(true)?;
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::TcpUserTimeout,
            &UNACKNOWLEDGED_MS,
        )?;
        stream.write_all(MAGIC).await?;
        let me = mine.identity.clone();
        let mut framed = Framed::new(stream, Codec);
        framed
            .send(Frame::Open(Box::new((self.purpose, mine))))
            .await?;
        let answer = timeout(HELLO_LIMIT, framed.next()).await.map_err(late)?;
        match answer {
            Some(Ok(Frame::Accept(hello))) => match objection(&me, &hello) {
                None => Ok((framed, *hello)),
                Some(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
            },
            Some(Ok(Frame::Reject(why))) => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
            Some(Ok(_)) => Err(io::Error::other("the hello was not answered with one")),
            Some(Err(error)) => Err(error),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    async fn talk(
        &self,
        stream: Framed<TcpStream, Codec>,
        waiting: &mut UnboundedReceiver<Frame>,
    ) -> io::Result<()> {
        let (mut sink, mut source) = stream.split();
        let write = async {
            let mut batch = Vec::with_capacity(BATCH);
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                for frame in batch.drain(..) {
                    self.queue
                        .bytes
                        .fetch_sub(weight(&frame), Ordering::Relaxed);
                    sink.feed(frame).await?;
                }
                sink.flush().await?;
            }
            Ok(())
        };
        let read = async {
            while let Some(frame) = source.next().await {
                if let Frame::Reply(number, reply) = frame?
                    && let Some(live) = self.queue.up.lock().as_mut()
                    && let Some(waiter) = live.calls.remove(&number)
                {
                    let _ = waiter.send(*reply);
                }
            }
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        tokio::select! {
            ended = write => ended,
            ended = read => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::TARGETS_MAX;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::RandomId;
    use mareedb_ipc::wire::gateway::Target;
    use mareedb_ipc::wire::view::NodeIdentity;
    use mareedb_ipc::{Lane, Outbox, Role};
    use std::collections::BTreeMap;
    use tokio::task::AbortHandle;

    fn me() -> NodeIdentity {
        NodeIdentity {
            name: "node1".into(),
            id: None,
            incarnation: RandomId(1),
            cluster: None,
            addr: "127.0.0.1:7001".into(),
            rest_addr: String::new(),
            version: String::new(),
        }
    }

    #[tokio::test]
    async fn a_refusal_is_told_as_long_as_it_lasts() {
        let node = NodeInProcess::small("{}");
        let mut gateway = node.attach(Role::Gateway);
        let mut consensus = node.attach(Role::Consensus);
        let mut lane = gateway.sender(Role::Consensus, Lane::Peer);
        let mut told = consensus.receiver(Role::Gateway, Lane::Peer);
        let outbox = Outbox::before(&lane, || {});
        let bulk = gateway.sender(Role::Consensus, Lane::Bulk);
        let bulk = Outbox::before(&bulk, || {});
        let peers = Peers::new(RandomId(1), outbox.clone(), bulk);
        // A port that was free a moment ago: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = port.local_addr().unwrap().to_string();
        drop(port);
        let target = Target {
            addr: addr.clone(),
            node: None,
        };
        peers.set_targets(&me(), &[target]);
        let mut refusals = 0;
        let told_often = async {
            while refusals < 3 {
                outbox.flush(&mut lane).unwrap();
                while let Some((message, end)) = told.try_recv::<PeerIn>().unwrap() {
                    told.release(end);
                    let why = DownReason::Refused;
                    let addr = addr.clone();
                    assert_eq!(message, PeerIn::Down { addr, why });
                    refusals += 1;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), told_often).await.unwrap();
        peers.set_targets(&me(), &[]);
    }

    #[tokio::test]
    async fn of_too_many_addresses_some_are_dialled_and_only_as_long_as_they_are_told() {
        let node = NodeInProcess::small("{}");
        let mut gateway = node.attach(Role::Gateway);
        let lane = gateway.sender(Role::Consensus, Lane::Peer);
        let outbox = Outbox::before(&lane, || {});
        let peers = Peers::new(RandomId(1), outbox.clone(), outbox);
        let tasks = || -> Vec<AbortHandle> {
            let inner = peers.inner.lock();
            let dialled = inner.dialled.values().flat_map(BTreeMap::values);
            dialled.map(|dialled| dialled.task.clone()).collect()
        };
        // Addresses of this machine where nobody listens.
        let target = |n: usize| Target {
            addr: format!("127.1.{}.{}:1", n / 250, n % 250 + 1),
            node: None,
        };
        let targets: Vec<Target> = (0..1_000).map(target).collect();
        peers.set_targets(&me(), &targets);
        let all = tasks();
        assert_eq!(all.len(), 3 * TARGETS_MAX);
        // Some of them begin.
        tokio::task::yield_now().await;
        peers.set_targets(&me(), &targets[..1]);
        assert_eq!(tasks().len(), 3);
        let left = || all.iter().filter(|task| !task.is_finished()).count();
        for _ in 0..1_000 {
            if left() == 3 {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(left(), 3);
        assert!(tasks().iter().all(|task| !task.is_finished()));
        peers.set_targets(&me(), &[]);
    }
}
