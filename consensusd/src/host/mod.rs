//! The main loop: moves messages between rings and replicas, and everything that is not openraft's.
//!
//! The loop itself never waits for the disk or a peer: whatever does is a task, which comes back as an [`Event`].

mod announce;
mod client;
mod clocks;
mod groups;
mod leadership;
mod peers;
#[cfg(test)]
mod tests;

use crate::client::Client;
use crate::clock::{Clock, HybridClock};
use crate::exchange::Exchange;
use crate::formation::{Formation, Proposal};
use crate::log_link::{Done, LogLink};
use crate::peers::{Ages, Peers, SAMPLE_MS};
use crate::planted::{Fault, planted};
use crate::replica::Replica;
use crate::rt;
use crate::takes::Takes;
use clocks::ClockWatch;
use leadership::DiskWatch;
use mareedb_config::Config;
use mareedb_ipc::wire::gateway::{FromConsensus, Target};
use mareedb_ipc::wire::storage::{FromStorage, NodeRecord, ReplicaState, ToStorage};
use mareedb_ipc::wire::view::{ClusterView, NodeIdentity, Reason};
use mareedb_ipc::wire::{GroupId, NodeId, RandomId};
use mareedb_ipc::{
    BoardReader, BoardWriter, Gauge, Inheritance, Lane, Outbox, Receiver, RingError, Role, Sender,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Notify, mpsc};

/// Messages taken from one ring before others have their turn.
const BATCH: usize = 256;
/// The whole view goes out at least so often.
const VIEW_MS: u64 = 200;
/// What is in the view beside who leads is looked at so often.
const LOOK_MS: u64 = 20;
/// A node says that it lives so often.
const PING_MS: u64 = 300;
/// A node tells its wall clock so often, and looks whether it is ahead.
const CLOCK_MS: u64 = 1_000;
/// A node whose clock is ahead stands for election all the same when no leader was heard for so long.
const LEADERLESS_MS: u64 = 2_000;
/// Who lacks more entries than this, and older ones than the next, cannot take over at once, and is not handed leadership by itself.
const HEIR_LAG_ENTRIES_MAX: u64 = 1_024;
/// How old the oldest of them may be.
const HEIR_LAG_MS_MAX: u64 = 300;
/// A node that has come to lead by somebody's hand does not hand back at once: that one may be about to stop.
const SETTLE_MS: u64 = 3_000;
/// While a node's clock is ahead it is looked at so often whether anybody leads.
const BARRED_LOOK_MS: u64 = 100;
/// Formation ticks so often.
const FORMATION_MS: u64 = 100;
/// A data group's leader follows the meta group's once both were stable for so long.
const FOLLOW_MS: u64 = 5_000;
/// A stall is over when the disk has not stalled for so long.
const CALM_MS: u64 = 1_000;
/// A leader whose storaged does not serve for so long, which a restart does not take, is treated as one whose disk stalls.
const STORAGE_AWAY_MS: u64 = 1_500;
/// While the disk stalls leadership is handed over again so often.
const HAND_OVER_MS: u64 = 500;
/// Groups may end so often within some time before the process does.
const FAILURES_MAX: usize = 5;
/// That time: failures that are further apart than this have nothing to do with each other.
const FAILURES_MS: u64 = 600_000;

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

impl Lanes {
    /// All of them but the one to storaged, which is the log link's.
    pub fn take(inheritance: &mut Inheritance) -> Lanes {
        Lanes {
            from_storage: inheritance.receiver(Role::Storage, Lane::Log(0)),
            to_client: inheritance.sender(Role::Gateway, Lane::Client),
            from_client: inheritance.receiver(Role::Gateway, Lane::Client),
            to_peer: inheritance.sender(Role::Gateway, Lane::Peer),
            from_peer: inheritance.receiver(Role::Gateway, Lane::Peer),
            to_bulk: inheritance.sender(Role::Gateway, Lane::Bulk),
            from_bulk: inheritance.receiver(Role::Gateway, Lane::Bulk),
        }
    }
}

/// What tasks report.
pub enum Event {
    /// A record of formation is durable.
    Saved(String),
    /// A replica runs.
    Started(Replica),
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
    /// Makes the main loop turn once more.
    wake: Arc<Notify>,
    events: mpsc::UnboundedReceiver<Event>,
    report: mpsc::UnboundedSender<Event>,
    incarnation: u64,
    formation: Option<Formation>,
    refused: Option<Reason>,
    bootstrapped: Option<Bootstrapped>,
    starting: bool,
    replicas: BTreeMap<GroupId, Replica>,
    peers: Peers,
    ages: Ages,
    began: Instant,
    sent_view: Option<ClusterView>,
    glanced: Vec<announce::Glance>,
    sent_targets: Option<(NodeIdentity, Vec<Target>)>,
    next: Timers,
    stable_since: u64,
    stable: Vec<(GroupId, Option<NodeId>, u64)>,
    draining: bool,
    disk: DiskWatch,
    wall: ClockWatch,
    /// Groups that have ended and wait for what storaged holds of them, with the number of the Hello that asked for it: an
    /// answer to an earlier one is from before they ended.
    ended: BTreeMap<GroupId, u64>,
    /// The number of the last Hello to storaged.
    storage_hello: u64,
    /// Groups that met a storage error: their leadership is not restored in this process.
    unsound: BTreeSet<GroupId>,
    /// When groups have ended lately.
    failures: groups::Failures,
}

struct Bootstrapped {
    generation: RandomId,
    replicas: Vec<ReplicaState>,
}

#[derive(Default)]
struct Timers {
    view: u64,
    look: u64,
    ping: u64,
    formation: u64,
    sample: u64,
    disk: u64,
    clock: u64,
    tell_clock: u64,
    hand_over: u64,
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
        wake: Arc<Notify>,
    ) -> Host {
        let outbox = |sender: &Sender| {
            let wake = wake.clone();
            Outbox::before(sender, move || wake.notify_one())
        };
        let to_client = outbox(&lanes.to_client);
        let peer = outbox(&lanes.to_peer);
        let bulk = outbox(&lanes.to_bulk);
        let client = Client::new(to_client.clone());
        // Rings to and from gatewayd are of one size.
        let takes = Takes::new(to_storage.max_message(), lanes.to_peer.max_message());
        let takes = takes.kept_on(board.clone());
        let exchange = Exchange::new(peer.clone(), bulk.clone(), takes);
        let (report, events) = mpsc::unbounded_channel();
        let link = LogLink::new(to_storage, wake.clone());

        let held_ms = board.reader().get(Gauge::ClockHeldMs);
        let held = held_ms > config.cluster.max_clock_offset_ms;
        #[cfg(not(feature = "faults"))]
        let clock = HybridClock::new(config.cluster.max_clock_offset_ms, held_ms);
        #[cfg(feature = "faults")]
        let clock = HybridClock::set_by(
            &config.server.data_dir,
            config.cluster.max_clock_offset_ms,
            held_ms,
        );
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
            clock: Arc::new(clock),
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
            began: rt::now(),
            sent_view: None,
            glanced: Vec::new(),
            sent_targets: None,
            next: Timers::default(),
            stable_since: 0,
            stable: Vec::new(),
            draining: false,
            disk: DiskWatch::default(),
            wall: ClockWatch::knowing(held.then_some(held_ms)),
            ended: BTreeMap::new(),
            storage_hello: 0,
            unsound: BTreeSet::new(),
            failures: groups::Failures::default(),
        }
    }

    /// Announces this incarnation to both neighbours.
    pub fn hello(&mut self) {
        self.hello_to_gateway();
        self.hello_to_storage();
    }

    fn hello_to_gateway(&self) {
        self.client.tell(&FromConsensus::Hello {
            epoch: self.lanes.to_client.epoch(),
        });
    }

    /// storaged finishes all that is in the ring, then tells what it holds.
    fn hello_to_storage(&mut self) {
        self.storage_hello += 1;
        let (link, number) = (self.link.clone(), self.storage_hello);
        rt::spawn(async move {
            let epoch = link.epoch();
            link.send(&ToStorage::Hello { epoch, number }, Done::Nobody)
                .await;
        });
    }

    /// Replicas are about to run: storaged has told what it holds.
    pub fn is_starting(&self) -> bool {
        self.starting && self.replicas.len() < Proposal::groups().len()
    }

    /// The replicas that run.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.values()
    }

    fn now(&self) -> u64 {
        u64::try_from(rt::now().saturating_duration_since(self.began).as_millis())
            .unwrap_or(u64::MAX)
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
                    number,
                    generation,
                    replicas,
                    records,
                }) if epoch == self.link.epoch() => {
                    self.told_state(number, generation, replicas, &records);
                }
                Some(FromStorage::Up { .. }) => self.apply_again(),
                _ => {}
            }
        }
        Ok(false)
    }

    /// storaged has told what it holds: at the start, and each time that a group has ended.
    fn told_state(
        &mut self,
        number: u64,
        generation: RandomId,
        replicas: Vec<ReplicaState>,
        records: &[NodeRecord],
    ) {
        tracing::info!(
            after_ms = self.now(),
            groups = replicas.len(),
            "storaged has told what it holds"
        );
        let again = self.bootstrapped.replace(Bootstrapped {
            generation,
            replicas,
        });
        if again.is_some() {
            self.restart_ended(number);
        } else {
            self.come_to_life(records);
        }
    }

    /// Groups that have ended, see `watch_groups`, start anew from the state that the Hello of this number asked for.
    fn restart_ended(&mut self, number: u64) {
        let told: Vec<GroupId> = self
            .ended
            .extract_if(.., |_, asked| *asked <= number)
            .map(|(group, _)| group)
            .collect();
        for group in told {
            self.start_replica(group);
        }
    }

    /// Who this node is, and to which cluster it belongs, is in its records.
    fn come_to_life(&mut self, records: &[NodeRecord]) {
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
            Ok(mut formation) => {
                // Streams that outlived a predecessor of this process may have been told of before.
                for (addr, incarnation) in self.peers.connected() {
                    formation.connected(addr, incarnation);
                }
                self.formation = Some(formation);
            }
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
                Event::Started(replica) => {
                    tracing::info!(group = %replica.group(), replica = %replica.id(), "replica started");
                    if !planted(Fault::StartedUnapplied) {
                        self.apply_of(&replica);
                    }
                    replica.let_stand(self.stands());
                    self.replicas.insert(replica.group(), replica);
                }
                Event::Ended(group) => {
                    self.hello_to_storage();
                    self.ended.insert(group, self.storage_hello);
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
        }
        if now >= self.next.disk {
            self.next.disk = now + LOOK_MS;
            self.mind_the_disk(now);
        }
        if now >= self.next.clock {
            self.mind_the_clock(now);
            let pause = match self.wall.ahead_ms {
                Some(_) => BARRED_LOOK_MS,
                None => CLOCK_MS,
            };
            self.next.clock = now + pause;
        }
        if now >= self.next.tell_clock {
            self.next.tell_clock = now + CLOCK_MS;
            self.tell_the_clock(now);
        }
        if now >= self.next.sample {
            self.next.sample = now + SAMPLE_MS;
            self.watch_groups(now);
        }
        if now >= self.next.ping {
            self.next.ping = now + PING_MS;
            self.ping();
        }
        self.send_view(now);
    }
}
