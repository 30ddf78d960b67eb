//! A life of gatewayd as far as consensusd sees it: carries frames, keeps connections, makes calls for clients.
//!
//! The real gatewayd is not simulated. What promises rest on it, the clients here do in its place and by their own code: sessions
//! with the numbers of their requests (ONCE-1), asking again, and the care about what was refused for certain.

use crate::cluster::Cluster;
use crate::executor::yield_now;
use crate::network::{Way, why_down};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::select;
use mareedb_ipc::wire::RandomId;
use mareedb_ipc::wire::gateway::{FromConsensus, Target, ToConsensus};
use mareedb_ipc::wire::peer::{DownReason, PEER_PROTOCOL, PeerHello, PeerIn, PeerOut};
use mareedb_ipc::wire::view::{ClusterView, NodeIdentity};
use mareedb_ipc::world::Timer;
use mareedb_ipc::{Lane, Receiver, RingError, Role, Sender, Waiter};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

/// A connection that cannot be made is tried again after so long at first, and at most, in nanoseconds; gatewayd's own.
const BACKOFF_NS: (u64, u64) = (5_000_000, 200_000_000);
/// Who is not reached in this time is not there, in nanoseconds.
const CONNECT_NS: u64 = 1_000_000_000;
/// The loop turns at least so often.
const TICK: Duration = Duration::from_millis(500);
/// Frames that a connection holds; more are not sent.
const HELD_MAX: usize = 4096;

/// What a gatewayd knows.
#[derive(Default)]
pub struct Gate {
    start: Option<RandomId>,
    me: Option<NodeIdentity>,
    targets: Vec<Target>,
    /// Counts identities and sets of targets: what was dialled by an earlier one is over.
    dialling: u64,
    to_client: VecDeque<ToConsensus>,
    to_peer: VecDeque<PeerIn>,
    to_bulk: VecDeque<PeerIn>,
    calls: BTreeMap<u64, oneshot::Sender<FromConsensus>>,
    next_call: u64,
    /// What consensusd was told of each connection; `None`: it is up.
    told: BTreeMap<Way, Option<DownReason>>,
    /// The last view.
    pub view: Option<ClusterView>,
}

impl Gate {
    fn hello(&self) -> Option<Box<PeerHello>> {
        Some(Box::new(PeerHello {
            protocol: PEER_PROTOCOL,
            start: self.start?,
            identity: self.me.clone()?,
            expected: None,
        }))
    }

    fn tell(&mut self, bulk: bool, message: PeerIn) {
        let queue = if bulk {
            &mut self.to_bulk
        } else {
            &mut self.to_peer
        };
        queue.push_back(message);
    }
}

struct Rings {
    client: (Sender, Receiver),
    peer: (Sender, Receiver),
    bulk: (Sender, Receiver),
}

fn flush<T: Serialize>(sender: &mut Sender, queue: &mut VecDeque<T>) -> Result<bool, RingError> {
    loop {
        let seen = sender.head()?;
        while let Some(message) = queue.front() {
            if sender.try_send(message)?.is_none() {
                break;
            }
            queue.pop_front();
        }
        sender.publish();
        if queue.is_empty() || sender.arm_progress(seen)? {
            return Ok(true);
        }
    }
}

/// Lives until it is killed.
pub async fn run(cluster: Rc<Cluster>, number: usize) {
    let mut inheritance = cluster.attach(number, Role::Gateway);
    let mut lane = |lane| {
        (
            inheritance.sender(Role::Consensus, lane),
            inheritance.receiver(Role::Consensus, lane),
        )
    };
    let mut rings = Rings {
        client: lane(Lane::Client),
        peer: lane(Lane::Peer),
        bulk: lane(Lane::Bulk),
    };
    {
        let mut gate = cluster.nodes[number].gate.borrow_mut();
        gate.start = Some(inheritance.start());
        let epoch = rings.client.0.epoch();
        gate.to_client.push_back(ToConsensus::Hello { epoch });
    }
    inheritance.ring_all_bells();
    loop {
        match turn(&cluster, number, &mut rings) {
            Ok(true) => {
                let rung = cluster.world.rung(number, Waiter::Gateway);
                select(pin!(rung), Timer::after(TICK)).await;
            }
            Ok(false) => yield_now().await,
            Err(error) => {
                cluster.violated("RING", format!("gatewayd of node{}: {error}", number + 1));
                return;
            }
        }
    }
}

fn turn(cluster: &Rc<Cluster>, number: usize, rings: &mut Rings) -> Result<bool, RingError> {
    while let Some((message, end)) = rings.client.1.try_recv::<FromConsensus>()? {
        rings.client.1.release(end);
        take(cluster, number, message);
    }
    for bulk in [false, true] {
        let lane = if bulk {
            &mut rings.bulk
        } else {
            &mut rings.peer
        };
        while let Some((message, end)) = lane.1.try_recv::<PeerOut>()? {
            lane.1.release(end);
            let PeerOut::Frame { addr, frame } = message;
            send(cluster, number, addr, bulk, frame);
        }
    }
    let gate = &mut *cluster.nodes[number].gate.borrow_mut();
    let mut quiet = flush(&mut rings.client.0, &mut gate.to_client)?;
    quiet &= flush(&mut rings.peer.0, &mut gate.to_peer)?;
    quiet &= flush(&mut rings.bulk.0, &mut gate.to_bulk)?;
    quiet &= rings.client.1.arm()?;
    quiet &= rings.peer.1.arm()?;
    quiet &= rings.bulk.1.arm()?;
    Ok(quiet)
}

fn take(cluster: &Rc<Cluster>, number: usize, message: FromConsensus) {
    let gate = &mut *cluster.nodes[number].gate.borrow_mut();
    let call = match &message {
        FromConsensus::Hello { .. } => {
            // A new consensusd knows nothing of what is up, and nothing of what was asked.
            gate.calls.clear();
            let told = std::mem::take(&mut gate.told);
            for (way, why) in told {
                gate.told.insert(way, why);
                let addr = cluster.nodes[way.to].addr.clone();
                let message = match why {
                    Some(why) => PeerIn::Down { addr, why },
                    None => match cluster.nodes[way.to]
                        .gate
                        .try_borrow()
                        .ok()
                        .and_then(|gate| gate.hello())
                    {
                        Some(peer) => PeerIn::Up { addr, peer },
                        None => continue,
                    },
                };
                gate.tell(way.bulk, message);
            }
            return;
        }
        FromConsensus::View(view) => {
            gate.view = Some((**view).clone());
            return;
        }
        FromConsensus::Targets { me, targets } => {
            let redial = gate.me.as_ref() != Some(me);
            gate.me = Some((**me).clone());
            gate.targets.clone_from(targets);
            if redial {
                // Another identity is presented by new connections.
                for way in cluster.network.borrow().ways(|way| way.from == number) {
                    cluster.world.after(0, {
                        let cluster = cluster.clone();
                        move || {
                            cluster.network.borrow_mut().disconnect(way);
                        }
                    });
                }
                gate.told.clear();
            }
            gate.dialling += 1;
            let dialling = gate.dialling;
            for target in targets {
                let Some(to) = cluster.at(&target.addr) else {
                    continue;
                };
                for bulk in [false, true] {
                    let way = Way {
                        from: number,
                        to,
                        bulk,
                    };
                    let cluster = cluster.clone();
                    cluster.world.clone().after(1, move || {
                        dial(&cluster, way, dialling, BACKOFF_NS.0);
                    });
                }
            }
            return;
        }
        FromConsensus::Proposed { call, .. }
        | FromConsensus::ReadIndex { call, .. }
        | FromConsensus::Admin { call, .. } => *call,
    };
    if let Some(asker) = gate.calls.remove(&call) {
        // Who asked may have given up.
        let _ = asker.send(message);
    }
}

/// Tries to make a connection, now and again until it is there.
fn dial(cluster: &Rc<Cluster>, way: Way, dialling: u64, backoff: u64) {
    let node = &cluster.nodes[way.from];
    if node.gate.borrow().dialling != dialling || node.daemon(Role::Gateway).is_none() {
        return;
    }
    if cluster.network.borrow_mut().connection(way).is_some() {
        return;
    }
    let target = &cluster.nodes[way.to];
    let whole = cluster.network.borrow().whole(way.from, way.to);
    let again = |after: u64, backoff: u64| {
        let cluster = cluster.clone();
        cluster
            .world
            .clone()
            .after(after, move || dial(&cluster, way, dialling, backoff));
    };
    let grown = (backoff * 2).min(BACKOFF_NS.1);
    match why_down(target.is_up(), target.machine.get(), whole) {
        Some(DownReason::Refused) => {
            told_down(cluster, way, DownReason::Refused);
            again(backoff, grown);
        }
        Some(why) => {
            // Known only when the time is over.
            let cluster = cluster.clone();
            cluster.world.clone().after(CONNECT_NS, move || {
                let node = &cluster.nodes[way.from];
                // Another try may have got through.
                let made = cluster.network.borrow_mut().connection(way).is_some();
                if node.gate.borrow().dialling == dialling && node.is_up() && !made {
                    told_down(&cluster, way, why);
                    dial(&cluster, way, dialling, grown);
                }
            });
        }
        None => {
            let answers = target
                .daemon(Role::Gateway)
                .filter(|gateway| !cluster.world.is_stopped(*gateway));
            let there = answers.and_then(|_| target.gate.borrow().hello());
            let here = node.gate.borrow().hello();
            match (here, there) {
                (Some(here), Some(there)) => {
                    cluster.network.borrow_mut().connect(way, here);
                    let gate = &mut *node.gate.borrow_mut();
                    gate.told.insert(way, None);
                    let addr = target.addr.clone();
                    gate.tell(way.bulk, PeerIn::Up { addr, peer: there });
                    cluster.world.ring_bell(way.from, Waiter::Gateway);
                    cluster.world.note(|| format!("{way} up"));
                }
                // It waits to be accepted.
                _ => again(20_000_000, backoff),
            }
        }
    }
}

fn told_down(cluster: &Cluster, way: Way, why: DownReason) {
    let gate = &mut *cluster.nodes[way.from].gate.borrow_mut();
    if gate.told.insert(way, Some(why)) != Some(Some(why)) {
        let addr = cluster.nodes[way.to].addr.clone();
        gate.tell(way.bulk, PeerIn::Down { addr, why });
        cluster.world.ring_bell(way.from, Waiter::Gateway);
        cluster.world.note(|| format!("{way} down: {why:?}"));
    }
}

/// A connection breaks: its dialler learns it, and dials again.
pub fn broken(cluster: &Rc<Cluster>, way: Way) {
    if !cluster.network.borrow_mut().disconnect(way) {
        return;
    }
    let node = &cluster.nodes[way.from];
    if node.daemon(Role::Gateway).is_none() {
        return;
    }
    told_down(cluster, way, DownReason::Closed);
    let dialling = node.gate.borrow().dialling;
    let cluster = cluster.clone();
    cluster.world.clone().after(BACKOFF_NS.0, move || {
        dial(&cluster, way, dialling, BACKOFF_NS.0);
    });
}

/// Sends a frame on its way, or says that it is not sent.
fn send(cluster: &Rc<Cluster>, from: usize, addr: String, bulk: bool, frame: Bytes) {
    let way = cluster.at(&addr).map(|to| Way { from, to, bulk });
    let sent = way.is_some_and(|way| carry(cluster, way, frame));
    if !sent {
        let gate = &mut *cluster.nodes[from].gate.borrow_mut();
        gate.tell(bulk, PeerIn::Unsent { addr });
    }
}

/// `false`: there is no connection, or it holds too much.
pub fn carry(cluster: &Rc<Cluster>, way: Way, frame: Bytes) -> bool {
    let network = &mut *cluster.network.borrow_mut();
    let passes = network.passes(way.from, way.to);
    let delay = network.delay(way.from, way.to);
    let now = cluster.world.now_ns();
    let Some(connection) = network.connection(way) else {
        return false;
    };
    if !passes || !connection.held.is_empty() {
        let room = connection.held.len() < HELD_MAX;
        if room {
            connection.held.push_back(frame);
        }
        return room;
    }
    connection.last_ns = (now + delay).max(connection.last_ns + 1);
    let (number, at) = (connection.number, connection.last_ns);
    let cluster = cluster.clone();
    cluster.world.clone().after(at - now, move || {
        arrive(&cluster, way, number, frame);
    });
    true
}

fn arrive(cluster: &Rc<Cluster>, way: Way, number: u64, frame: Bytes) {
    let hello = {
        let network = &mut *cluster.network.borrow_mut();
        let passes = network.passes(way.from, way.to);
        match network.connection(way) {
            Some(connection) if connection.number == number => {
                if !passes {
                    connection.held.push_back(frame);
                    return;
                }
                connection.hello.clone()
            }
            // The connection broke on the way.
            _ => return,
        }
    };
    let target = &cluster.nodes[way.to];
    if target.daemon(Role::Gateway).is_some() {
        cluster.world.trace.mix_bytes(&frame);
        let from = hello;
        let gate = &mut *target.gate.borrow_mut();
        gate.tell(way.bulk, PeerIn::Frame { from, frame });
        cluster.world.ring_bell(way.to, Waiter::Gateway);
    }
}

/// Calls a node's consensusd; the answer never comes when the gatewayd or the consensusd dies.
pub fn call(
    cluster: &Cluster,
    node: usize,
    make: impl FnOnce(u64) -> ToConsensus,
) -> Option<oneshot::Receiver<FromConsensus>> {
    cluster.nodes[node].daemon(Role::Gateway)?;
    let gate = &mut *cluster.nodes[node].gate.borrow_mut();
    let (asker, answer) = oneshot::channel();
    gate.next_call += 1;
    let call = gate.next_call;
    gate.calls.insert(call, asker);
    gate.to_client.push_back(make(call));
    cluster.world.ring_bell(node, Waiter::Gateway);
    Some(answer)
}
