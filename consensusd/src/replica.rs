//! This node's replica of a group: questions of peers, and the doors to its proposals and read indexes.

use crate::client::{Call, Client};
use crate::clock::Clock;
use crate::exchange::Exchange;
use crate::frames::{Answer, Ask, Frame, Route};
use crate::heard::Heard;
use crate::incoming::Incoming;
use crate::log_link::LogLink;
use crate::proposals::{Proposals, Word};
use crate::raft::log_store::LogStore;
use crate::raft::state_machine::{SnapshotHandle, from_wire_meta};
use crate::raft::{C, Raft, leader_node, position, to_wire_vote};
use crate::reads::{Reads, Restored};
use crate::rise::Rise;
use crate::rt;
use crate::succession::Succession;
use crate::tenure::Tenure;
use crate::view::metrics;
use bytes::Bytes;
use mareedb_ipc::wire::command::{Cause, Rules};
use mareedb_ipc::wire::storage::{SnapshotChunk, SnapshotMeta, StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, LogPosition, NodeId, RandomId, ReplicaId};
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::async_runtime::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::raft::TransferLeaderRequest;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A running replica. Cloning it gives another handle.
#[derive(Clone)]
pub struct Replica(Arc<Shared>);

struct Shared {
    route: Route,
    raft: Raft,
    log: LogStore,
    link: Arc<LogLink>,
    tenure: Tenure,
    exchange: Arc<Exchange>,
    proposals: Proposals,
    reads: Reads,
    streams: Mutex<BTreeMap<ReplicaId, Incoming>>,
    rise: Arc<Rise>,
    succession: Succession,
    stands: Mutex<Stands>,
    heard: Mutex<Heard>,
    /// What storaged had applied before it started.
    applied: Option<LogPosition>,
}

/// Whether a replica stands for election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// When the leader is silent, or its node is gone.
    Yes,
    /// Only when its log is longer than all others'.
    IfNobodyElse,
    /// It does not.
    No,
}

/// What a replica is made of.
pub struct Parts {
    /// Cluster, group, and this replica as `to`; `from` is not looked at.
    pub route: Route,
    /// The running group.
    pub raft: Raft,
    /// Its log.
    pub log: LogStore,
    /// The leadership that it was restored with.
    pub restored: Option<Restored>,
    /// The last entry that storaged had applied.
    pub applied: Option<LogPosition>,
    /// The log lane.
    pub link: Arc<LogLink>,
    /// What this incarnation of the group asks of storaged.
    pub tenure: Tenure,
    /// Questions to peers.
    pub exchange: Arc<Exchange>,
    /// Answers to the gateway.
    pub client: Arc<Client>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// This node.
    pub node: NodeId,
    /// What it declares when it leads.
    pub rules: Rules,
}

impl Replica {
    /// Takes a started group.
    pub fn new(parts: Parts) -> Replica {
        let rise = Arc::new(Rise::default());
        Replica(Arc::new(Shared {
            proposals: Proposals::new(
                parts.raft.clone(),
                parts.link.clone(),
                parts.exchange.clone(),
                parts.client.clone(),
                parts.clock,
                Word {
                    node: parts.node,
                    rules: parts.rules,
                    rise: rise.clone(),
                },
            ),
            reads: Reads::new(parts.raft.clone(), parts.client, parts.restored),
            route: parts.route,
            raft: parts.raft,
            log: parts.log,
            link: parts.link,
            tenure: parts.tenure,
            exchange: parts.exchange,
            streams: Mutex::default(),
            rise,
            succession: Succession::default(),
            stands: Mutex::new(Stands::Yes),
            heard: Mutex::new(Heard::nothing()),
            applied: parts.applied,
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

    /// Whether it stands for election from now on.
    pub fn let_stand(&self, stands: Stands) {
        *self.0.stands.lock() = stands;
        self.0.raft.runtime_config().elect(stands == Stands::Yes);
    }
    /// Whether it stands for election.
    pub fn stands(&self) -> Stands {
        *self.0.stands.lock()
    }
    /// Milliseconds since an append of a leader came: heartbeats are.
    pub fn leader_silence_ms(&self) -> u128 {
        self.0.heard.lock().silence().as_millis()
    }

    /// The last entry that storaged has applied, as far as is known: what it forgets of that is to be applied again.
    pub fn applied(&self) -> Option<LogPosition> {
        let known = metrics(self).last_applied.as_ref().map(position);
        known.max(self.0.applied)
    }

    /// Questions to peers.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.0.exchange
    }
    /// Cluster, group, and this replica as `to`.
    pub fn route(&self) -> Route {
        self.0.route
    }

    /// The leader and its term, as far as openraft knows or appends tell; for showing it and for sending it requests.
    pub fn leading(&self, metrics: &RaftMetrics<C>) -> (Option<u64>, u64) {
        let patience = Duration::from_millis(self.0.raft.config().election_timeout_max);
        let (leader, term) = (metrics.current_leader, metrics.current_term);
        self.0.heard.lock().newer(leader, term, patience)
    }

    /// The node that leads, as far as this replica knows.
    pub fn leader(&self) -> Option<NodeId> {
        leader_node(&self.0.raft)
    }

    /// Proposes commands that came in one wake-up. Each call is answered on the client lane.
    pub fn propose(&self, proposals: Vec<(Call, Bytes)>) {
        self.0.proposals.add(proposals);
    }

    /// Says this node's first word as leader, if it leads and has not yet; called again and again.
    pub fn lead(&self) {
        if !self.0.proposals.owes_a_word() {
            return;
        }
        let replica = self.clone();
        rt::spawn(async move {
            // Whether it was said shows in the next look.
            let _ = replica.0.proposals.lead().await;
        });
    }

    /// Why this node comes to lead.
    pub fn rise(&self) -> &Rise {
        &self.0.rise
    }

    /// The search for a successor of a leader whose node is gone.
    pub(crate) fn succession(&self) -> &Succession {
        &self.0.succession
    }

    /// Asks for a read index, which is answered on the client lane.
    pub fn read_index(&self, call: Call) {
        self.0.reads.add(call);
    }

    /// The group has ended or is to end: whoever waits is told, and nothing more reaches its log.
    ///
    /// Afterwards nothing of this incarnation of the replica writes to the log lane: openraft's core, which appends, is waited for;
    /// its state machine's task lives on, but all that it and the peers' snapshots ask of storaged ends here (see [`Tenure`]).
    pub async fn end(&self) {
        self.0.streams.lock().clear();
        self.0.proposals.end();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "the group's task");
        }
        self.0.tenure.end();
    }

    /// A question of a peer, which runs on `node`. Answers go to `addr`, on the stream that this node has dialled.
    pub fn asked(&self, addr: &str, node: Option<NodeId>, route: Route, call: u64, ask: Ask) {
        if let Some(why) = self.stranger(node, route) {
            tracing::warn!(addr, ?route, why, "a question is refused");
            self.answer(addr, route, call, Answer::Refused(why));
            return;
        }
        if let Ask::Append(request) | Ask::Stream { request, .. } = &ask {
            let term = to_wire_vote(&request.vote).term;
            self.0.heard.lock().hear(term, route.from);
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
                rt::spawn(async move {
                    let answer = replica.put(other).await.unwrap_or_else(Answer::Refused);
                    replica.answer(&addr, route, call, answer);
                });
            }
        }
    }

    /// Why a question must not reach raft.
    fn stranger(&self, node: Option<NodeId>, route: Route) -> Option<String> {
        let own = self.0.route;
        if route.cluster != own.cluster {
            // FORM-2
            return Some(format!("this is cluster {}", own.cluster));
        }
        if route.to != own.to {
            // RAFT-5
            return Some(format!("replica {} is not here", route.to));
        }
        if route.from == own.to {
            return Some(format!("replica {} is here", route.from));
        }
        let metrics = self.0.raft.metrics();
        let lives = metrics
            .borrow_watched()
            .membership_config
            .get_node(&route.from.0)
            .map(|place| place.node);
        match (lives, node) {
            // A replica that a later membership adds is not known yet.
            (Some(lives), Some(node)) if lives != node => Some(format!(
                "replica {} lives on {lives}, not on {node}",
                route.from
            )),
            _ => None,
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
            Ask::Succession(mut request) => {
                // Without evidence of its own a receiver keeps to the lease.
                let leader = metrics(self).current_leader;
                request.leadership_transfer = leader.is_some_and(|leader| {
                    self.confirms_gone(ReplicaId(leader), metrics(self).current_term)
                });
                raft.vote(request)
                    .await
                    .map(Answer::Vote)
                    .map_err(|error| told(&error))
            }
            Ask::LeaderGone { leader, term } => {
                let (last, name) = self.claim();
                Ok(Answer::LeaderGone {
                    confirmed: self.confirms_gone(leader, term),
                    // Nobody waits for one that does not stand.
                    last: last.filter(|_| self.stands() != Stands::No),
                    fit: self.stands() == Stands::Yes,
                    name,
                })
            }
            Ask::PreVote(request) => raft
                .pre_vote(request)
                .await
                .map(Answer::Vote)
                .map_err(|error| told(&error)),
            Ask::Transfer { from, to, last } => {
                if let Some(node) = leader_node(raft).filter(|_| to == self.id().0) {
                    self.rise().campaigns(Cause::HandOver(node));
                }
                raft.handle_transfer_leader(TransferLeaderRequest::new(from, to, last))
                    .await
                    .map(Answer::Transfer)
                    .map_err(|error| told(&error))
            }
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
        match self.0.tenure.request(request).await {
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
        request: openraft::raft::AppendEntriesRequest<C>,
    ) {
        let mut streams = self.0.streams.lock();
        let known = streams.get(&route.from).map(Incoming::stream);
        if sequence == 0 && known != Some(stream) {
            tracing::info!(group = %self.group(), from = %route.from, "a stream of appends begins");
            let replica = self.clone();
            let addr = addr.to_owned();
            let answer = move |answer| replica.answer(&addr, route, stream, answer);
            let incoming = Incoming::open(stream, &self.0.raft, &self.0.link, answer);
            streams.insert(route.from, incoming);
        }
        let taken = streams
            .get_mut(&route.from)
            .filter(|open| open.stream() == stream)
            .is_some_and(|open| open.take(sequence, request));
        if !taken {
            // A gap, a repetition, or a stream of a predecessor of this process: it ends, and with it what it had begun.
            if known == Some(stream) {
                streams.remove(&route.from);
            }
            drop(streams);
            let broken = Answer::Refused("the stream is broken".into());
            self.answer(addr, route, stream, broken);
        }
    }
}
