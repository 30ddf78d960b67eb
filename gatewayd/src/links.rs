//! gatewayd's ends of the rings: the pump that moves messages, and the calls that wait for answers across restarts of
//! their servers.

use crate::peer::Peers;
use bytes::Bytes;
use mareedb_ipc::wire::command::Outcome;
use mareedb_ipc::wire::gateway::{AdminRequest, ConsensusError, FromConsensus, ToConsensus};
use mareedb_ipc::wire::peer::{PeerIn, PeerOut, Way};
use mareedb_ipc::wire::read::{
    ReadCall, ReadError, ReadReply, ReadRequest, ReadResponse, SentReadCall,
};
use mareedb_ipc::wire::view::ClusterView;
use mareedb_ipc::wire::{GroupId, RandomId, decode};
use mareedb_ipc::{Outbox, Receiver, Refusal, RingError, Sender};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Messages taken from one ring before others have their turn.
const BATCH: usize = 256;

/// Calls to consensusd and to the readers.
pub struct Calls {
    next: AtomicU64,
    consensus: OpenCalls<ToConsensus, ConsensusReply>,
    client: Arc<Outbox>,
    readers: Vec<Reader>,
    view: watch::Sender<Option<Arc<ClusterView>>>,
}

struct Reader {
    outbox: Arc<Outbox>,
    open: OpenCalls<SentReadCall, ReadResult>,
}

/// What a reader answers.
type ReadResult = Result<ReadResponse, ReadError>;

/// Calls without an answer, by number.
type OpenCalls<M, T> = Mutex<BTreeMap<u64, Open<M, T>>>;

/// A call without an answer: `M` was sent, `T` is awaited.
struct Open<M, T> {
    message: M,
    reply: oneshot::Sender<(T, Sent)>,
    sent: Sent,
}

/// How often a call was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Once,
    /// A predecessor of who answers may have carried it out.
    Again,
}

impl<M: Serialize, T> Open<M, T> {
    /// Sends it to the successor of who had it.
    fn again(&mut self, outbox: &Outbox) {
        self.sent = Sent::Again;
        // It was taken before, so that it fits; and no more are open than have been taken.
        let _ = outbox.push(&self.message);
    }
}

/// Sends a call unless too much waits already, and keeps it among the open ones, where its answer is given.
fn opened<M: Serialize, T>(
    open: &OpenCalls<M, T>,
    outbox: &Outbox,
    call: u64,
    message: M,
) -> Result<oneshot::Receiver<(T, Sent)>, ConsensusError> {
    // Held over the push: no answer comes before the call is in the table.
    let mut open = open.lock();
    outbox.try_push(&message).map_err(|refusal| match refusal {
        Refusal::Full => ConsensusError::Overloaded,
        Refusal::TooLarge(_) => ConsensusError::TooLarge(refusal.to_string()),
    })?;
    let (reply, answer) = oneshot::channel();
    open.insert(
        call,
        Open {
            message,
            reply,
            sent: Sent::Once,
        },
    );
    Ok(answer)
}

enum ConsensusReply {
    Proposed(Result<Bytes, ConsensusError>),
    Index(Result<u64, ConsensusError>),
    Admin(Result<String, ConsensusError>),
}

impl Calls {
    /// Calls over these outboxes, one a reader.
    pub fn new(client: Arc<Outbox>, readers: Vec<Arc<Outbox>>) -> Arc<Calls> {
        Arc::new(Calls {
            // Far from where a predecessor was: late answers to that meet nothing.
            next: AtomicU64::new(u64::try_from(RandomId::draw().0 >> 65).expect("63 bits")),
            consensus: Mutex::default(),
            client,
            readers: readers
                .into_iter()
                .map(|outbox| Reader {
                    outbox,
                    open: Mutex::default(),
                })
                .collect(),
            view: watch::Sender::new(None),
        })
    }

    /// The cluster as consensusd told of it last; `None` until it has told.
    pub fn current(&self) -> Option<Arc<ClusterView>> {
        self.view.borrow().clone()
    }

    /// The same, for who waits for news.
    pub fn watch_view(&self) -> watch::Receiver<Option<Arc<ClusterView>>> {
        self.view.subscribe()
    }

    /// Asks consensusd. What is not taken was not asked.
    async fn consensus(
        &self,
        make: impl FnOnce(u64) -> ToConsensus,
    ) -> Result<(ConsensusReply, Sent), ConsensusError> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let answer = opened(&self.consensus, &self.client, call, make(call))?;
        let _forget = Forget(|| {
            self.consensus.lock().remove(&call);
        });
        // The other end lives in the table until it is answered or this future is dropped.
        answer.await.map_err(|_| ConsensusError::Uncertain)
    }

    /// Proposes a command on this node. Waits across restarts of consensusd, which is asked again; cancelling it forgets the
    /// answer, not the proposal.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn propose(&self, group: GroupId, command: Bytes) -> Result<Bytes, ConsensusError> {
        let asked = self.consensus(|call| ToConsensus::Propose {
            call,
            group,
            command,
        });
        match asked.await? {
            (ConsensusReply::Proposed(result), Sent::Once) => result,
            // A predecessor of the consensusd that answers may have proposed it: that it was not proposed now, or that its
            // session is over now, says nothing of then.
            (ConsensusReply::Proposed(result), Sent::Again) => match result {
                Ok(outcome) => match decode(&outcome) {
                    Ok(Outcome::SessionUnknown) => Err(ConsensusError::Uncertain),
                    _ => Ok(outcome),
                },
                Err(_) => Err(ConsensusError::Uncertain),
            },
            _ => Err(ConsensusError::Uncertain),
        }
    }

    /// A read index of a group that this node leads.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn read_index(&self, group: GroupId) -> Result<u64, ConsensusError> {
        let asked = self.consensus(|call| ToConsensus::ReadIndex { call, group });
        match asked.await? {
            (ConsensusReply::Index(result), _) => result,
            _ => Err(ConsensusError::NotReady),
        }
    }

    /// An administrative request.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn admin(&self, request: AdminRequest) -> Result<String, ConsensusError> {
        let asked = self.consensus(|call| ToConsensus::Admin { call, request });
        match asked.await? {
            (ConsensusReply::Admin(result), _) => result,
            _ => Err(ConsensusError::NotReady),
        }
    }

    /// Reads on this node. After `until` the reader does not carry it out any more; who asks waits no longer by itself.
    ///
    /// # Errors
    /// `Overloaded`: too many calls wait for the reader. What the reader answers is inside.
    pub async fn read(
        &self,
        read: ReadRequest,
        until: Instant,
    ) -> Result<ReadResult, ConsensusError> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let readers = self.readers.len() as u64;
        let at = usize::try_from(call % readers).expect("few readers");
        let reader = &self.readers[at];
        let wait = until.saturating_duration_since(Instant::now());
        let message = SentReadCall::now(ReadCall {
            call,
            wait_ms: u32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u32::MAX),
            read,
        });
        let answer = opened(&reader.open, &reader.outbox, call, message)?;
        let _forget = Forget(|| {
            reader.open.lock().remove(&call);
        });
        match answer.await {
            Ok((result, _)) => Ok(result),
            Err(_) => Ok(Err(ReadError::NotApplied)),
        }
    }

    fn told(&self, message: FromConsensus, peers: &Arc<Peers>) {
        match message {
            FromConsensus::Hello { epoch } => {
                tracing::info!(epoch, "consensusd is up");
                // It has forgotten what it was asked; the state machine makes a repeated command take effect once.
                peers.tell_again();
                for open in self.consensus.lock().values_mut() {
                    open.again(&self.client);
                }
            }
            FromConsensus::Proposed { call, result } => {
                self.answer(call, ConsensusReply::Proposed(result));
            }
            FromConsensus::ReadIndex { call, result } => {
                self.answer(call, ConsensusReply::Index(result));
            }
            FromConsensus::Admin { call, result } => {
                self.answer(call, ConsensusReply::Admin(result));
            }
            FromConsensus::View(view) => {
                self.view.send_replace(Some(Arc::new(*view)));
            }
            FromConsensus::Targets { me, targets } => peers.set_targets(&me, &targets),
        }
    }

    fn answer(&self, call: u64, reply: ConsensusReply) {
        let open = self.consensus.lock().remove(&call);
        if let Some(open) = open {
            let _ = open.reply.send((reply, open.sent));
        }
    }

    fn read_reply(&self, at: usize, reply: ReadReply) {
        let reader = &self.readers[at];
        match reply {
            ReadReply::Up { epoch } => {
                tracing::info!(epoch, reader = at, "a reader is up");
                for open in reader.open.lock().values_mut() {
                    open.again(&reader.outbox);
                }
            }
            ReadReply::Reply { call, result } => {
                let open = reader.open.lock().remove(&call);
                if let Some(open) = open {
                    let _ = open.reply.send((result, open.sent));
                }
            }
        }
    }
}

/// Calls something when it is dropped.
pub(crate) struct Forget<F: FnMut()>(pub(crate) F);
impl<F: FnMut()> Drop for Forget<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The rings.
pub struct Lanes {
    /// To consensusd.
    pub to_client: Sender,
    /// From consensusd.
    pub from_client: Receiver,
    /// To consensusd, peers.
    pub to_peer: Sender,
    /// From consensusd, peers.
    pub from_peer: Receiver,
    /// To consensusd, snapshots.
    pub to_bulk: Sender,
    /// From consensusd, snapshots.
    pub from_bulk: Receiver,
    /// To and from each reader.
    pub readers: Vec<(Sender, Receiver)>,
}

/// Moves messages between the rings and everything else.
pub struct Pump {
    /// The rings.
    pub lanes: Lanes,
    /// Calls.
    pub calls: Arc<Calls>,
    /// Peers.
    pub peers: Arc<Peers>,
    /// Messages to consensusd.
    pub client: Arc<Outbox>,
    /// Frames to consensusd.
    pub peer: Arc<Outbox>,
    /// Snapshot frames to consensusd.
    pub bulk: Arc<Outbox>,
    /// Messages to the readers.
    pub readers: Vec<Arc<Outbox>>,
}

impl Pump {
    /// Announces this incarnation.
    pub fn hello(&self) {
        let hello = ToConsensus::Hello {
            epoch: self.lanes.to_client.epoch(),
        };
        // A hello always fits.
        let _ = self.client.push(&hello);
    }

    /// One turn. `true`: nothing to do until somebody rings or wakes.
    ///
    /// # Errors
    /// A ring is corrupt.
    pub fn turn(&mut self) -> Result<bool, RingError> {
        let mut quiet = true;
        quiet &= drain(&mut self.lanes.from_peer, |message: PeerOut| {
            self.peers.send(message, Way::Peer);
        })?;
        quiet &= drain(&mut self.lanes.from_client, |message| {
            self.calls.told(message, &self.peers);
        })?;
        quiet &= drain(&mut self.lanes.from_bulk, |message: PeerOut| {
            self.peers.send(message, Way::Bulk);
        })?;
        for (at, (_, receiver)) in self.lanes.readers.iter_mut().enumerate() {
            quiet &= drain(receiver, |reply| self.calls.read_reply(at, reply))?;
        }
        // Peer traffic goes first.
        quiet &= self.peer.flush(&mut self.lanes.to_peer)?;
        quiet &= self.client.flush(&mut self.lanes.to_client)?;
        quiet &= self.bulk.flush(&mut self.lanes.to_bulk)?;
        for ((sender, _), outbox) in self.lanes.readers.iter_mut().zip(&self.readers) {
            quiet &= outbox.flush(sender)?;
        }
        quiet &= self.lanes.from_client.arm()?;
        quiet &= self.lanes.from_peer.arm()?;
        quiet &= self.lanes.from_bulk.arm()?;
        for (_, receiver) in &mut self.lanes.readers {
            quiet &= receiver.arm()?;
        }
        Ok(quiet)
    }
}

/// Takes what is there. `true`: all of it.
fn drain<T: serde::de::DeserializeOwned>(
    receiver: &mut Receiver,
    mut take: impl FnMut(T),
) -> Result<bool, RingError> {
    for _ in 0..BATCH {
        let Some((message, end)) = receiver.try_recv::<T>()? else {
            return Ok(true);
        };
        receiver.release(end);
        take(message);
    }
    Ok(false)
}

/// Sends what came from a peer to consensusd.
pub fn deliver(outbox: &Outbox, message: &PeerIn) {
    let pushed = match message {
        // A frame that finds no room is lost like one on a broken stream: its owner asks again.
        PeerIn::Frame { .. } => outbox.try_push(message),
        // What becomes of streams is told once, and is small.
        _ => outbox.push(message),
    };
    match pushed {
        Ok(()) => {}
        // It is sent again and again, and never gets in: the sender's rings are larger than this node's.
        Err(refusal @ Refusal::TooLarge(_)) => tracing::error!(
            %refusal,
            "a frame of a peer is dropped: make ipc.peer_ring_bytes here as large as on the other nodes"
        ),
        Err(refusal @ Refusal::Full) => {
            tracing::debug!(%refusal, "a frame of a peer is dropped");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
