//! Routing and repeating: a request is kept until it is answered, and asked again, with the same identity, whenever the way
//! to the answer was lost. The state machine makes repeats take effect once; a deadline ends them.

mod answers;
mod read;
mod transfer;
mod write;

use crate::admission::{Admission, Kind, Place};
use crate::bodies::Bodies;
use crate::links::Calls;
use crate::metrics::Hop;
use crate::peer::frame::{Call, Reply};
use crate::peer::{Peers, Unanswered};
use crate::session::Sessions;
use mareedb_api::{ApiError, ErrorCode};
use mareedb_config::Config;
use mareedb_ipc::wire::view::ClusterView;
use mareedb_ipc::wire::{GroupId, META_GROUP};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long to wait for news when a way was lost and nobody says that it is back.
const PAUSE: Duration = Duration::from_millis(10);
/// The same of a read that was refused for overload: what would be asked again at once is what there is too much of.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// A forwarded call is given up early enough that another way can be tried.
const FORWARD_LIMIT: Duration = Duration::from_secs(5);

/// So many bodies of the largest size find room on a node at once; of smaller ones accordingly more.
const BODIES_WHOLE: usize = 16;
/// So many answers of that size find room. They are longer than what asks for them, and leave as slowly as clients read.
const ANSWERS_WHOLE: usize = 32;

fn body_bytes_max(config: &Config) -> usize {
    let max = usize::try_from(config.limits.request_bytes_max).unwrap_or(usize::MAX);
    max.saturating_mul(2).saturating_add(64 << 10)
}

/// What requests share.
pub struct Core {
    calls: Arc<Calls>,
    peers: Arc<Peers>,
    sessions: Arc<Sessions>,
    /// Places for requests.
    pub admission: Admission,
    /// Room for their bodies.
    pub bodies: Arc<Bodies>,
    /// Room for their answers.
    pub answers: Arc<Bodies>,
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

impl Attempt {
    /// What a client is told when it is not tried again.
    fn told(self) -> ApiError {
        match self {
            Attempt::Unproposed(code, why) => ApiError::new(code, why),
            Attempt::Uncertain => {
                ApiError::new(ErrorCode::OutcomeUnknown, "the leader did not answer")
            }
            Attempt::Final(error) => error,
        }
    }
}

impl From<Unanswered> for Attempt {
    fn from(why: Unanswered) -> Attempt {
        match why {
            Unanswered::Unsent => Attempt::Unproposed(
                ErrorCode::NoQuorum,
                "this node has no connection to the leader".into(),
            ),
            Unanswered::Lost => Attempt::Uncertain,
        }
    }
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
        let largest = body_bytes_max(&config);
        Arc::new(Core {
            calls,
            peers,
            sessions,
            admission: Admission::new(places, target),
            bodies: Bodies::new(largest.saturating_mul(BODIES_WHOLE)),
            answers: Bodies::new(largest.saturating_mul(ANSWERS_WHOLE)),
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

    /// Most bytes of a request's body, or of a message over gRPC. JSON with base64 inside is a third longer than what it carries; the exact
    /// limits are looked at later.
    pub fn body_bytes_max(&self) -> usize {
        body_bytes_max(&self.config)
    }

    /// What is said of a `what` that has more.
    pub fn too_large(&self, what: &str) -> ApiError {
        let max = self.config.limits.request_bytes_max;
        ApiError::new(
            ErrorCode::ValueTooLarge,
            format!("the {what} is larger than limits.request_bytes_max ({max} bytes) allows"),
        )
    }

    /// Whether the largest answer finds no room at this moment.
    pub(crate) fn answers_are_full(&self) -> bool {
        self.answers.is_full(self.body_bytes_max())
    }

    /// The view of this moment.
    pub fn view(&self) -> Option<Arc<ClusterView>> {
        self.calls.current()
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

    /// Why this node does not serve yet: consensusd has not told, the cluster is forming, or its groups are not up.
    pub fn not_ready(&self) -> ApiError {
        let why = match self.view() {
            None => "consensusd has not told yet what it knows".to_owned(),
            Some(view) => match (&view.refused, &view.forming) {
                (Some(refused), _) => refused.message.clone(),
                (None, Some(forming)) => format!("the cluster is forming: {}", forming.message),
                (None, None) if view.groups.iter().any(|group| group.leader.is_none()) => {
                    "no leader is known".to_owned()
                }
                (None, None) => "the replicas of this node are starting".to_owned(),
            },
        };
        ApiError::new(ErrorCode::NotReady, why)
    }

    /// The same of an attempt that found no group.
    fn unready(&self) -> Attempt {
        let why = self.not_ready();
        Attempt::Unproposed(why.code, why.message)
    }

    fn leader_of(&self, group: GroupId) -> Result<Leader, Attempt> {
        let view = self.view();
        let Some(view) = view.as_deref() else {
            return Err(self.unready());
        };
        let Some(state) = view.group(group) else {
            return Err(self.unready());
        };
        match state.leader {
            None => Err(Attempt::Unproposed(
                ErrorCode::NoQuorum,
                answers::no_leader(view, state),
            )),
            Some(leader) if view.me.id == Some(leader) => Ok(Leader::Here),
            Some(leader) => match view.member(leader) {
                Some(member) => Ok(Leader::At(member.addr.clone())),
                None => Err(self.unready()),
            },
        }
    }

    /// Waits for a new view, or a moment.
    async fn pause(&self, deadline: Instant) {
        self.pause_for(PAUSE, deadline).await;
    }

    async fn pause_for(&self, pause: Duration, deadline: Instant) {
        let mut view = self.calls.watch_view();
        let moment = sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        tokio::select! {
            _ = view.changed() => {}
            () = moment => {}
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
        let mut view = self.calls.watch_view();
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

    async fn forward(&self, addr: &str, deadline: Instant, call: Call) -> Result<Reply, Attempt> {
        let began = std::time::Instant::now();
        let within = deadline
            .saturating_duration_since(Instant::now())
            .min(FORWARD_LIMIT);
        let reply = self.peers.call(addr, within, call).await;
        self.metrics.hop(Hop::Forward, began);
        reply.map_err(Attempt::from)
    }
}

#[cfg(test)]
pub(crate) mod tests;
