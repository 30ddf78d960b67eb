//! A follower without its cluster, for tests: the other ends of its rings are the test's.

use crate::client::Client;
use crate::clock::HybridClock;
use crate::exchange::Exchange;
use crate::formation::{Facts, Member, Proposal};
use crate::frames::{Ask, Frame, Route};
use crate::log_link::LogLink;
use crate::raft::{Membership, Place, encode_membership};
use crate::replica::Replica;
use crate::rt;
use crate::start::{Start, start_replica};
use crate::takes::Takes;
use mareedb_config::Config;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::peer::PeerOut;
use mareedb_ipc::wire::storage::{
    FromStorage, KeyRange, ReplicaState, SnapshotMeta, StorageAnswer, StorageRequest, ToStorage,
};
use mareedb_ipc::wire::{
    FIRST_DATA_GROUP, GroupId, LogPosition, NodeId, OperationId, RandomId, ReplicaId, Vote, decode,
};
use mareedb_ipc::{Lane, Outbox, Receiver, Role, Sender};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Who leads.
pub(crate) const LEADER: NodeId = NodeId(1);
/// Who follows, and is tested.
pub(crate) const ME: NodeId = NodeId(2);
/// Where the follower's log ends, all of which is applied and purged.
pub(crate) const END: LogPosition = LogPosition { term: 1, index: 5 };

/// Between two replicas, by which nothing is sent; the node is to outlive it.
pub(crate) fn exchange(node: &NodeInProcess) -> (Arc<Exchange>, Route) {
    let mut consensus = node.attach(Role::Consensus);
    let peer = consensus.sender(Role::Gateway, Lane::Peer);
    let peer = Outbox::before(&peer, || {});
    let route = Route {
        cluster: RandomId(1),
        group: FIRST_DATA_GROUP,
        from: ReplicaId(1),
        to: ReplicaId(2),
    };
    let takes = Takes::new(1 << 20, 1 << 20);
    (Exchange::new(peer.clone(), peer, takes), route)
}

fn member(node: u64) -> Member {
    Member {
        id: NodeId(node),
        facts: Facts {
            name: format!("node{node}"),
            incarnation: RandomId(node.into()),
            addr: format!("10.0.0.{node}:7001"),
            rest_addr: format!("10.0.0.{node}:8080"),
        },
    }
}

/// A cluster of three nodes, whose data directories are named as the nodes are numbered.
pub(crate) fn formed() -> Proposal {
    Proposal {
        cluster: RandomId(1),
        members: (1..=3).map(member).collect(),
    }
}

/// What the follower's storaged holds of a group.
pub(crate) fn state(group: GroupId) -> ReplicaState {
    let places: BTreeMap<u64, Place> = formed()
        .members
        .into_iter()
        .map(|member| {
            let place = Place {
                node: member.id,
                name: member.facts.name,
                addr: member.facts.addr,
                rest_addr: member.facts.rest_addr,
            };
            (Proposal::replica(group, member.id).0, place)
        })
        .collect();
    let voters: BTreeSet<u64> = places.keys().copied().collect();
    let membership = Membership::new(vec![voters], places).expect("a membership");
    let first = LogPosition { term: 1, index: 0 };
    let applied = SnapshotMeta {
        last_applied: Some(END),
        membership: Some((first, encode_membership(&membership))),
    };
    let vote = Vote {
        term: END.term,
        voted_for: Some(Proposal::replica(group, LEADER)),
        committed: true,
    };
    let operation = OperationId {
        generation: RandomId(1),
        position: 1,
    };
    ReplicaState {
        group,
        replica: Proposal::replica(group, ME),
        range: KeyRange::whole(),
        vote: Some((vote, operation)),
        purged: Some(END),
        last: Some(END),
        committed: Some(END),
        applied: applied.clone(),
        persisted: applied,
    }
}

/// What a storaged answers that holds this, and does everything at once.
pub(crate) fn answer(state: &ReplicaState, request: &StorageRequest) -> StorageAnswer {
    match request {
        StorageRequest::CurrentSnapshot { .. } => {
            StorageAnswer::MaybeSnapshot(Some(state.persisted.clone()))
        }
        StorageRequest::Apply { upto, .. } => StorageAnswer::Applied {
            applied: *upto,
            outcomes: Vec::new(),
        },
        _ => StorageAnswer::Done,
    }
}

/// The follower's storaged, as its test sees it.
#[derive(Default)]
pub(crate) struct Storaged {
    /// What it was asked, in order.
    pub(crate) asked: Vec<StorageRequest>,
    /// What it does, and does not answer as long as this is here.
    pub(crate) holds: Option<fn(&StorageRequest) -> bool>,
}

/// A running follower of the data group, which stands for no election while a test runs.
pub(crate) struct Follower {
    pub(crate) replica: Replica,
    pub(crate) storaged: Arc<Mutex<Storaged>>,
    outbox: Arc<Outbox>,
    to_peers: Sender,
    at_gateway: Receiver,
    _node: NodeInProcess,
}

impl Follower {
    /// It has been started, and openraft's core has not run yet.
    pub(crate) async fn start() -> Follower {
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let mut storage = node.attach(Role::Storage);
        let mut gateway = node.attach(Role::Gateway);
        let to_storage = consensus.sender(Role::Storage, Lane::Log(0));
        let at_storage = storage.receiver(Role::Consensus, Lane::Log(0));
        let link = LogLink::new(to_storage, Arc::default());
        let to_peers = consensus.sender(Role::Gateway, Lane::Peer);
        let outbox = Outbox::before(&to_peers, || {});
        let to_client = consensus.sender(Role::Gateway, Lane::Client);
        let client = Client::new(Outbox::before(&to_client, || {}));
        let takes = Takes::new(1 << 20, 1 << 20);
        let exchange = Exchange::new(outbox.clone(), outbox.clone(), takes);
        let state = state(FIRST_DATA_GROUP);
        let storaged: Arc<Mutex<Storaged>> = Arc::default();
        rt::spawn(serve(
            link.clone(),
            at_storage,
            state.clone(),
            storaged.clone(),
        ));
        let mut config = Config::default();
        config.cluster.election_timeout_min_ms = 1_800_000;
        config.cluster.election_timeout_max_ms = 3_600_000;
        let start = Start {
            group: FIRST_DATA_GROUP,
            range: KeyRange::whole(),
            me: ME,
            formed: formed(),
            founder: false,
            generation: link.generation(),
            state: Some(state),
            sound: true,
            config,
            link,
            exchange,
        };
        let started = start_replica(start).await.expect("it starts");
        let clock = Arc::new(HybridClock::new(500, 0));
        Follower {
            replica: Replica::new(started, client, clock, ME, Rules::default()),
            storaged,
            outbox,
            to_peers,
            at_gateway: gateway.receiver(Role::Consensus, Lane::Peer),
            _node: node,
        }
    }

    /// Waits until openraft has said that it follows.
    pub(crate) async fn follows(&self) {
        let wait = self.replica.raft().wait(None);
        let follows = wait.metrics(|metrics| metrics.current_leader.is_some(), "a leader");
        follows.await.expect("it runs");
    }

    /// Lets its tasks run, and takes what they have asked of peers.
    pub(crate) async fn asked(&mut self) -> Vec<Ask> {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let sound = "a sound ring";
        self.outbox.flush(&mut self.to_peers).expect(sound);
        let mut asked = Vec::new();
        while let Some((message, end)) = self.at_gateway.try_recv::<PeerOut>().expect(sound) {
            self.at_gateway.release(end);
            let PeerOut::Frame { frame, .. } = message;
            if let Ok(Frame::Ask { ask, .. }) = decode(&frame) {
                asked.push(ask);
            }
        }
        asked
    }
}

/// The follower's storaged.
async fn serve(
    link: Arc<LogLink>,
    mut receiver: Receiver,
    state: ReplicaState,
    storaged: Arc<Mutex<Storaged>>,
) {
    let mut transfer = None;
    let mut answers: Vec<(u64, StorageRequest, StorageAnswer)> = Vec::new();
    loop {
        let sound = "a sound ring";
        while let Some((message, end)) = receiver.try_recv::<ToStorage>().expect(sound) {
            receiver.release(end);
            if let ToStorage::Request { request, body } = message {
                let done = install(&mut transfer, &body).unwrap_or_else(|| answer(&state, &body));
                storaged.lock().asked.push(body.clone());
                answers.push((request, body, done));
            }
        }
        let holds = storaged.lock().holds;
        let held = |body: &StorageRequest| holds.is_some_and(|holds| holds(body));
        for (request, _, body) in answers.extract_if(.., |(_, body, _)| !held(body)) {
            link.receive(FromStorage::Answer { request, body });
        }
        link.progress().expect(sound);
        tokio::task::yield_now().await;
    }
}

/// What a storaged answers of snapshots that come, of which it keeps one. `None`: the request is another one.
fn install(transfer: &mut Option<RandomId>, request: &StorageRequest) -> Option<StorageAnswer> {
    match request {
        StorageRequest::BeginInstall { install, .. } => {
            *transfer = Some(*install);
            Some(StorageAnswer::Done)
        }
        StorageRequest::InstallChunk { install, .. }
        | StorageRequest::FinishInstall { install, .. }
            if *transfer != Some(*install) =>
        {
            Some(StorageAnswer::Failed {
                message: format!("transfer {install} was not begun"),
            })
        }
        StorageRequest::FinishInstall { meta, .. } => {
            *transfer = None;
            Some(StorageAnswer::Snapshot(meta.clone()))
        }
        _ => None,
    }
}
