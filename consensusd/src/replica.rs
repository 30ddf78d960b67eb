//! This node's replica of a group: questions of peers, proposals and read indexes of the gateway.

use crate::clock::Clock;
use crate::exchange::Exchange;
use crate::frames::{Answer, Ask, Frame, Route};
use crate::log_link::LogLink;
use crate::outbox::Outbox;
use crate::raft::log_store::LogStore;
use crate::raft::state_machine::{SnapshotHandle, from_wire_meta};
use crate::raft::{C, Payload, Raft};
use bytes::Bytes;
use futures::StreamExt;
use mareedb_ipc::wire::command::stamp;
use mareedb_ipc::wire::gateway::{ConsensusError, FromConsensus};
use mareedb_ipc::wire::storage::{SnapshotChunk, SnapshotMeta, StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, NodeId, RandomId, ReplicaId};
use openraft::ReadPolicy;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A running replica. Cloning it gives another handle.
#[derive(Clone)]
pub struct Replica(Arc<Shared>);

struct Shared {
    route: Route,
    raft: Raft,
    log: LogStore,
    link: Arc<LogLink>,
    exchange: Arc<Exchange>,
    client: Arc<Outbox>,
    clock: Arc<dyn Clock>,
    /// Last index of the log when leadership was restored: what lies before it was acknowledged by somebody's word, maybe,
    /// and must be applied before anything is read (LIN-1).
    floor: u64,
    streams: Mutex<HashMap<ReplicaId, Incoming>>,
    reads: Mutex<Reads>,
}

struct Incoming {
    stream: u64,
    next: u64,
    requests: mpsc::UnboundedSender<AppendEntriesRequest<C>>,
}

#[derive(Default)]
struct Reads {
    waiting: Vec<u64>,
    running: bool,
}

/// What a replica is made of.
pub struct Parts {
    /// Cluster, group, and this replica as `to`; `from` is not looked at.
    pub route: Route,
    /// The running group.
    pub raft: Raft,
    /// Its log.
    pub log: LogStore,
    /// The log lane.
    pub link: Arc<LogLink>,
    /// Questions to peers.
    pub exchange: Arc<Exchange>,
    /// Answers to the gateway.
    pub client: Arc<Outbox>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

impl Replica {
    /// Takes a started group.
    pub fn new(parts: Parts) -> Replica {
        let floor = parts.log.last().map_or(0, |last| last.index);
        Replica(Arc::new(Shared {
            route: parts.route,
            raft: parts.raft,
            log: parts.log,
            link: parts.link,
            exchange: parts.exchange,
            client: parts.client,
            clock: parts.clock,
            floor,
            streams: Mutex::default(),
            reads: Mutex::default(),
        }))
    }

    /// openraft's handle.
    pub fn raft(&self) -> &Raft {
        &self.0.raft
    }
    /// The group.
    pub fn group(&self) -> GroupId {
        self.0.route.group
    }
    /// This replica's id.
    pub fn id(&self) -> ReplicaId {
        self.0.route.to
    }
    /// The log.
    pub fn log(&self) -> &LogStore {
        &self.0.log
    }

    /// A question of a peer. Answers go to `addr`, on the stream that this node has dialled.
    pub fn asked(&self, addr: &str, route: Route, call: u64, ask: Ask) {
        let me = &self.0;
        let why = if route.cluster != me.route.cluster {
            // FORM-2
            Some(format!("this is cluster {}", me.route.cluster))
        } else if route.to != me.route.to {
            // RAFT-5
            Some(format!("replica {} is not here", route.to))
        } else {
            None
        };
        if let Some(why) = why {
            self.answer(addr, route, call, Answer::Refused(why));
            return;
        }
        let addr = addr.to_owned();
        match ask {
            Ask::Stream {
                stream,
                sequence,
                request,
            } => self.streamed(&addr, route, stream, sequence, request),
            other => {
                let replica = self.clone();
                tokio::spawn(async move {
                    let answer = replica.put(other).await.unwrap_or_else(Answer::Refused);
                    replica.answer(&addr, route, call, answer);
                });
            }
        }
    }

    fn answer(&self, addr: &str, route: Route, call: u64, answer: Answer) {
        let route = Route {
            from: route.to,
            to: route.from,
            ..route
        };
        self.0.exchange.tell(
            addr,
            &Frame::Answer {
                route,
                call,
                answer,
            },
        );
    }

    async fn put(&self, ask: Ask) -> Result<Answer, String> {
        let raft = &self.0.raft;
        let told = |error: &dyn std::fmt::Display| error.to_string();
        match ask {
            Ask::Append(request) => raft
                .append_entries(request)
                .await
                .map(Answer::Append)
                .map_err(|error| told(&error)),
            Ask::Vote(request) => raft
                .vote(request)
                .await
                .map(Answer::Vote)
                .map_err(|error| told(&error)),
            Ask::PreVote(request) => raft
                .pre_vote(request)
                .await
                .map(Answer::Vote)
                .map_err(|error| told(&error)),
            Ask::Transfer { from, to, last } => raft
                .handle_transfer_leader(TransferLeaderRequest::new(from, to, last))
                .await
                .map(Answer::Transfer)
                .map_err(|error| told(&error)),
            Ask::Snapshot {
                install,
                number,
                chunk,
                finish,
            } => self.take_snapshot(install, number, chunk, finish).await,
            Ask::Stream { .. } => Err("a stream is no single question".into()),
        }
    }

    async fn take_snapshot(
        &self,
        install: RandomId,
        number: u64,
        chunk: SnapshotChunk,
        finish: Option<(VoteOf<C>, SnapshotMeta)>,
    ) -> Result<Answer, String> {
        let group = self.0.route.group;
        if number == 0 {
            self.storage(StorageRequest::BeginInstall { group, install })
                .await?;
        }
        self.storage(StorageRequest::InstallChunk {
            install,
            number,
            chunk,
        })
        .await?;
        let Some((vote, meta)) = finish else {
            return Ok(Answer::Taken);
        };
        let snapshot = SnapshotOf::<C, SnapshotHandle> {
            meta: from_wire_meta(&meta).map_err(|error| error.to_string())?,
            snapshot: SnapshotHandle::Received(install),
        };
        let response = self
            .0
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Answer::Installed(response.vote))
    }

    async fn storage(&self, request: StorageRequest) -> Result<(), String> {
        match self.0.link.request(request).await {
            StorageAnswer::Done => Ok(()),
            StorageAnswer::Failed { message } => Err(message),
            other => Err(format!("storaged answered something else: {other:?}")),
        }
    }

    fn streamed(
        &self,
        addr: &str,
        route: Route,
        stream: u64,
        sequence: u64,
        request: AppendEntriesRequest<C>,
    ) {
        let mut streams = self.0.streams.lock();
        if sequence == 0 {
            let (requests, incoming) = mpsc::unbounded_channel();
            streams.insert(
                route.from,
                Incoming {
                    stream,
                    next: 0,
                    requests,
                },
            );
            let replica = self.clone();
            let addr = addr.to_owned();
            tokio::spawn(async move { replica.serve_stream(&addr, route, stream, incoming).await });
        }
        let in_order = streams
            .get_mut(&route.from)
            .filter(|open| open.stream == stream && open.next == sequence);
        let taken = in_order.is_some_and(|open| {
            open.next += 1;
            open.requests.send(request).is_ok()
        });
        drop(streams);
        if !taken {
            // A gap, a repetition, or a stream of a predecessor of this process.
            self.answer(
                addr,
                route,
                stream,
                Answer::Refused("the stream is broken".into()),
            );
        }
    }

    async fn serve_stream(
        &self,
        addr: &str,
        route: Route,
        stream: u64,
        incoming: mpsc::UnboundedReceiver<AppendEntriesRequest<C>>,
    ) {
        let link = self.0.link.clone();
        let input = futures::stream::unfold(incoming, move |mut incoming| {
            let link = link.clone();
            async move {
                let request = incoming.recv().await?;
                link.uncongested().await;
                Some((request, incoming))
            }
        });
        let mut output = Box::pin(self.0.raft.stream_append(Box::pin(input)));
        while let Some(result) = output.next().await {
            let answer = match result {
                Ok(result) => Answer::Stream(result),
                Err(fatal) => Answer::Refused(fatal.to_string()),
            };
            self.answer(addr, route, stream, answer);
        }
    }

    /// Proposes commands, in order, as one batch. Each call is answered on the client lane.
    pub fn propose(&self, proposals: Vec<(u64, Bytes)>) {
        let replica = self.clone();
        tokio::spawn(async move { replica.proposed(proposals).await });
    }

    async fn proposed(&self, proposals: Vec<(u64, Bytes)>) {
        let me = &self.0;
        let (calls, commands): (Vec<u64>, Vec<Bytes>) = proposals.into_iter().unzip();
        if me.link.congested() {
            for call in calls {
                self.reply(call, Err(ConsensusError::Overloaded));
            }
            return;
        }
        if !me.raft.is_leader() {
            let leader = self.leader();
            for call in calls {
                self.reply(call, Err(ConsensusError::NotLeader { leader }));
            }
            return;
        }
        let payloads: Vec<Payload> = commands
            .into_iter()
            .map(|command| Payload(stamp(me.clock.revision(), &command)))
            .collect();
        let mut calls = calls.into_iter();
        match me.raft.client_write_many(payloads).await {
            Err(fatal) => tracing::error!(%fatal, "proposal"),
            Ok(mut results) => {
                while let Some(result) = results.next().await {
                    let Some(call) = calls.next() else { break };
                    let reply = match result {
                        Ok(Ok(response)) => Ok(response.response.0),
                        Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                            // It was this node's to propose a moment ago, so that the entry may be in the log.
                            tracing::debug!(?forward, "leadership lost");
                            Err(ConsensusError::Uncertain)
                        }
                        Ok(Err(other)) => Err(ConsensusError::Refused(other.to_string())),
                        Err(_) => Err(ConsensusError::Uncertain),
                    };
                    self.reply(call, reply);
                }
            }
        }
        for call in calls {
            self.reply(call, Err(ConsensusError::Uncertain));
        }
    }

    fn reply(&self, call: u64, result: Result<Bytes, ConsensusError>) {
        self.0
            .client
            .push(&FromConsensus::Proposed { call, result });
    }

    /// The node that leads, as far as this replica knows.
    pub fn leader(&self) -> Option<NodeId> {
        use openraft::async_runtime::WatchReceiver;
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        metrics
            .membership_config
            .get_node(&leader)
            .map(|place| place.node)
    }

    /// Asks for a read index: one round serves all calls that wait for it (LIN-1, RAFT-4: never a lease).
    pub fn read_index(&self, call: u64) {
        let mut reads = self.0.reads.lock();
        reads.waiting.push(call);
        if !reads.running {
            reads.running = true;
            let replica = self.clone();
            tokio::spawn(async move { replica.serve_reads().await });
        }
    }

    async fn serve_reads(&self) {
        loop {
            let calls = {
                let mut reads = self.0.reads.lock();
                if reads.waiting.is_empty() {
                    reads.running = false;
                    return;
                }
                std::mem::take(&mut reads.waiting)
            };
            let result = self.index().await;
            for call in calls {
                self.0.client.push(&FromConsensus::ReadIndex {
                    call,
                    result: result.clone(),
                });
            }
        }
    }

    async fn index(&self) -> Result<u64, ConsensusError> {
        if !self.0.raft.is_leader() {
            return Err(ConsensusError::NotLeader {
                leader: self.leader(),
            });
        }
        match self.0.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            // openraft reuses the blank entry of a restored leader, so that its read index may lie before entries that
            // were acknowledged before the restart; all that the log held then must be applied first.
            Ok(linearizer) => Ok(linearizer.read_log_id().index().max(self.0.floor)),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ConsensusError::NotLeader {
                    leader: node_of(&forward),
                })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ConsensusError::NoQuorum)
            }
            Err(other) => {
                tracing::warn!(%other, "read index");
                Err(ConsensusError::NotReady)
            }
        }
    }
}

fn node_of(forward: &ForwardToLeader<C>) -> Option<NodeId> {
    forward.leader_node.as_ref().map(|place| place.node)
}
