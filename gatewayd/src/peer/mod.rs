//! Streams between nodes: each node dials what it has to say; calls are answered on the stream that they came on.
//!
//! Peer frames, snapshots and forwarded calls have a connection each, so that client load never delays a heartbeat.

mod accept;
mod dial;
pub mod frame;

pub use accept::serve;

use crate::links::{Forget, deliver};
use bytes::Bytes;
use frame::{Call, Frame, Purpose, Reply};
use mareedb_ipc::Outbox;
use mareedb_ipc::wire::command::Item;
use mareedb_ipc::wire::gateway::Target;
use mareedb_ipc::wire::peer::{DownReason, PEER_PROTOCOL, PeerHello, PeerIn, PeerOut, Way};
use mareedb_ipc::wire::view::NodeIdentity;
use mareedb_ipc::wire::{NodeId, RandomId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Addresses that are dialled at most, with a stream for each purpose. consensusd holds itself to it, too; until a cluster is formed
/// strangers have a say in what it tells.
const TARGETS_MAX: usize = 256;
/// Bytes that may wait for one stream.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// All peers.
pub struct Peers {
    start: RandomId,
    peer: Arc<Outbox>,
    bulk: Arc<Outbox>,
    inner: Mutex<Inner>,
    next_call: AtomicU64,
    /// Whether consensusd has said who this node is.
    known: watch::Sender<bool>,
}

#[derive(Default)]
struct Inner {
    me: Option<NodeIdentity>,
    /// By address, which is looked up for each frame.
    dialled: BTreeMap<String, BTreeMap<Purpose, Dialled>>,
    /// Whether more was told than is dialled, which is said once.
    crowded: bool,
}

struct Dialled {
    node: Option<NodeId>,
    queue: Queue,
    task: AbortHandle,
}

/// A stream that is up.
pub(crate) struct Live {
    /// Who is there.
    pub(crate) hello: Box<PeerHello>,
    /// Open calls by number.
    pub(crate) calls: HashMap<u64, oneshot::Sender<Reply>>,
}

/// What waits for a stream, and the calls that are open on it.
#[derive(Clone)]
pub(crate) struct Queue {
    frames: mpsc::UnboundedSender<Frame>,
    bytes: Arc<AtomicUsize>,
    /// `None` while the stream is down.
    up: Arc<Mutex<Option<Live>>>,
}

/// Why a call got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// It has not left this process: nobody has carried it out, or will.
    Unsent,
    /// The stream was lost, or the time has passed; it may have been carried out.
    Lost,
}

impl Peers {
    /// No peers yet; frames go to these outboxes.
    pub fn new(start: RandomId, peer: Arc<Outbox>, bulk: Arc<Outbox>) -> Arc<Peers> {
        Arc::new(Peers {
            start,
            peer,
            bulk,
            inner: Mutex::default(),
            next_call: AtomicU64::new(1),
            known: watch::Sender::new(false),
        })
    }

    /// How this node presents itself to whom it believes to be `expected`; `None` before consensusd has said.
    pub(crate) fn hello(&self, expected: Option<NodeId>) -> Option<PeerHello> {
        Some(PeerHello {
            protocol: PEER_PROTOCOL,
            start: self.start,
            identity: self.inner.lock().me.clone()?,
            expected,
        })
    }

    /// Waits until this node can present itself.
    pub(crate) async fn known(&self) {
        // The other end lives in `self`.
        let _ = self.known.subscribe().wait_for(|known| *known).await;
    }

    /// Keeps streams with these targets, of too many with the first ones, and with no others.
    pub fn set_targets(self: &Arc<Self>, me: &NodeIdentity, targets: &[Target]) {
        let mut inner = self.inner.lock();
        // Another identity (a cluster was formed) is presented by new streams.
        let redial = inner.me.as_ref() != Some(me);
        inner.me = Some(me.clone());
        self.known.send_replace(true);
        let crowded = targets.len() > TARGETS_MAX;
        if crowded && !inner.crowded {
            tracing::warn!(
                told = targets.len(),
                dialled = TARGETS_MAX,
                "more addresses of other nodes are told than are dialled"
            );
        }
        inner.crowded = crowded;
        let targets = &targets[..targets.len().min(TARGETS_MAX)];
        inner.dialled.retain(|addr, streams| {
            streams.retain(|_, dialled| {
                let kept = !redial
                    && targets
                        .iter()
                        .any(|target| target.addr == *addr && target.node == dialled.node);
                if !kept {
                    dialled.task.abort();
                }
                kept
            });
            !streams.is_empty()
        });
        for target in targets {
            let streams = inner.dialled.entry(target.addr.clone()).or_default();
            for purpose in [Purpose::Peer, Purpose::Bulk, Purpose::Client] {
                streams
                    .entry(purpose)
                    .or_insert_with(|| self.dial(target, purpose));
            }
        }
    }

    fn dial(self: &Arc<Self>, target: &Target, purpose: Purpose) -> Dialled {
        let (frames, waiting) = mpsc::unbounded_channel();
        let queue = Queue {
            frames,
            bytes: Arc::default(),
            up: Arc::default(),
        };
        let dial = dial::Dial {
            peers: self.clone(),
            addr: target.addr.clone(),
            node: target.node,
            purpose,
            queue: queue.clone(),
        };
        let task = tokio::spawn(dial.run(waiting)).abort_handle();
        Dialled {
            node: target.node,
            queue,
            task,
        }
    }

    fn queue(&self, addr: &str, purpose: Purpose) -> Option<Queue> {
        let inner = self.inner.lock();
        let dialled = inner.dialled.get(addr)?.get(&purpose)?;
        Some(dialled.queue.clone())
    }

    /// Sends a frame of consensusd.
    pub fn send(&self, message: PeerOut, way: Way) {
        let PeerOut::Frame { addr, frame } = message;
        let sent = self
            .queue(&addr, way.into())
            .is_some_and(|queue| queue.push(Frame::Peer(frame)));
        if !sent {
            self.tell(&PeerIn::Unsent { addr }, way);
        }
    }

    /// Tells consensusd.
    pub(crate) fn tell(&self, message: &PeerIn, way: Way) {
        let outbox = match way {
            Way::Peer => &self.peer,
            Way::Bulk => &self.bulk,
        };
        deliver(outbox, message);
    }

    /// Asks the gateway of another node, which is told how long it may take.
    ///
    /// # Errors
    /// The stream is down, full, or was lost before the answer; or there is none in time.
    pub async fn call(
        &self,
        addr: &str,
        within: Duration,
        call: Call,
    ) -> Result<Reply, Unanswered> {
        let queue = self
            .queue(addr, Purpose::Client)
            .ok_or(Unanswered::Unsent)?;
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        match queue.up.lock().as_mut() {
            Some(live) => live.calls.insert(number, reply),
            None => return Err(Unanswered::Unsent),
        };
        let _forget = Forget(|| {
            if let Some(live) = queue.up.lock().as_mut() {
                live.calls.remove(&number);
            }
        });
        let ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        if !queue.push(Frame::Call(number, ms, Box::new(call))) {
            return Err(Unanswered::Unsent);
        }
        match timeout(within, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(_) => Err(Unanswered::Lost),
        }
    }

    /// Tells a new consensusd which streams are up: they have outlived its predecessor.
    pub fn tell_again(&self) {
        let mut up = Vec::new();
        for (addr, streams) in &self.inner.lock().dialled {
            for (purpose, dialled) in streams {
                if let Some(way) = purpose.way()
                    && let Some(live) = &*dialled.queue.up.lock()
                {
                    let message = PeerIn::Up {
                        addr: addr.clone(),
                        peer: live.hello.clone(),
                    };
                    up.push((message, way));
                }
            }
        }
        for (message, way) in up {
            self.tell(&message, way);
        }
    }

    /// Streams that are up, for metrics.
    pub fn connected(&self) -> usize {
        let inner = self.inner.lock();
        let streams = inner.dialled.values();
        streams
            .filter_map(|streams| streams.get(&Purpose::Peer))
            .filter(|dialled| dialled.queue.up.lock().is_some())
            .count()
    }
}

impl Queue {
    /// Adds a frame; `false`: the stream is down or too much waits.
    fn push(&self, frame: Frame) -> bool {
        if self.up.lock().is_none() || self.bytes.load(Ordering::Relaxed) > WAITING_BYTES_MAX {
            return false;
        }
        self.bytes.fetch_add(weight(&frame), Ordering::Relaxed);
        self.frames.send(frame).is_ok()
    }
}

/// Bytes of a frame, about.
pub(crate) fn weight(frame: &Frame) -> usize {
    let bytes = |bytes: &Bytes| bytes.len();
    64 + match frame {
        Frame::Peer(frame) => bytes(frame),
        Frame::Call(_, _, call) => match &**call {
            Call::Propose { command, .. } => bytes(command),
            _ => 64,
        },
        Frame::Reply(_, reply) => match &**reply {
            Reply::Proposed(Ok(outcome)) => bytes(outcome),
            Reply::Read(Ok(Ok(response))) => {
                let items = response.items.iter();
                items
                    .map(|item| size_of::<Item>() + item.key.len() + item.value.len())
                    .sum::<usize>()
            }
            _ => 64,
        },
        _ => 64,
    }
}

/// Whether the hello of a peer shows somebody whom this node may talk to; otherwise why not.
pub(crate) fn objection(me: &NodeIdentity, hello: &PeerHello) -> Option<String> {
    if hello.protocol != PEER_PROTOCOL {
        return Some(format!(
            "peer protocol {} is spoken there, {PEER_PROTOCOL} here",
            hello.protocol
        ));
    }
    // FORM-2
    if let (Some(mine), Some(theirs)) = (me.cluster, hello.identity.cluster)
        && mine != theirs
    {
        return Some(format!("this is a node of cluster {mine}, not of {theirs}"));
    }
    if let (Some(mine), Some(expected)) = (me.id, hello.expected)
        && mine != expected
    {
        return Some(format!("this is node {mine}, not {expected}"));
    }
    None
}

/// Why a connection could not be made.
pub(crate) fn reason(error: &std::io::Error) -> DownReason {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => DownReason::Refused,
        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::UnexpectedEof => {
            DownReason::Closed
        }
        std::io::ErrorKind::PermissionDenied => DownReason::Rejected,
        _ => DownReason::Unreachable,
    }
}
