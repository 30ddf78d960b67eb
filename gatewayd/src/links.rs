//! gatewayd's ends of the rings: the pump that moves messages, and the calls that wait for answers across restarts of
//! their servers.

use crate::peer::Peers;
use bytes::Bytes;
use mareedb_ipc::wire::command::Outcome;
use mareedb_ipc::wire::gateway::{AdminRequest, ConsensusError, FromConsensus, ToConsensus};
use mareedb_ipc::wire::peer::{PeerIn, PeerOut};
use mareedb_ipc::wire::read::{ReadCall, ReadError, ReadReply, ReadRequest, ReadResponse};
use mareedb_ipc::wire::view::ClusterView;
use mareedb_ipc::wire::{GroupId, RandomId, decode, encode};
use mareedb_ipc::{Outbox, Receiver, RingError, Sender};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Messages taken from one ring before others have their turn.
const BATCH: usize = 256;

/// Calls to consensusd and to the readers.
pub struct Calls {
    next: AtomicU64,
    consensus: Mutex<BTreeMap<u64, Open<ConsensusReply>>>,
    client: Arc<Outbox>,
    readers: Vec<Reader>,
    view: watch::Sender<Option<Arc<ClusterView>>>,
}

struct Reader {
    outbox: Arc<Outbox>,
    open: Mutex<BTreeMap<u64, Open<Result<ReadResponse, ReadError>>>>,
}

struct Open<T> {
    message: Vec<u8>,
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

impl<T> Open<T> {
    /// Sends it to the successor of who had it.
    fn again(&mut self, outbox: &Outbox) {
        self.sent = Sent::Again;
        // It was taken before, so that it fits.
        let _ = outbox.push_encoded(self.message.clone());
    }
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

    /// The cluster as this node's consensusd sees it; `None` until it has told.
    pub fn view(&self) -> watch::Receiver<Option<Arc<ClusterView>>> {
        self.view.subscribe()
    }

    async fn consensus(&self, make: impl FnOnce(u64) -> ToConsensus) -> (ConsensusReply, Sent) {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let message = encode(&make(call));
        let (reply, answer) = oneshot::channel();
        self.consensus.lock().insert(
            call,
            Open {
                message: message.clone(),
                reply,
                sent: Sent::Once,
            },
        );
        let _forget = Forget(|| {
            self.consensus.lock().remove(&call);
        });
        if let Err(refusal) = self.client.push_encoded(message) {
            let refused = Err(ConsensusError::Refused(refusal.to_string()));
            return (ConsensusReply::Proposed(refused), Sent::Once);
        }
        // The other end lives in the table until it is answered or this future is dropped.
        answer.await.unwrap_or((
            ConsensusReply::Proposed(Err(ConsensusError::NotReady)),
            Sent::Again,
        ))
    }

    /// Proposes a command on this node. Waits across restarts of consensusd, which is asked again; cancelling it forgets the
    /// answer, not the proposal.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn propose(&self, group: GroupId, command: Bytes) -> Result<Bytes, ConsensusError> {
        match self
            .consensus(|call| ToConsensus::Propose {
                call,
                group,
                command,
            })
            .await
        {
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
            _ => Err(ConsensusError::NotReady),
        }
    }

    /// A read index of a group that this node leads.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn read_index(&self, group: GroupId) -> Result<u64, ConsensusError> {
        match self
            .consensus(|call| ToConsensus::ReadIndex { call, group })
            .await
        {
            (ConsensusReply::Index(result), _) => result,
            (ConsensusReply::Proposed(Err(error)), _) => Err(error),
            _ => Err(ConsensusError::NotReady),
        }
    }

    /// An administrative request.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn admin(&self, request: AdminRequest) -> Result<String, ConsensusError> {
        match self
            .consensus(|call| ToConsensus::Admin { call, request })
            .await
        {
            (ConsensusReply::Admin(result), _) => result,
            _ => Err(ConsensusError::NotReady),
        }
    }

    /// Reads on this node; waits at most `wait` for the asked index.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, read: ReadRequest, wait: Duration) -> Result<ReadResponse, ReadError> {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        let readers = self.readers.len() as u64;
        let at = usize::try_from(call % readers).expect("few readers");
        let reader = &self.readers[at];
        let message = encode(&ReadCall {
            call,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            read,
        });
        let (reply, answer) = oneshot::channel();
        reader.open.lock().insert(
            call,
            Open {
                message: message.clone(),
                reply,
                sent: Sent::Once,
            },
        );
        let _forget = Forget(|| {
            reader.open.lock().remove(&call);
        });
        if let Err(refusal) = reader.outbox.push_encoded(message) {
            return Err(ReadError::Storage(refusal.to_string()));
        }
        match answer.await {
            Ok((result, _)) => result,
            Err(_) => Err(ReadError::NotApplied),
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
            self.peers.send(message, false);
        })?;
        quiet &= drain(&mut self.lanes.from_client, |message| {
            self.calls.told(message, &self.peers);
        })?;
        quiet &= drain(&mut self.lanes.from_bulk, |message: PeerOut| {
            self.peers.send(message, true);
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
    if let Err(refusal) = pushed {
        tracing::debug!(%refusal, "a frame of a peer is dropped");
    }
}

#[cfg(test)]
mod tests;
