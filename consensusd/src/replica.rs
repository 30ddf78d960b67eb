//! This node's replica of a group, and the doors to its proposals and read indexes; `questions` has what peers ask of it.

mod questions;

use crate::client::{Call, Client};
use crate::clock::Clock;
use crate::exchange::Exchange;
use crate::frames::Route;
use crate::heard::Heard;
use crate::incoming::Incoming;
use crate::log_link::LogLink;
use crate::planted::{Fault, planted};
use crate::proposals::{Proposals, Word};
use crate::raft::behind::Behind;
use crate::raft::log_store::LogStore;
use crate::raft::{C, Raft, leader_node, position};
use crate::reads::Reads;
use crate::rise::Rise;
use crate::rt;
use crate::start::Started;
use crate::succession::Succession;
use crate::tenure::Tenure;
use crate::view::metrics;
use bytes::Bytes;
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::{GroupId, LogPosition, NodeId, ReplicaId};
use openraft::metrics::RaftMetrics;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A running replica. Cloning it gives another handle.
#[derive(Clone)]
pub struct Replica(Arc<Shared>);

struct Shared {
    route: Route,
    range: KeyRange,
    raft: Raft,
    log: LogStore,
    behind: Behind,
    link: Arc<LogLink>,
    tenure: Tenure,
    exchange: Arc<Exchange>,
    proposals: Proposals,
    reads: Reads,
    streams: Mutex<BTreeMap<ReplicaId, Incoming>>,
    /// Held while a snapshot begins to come, and while a whole one is installed.
    installing: tokio::sync::Mutex<()>,
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

impl Replica {
    /// Takes a started group. `node` is this one, and `rules` are what it declares when it leads.
    pub fn new(
        started: Started,
        client: Arc<Client>,
        clock: Arc<dyn Clock>,
        node: NodeId,
        rules: Rules,
    ) -> Replica {
        let rise = Arc::new(Rise::default());
        Replica(Arc::new(Shared {
            proposals: Proposals::new(
                started.raft.clone(),
                started.link.clone(),
                started.exchange.clone(),
                client.clone(),
                clock,
                Word {
                    node,
                    rules,
                    rise: rise.clone(),
                },
            ),
            reads: Reads::new(started.raft.clone(), client, started.restored),
            route: started.route,
            range: started.range,
            raft: started.raft,
            log: started.log,
            behind: started.behind,
            link: started.link,
            tenure: started.tenure,
            exchange: started.exchange,
            streams: Mutex::default(),
            installing: tokio::sync::Mutex::default(),
            rise,
            succession: Succession::default(),
            stands: Mutex::new(Stands::Yes),
            heard: Mutex::new(Heard::nothing()),
            applied: started.applied,
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
    /// Its range.
    pub fn range(&self) -> &KeyRange {
        &self.0.range
    }
    /// This replica's id.
    pub fn id(&self) -> ReplicaId {
        self.0.route.to
    }
    /// The log.
    pub fn log(&self) -> &LogStore {
        &self.0.log
    }
    /// For whom the log is kept while this replica leads.
    pub fn behind(&self) -> &Behind {
        &self.0.behind
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
        let shown = metrics(self).last_applied.as_ref().map(position);
        if planted(Fault::StartedShown) {
            return shown;
        }
        shown.max(self.0.applied)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{END, Follower};

    /// LIVE-4: before openraft has said anything, what storaged had applied is known, to be applied again.
    #[tokio::test]
    async fn what_storaged_had_applied_is_known_from_the_start() {
        let follower = Follower::start().await;
        let replica = &follower.replica;
        assert_eq!(metrics(replica).last_applied, None);
        assert_eq!(replica.applied(), Some(END));
    }
}
