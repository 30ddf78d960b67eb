//! The main loop: moves messages between rings and replicas, and everything that is not openraft's.
//!
//! The loop itself never waits for the disk or a peer: whatever does is a task, which comes back as an [`Event`].

use crate::client::{Call, Client};
use crate::clock::{Clock, HybridClock};
use crate::exchange::{Exchange, Way};
use crate::formation::{Action, Formation, Message, Proposal};
use crate::frames::{Answer, Frame, LeaderReport, Route};
use crate::log_link::{Done, LogLink};
use crate::outbox::{Outbox, Wake};
use crate::peers::{Ages, Peers};
use crate::raft::position;
use crate::replica::{Parts, Replica};
use crate::start::{Start, start_replica};
use crate::view::{Sources, lags, metrics, view};
use bytes::Bytes;
use mareedb_config::Config;
use mareedb_ipc::wire::gateway::{
    AdminRequest, ConsensusError, FromConsensus, Target, ToConsensus,
};
use mareedb_ipc::wire::peer::{DownReason, PeerHello, PeerIn};
use mareedb_ipc::wire::storage::{
    FromStorage, KeyRange, NodeRecord, ReplicaState, StorageRequest, ToStorage,
};
use mareedb_ipc::wire::view::{ClusterView, NodeIdentity, Reason};
use mareedb_ipc::wire::{GroupId, META_GROUP, NodeId, RandomId, decode, encode};
use mareedb_ipc::{BoardReader, BoardWriter, Gauge, Receiver, RingError, Sender};
use openraft::ServerState;
use openraft::errors::Fatal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// Messages taken from one ring before others have their turn.
const BATCH: usize = 256;
/// The whole view goes out at least so often.
const VIEW_MS: u64 = 200;
/// A node says that it lives so often.
const PING_MS: u64 = 300;
/// Formation ticks so often.
const FORMATION_MS: u64 = 100;
/// A data group's leader follows the meta group's once both were stable for so long.
const FOLLOW_MS: u64 = 5_000;
/// Groups may end so often before the process does.
const FAILURES_MAX: u32 = 5;

/// The rings.
pub struct Lanes {
    /// From storaged, shard 0.
    pub from_storage: Receiver,
    /// To gatewayd.
    pub to_client: Sender,
    /// From gatewayd.
    pub from_client: Receiver,
    /// To gatewayd, peers.
    pub to_peer: Sender,
    /// From gatewayd, peers.
    pub from_peer: Receiver,
    /// To gatewayd, snapshots.
    pub to_bulk: Sender,
    /// From gatewayd, snapshots.
    pub from_bulk: Receiver,
}

/// What tasks report.
pub enum Event {
    /// A record of formation is durable.
    Saved(String),
    /// A replica runs.
    Started(Box<(Replica, KeyRange)>),
    /// The task of a group that failed has ended.
    Ended(GroupId),
    /// A replica cannot run: the process ends, its successor starts over.
    Broken(String),
}

/// Everything that consensusd knows.
pub struct Host {
    config: Config,
    name: String,
    board: BoardWriter,
    storage_board: BoardReader,
    lanes: Lanes,
    link: Arc<LogLink>,
    client: Arc<Client>,
    to_client: Arc<Outbox>,
    peer: Arc<Outbox>,
    bulk: Arc<Outbox>,
    exchange: Arc<Exchange>,
    clock: Arc<dyn Clock>,
    wake: Arc<Wake>,
    events: mpsc::UnboundedReceiver<Event>,
    report: mpsc::UnboundedSender<Event>,
    incarnation: u64,
    formation: Option<Formation>,
    refused: Option<Reason>,
    bootstrapped: Option<Bootstrapped>,
    starting: bool,
    replicas: BTreeMap<GroupId, (Replica, KeyRange)>,
    peers: Peers,
    ages: Ages,
    began: Instant,
    sent_view: Option<ClusterView>,
    sent_targets: Option<(NodeIdentity, Vec<Target>)>,
    next: Timers,
    stable_since: u64,
    stable: Vec<(GroupId, Option<NodeId>, u64)>,
    draining: bool,
    stalled: bool,
    /// Groups that have ended and wait for what storaged holds of them.
    ended: BTreeSet<GroupId>,
    /// Groups that met a storage error: their leadership is not restored in this process.
    unsound: BTreeSet<GroupId>,
    /// How often a group has ended.
    failures: u32,
}

struct Bootstrapped {
    generation: RandomId,
    replicas: Vec<ReplicaState>,
}

#[derive(Default)]
struct Timers {
    view: u64,
    ping: u64,
    formation: u64,
    sample: u64,
}

impl Host {
    /// Takes over the rings.
    pub fn new(
        config: Config,
        name: String,
        board: BoardWriter,
        storage_board: BoardReader,
        lanes: Lanes,
        to_storage: Sender,
        wake: Arc<Wake>,
    ) -> Host {
        let to_client = Outbox::before(&lanes.to_client, wake.clone());
        let peer = Outbox::before(&lanes.to_peer, wake.clone());
        let bulk = Outbox::before(&lanes.to_bulk, wake.clone());
        let client = Client::new(to_client.clone());
        let exchange = Exchange::new(peer.clone(), bulk.clone());
        let (report, events) = mpsc::unbounded_channel();
        let link = LogLink::new(to_storage, wake.clone());

        let incarnation = u64::try_from(RandomId::draw().0 >> 64).expect("half of 128 bits");
        Host {
            config,
            name,
            board,
            storage_board,
            lanes,
            link,
            client,
            to_client,
            peer,
            bulk,
            exchange,
            clock: Arc::new(HybridClock::default()),
            wake,
            events,
            report,
            incarnation,
            formation: None,
            refused: None,
            bootstrapped: None,
            starting: false,
            replicas: BTreeMap::new(),
            peers: Peers::default(),
            ages: Ages::default(),
            began: Instant::now(),
            sent_view: None,
            sent_targets: None,
            next: Timers::default(),
            stable_since: 0,
            stable: Vec::new(),
            draining: false,
            stalled: false,
            ended: BTreeSet::new(),
            unsound: BTreeSet::new(),
            failures: 0,
        }
    }

    /// Announces this incarnation to both neighbours.
    pub fn hello(&self) {
        self.hello_to_gateway();
        self.hello_to_storage();
    }

    fn hello_to_gateway(&self) {
        self.client.tell(&FromConsensus::Hello {
            epoch: self.lanes.to_client.epoch(),
        });
    }

    /// storaged finishes all that is in the ring, then tells what it holds.
    fn hello_to_storage(&self) {
        let link = self.link.clone();
        tokio::spawn(async move {
            let epoch = link.epoch();
            link.send(&ToStorage::Hello { epoch }, Done::Nobody).await;
        });
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// One turn: takes what is there, does what is due, sends what waits. `true`: sleep until the doorbell, a wake, or a
    /// tick.
    ///
    /// # Errors
    /// A ring is corrupt.
    ///
    /// # Panics
    /// A replica has ended: the process must.
    pub fn turn(&mut self) -> Result<bool, RingError> {
        self.board.beat();
        let mut quiet = self.link.progress()?;
        quiet &= self.take_storage()?;
        quiet &= self.take_client()?;
        quiet &= self.take_peers()?;
        self.take_events();
        self.timers();
        quiet &= self.to_client.flush(&mut self.lanes.to_client)?;
        quiet &= self.peer.flush(&mut self.lanes.to_peer)?;
        quiet &= self.bulk.flush(&mut self.lanes.to_bulk)?;
        quiet &= self.lanes.from_storage.arm()?;
        quiet &= self.lanes.from_client.arm()?;
        quiet &= self.lanes.from_peer.arm()?;
        quiet &= self.lanes.from_bulk.arm()?;
        Ok(quiet)
    }

    fn take_storage(&mut self) -> Result<bool, RingError> {
        for _ in 0..BATCH {
            let Some((message, end)) = self.lanes.from_storage.try_recv::<FromStorage>()? else {
                return Ok(true);
            };
            self.lanes.from_storage.release(end);
            match self.link.receive(message) {
                Some(FromStorage::Bootstrapped {
                    epoch,
                    generation,
                    replicas,
                    records,
                    ..
                }) if epoch == self.link.epoch() => {
                    self.bootstrap(generation, replicas, &records);
                }
                Some(FromStorage::Up { .. }) => self.apply_again(),
                _ => {}
            }
        }
        Ok(false)
    }

    /// A new storaged has applied what its files hold, and readers wait for what its predecessor had applied: it applies
    /// up to there now, not only with the next write.
    fn apply_again(&self) {
        for (group, (replica, _)) in &self.replicas {
            let Some(upto) = metrics(replica).last_applied.as_ref().map(position) else {
                continue;
            };
            let (link, group) = (self.link.clone(), *group);
            tokio::spawn(async move {
                link.request(StorageRequest::Apply {
                    group,
                    results_from: u64::MAX,
                    upto,
                })
                .await;
            });
        }
    }

    fn bootstrap(
        &mut self,
        generation: RandomId,
        replicas: Vec<ReplicaState>,
        records: &[NodeRecord],
    ) {
        let again = self.bootstrapped.replace(Bootstrapped {
            generation,
            replicas,
        });
        if again.is_some() {
            // Asked for by groups that have ended, see `watch_groups`.
            for group in std::mem::take(&mut self.ended) {
                self.start_replica(group);
            }
            return;
        }
        let addr = self.own_addr(self.config.cluster.consensus_port);
        let rest_addr = self.own_addr(self.config.server.rest_port);
        match Formation::new(
            &self.config,
            &self.name,
            &addr,
            &rest_addr,
            records,
            Box::new(RandomId::draw),
        ) {
            Ok(formation) => self.formation = Some(formation),
            Err(reason) => {
                tracing::error!(code = reason.code, "{}", reason.message);
                self.refused = Some(reason);
            }
        }
        self.board.set(Gauge::Ready, 1);
        // Replicas that exist are started in this very turn.
        self.next.formation = 0;
        self.ping();
    }

    /// The supervisor has put the advertised address into the configuration.
    fn own_addr(&self, port: u16) -> String {
        let host = self
            .config
            .server
            .advertise_addr
            .as_deref()
            .unwrap_or(&self.config.server.listen_addr);
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    fn identity(&self) -> NodeIdentity {
        let formation = self.formation.as_ref();
        NodeIdentity {
            name: self.name.clone(),
            id: formation.and_then(Formation::my_id),
            incarnation: formation.map_or(RandomId(0), Formation::incarnation),
            cluster: formation
                .and_then(Formation::formed)
                .map(|formed| formed.cluster),
            addr: self.own_addr(self.config.cluster.consensus_port),
            rest_addr: self.own_addr(self.config.server.rest_port),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn take_client(&mut self) -> Result<bool, RingError> {
        let mut proposals: BTreeMap<GroupId, Vec<(Call, Bytes)>> = BTreeMap::new();
        let mut drained = false;
        for _ in 0..BATCH {
            let Some((message, end)) = self.lanes.from_client.try_recv::<ToConsensus>()? else {
                drained = true;
                break;
            };
            self.lanes.from_client.release(end);
            match message {
                ToConsensus::Hello { epoch } => {
                    tracing::info!(epoch, "gatewayd is up");
                    self.client.born();
                    // It may have attached before this process did, and holds calls that a predecessor took.
                    self.hello_to_gateway();
                    self.sent_view = None;
                    self.sent_targets = None;
                    // It dials nobody, and turns peers away, before it knows who it is.
                    self.send_targets();
                }
                ToConsensus::Propose {
                    call,
                    group,
                    command,
                } => {
                    let call = self.client.call(call);
                    if self.replicas.contains_key(&group) {
                        proposals.entry(group).or_default().push((call, command));
                    } else {
                        self.client.proposed(call, Err(ConsensusError::NotReady));
                    }
                }
                ToConsensus::ReadIndex { call, group } => {
                    let call = self.client.call(call);
                    match self.replicas.get(&group) {
                        Some((replica, _)) => replica.read_index(call),
                        None => self.client.read_index(call, Err(ConsensusError::NotReady)),
                    }
                }
                ToConsensus::Admin { call, request } => self.admin(call, &request),
            }
        }
        for (group, batch) in proposals {
            if let Some((replica, _)) = self.replicas.get(&group) {
                replica.propose(batch);
            }
        }
        Ok(drained)
    }

    fn admin(&mut self, call: u64, request: &AdminRequest) {
        let to = match request {
            AdminRequest::TransferLeadership { to } => *to,
            AdminRequest::Drain => {
                self.drain();
                None
            }
        };
        let result = self.hand_over(to);
        self.client.admin(self.client.call(call), result);
    }

    /// From now on this node takes no leadership: it is about to stop.
    pub fn drain(&mut self) {
        self.draining = true;
        for (replica, _) in self.replicas.values() {
            replica.raft().runtime_config().elect(false);
        }
    }

    /// Hands the leaderships of this node to another one.
    ///
    /// # Errors
    /// This node leads nothing, or nobody can take over.
    pub fn hand_over(&mut self, to: Option<NodeId>) -> Result<String, ConsensusError> {
        let now = self.now();
        let mut names = BTreeSet::new();
        for (replica, _) in self.replicas.values() {
            let metrics = metrics(replica);
            if metrics.state != ServerState::Leader {
                continue;
            }
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            // A target must be reachable, or the transfer blocks; the one with the longest log loses the least time.
            let target = metrics
                .replication
                .iter()
                .flatten()
                .filter(|(id, _)| **id != metrics.id && voters.contains(id))
                .filter_map(|(id, matched)| {
                    let place = metrics.membership_config.get_node(id)?;
                    let wanted = to.is_none_or(|to| to == place.node);
                    (wanted && self.peers.online(&place.addr, now))
                        .then(|| (matched.as_ref().map(|id| id.index), *id, place.name.clone()))
                })
                .max();
            let Some((_, target, name)) = target else {
                return Err(ConsensusError::Refused(
                    "no other voter is online to take over leadership".into(),
                ));
            };
            names.insert(name);
            let raft = replica.raft().clone();
            tokio::spawn(async move {
                if let Err(error) = raft.trigger().transfer_leader(target).await {
                    tracing::warn!(%error, "leadership transfer");
                }
            });
        }
        if names.is_empty() {
            return Err(ConsensusError::NotLeader { leader: None });
        }
        Ok(names.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// Whether a replica of this node leads its group.
    pub fn leads(&self) -> bool {
        self.replicas
            .values()
            .any(|(replica, _)| metrics(replica).state == ServerState::Leader)
    }

    fn take_peers(&mut self) -> Result<bool, RingError> {
        let mut quiet = true;
        for bulk in [false, true] {
            let mut count = 0;
            loop {
                let lane = if bulk {
                    &mut self.lanes.from_bulk
                } else {
                    &mut self.lanes.from_peer
                };
                let Some((message, end)) = lane.try_recv::<PeerIn>()? else {
                    break;
                };
                lane.release(end);
                self.peer_in(message, bulk);
                count += 1;
                if count == BATCH {
                    quiet = false;
                    break;
                }
            }
        }
        Ok(quiet)
    }

    fn peer_in(&mut self, message: PeerIn, bulk: bool) {
        let now = self.now();
        match message {
            PeerIn::Up { addr, peer } => {
                if !bulk {
                    tracing::info!(addr, peer = peer.identity.name, "connected");
                    if let Some(formation) = &mut self.formation {
                        formation.connected(&addr, peer.identity.incarnation);
                    }
                    self.exchange.evidence().heard(&addr);
                    self.peers.up(&addr, *peer);
                    self.exchange.up(&addr);
                    self.resume_replication(&addr);
                    self.next.ping = 0;
                    self.next.formation = 0;
                }
            }
            PeerIn::Down { addr, why } => {
                if !bulk {
                    tracing::info!(addr, ?why, "not connected");
                    self.peers.down(&addr, why);
                    self.exchange.down(&addr);
                    if why == DownReason::Refused {
                        self.exchange.evidence().refused(&addr);
                        for (replica, _) in self.replicas.values() {
                            replica.suspect(&addr);
                        }
                    }
                } else {
                    // The peer stream lives on.
                    self.exchange.lost(&addr, Way::Bulk);
                }
            }
            PeerIn::Unsent { addr } => {
                let way = if bulk { Way::Bulk } else { Way::Peer };
                self.exchange.lost(&addr, way);
            }
            PeerIn::Frame { from, frame } => match decode::<Frame>(&frame) {
                Ok(frame) => self.frame(&from, frame, now),
                Err(error) => {
                    tracing::warn!(peer = from.identity.name, %error, "a frame is dropped");
                }
            },
        }
    }

    fn frame(&mut self, from: &PeerHello, frame: Frame, now: u64) {
        let addr = from.identity.addr.as_str();
        self.peers.heard(addr, from, now);
        self.exchange.evidence().heard(addr);
        match frame {
            Frame::Ping {
                incarnation,
                report,
            } => {
                self.exchange.incarnation(addr, incarnation);
                if let Some(report) = report {
                    self.peers.reported(report.term, report.lags, now);
                }
            }
            Frame::Formation(bytes) => {
                let Ok(message) = decode::<Message>(&bytes) else {
                    tracing::warn!(addr, "a formation message is dropped");
                    return;
                };
                let Some(formation) = &mut self.formation else {
                    return;
                };
                let actions = formation.message(addr, from.identity.incarnation, message, now);
                self.act(actions);
            }
            Frame::Ask { route, call, ask } => {
                // FORM-2: the stream's hello counts as much as the frame.
                let foreign = from
                    .identity
                    .cluster
                    .is_some_and(|cluster| cluster != route.cluster);
                match self.replicas.get(&route.group).filter(|_| !foreign) {
                    Some((replica, _)) => replica.asked(addr, from.identity.id, route, call, ask),
                    None => self.exchange.tell(
                        addr,
                        &Frame::Answer {
                            route: Route {
                                from: route.to,
                                to: route.from,
                                ..route
                            },
                            call,
                            answer: Answer::Refused(if foreign {
                                "the frame is of another cluster than its sender".into()
                            } else {
                                "the group is not ready".into()
                            }),
                        },
                    ),
                }
            }
            Frame::Answer {
                route,
                call,
                answer,
            } => self.exchange.answered(route, call, answer),
        }
    }

    /// A peer is reachable again: replication to it need not wait for the end of its back-off.
    fn resume_replication(&self, addr: &str) {
        for (replica, _) in self.replicas.values() {
            let metrics = metrics(replica);
            if metrics.state != ServerState::Leader {
                continue;
            }
            let there: Vec<u64> = metrics
                .membership_config
                .nodes()
                .filter(|(_, place)| place.addr == addr)
                .map(|(id, _)| *id)
                .collect();
            let raft = replica.raft().clone();
            tokio::spawn(async move {
                if let Err(error) = raft.trigger().reset_backoff(there).await {
                    tracing::debug!(%error, "back-off");
                }
            });
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(addr, message) => self
                    .exchange
                    .tell(&addr, &Frame::Formation(encode(&message).into())),
                Action::Save(record) => {
                    let (link, report, wake) =
                        (self.link.clone(), self.report.clone(), self.wake.clone());
                    tokio::spawn(async move {
                        let name = record.name.clone();
                        link.durable(&ToStorage::SaveNodeRecord { record }).await;
                        let _ = report.send(Event::Saved(name));
                        wake.wake();
                    });
                }
            }
        }
    }

    fn take_events(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Saved(name) => {
                    if let Some(formation) = &mut self.formation {
                        let actions = formation.saved(&name);
                        self.act(actions);
                    }
                    self.next.formation = 0;
                }
                Event::Started(started) => {
                    let (replica, range) = *started;
                    tracing::info!(group = %replica.group(), replica = %replica.id(), "replica started");
                    if self.draining {
                        replica.raft().runtime_config().elect(false);
                    }
                    self.replicas.insert(replica.group(), (replica, range));
                }
                Event::Ended(group) => {
                    self.ended.insert(group);
                    self.hello_to_storage();
                }
                Event::Broken(why) => panic!("a replica cannot start: {why}"),
            }
        }
    }

    fn timers(&mut self) {
        let now = self.now();
        if now >= self.next.formation {
            self.next.formation = now + FORMATION_MS;
            if let Some(formation) = &mut self.formation {
                let actions = formation.tick(now);
                self.act(actions);
            }
            self.send_targets();
            self.start_replicas();
            self.bound_logs();
            self.follow_meta(now);
            self.mind_the_disk();
        }
        if now >= self.next.sample {
            self.next.sample = now + 10;
            self.watch_groups(now);
        }
        if now >= self.next.ping {
            self.next.ping = now + PING_MS;
            self.ping();
        }
        self.send_view(now);
    }

    /// Notes how old entries are; ends a group whose openraft has ended, to start it anew, alone, through the same fence as
    /// a restart of the process.
    fn watch_groups(&mut self, now: u64) {
        let mut failed = Vec::new();
        for (group, (replica, _)) in &self.replicas {
            let metrics = metrics(replica);
            if let Err(fatal) = &metrics.running_state {
                tracing::error!(%group, %fatal, "the group has ended; it starts anew");
                failed.push((*group, matches!(fatal, Fatal::StorageError(_))));
            }
            match (metrics.state, metrics.last_log_index) {
                (ServerState::Leader, Some(last)) => self.ages.sample(*group, last, now),
                _ => self.ages.forget(*group),
            }
        }
        for (group, storage) in failed {
            self.failures += 1;
            // What fails again and again is no accident: the process ends with evidence, and its successor starts over.
            assert!(
                self.failures <= FAILURES_MAX,
                "{group} has ended, and groups did so {FAILURES_MAX} times before"
            );
            if storage {
                self.unsound.insert(group);
            }
            let Some((replica, _)) = self.replicas.remove(&group) else {
                continue;
            };
            let (report, wake) = (self.report.clone(), self.wake.clone());
            tokio::spawn(async move {
                replica.end().await;
                let _ = report.send(Event::Ended(group));
                wake.wake();
            });
        }
    }

    /// Lets a group's log go that is larger than its share of `storage.log_retain_bytes`, once a snapshot covers it.
    fn bound_logs(&self) {
        let groups = self.replicas.len().max(1) as u64;
        let share = self.config.storage.log_retain_bytes / groups;
        for (replica, _) in self.replicas.values() {
            let Some(upto) = replica.log().beyond(share) else {
                continue;
            };
            let metrics = metrics(replica);
            let covered = metrics.snapshot.is_some_and(|at| at.index >= upto);
            let raft = replica.raft().clone();
            tokio::spawn(async move {
                let trigger = raft.trigger();
                let told = if covered {
                    trigger.purge_log(upto).await
                } else {
                    trigger.snapshot().await
                };
                if let Err(error) = told {
                    tracing::debug!(%error, "retention");
                }
            });
        }
    }

    fn ping(&mut self) {
        let now = self.now();
        let leads_meta = self
            .replicas
            .get(&META_GROUP)
            .map(|(replica, _)| metrics(replica))
            .filter(|metrics| metrics.state == ServerState::Leader);
        let report = leads_meta.map(|metrics| LeaderReport {
            term: metrics.current_term,
            lags: lags(&self.replicas, &self.ages, now),
        });
        if let Some(report) = &report {
            self.peers.reported(report.term, report.lags.clone(), now);
        }
        let frame = Frame::Ping {
            incarnation: self.incarnation,
            report,
        };
        for addr in self.formation.iter().flat_map(Formation::targets) {
            self.exchange.tell(&addr, &frame);
        }
    }

    fn send_view(&mut self, now: u64) {
        let rejected = self.peers.rejected_by();
        let turned_away = (!rejected.is_empty()).then(|| Reason {
            code: "FOREIGN_CLUSTER".into(),
            message: format!(
                "{} turned this node away, since it belongs to another cluster or speaks another protocol: correct \
                 cluster.peers, or start this node with an empty data directory",
                rejected.join(", ")
            ),
        });
        let lease_ms = self.config.cluster.election_timeout_max_ms;
        let view = view(&Sources {
            me: self.identity(),
            formation: self.formation.as_ref(),
            refused: self.refused.as_ref().or(turned_away.as_ref()),
            replicas: &self.replicas,
            peers: &self.peers,
            ages: &self.ages,
            ready: self.replicas.len() == Proposal::groups().len(),
            lease_ms,
            now,
        });
        let changed = self
            .sent_view
            .as_ref()
            .is_none_or(|sent| differs(sent, &view));
        if changed || now >= self.next.view {
            if changed {
                // A new leader tells at once how far the others are, so that all can show it.
                self.next.ping = 0;
            }
            self.next.view = now + VIEW_MS;
            self.client
                .tell(&FromConsensus::View(Box::new(view.clone())));
            self.sent_view = Some(view);
        }
    }

    fn send_targets(&mut self) {
        let Some(formation) = &self.formation else {
            return;
        };
        let formed = formation.formed();
        let targets: Vec<Target> = formation
            .targets()
            .into_iter()
            .map(|addr| Target {
                node: formed
                    .and_then(|formed| {
                        formed
                            .members
                            .iter()
                            .find(|member| member.facts.addr == addr)
                    })
                    .map(|member| member.id),
                addr,
            })
            .collect();
        let current = (self.identity(), targets);
        if self.sent_targets.as_ref() != Some(&current) {
            self.client.tell(&FromConsensus::Targets {
                me: Box::new(current.0.clone()),
                targets: current.1.clone(),
            });
            self.sent_targets = Some(current);
        }
    }

    fn start_replicas(&mut self) {
        let formed = self
            .formation
            .as_ref()
            .is_some_and(|formation| formation.my_id().is_some());
        if !formed || self.bootstrapped.is_none() || std::mem::replace(&mut self.starting, true) {
            return;
        }
        for (group, _) in Proposal::groups() {
            self.start_replica(group);
        }
    }

    fn start_replica(&self, group: GroupId) {
        let (Some(formation), Some(bootstrapped)) = (&self.formation, &self.bootstrapped) else {
            return;
        };
        let (Some(formed), Some(me)) = (formation.formed(), formation.my_id()) else {
            return;
        };
        let Some((_, range)) = Proposal::groups()
            .into_iter()
            .find(|(known, _)| *known == group)
        else {
            return;
        };
        let start = Start {
            group,
            range: range.clone(),
            me,
            formed: formed.clone(),
            founder: formation.is_founder(),
            state: bootstrapped
                .replicas
                .iter()
                .find(|state| state.group == group)
                .cloned(),
            generation: bootstrapped.generation,
            sound: self.storage_board.get(Gauge::IoErrors) == 0 && !self.unsound.contains(&group),
            config: self.config.clone(),
            link: self.link.clone(),
            exchange: self.exchange.clone(),
        };
        let (report, wake) = (self.report.clone(), self.wake.clone());
        let (client, clock) = (self.client.clone(), self.clock.clone());
        tokio::spawn(async move {
            let event = match start_replica(start).await {
                Ok(started) => Event::Started(Box::new((
                    Replica::new(Parts {
                        route: started.route,
                        raft: started.raft,
                        log: started.log,
                        restored: started.restored,
                        link: started.link,
                        exchange: started.exchange,
                        client,
                        clock,
                    }),
                    range,
                ))),
                Err(why) => Event::Broken(why),
            };
            let _ = report.send(event);
            wake.wake();
        });
    }

    /// While there is one data group its leader is brought to the meta group's, once both were stable for 5 s.
    fn follow_meta(&mut self, now: u64) {
        let leaders: Vec<(GroupId, Option<NodeId>, u64)> = self
            .replicas
            .iter()
            .map(|(group, (replica, _))| (*group, replica.leader(), metrics(replica).current_term))
            .collect();
        if leaders != self.stable {
            self.stable = leaders;
            self.stable_since = now;
            return;
        }
        if now.saturating_sub(self.stable_since) < FOLLOW_MS {
            return;
        }
        let me = self.formation.as_ref().and_then(Formation::my_id);
        let Some((_, Some(meta), _)) = self.stable.iter().find(|(group, ..)| *group == META_GROUP)
        else {
            return;
        };
        let meta = *meta;
        if Some(meta) == me {
            return;
        }
        self.stable_since = now;
        for (replica, _) in self.replicas.values() {
            let metrics = metrics(replica);
            if replica.group() == META_GROUP || metrics.state != ServerState::Leader {
                continue;
            }
            let target = metrics
                .membership_config
                .nodes()
                .find(|(_, place)| place.node == meta && self.peers.online(&place.addr, now))
                .map(|(id, _)| *id);
            if let Some(target) = target {
                tracing::info!(group = %replica.group(), %meta, "leadership follows the meta group's");
                let raft = replica.raft().clone();
                tokio::spawn(async move {
                    if let Err(error) = raft.trigger().transfer_leader(target).await {
                        tracing::warn!(%error, "leadership transfer");
                    }
                });
            }
        }
    }

    /// A leader whose disk stalls hands over; it keeps no leadership that it gets back while the stall lasts.
    fn mind_the_disk(&mut self) {
        let stalled = self.storage_board.get(Gauge::DiskStalled) == 1;
        if stalled && !self.stalled {
            tracing::warn!("the disk stalls: handing leadership over");
        }
        self.stalled = stalled;
        if stalled && let Err(error) = self.hand_over(None) {
            tracing::debug!(%error, "nothing to hand over");
        }
    }
}

/// Whether a view tells something new; ages alone don't.
fn differs(before: &ClusterView, after: &ClusterView) -> bool {
    let bare = |view: &ClusterView| {
        let mut view = view.clone();
        for member in &mut view.members {
            member.last_contact_ms = None;
            member.lag_ms = None;
        }
        for group in &mut view.groups {
            group.local = None;
        }
        view
    };
    bare(before) != bare(after)
}
