//! Routing and repeating: a request is kept until it is answered, and asked again, with the same identity, whenever the way
//! to the answer was lost. The state machine makes repeats take effect once; a deadline ends them.

use crate::admission::{Admission, Kind, Place};
use crate::links::Calls;
use crate::metrics::Hop;
use crate::peer::Peers;
use crate::peer::frame::{Call, Reply};
use crate::session::{Request, Sessions};
use bytes::Bytes;
use mareedb_api::{ApiError, ErrorCode};
use mareedb_config::{Config, MESSAGE_EXTRA_BYTES};
use mareedb_ipc::wire::command::{
    Command, IdempotencyKey, Op, Outcome, Txn, TxnResult, encode_command,
};
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest, ReadResponse};
use mareedb_ipc::wire::view::{ClusterView, GroupView};
use mareedb_ipc::wire::{GroupId, META_GROUP, NodeId, decode};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// How long to wait for news when a way was lost and nobody says that it is back.
const PAUSE: Duration = Duration::from_millis(10);
/// A forwarded call is given up early enough that another way can be tried.
const FORWARD_LIMIT: Duration = Duration::from_secs(5);

/// What requests share.
pub struct Core {
    calls: Arc<Calls>,
    peers: Arc<Peers>,
    sessions: Arc<Sessions>,
    /// Places for requests.
    pub admission: Admission,
    /// The configuration.
    pub config: Config,
    /// Counters.
    pub metrics: crate::metrics::Metrics,
}

/// Where a group is led.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leader {
    Here,
    At(String),
}

/// Why an attempt gave nothing.
enum Attempt {
    /// Certainly nothing was proposed.
    Unproposed(ErrorCode, String),
    /// Something may have been.
    Uncertain,
    /// It is of no use to try again.
    Final(ApiError),
}

impl Core {
    /// Puts the parts together.
    pub fn new(
        calls: Arc<Calls>,
        peers: Arc<Peers>,
        sessions: Arc<Sessions>,
        config: Config,
    ) -> Arc<Core> {
        let places = usize::try_from(config.limits.requests_in_flight_max).unwrap_or(usize::MAX);
        let target = Duration::from_millis(config.limits.queueing_target_ms);
        Arc::new(Core {
            calls,
            peers,
            sessions,
            admission: Admission::new(places, target),
            config,
            metrics: crate::metrics::Metrics::default(),
        })
    }

    /// Calls to this node's daemons.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }
    /// Peers.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// A place among the requests in flight.
    ///
    /// # Errors
    /// OVERLOADED: all are taken.
    pub fn admit(&self, kind: Kind) -> Result<Place<'_>, ApiError> {
        self.admission.take(kind).ok_or_else(|| self.full())
    }

    /// What is said when all places are taken.
    pub fn full(&self) -> ApiError {
        ApiError::new(
            ErrorCode::Overloaded,
            "this node has as many requests in flight as it serves in good time (limits.requests_in_flight_max, limits.queueing_target_ms)",
        )
    }

    /// The view of this moment.
    pub fn view(&self) -> Option<Arc<ClusterView>> {
        self.calls.view().borrow().clone()
    }

    /// A number that another one replaces when a group is led by another node.
    pub fn leaders(&self) -> u64 {
        let view = self.view();
        let groups = view.iter().flat_map(|view| &view.groups);
        groups
            .filter_map(|group| group.leader)
            .fold(0, |sum, leader| sum.rotate_left(7) ^ leader.0)
    }

    fn group_of(&self, key: &[u8]) -> Result<(GroupId, u64), Attempt> {
        let view = self.view();
        let group = view
            .iter()
            .flat_map(|view| &view.groups)
            .find(|group| group.id != META_GROUP && group.range.contains(key));
        match group {
            Some(group) => Ok((group.id, group.range.epoch)),
            None => Err(self.unready()),
        }
    }

    /// Why no group is there: it is forming, or consensusd has not told yet.
    fn unready(&self) -> Attempt {
        let why = match self.view() {
            None => "consensusd has not told yet what it knows".to_owned(),
            Some(view) => match (&view.refused, &view.forming) {
                (Some(refused), _) => refused.message.clone(),
                (None, Some(forming)) => format!("the cluster is forming: {}", forming.message),
                (None, None) => "the replicas of this node are starting".to_owned(),
            },
        };
        Attempt::Unproposed(ErrorCode::NotReady, why)
    }

    fn leader_of(&self, group: GroupId) -> Result<Leader, Attempt> {
        let view = self.view();
        let Some(view) = view.as_deref() else {
            return Err(self.unready());
        };
        let Some(state) = view.groups.iter().find(|state| state.id == group) else {
            return Err(self.unready());
        };
        match state.leader {
            None => Err(Attempt::Unproposed(
                ErrorCode::NoQuorum,
                no_leader(view, state),
            )),
            Some(leader) if view.me.id == Some(leader) => Ok(Leader::Here),
            Some(leader) => match view.members.iter().find(|member| member.id == leader) {
                Some(member) => Ok(Leader::At(member.addr.clone())),
                None => Err(self.unready()),
            },
        }
    }

    /// Carries out a transaction, once.
    ///
    /// # Errors
    /// What the state machine answered, or, after `deadline`, NO_QUORUM or NOT_READY if it was certainly not proposed, else
    /// OUTCOME_UNKNOWN.
    pub async fn write(
        &self,
        txn: Txn,
        idempotency: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Result<TxnResult, ApiError> {
        let key = first_key(&txn);
        let mut uncertain = false;
        let mut last = (ErrorCode::NotReady, String::new());
        let mut request: Option<(GroupId, Request, Bytes)> = None;
        loop {
            let attempt = async {
                let (group, epoch) = self.group_of(&key)?;
                self.open_session(group).await?;
                if request.as_ref().is_none_or(|(of, ..)| *of != group) {
                    let open = self.sessions.begin(group);
                    let command = encode_command(&Command::Write {
                        origin: open.origin,
                        epoch,
                        idempotency: idempotency.clone(),
                        txn: txn.clone(),
                    });
                    self.check_command(&command)?;
                    request = Some((group, open, command));
                }
                let command = request
                    .as_ref()
                    .map(|(.., command)| command.clone())
                    .unwrap_or_default();
                let outcome = self.propose(group, command, deadline).await?;
                Ok::<_, Attempt>(outcome)
            };
            let tried = match timeout_at(deadline, attempt).await {
                Ok(tried) => tried,
                // The wait was cut in the middle of an attempt, which may have been proposed.
                Err(_) if request.is_some() => Err(Attempt::Uncertain),
                Err(_) => Err(self.unready()),
            };
            match tried {
                Ok(outcome) => match outcome {
                    Outcome::Done(result) => return Ok(result),
                    // Nothing was applied now; what an earlier attempt did is forgotten with the session (ONCE-1).
                    Outcome::SessionUnknown => {
                        if let Some((of, lost, _)) = request.take() {
                            self.sessions.lost(of, lost.origin.session);
                        }
                        if uncertain {
                            return Err(ApiError::new(
                                ErrorCode::OutcomeUnknown,
                                "the gateway's session has expired before the outcome was known",
                            ));
                        }
                    }
                    // The range was split or moved, and nothing was applied: route anew, with a new number.
                    Outcome::WrongEpoch { .. } => request = None,
                    other => return Err(refusal(other)),
                },
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Uncertain) => uncertain = true,
                Err(Attempt::Unproposed(code, why)) => last = (code, why),
            }
            if Instant::now() >= deadline {
                return Err(if uncertain {
                    ApiError::new(
                        ErrorCode::OutcomeUnknown,
                        "no answer within timeout_ms; the write may or may not take effect",
                    )
                } else {
                    ApiError::new(last.0, last.1)
                });
            }
            self.pause(deadline).await;
        }
    }

    /// Waits for a new view, or a moment.
    async fn pause(&self, deadline: Instant) {
        let mut view = self.calls.view();
        let moment = sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now())));
        tokio::select! {
            _ = view.changed() => {}
            () = moment => {}
        }
    }

    async fn open_session(&self, group: GroupId) -> Result<(), Attempt> {
        if self.sessions.unopened(group).is_none() {
            return Ok(());
        }
        let _one = self.sessions.opening.lock().await;
        let Some(session) = self.sessions.unopened(group) else {
            return Ok(());
        };
        let node = self
            .view()
            .and_then(|view| view.me.id)
            .ok_or_else(|| self.unready())?;
        let command = encode_command(&Command::OpenSession { session, node });
        let limit = Instant::now() + FORWARD_LIMIT;
        let opened = self.propose(group, command, limit).await;
        match opened {
            Ok(Outcome::SessionOpen) => {
                self.sessions.opened(group, session);
                Ok(())
            }
            Ok(other) => Err(Attempt::Final(refusal(other))),
            // Of the write itself nothing was proposed.
            Err(Attempt::Uncertain) => Err(Attempt::Unproposed(
                ErrorCode::NoQuorum,
                "the gateway's session could not be opened".into(),
            )),
            Err(other) => Err(other),
        }
    }

    /// Whether a command fits what carries it: the rings hold the largest request, and some more for what is around it.
    fn check_command(&self, command: &Bytes) -> Result<(), Attempt> {
        let max = self.config.limits.request_bytes_max + MESSAGE_EXTRA_BYTES / 2;
        if command.len() as u64 <= max {
            return Ok(());
        }
        Err(Attempt::Final(ApiError::new(
            ErrorCode::ValueTooLarge,
            format!(
                "the request has {} bytes, comparisons and all branches included, at most {max} (limits.request_bytes_max)",
                command.len()
            ),
        )))
    }

    /// One attempt to have a command applied.
    async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Outcome, Attempt> {
        let leader = self.leader_of(group)?;
        let asked = async {
            match &leader {
                Leader::Here => {
                    let began = std::time::Instant::now();
                    let result = self.calls.propose(group, command).await;
                    self.metrics.hop(Hop::Propose, began);
                    Ok(result)
                }
                Leader::At(addr) => {
                    let within = deadline
                        .saturating_duration_since(Instant::now())
                        .min(FORWARD_LIMIT);
                    let call = Call::Propose { group, command };
                    let asked = self.forward(addr, within, call);
                    match timeout_at(Instant::now() + within, asked).await {
                        Ok(Ok(Reply::Proposed(result))) => Ok(result),
                        Ok(Ok(_) | Err(crate::peer::Lost)) | Err(_) => Err(Attempt::Uncertain),
                    }
                }
            }
        };
        let result = self.unless_moved(group, &leader, asked).await?;
        match result {
            Ok(outcome) => decode(&outcome).map_err(|error| {
                Attempt::Final(ApiError::new(ErrorCode::OutcomeUnknown, error.to_string()))
            }),
            Err(error) => Err(consensus_error(error)),
        }
    }

    /// What was asked of a leader, unless another one takes its place first: the old one may wait for its disk, or for nodes that do
    /// not listen to it any more, and the new one can be asked the same at once (ONCE-1).
    async fn unless_moved<T>(
        &self,
        group: GroupId,
        leader: &Leader,
        asked: impl Future<Output = Result<T, Attempt>>,
    ) -> Result<T, Attempt> {
        let mut view = self.calls.view();
        let moved = async {
            while view.changed().await.is_ok() {
                if self.leader_of(group).is_ok_and(|now| now != *leader) {
                    return;
                }
            }
            // No more views: the process ends.
            std::future::pending().await
        };
        tokio::select! {
            biased;
            answer = asked => answer,
            () = moved => Err(Attempt::Uncertain),
        }
    }

    async fn forward(
        &self,
        addr: &str,
        within: Duration,
        call: Call,
    ) -> Result<Reply, crate::peer::Lost> {
        let began = std::time::Instant::now();
        let reply = self.peers.call(addr, within, call).await;
        self.metrics.hop(Hop::Forward, began);
        reply
    }

    /// Reads on this node as its leader: a read index, then the reader.
    ///
    /// # Errors
    /// See [`ConsensusError`]; what the reader answers is inside.
    pub async fn read_here(
        &self,
        mut read: ReadRequest,
        limit: Duration,
    ) -> Result<Result<ReadResponse, ReadError>, ConsensusError> {
        let began = std::time::Instant::now();
        read.min_index = self.calls.read_index(read.group).await?;
        self.metrics.hop(Hop::ReadIndex, began);
        let began = std::time::Instant::now();
        let result = self.calls.read(read, limit).await;
        self.metrics.hop(Hop::Read, began);
        Ok(result)
    }

    /// Reads what this node's replica has applied, whatever others have.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_local(
        &self,
        group: GroupId,
        query: Query,
        within: Duration,
    ) -> Result<ReadResponse, ReadError> {
        let read = ReadRequest {
            group,
            epoch: 0,
            min_index: 0,
            query,
        };
        match tokio::time::timeout(within, self.calls.read(read, within)).await {
            Ok(answer) => answer,
            Err(_) => Err(ReadError::NotApplied),
        }
    }

    /// Reads a key or a range of one group.
    ///
    /// # Errors
    /// What the reader answered, or, after `deadline`, NO_QUORUM or NOT_READY.
    pub async fn read(
        &self,
        key: &[u8],
        query: Query,
        stale: bool,
        deadline: Instant,
    ) -> Result<ReadResponse, ApiError> {
        let mut last;
        loop {
            let attempt = self.try_read(key, query.clone(), stale, deadline);
            match timeout_at(deadline, attempt).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(Attempt::Final(error))) => return Err(error),
                Ok(Err(Attempt::Unproposed(code, why))) => last = (code, why),
                Ok(Err(Attempt::Uncertain)) | Err(_) => {
                    last = (ErrorCode::NoQuorum, "the leader did not answer".into());
                }
            }
            if Instant::now() >= deadline {
                return Err(ApiError::new(last.0, last.1));
            }
            self.pause(deadline).await;
        }
    }

    async fn try_read(
        &self,
        key: &[u8],
        query: Query,
        stale: bool,
        deadline: Instant,
    ) -> Result<ReadResponse, Attempt> {
        let (group, epoch) = self.group_of(key)?;
        let read = ReadRequest {
            group,
            epoch,
            min_index: 0,
            query,
        };
        let within = deadline.saturating_duration_since(Instant::now());
        let result = if stale {
            Ok(self.calls.read(read, within).await)
        } else {
            let leader = self.leader_of(group)?;
            let asked = async {
                match &leader {
                    Leader::Here => Ok(self.read_here(read, within).await),
                    Leader::At(addr) => {
                        let within = within.min(FORWARD_LIMIT);
                        let asked = self.forward(addr, within, Call::Read(read));
                        match timeout_at(Instant::now() + within, asked).await {
                            Ok(Ok(Reply::Read(result))) => Ok(result),
                            _ => Err(Attempt::Uncertain),
                        }
                    }
                }
            };
            self.unless_moved(group, &leader, asked).await?
        };
        match result {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(read_error(error)),
            Err(error) => Err(consensus_error(error)),
        }
    }

    /// [`Core::transfer`] to the member with this name; empty: to the one with the longest log.
    ///
    /// # Errors
    /// NOT_FOUND: no member has the name; else as [`Core::transfer`].
    pub async fn transfer_to(&self, name: &str, deadline: Instant) -> Result<String, ApiError> {
        let view = self.view();
        let member = view
            .iter()
            .flat_map(|view| &view.members)
            .find(|member| member.name == name);
        if member.is_none() && !name.is_empty() {
            return Err(ApiError::new(
                ErrorCode::NotFound,
                format!("no member is called '{name}'"),
            ));
        }
        self.transfer(member.map(|member| member.id), deadline)
            .await
    }

    /// Hands the leaderships of the leader's node over.
    ///
    /// # Errors
    /// Nobody leads, or nobody can take over.
    pub async fn transfer(
        &self,
        to: Option<NodeId>,
        deadline: Instant,
    ) -> Result<String, ApiError> {
        let within = deadline.saturating_duration_since(Instant::now());
        let told = |attempt| match attempt {
            Attempt::Unproposed(code, why) => ApiError::new(code, why),
            Attempt::Final(error) => error,
            Attempt::Uncertain => {
                ApiError::new(ErrorCode::OutcomeUnknown, "the leader did not answer")
            }
        };
        let result = match self.leader_of(META_GROUP).map_err(told)? {
            Leader::Here => {
                let request = mareedb_ipc::wire::gateway::AdminRequest::TransferLeadership { to };
                self.calls.admin(request).await
            }
            Leader::At(addr) => {
                let call = Call::Transfer {
                    to: to.map(|NodeId(id)| id),
                };
                match self.peers.call(&addr, within, call).await {
                    Ok(Reply::Transferred(result)) => result,
                    _ => return Err(told(Attempt::Uncertain)),
                }
            }
        };
        result.map_err(|error| told(consensus_error(error)))
    }
}

fn no_leader(view: &ClusterView, group: &GroupView) -> String {
    let down: Vec<&str> = view
        .members
        .iter()
        .filter(|member| !member.online)
        .map(|member| member.name.as_str())
        .collect();
    if down.is_empty() {
        format!("{} has no leader at this moment", group.id)
    } else {
        format!("{} has no leader; down: {}", group.id, down.join(", "))
    }
}

fn consensus_error(error: ConsensusError) -> Attempt {
    match error {
        ConsensusError::Uncertain => Attempt::Uncertain,
        ConsensusError::NotLeader { .. } => {
            Attempt::Unproposed(ErrorCode::NoQuorum, "leadership is moving".into())
        }
        ConsensusError::NoQuorum => Attempt::Unproposed(ErrorCode::NoQuorum, error.to_string()),
        ConsensusError::NotReady => Attempt::Unproposed(ErrorCode::NotReady, error.to_string()),
        // The disk is behind; a moment later there is room.
        ConsensusError::Overloaded => Attempt::Unproposed(ErrorCode::Overloaded, error.to_string()),
        ConsensusError::Refused(why) => Attempt::Final(ApiError::new(ErrorCode::Unsupported, why)),
    }
}

fn read_error(error: ReadError) -> Attempt {
    let message = error.to_string();
    match error {
        ReadError::NoReplica(_) | ReadError::NotApplied | ReadError::WrongEpoch { .. } => {
            Attempt::Unproposed(ErrorCode::NotReady, message)
        }
        ReadError::Compacted { .. } => {
            Attempt::Final(ApiError::new(ErrorCode::RevisionCompacted, message))
        }
        ReadError::FutureRevision { .. } => {
            Attempt::Final(ApiError::new(ErrorCode::BadRequest, message))
        }
        ReadError::Storage(_) => Attempt::Unproposed(ErrorCode::NotReady, message),
    }
}

fn refusal(outcome: Outcome) -> ApiError {
    match outcome {
        Outcome::IdempotencyKeyReused => ApiError::new(
            ErrorCode::IdempotencyKeyReused,
            "the idempotency key was used for another request",
        ),
        Outcome::IdempotencyKeysExhausted => ApiError::new(
            ErrorCode::Overloaded,
            "too many live idempotency keys (limits.idempotency_keys_max)",
        ),
        Outcome::QuotaExceeded => ApiError::new(
            ErrorCode::QuotaExceeded,
            "the data would grow beyond storage.quota_bytes",
        ),
        Outcome::Invalid { message } => ApiError::new(ErrorCode::BadRequest, message),
        Outcome::Unsupported => {
            ApiError::new(ErrorCode::Unsupported, "the command is not supported")
        }
        // A copy of this request was applied, and its result forgotten: only possible after its deadline.
        Outcome::BelowLowWater => {
            ApiError::new(ErrorCode::OutcomeUnknown, "the request was given up")
        }
        other => ApiError::new(
            ErrorCode::OutcomeUnknown,
            format!("unexpected outcome {other:?}"),
        ),
    }
}

fn first_key(txn: &Txn) -> Bytes {
    let op = txn.success.iter().chain(&txn.failure).next();
    match (txn.compare.first(), op) {
        (Some(compare), _) => compare.key.clone(),
        (None, Some(Op::Put { key, .. } | Op::Delete { key } | Op::Get { key })) => key.clone(),
        (None, Some(Op::Range { start, .. })) => start.clone(),
        (None, None) => Bytes::new(),
    }
}
