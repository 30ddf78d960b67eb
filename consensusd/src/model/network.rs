//! A stand-in for the gatewayds and what lies between them: carries frames, makes calls, keeps the views.

use super::lock;
use crate::frames::Frame;
use mareedb_ipc::wire::gateway::{FromConsensus, Target, ToConsensus};
use mareedb_ipc::wire::peer::{DownReason, PEER_PROTOCOL, PeerHello, PeerIn, PeerOut, Way};
use mareedb_ipc::wire::view::{ClusterView, NodeIdentity};
use mareedb_ipc::wire::{RandomId, decode};
use mareedb_ipc::{Bell, Inheritance, Lane, Receiver, Role, Sender, Waiter};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver as Answers, Sender as Asker, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What tests and the network share.
#[derive(Default)]
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: VecDeque<(usize, ToConsensus, u64, Asker<FromConsensus>)>,
    next_call: u64,
    views: BTreeMap<usize, ClusterView>,
    cut: BTreeSet<(usize, usize)>,
    /// Whose frames do not pass by themselves.
    slow: BTreeMap<usize, Slow>,
    injected: Vec<(usize, Origin, Vec<u8>)>,
}

/// What of a node's frames waits.
struct Slow {
    which: fn(&Frame) -> bool,
    /// One of them may pass.
    pass: bool,
}

/// Who is said to have sent a frame.
enum Origin {
    Node(usize),
    Stranger(Box<NodeIdentity>),
}

/// The running network.
pub struct Network {
    shared: Arc<Shared>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Port {
    addr: String,
    bell: Bell,
    start: RandomId,
    me: Option<NodeIdentity>,
    targets: Vec<Target>,
    up: BTreeSet<String>,
    client: (Sender, Receiver, VecDeque<ToConsensus>),
    peer: PeerLane,
    bulk: PeerLane,
    /// What has left the ring and does not pass by itself, by way.
    waiting: [VecDeque<PeerOut>; 2],
    open: BTreeMap<u64, Asker<FromConsensus>>,
}

type PeerLane = (Sender, Receiver, VecDeque<PeerIn>);

impl Port {
    fn lane(&mut self, way: Way) -> &mut PeerLane {
        match way {
            Way::Peer => &mut self.peer,
            Way::Bulk => &mut self.bulk,
        }
    }
}

impl Network {
    /// Attaches as the gatewayd of every node.
    pub fn start(nodes: Vec<(String, Inheritance)>) -> Network {
        let shared = Arc::new(Shared::default());
        let end = Arc::new(AtomicBool::new(false));
        let (own, ended) = (shared.clone(), end.clone());
        let thread = std::thread::spawn(move || {
            let mut ports: Vec<Port> = nodes.into_iter().map(port).collect();
            while !ended.load(Ordering::SeqCst) {
                turn(&mut ports, &own);
            }
        });
        Network {
            shared,
            end,
            thread: Some(thread),
        }
    }

    /// Calls a node's consensusd.
    pub fn call(
        &self,
        node: usize,
        make: impl FnOnce(u64) -> ToConsensus,
    ) -> Answers<FromConsensus> {
        let (asker, answers) = channel();
        let mut state = lock(&self.shared.state);
        state.next_call += 1;
        let call = state.next_call;
        state.calls.push_back((node, make(call), call, asker));
        answers
    }

    /// Puts a frame into a node's ring, as if another one had sent it.
    pub fn inject(&self, to: usize, from: usize, frame: Vec<u8>) {
        let sender = Origin::Node(from);
        lock(&self.shared.state).injected.push((to, sender, frame));
    }

    /// The same, of somebody who presents himself so.
    pub fn inject_of(&self, to: usize, from: NodeIdentity, frame: Vec<u8>) {
        let sender = Origin::Stranger(Box::new(from));
        lock(&self.shared.state).injected.push((to, sender, frame));
    }

    /// Cuts the way between two nodes.
    pub fn cut(&self, a: usize, b: usize) {
        lock(&self.shared.state).cut.extend([(a, b), (b, a)]);
    }

    /// From now on these frames of a node wait, until one is let pass or all ways are repaired. The others overtake them.
    pub fn slow(&self, from: usize, which: fn(&Frame) -> bool) {
        let slow = Slow { which, pass: false };
        lock(&self.shared.state).slow.insert(from, slow);
    }

    /// Lets one of them pass: one that waits now, or the next.
    pub fn let_one_pass(&self, from: usize) {
        if let Some(slow) = lock(&self.shared.state).slow.get_mut(&from) {
            slow.pass = true;
        }
    }

    /// Repairs all ways.
    pub fn heal(&self) {
        let mut state = lock(&self.shared.state);
        state.cut.clear();
        state.slow.clear();
    }

    /// Waits until the views show something.
    pub fn wait<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&BTreeMap<usize, ClusterView>) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + super::PATIENCE;
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(found) = look(&state.views) {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: never; {:#?}",
                state.views
            );
            state = self
                .shared
                .changed
                .wait_timeout(state, Duration::from_millis(100))
                .expect("no poison")
                .0;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the network does not panic");
        }
    }
}

fn port((addr, mut inheritance): (String, Inheritance)) -> Port {
    let mut lane = |lane| {
        (
            inheritance.sender(Role::Consensus, lane),
            inheritance.receiver(Role::Consensus, lane),
        )
    };
    let (client, peer, bulk) = (lane(Lane::Client), lane(Lane::Peer), lane(Lane::Bulk));
    let epoch = client.0.epoch();
    let port = Port {
        addr,
        start: inheritance.start(),
        bell: inheritance.bell(Waiter::Gateway),
        me: None,
        targets: Vec::new(),
        up: BTreeSet::new(),
        client: (
            client.0,
            client.1,
            VecDeque::from([ToConsensus::Hello { epoch }]),
        ),
        peer: (peer.0, peer.1, VecDeque::new()),
        bulk: (bulk.0, bulk.1, VecDeque::new()),
        waiting: [VecDeque::new(), VecDeque::new()],
        open: BTreeMap::new(),
    };
    inheritance.ring_all_bells();
    port
}

fn flush<T: Serialize>(lane: &mut (Sender, Receiver, VecDeque<T>)) {
    while let Some(message) = lane.2.front() {
        if lane.0.try_send(message).expect("a sound ring").is_none() {
            break;
        }
        lane.2.pop_front();
    }
    lane.0.publish();
}

fn turn(ports: &mut [Port], shared: &Shared) {
    let cut = {
        let mut state = lock(&shared.state);
        while let Some((node, message, call, asker)) = state.calls.pop_front() {
            ports[node].open.insert(call, asker);
            ports[node].client.2.push_back(message);
        }
        for (to, from, frame) in state.injected.drain(..) {
            let from = match from {
                Origin::Node(from) => {
                    let me = ports[from].me.clone().expect("it has said who it is");
                    hello(&ports[from], &me)
                }
                Origin::Stranger(who) => hello(&ports[to], &who),
            };
            let frame = frame.into();
            ports[to].peer.2.push_back(PeerIn::Frame { from, frame });
        }
        state.cut.clone()
    };
    for (node, port) in ports.iter_mut().enumerate() {
        take_client(node, port, shared);
    }
    for from in 0..ports.len() {
        connect(ports, from, &cut);
        for way in [Way::Peer, Way::Bulk] {
            carry(ports, from, way, &cut, shared);
        }
    }
    let mut quiet = true;
    for port in ports.iter_mut() {
        flush(&mut port.client);
        flush(&mut port.peer);
        flush(&mut port.bulk);
        for receiver in [&mut port.client.1, &mut port.peer.1, &mut port.bulk.1] {
            quiet &= receiver.arm().expect("a sound ring");
        }
    }
    if quiet {
        let mut bells: Vec<PollFd<'_>> = ports
            .iter()
            .map(|port| PollFd::new(port.bell.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut bells, PollTimeout::from(2u8)).expect("poll");
        for port in ports.iter() {
            port.bell.drain();
        }
    }
}

fn take_client(node: usize, port: &mut Port, shared: &Shared) {
    while let Some((message, end)) = port
        .client
        .1
        .try_recv::<FromConsensus>()
        .expect("a sound ring")
    {
        port.client.1.release(end);
        let call = match &message {
            // A new one knows nothing of what is up.
            FromConsensus::Hello { .. } => {
                port.up.clear();
                continue;
            }
            FromConsensus::View(view) => {
                lock(&shared.state).views.insert(node, (**view).clone());
                shared.changed.notify_all();
                continue;
            }
            FromConsensus::Targets { me, targets } => {
                port.me = Some((**me).clone());
                port.targets.clone_from(targets);
                continue;
            }
            FromConsensus::Proposed { call, .. }
            | FromConsensus::ReadIndex { call, .. }
            | FromConsensus::Admin { call, .. } => *call,
        };
        if let Some(asker) = port.open.remove(&call) {
            // The test may have given up.
            let _ = asker.send(message);
        }
    }
}

fn hello(port: &Port, identity: &NodeIdentity) -> Box<PeerHello> {
    Box::new(PeerHello {
        protocol: PEER_PROTOCOL,
        start: port.start,
        identity: identity.clone(),
        expected: None,
    })
}

fn connect(ports: &mut [Port], from: usize, cut: &BTreeSet<(usize, usize)>) {
    for target in ports[from].targets.clone() {
        let there = ports.iter().position(|port| port.addr == target.addr);
        let peer = there
            .filter(|to| !cut.contains(&(from, *to)))
            .and_then(|to| Some(hello(&ports[to], ports[to].me.as_ref()?)));
        let (addr, port) = (target.addr, &mut ports[from]);
        match peer {
            Some(peer) if port.up.insert(addr.clone()) => {
                port.peer.2.push_back(PeerIn::Up { addr, peer });
            }
            None if port.up.remove(&addr) => {
                let why = DownReason::Unreachable;
                port.peer.2.push_back(PeerIn::Down { addr, why });
            }
            _ => {}
        }
    }
}

/// The next frame that a node sends on this way.
fn next_sent(port: &mut Port, from: usize, way: Way, shared: &Shared) -> Option<PeerOut> {
    let mut state = lock(&shared.state);
    let mut slow = state.slow.get_mut(&from);
    let may_pass = slow.as_ref().is_none_or(|slow| slow.pass);
    if may_pass && let Some(message) = port.waiting[way as usize].pop_front() {
        if let Some(slow) = &mut slow {
            slow.pass = false;
        }
        return Some(message);
    }
    loop {
        let lane = port.lane(way);
        let (message, end) = lane.1.try_recv::<PeerOut>().expect("a sound ring")?;
        lane.1.release(end);
        let PeerOut::Frame { frame, .. } = &message;
        let frame = decode::<Frame>(frame);
        if let (Some(slow), Ok(frame)) = (&slow, &frame)
            && (slow.which)(frame)
        {
            port.waiting[way as usize].push_back(message);
        } else {
            return Some(message);
        }
    }
}

fn carry(
    ports: &mut [Port],
    from: usize,
    way: Way,
    cut: &BTreeSet<(usize, usize)>,
    shared: &Shared,
) {
    loop {
        let port = &mut ports[from];
        let Some(PeerOut::Frame { addr, frame }) = next_sent(port, from, way, shared) else {
            return;
        };
        let me = port.me.clone();
        let to = ports.iter().position(|port| port.addr == addr);
        match (to, me) {
            (Some(to), Some(me)) if !cut.contains(&(from, to)) => {
                let from = hello(&ports[from], &me);
                let lane = ports[to].lane(way);
                lane.2.push_back(PeerIn::Frame { from, frame });
            }
            _ => {
                let lane = ports[from].lane(way);
                lane.2.push_back(PeerIn::Unsent { addr });
            }
        }
    }
}
