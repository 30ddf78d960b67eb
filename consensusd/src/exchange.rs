//! Questions to other nodes and their answers: numbers calls, matches answers, and fails calls whose stream is lost.
//!
//! A call's number starts at a random place in each process, so that an answer to a predecessor's call matches nothing; and
//! an answer counts only if it comes from the replica that was asked.
//!
//! Ordering: frames to one peer go out in the order in which they are asked, and its answers come in the order in which
//! it gave them.

use crate::frames::{Answer, Ask, Frame, OPEN_MAX, Route};
use crate::peers::PEERS_MAX;
use crate::succession::Evidence;
use crate::takes::Takes;
use mareedb_ipc::wire::peer::{PeerOut, Way};
use mareedb_ipc::wire::{RandomId, encode};
use mareedb_ipc::{Outbox, Refusal};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The peer is not connected.
    #[error("{0} is not connected")]
    Disconnected(String),
    /// It was connected and is no more, or its consensusd was born anew.
    #[error("the connection with {0} was lost")]
    Broken(String),
    /// Too much waits for the peer already.
    #[error("too much waits to be sent")]
    Full,
    /// The frame can never be carried.
    #[error("a frame of {0} bytes is too large for its ring")]
    TooLarge(usize),
    /// The peer refused.
    #[error("refused: {0}")]
    Refused(String),
}

/// All open calls of this process.
pub struct Exchange {
    peer: Arc<Outbox>,
    bulk: Arc<Outbox>,
    inner: Mutex<Inner>,
    evidence: Evidence,
    takes: Takes,
}

struct Inner {
    next: u64,
    calls: BTreeMap<u64, Call>,
    /// Addresses whose stream is known to be down. One that nothing is known of yet is tried: gatewayd tells when it
    /// could not be sent.
    down: BTreeSet<String>,
    /// The incarnation of consensusd behind an address, once known.
    incarnations: BTreeMap<String, u64>,
}

struct Call {
    addr: String,
    way: Way,
    route: Route,
    reply: Reply,
}

enum Reply {
    Once(oneshot::Sender<Result<Answer, Lost>>),
    Stream(mpsc::Sender<Result<Answer, Lost>>),
}

impl Exchange {
    /// An exchange over these outboxes, of members that take commands of some size.
    pub fn new(peer: Arc<Outbox>, bulk: Arc<Outbox>, takes: Takes) -> Arc<Exchange> {
        Arc::new(Exchange {
            peer,
            bulk,
            evidence: Evidence::default(),
            takes,
            inner: Mutex::new(Inner {
                // Far from where a predecessor was, and from where numbers end.
                next: u64::try_from(RandomId::draw().0 >> 65).expect("63 bits"),
                calls: BTreeMap::new(),
                down: BTreeSet::new(),
                incarnations: BTreeMap::new(),
            }),
        })
    }

    /// Sends a frame that nobody answers; dropped when there is no connection or no room.
    pub fn tell(&self, addr: &str, frame: &Frame) {
        let _ = self.push(Way::Peer, addr, frame);
    }

    fn push(&self, way: Way, addr: &str, frame: &Frame) -> Result<(), Lost> {
        let outbox = match way {
            Way::Peer => &self.peer,
            Way::Bulk => &self.bulk,
        };
        let message = PeerOut::Frame {
            addr: addr.to_owned(),
            frame: encode(frame).into(),
        };
        outbox.try_push(&message).map_err(|refusal| match refusal {
            Refusal::Full => Lost::Full,
            Refusal::TooLarge(bytes) => Lost::TooLarge(bytes),
        })
    }

    /// Asks once.
    ///
    /// Cancellation: the answer is dropped when it comes.
    ///
    /// # Errors
    /// There is no answer, and will be none.
    pub async fn ask(&self, way: Way, addr: &str, route: Route, ask: Ask) -> Result<Answer, Lost> {
        let (reply, answer) = oneshot::channel();
        let call = self.open(way, addr, route, Reply::Once(reply))?;
        let guard = Forget {
            exchange: self,
            call,
        };
        self.push(way, addr, &Frame::Ask { route, call, ask })?;
        let answer = answer
            .await
            .unwrap_or_else(|_| Err(Lost::Broken(addr.to_owned())));
        drop(guard);
        match answer? {
            Answer::Refused(why) => Err(Lost::Refused(why)),
            answer => Ok(answer),
        }
    }

    /// What was seen of nodes that are gone.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Bytes of the largest message on the peer lane, with what is around a frame.
    pub fn message_max(&self) -> usize {
        self.peer.message_max()
    }

    /// How large a command may be.
    pub fn takes(&self) -> &Takes {
        &self.takes
    }

    /// Opens a call with many answers; its number is the stream's name. More of them than may be open end it.
    ///
    /// # Errors
    /// The peer is not connected.
    pub fn open_stream(
        self: &Arc<Self>,
        addr: &str,
        route: Route,
    ) -> Result<(StreamCall, mpsc::Receiver<Result<Answer, Lost>>), Lost> {
        let (reply, answers) = mpsc::channel(OPEN_MAX);
        let call = self.open(Way::Peer, addr, route, Reply::Stream(reply))?;
        let stream = StreamCall {
            exchange: self.clone(),
            addr: addr.to_owned(),
            route,
            call,
        };
        Ok((stream, answers))
    }

    fn open(&self, way: Way, addr: &str, route: Route, reply: Reply) -> Result<u64, Lost> {
        let mut inner = self.inner.lock();
        if inner.down.contains(addr) {
            return Err(Lost::Disconnected(addr.to_owned()));
        }
        inner.next += 1;
        let call = inner.next;
        inner.calls.insert(
            call,
            Call {
                addr: addr.to_owned(),
                way,
                route,
                reply,
            },
        );
        Ok(call)
    }

    /// Takes an answer.
    pub fn answered(&self, route: Route, call: u64, answer: Answer) {
        let mut inner = self.inner.lock();
        let expected = |call: &Call| {
            let asked = call.route;
            // FORM-2, RAFT-5: the replica that was asked, and none else.
            (asked.cluster, asked.group, asked.to, asked.from)
                == (route.cluster, route.group, route.from, route.to)
        };
        if inner.calls.get(&call).is_some_and(|call| !expected(call)) {
            tracing::warn!(?route, "an answer of somebody who was not asked is dropped");
            return;
        }
        match inner.calls.get(&call).map(|call| &call.reply) {
            Some(Reply::Stream(reply)) => {
                let ended = matches!(answer, Answer::Refused(_));
                let told = match answer {
                    Answer::Refused(why) => Err(Lost::Refused(why)),
                    answer => Ok(answer),
                };
                // There is room for all that was asked: a peer that gives more answers is none to go on with.
                if reply.try_send(told).is_err() || ended {
                    inner.calls.remove(&call);
                }
            }
            Some(Reply::Once(_)) => {
                if let Some(Call {
                    reply: Reply::Once(reply),
                    ..
                }) = inner.calls.remove(&call)
                {
                    let _ = reply.send(Ok(answer));
                }
            }
            // An answer to a call that was given up, or of a predecessor of this process.
            None => {}
        }
    }

    /// A stream to `addr` is up.
    pub fn up(&self, addr: &str) {
        self.inner.lock().down.remove(addr);
    }

    /// The stream to `addr` is down.
    pub fn down(&self, addr: &str) {
        let mut inner = self.inner.lock();
        // Before there is a cluster anybody may have addresses dialled.
        if inner.down.len() < PEERS_MAX {
            inner.down.insert(addr.to_owned());
        }
        inner.incarnations.remove(addr);
        drop(inner);
        self.fail(|call| call.addr == addr);
    }

    /// The cluster is formed: nothing else than its members' addresses is remembered.
    pub fn keep(&self, members: &BTreeSet<String>) {
        self.inner.lock().down.retain(|addr| members.contains(addr));
        self.evidence.keep(members);
        self.takes.keep(members);
    }

    /// What was asked of `addr` on this way is lost: a frame was dropped, or the bulk stream broke.
    pub fn lost(&self, addr: &str, way: Way) {
        self.fail(|call| call.addr == addr && call.way == way);
    }

    /// gatewayd was born anew: what its predecessor carried, and what came for it, may be lost.
    pub fn reborn(&self) {
        self.fail(|_| true);
    }

    /// The incarnation of the consensusd of the member at `addr` is known; a new one has forgotten what it was asked.
    pub fn incarnation(&self, addr: &str, incarnation: u64) {
        let before = self
            .inner
            .lock()
            .incarnations
            .insert(addr.to_owned(), incarnation);
        if before.is_some_and(|before| before != incarnation) {
            self.fail(|call| call.addr == addr);
        }
    }

    fn fail(&self, which: impl Fn(&Call) -> bool) {
        let lost: Vec<Call> = {
            let mut inner = self.inner.lock();
            let numbers: Vec<u64> = inner
                .calls
                .iter()
                .filter(|(_, call)| which(call))
                .map(|(number, _)| *number)
                .collect();
            numbers
                .into_iter()
                .filter_map(|number| inner.calls.remove(&number))
                .collect()
        };
        for call in lost {
            let why = Err(Lost::Broken(call.addr));
            match call.reply {
                Reply::Once(reply) => drop(reply.send(why)),
                // Where there is no room the stream's end says it.
                Reply::Stream(reply) => drop(reply.try_send(why)),
            }
        }
    }
}

/// An open call with many answers.
pub struct StreamCall {
    exchange: Arc<Exchange>,
    addr: String,
    route: Route,
    call: u64,
}
impl StreamCall {
    /// The stream's name.
    pub fn name(&self) -> u64 {
        self.call
    }
    /// Sends a further question of the stream.
    ///
    /// # Errors
    /// The connection was lost, or too much waits.
    pub fn send(&self, ask: Ask) -> Result<(), Lost> {
        if !self.exchange.inner.lock().calls.contains_key(&self.call) {
            return Err(Lost::Broken(self.addr.clone()));
        }
        let (route, call) = (self.route, self.call);
        self.exchange
            .push(Way::Peer, &self.addr, &Frame::Ask { route, call, ask })
    }
}
impl Drop for StreamCall {
    fn drop(&mut self) {
        self.exchange.inner.lock().calls.remove(&self.call);
    }
}

struct Forget<'a> {
    exchange: &'a Exchange,
    call: u64,
}
impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.exchange.inner.lock().calls.remove(&self.call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use mareedb_ipc::testing::NodeInProcess;

    #[test]
    fn a_peer_that_answers_more_than_it_was_asked_ends_its_stream() {
        let node = NodeInProcess::small("{}");
        let (exchange, route) = testing::exchange(&node);
        let (call, mut answers) = exchange.open_stream("a", route).unwrap();
        let answered = || exchange.answered(route.back(), call.name(), Answer::Taken);
        (0..OPEN_MAX).for_each(|_| answered());
        assert!(answers.try_recv().is_ok());
        answered();
        assert_eq!(answers.len(), OPEN_MAX, "what was taken makes room");
        answered();
        (0..OPEN_MAX).for_each(|_| assert!(answers.try_recv().is_ok()));
        let end = answers.try_recv().err();
        assert_eq!(end, Some(mpsc::error::TryRecvError::Disconnected));
    }
}
