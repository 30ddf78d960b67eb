//! Calls over real rings, with the test as consensusd and as a reader, which end and are born anew.

use super::*;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::FIRST_DATA_GROUP;
use mareedb_ipc::wire::encode;
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::{Inheritance, Lane, Role};
use std::time::Duration;

pub(crate) fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) fn gateway(node: &NodeInProcess) -> Pump {
    let mut own = node.attach(Role::Gateway);
    let lanes = Lanes {
        to_client: own.sender(Role::Consensus, Lane::Client),
        from_client: own.receiver(Role::Consensus, Lane::Client),
        to_peer: own.sender(Role::Consensus, Lane::Peer),
        from_peer: own.receiver(Role::Consensus, Lane::Peer),
        to_bulk: own.sender(Role::Consensus, Lane::Bulk),
        from_bulk: own.receiver(Role::Consensus, Lane::Bulk),
        readers: vec![(
            own.sender(Role::Storage, Lane::Read(0)),
            own.receiver(Role::Storage, Lane::Read(0)),
        )],
    };
    let outbox = |sender: &Sender| Outbox::before(sender, || {});
    let (client, peer, bulk) = (
        outbox(&lanes.to_client),
        outbox(&lanes.to_peer),
        outbox(&lanes.to_bulk),
    );
    let readers = vec![outbox(&lanes.readers[0].0)];
    Pump {
        calls: Calls::new(client.clone(), readers.clone()),
        peers: Peers::new(RandomId::draw(), peer.clone(), bulk.clone()),
        lanes,
        client,
        peer,
        bulk,
        readers,
    }
}

/// The test as consensusd.
pub(crate) struct Consensus {
    sender: Sender,
    receiver: Receiver,
}

impl Consensus {
    /// One is born, and says so.
    pub(crate) fn new(node: &NodeInProcess) -> Consensus {
        let mut own: Inheritance = node.attach(Role::Consensus);
        let mut consensus = Consensus {
            sender: own.sender(Role::Gateway, Lane::Client),
            receiver: own.receiver(Role::Gateway, Lane::Client),
        };
        let epoch = consensus.sender.epoch();
        consensus.tell(&FromConsensus::Hello { epoch });
        consensus
    }
    pub(crate) fn tell(&mut self, message: &FromConsensus) {
        self.sender
            .try_send(message)
            .unwrap()
            .expect("room for a message");
        self.sender.publish();
    }
    /// What it is told or asked next.
    pub(crate) fn heard(&mut self) -> Option<ToConsensus> {
        let (message, end) = self.receiver.try_recv::<ToConsensus>().unwrap()?;
        self.receiver.release(end);
        Some(message)
    }
    fn asked(&mut self) -> Option<u64> {
        match self.heard()? {
            ToConsensus::Propose { call, .. } => Some(call),
            other => panic!("{other:?}"),
        }
    }
}

/// What a proposal gives that the first consensusd has taken before it ended, and its successor answers so.
async fn proposed_twice(answer: Result<Bytes, ConsensusError>) -> Result<Bytes, ConsensusError> {
    let node = NodeInProcess::small("{}");
    let mut pump = gateway(&node);
    let calls = pump.calls.clone();
    let proposal = calls.propose(FIRST_DATA_GROUP, Bytes::from_static(b"command"));
    tokio::pin!(proposal);
    assert!(futures::poll!(&mut proposal).is_pending());
    pump.turn().unwrap();
    let first = Consensus::new(&node).asked().expect("it is asked");
    let mut successor = Consensus::new(&node);
    pump.turn().unwrap();
    let call = successor.asked().expect("it is asked again");
    assert_eq!(call, first);
    successor.tell(&FromConsensus::Proposed {
        call,
        result: answer,
    });
    pump.turn().unwrap();
    proposal.await
}

#[tokio::test]
async fn once_1_a_refusal_says_nothing_of_what_a_predecessor_has_proposed() {
    let refusals = [
        ConsensusError::NotReady,
        ConsensusError::Overloaded,
        ConsensusError::NotLeader { leader: None },
        ConsensusError::Refused("no".into()),
    ];
    for refusal in refusals {
        let told = proposed_twice(Err(refusal)).await;
        assert_eq!(told, Err(ConsensusError::Uncertain));
    }
    let lost = encode(&Outcome::SessionUnknown).into();
    assert_eq!(
        proposed_twice(Ok(lost)).await,
        Err(ConsensusError::Uncertain)
    );
    let done = Bytes::from(encode(&Outcome::Ticked));
    assert_eq!(proposed_twice(Ok(done.clone())).await, Ok(done));
}

#[tokio::test]
async fn an_answer_to_a_predecessors_call_meets_nothing() {
    let node = NodeInProcess::small("{}");
    let read = || ReadRequest {
        group: FIRST_DATA_GROUP,
        epoch: 0,
        min_index: 0,
        query: Query::Elections,
    };
    let reply = |applied_index| ReadResponse {
        items: Vec::new(),
        elections: Vec::new(),
        more: false,
        revision: mareedb_ipc::wire::Revision(0),
        applied_index,
    };
    let mut storage = node.attach(Role::Storage);
    let mut sender = storage.sender(Role::Gateway, Lane::Read(0));
    let mut receiver = storage.receiver(Role::Gateway, Lane::Read(0));
    let mut asked = || {
        let (sent, end) = receiver
            .try_recv::<SentReadCall>()
            .unwrap()
            .expect("a call");
        receiver.release(end);
        sent.call.call
    };
    let before = {
        let mut pump = gateway(&node);
        let calls = pump.calls.clone();
        let waiting = calls.read(read(), later());
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        pump.turn().unwrap();
        asked()
    };
    let mut pump = gateway(&node);
    let calls = pump.calls.clone();
    let waiting = calls.read(read(), later());
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    pump.turn().unwrap();
    let now = asked();
    for (call, index) in [(before, 1), (now, 2)] {
        let result = Ok(reply(index));
        let message = ReadReply::Reply { call, result };
        sender.try_send(&message).unwrap().expect("room");
    }
    sender.publish();
    pump.turn().unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().applied_index, 2);
}

#[tokio::test]
async fn a_reader_is_told_how_long_somebody_waits() {
    let node = NodeInProcess::small("{}");
    let mut pump = gateway(&node);
    let calls = pump.calls.clone();
    let read = ReadRequest {
        group: FIRST_DATA_GROUP,
        epoch: 0,
        min_index: 0,
        query: Query::Elections,
    };
    let waiting = calls.read(read, Instant::now() + Duration::from_millis(50));
    assert!(futures::poll!(std::pin::pin!(waiting)).is_pending());
    pump.turn().unwrap();
    let mut storage = node.attach(Role::Storage);
    let mut receiver = storage.receiver(Role::Gateway, Lane::Read(0));
    let (sent, _) = receiver
        .try_recv::<SentReadCall>()
        .unwrap()
        .expect("a call");
    assert!(sent.call.wait_ms <= 51, "{sent:?}");
}

#[tokio::test]
async fn what_no_ring_carries_is_refused_and_breaks_nothing() {
    let node = NodeInProcess::small("{}");
    let mut pump = gateway(&node);
    let large = Bytes::from(vec![0; 1 << 20]);
    let refused = pump.calls.propose(FIRST_DATA_GROUP, large.clone()).await;
    assert!(matches!(refused, Err(ConsensusError::TooLarge(_))));
    let read = ReadRequest {
        group: FIRST_DATA_GROUP,
        epoch: 0,
        min_index: 0,
        query: Query::Get {
            key: large,
            revision: None,
        },
    };
    let refused = pump.calls.read(read, later()).await;
    assert!(matches!(refused, Err(ConsensusError::TooLarge(_))));
    pump.turn().unwrap();
}

#[tokio::test]
async fn calls_that_find_no_room_are_refused_and_those_that_were_taken_are_sent() {
    let node = NodeInProcess::small("{}");
    let mut pump = gateway(&node);
    let calls = pump.calls.clone();
    let read = || ReadRequest {
        group: FIRST_DATA_GROUP,
        epoch: 0,
        min_index: 0,
        query: Query::Get {
            key: Bytes::from(vec![b'k'; 4 << 10]),
            revision: None,
        },
    };
    // Nobody takes anything, and who asks gives up at once.
    let mut taken = 0;
    loop {
        let asked = calls.read(read(), Instant::now() + Duration::from_millis(1));
        match futures::poll!(std::pin::pin!(asked)) {
            std::task::Poll::Pending => taken += 1,
            std::task::Poll::Ready(answer) => {
                assert_eq!(answer, Err(ConsensusError::Overloaded));
                break;
            }
        }
        assert!(taken < 10_000, "what waits has no bound");
    }
    let command = Bytes::from(vec![0; 64 << 10]);
    let mut proposals = Vec::new();
    loop {
        let mut asked = Box::pin(calls.propose(FIRST_DATA_GROUP, command.clone()));
        match futures::poll!(&mut asked) {
            std::task::Poll::Pending => proposals.push(asked),
            std::task::Poll::Ready(answer) => {
                assert_eq!(answer, Err(ConsensusError::Overloaded));
                break;
            }
        }
        assert!(proposals.len() < 1_000, "what waits has no bound");
    }
    assert!(taken > 100 && proposals.len() > 10);
    let mut storage = node.attach(Role::Storage);
    let mut reader = storage.receiver(Role::Gateway, Lane::Read(0));
    let mut arrived = 0;
    while arrived < taken {
        pump.turn().unwrap();
        while let Some((_, end)) = reader.try_recv::<SentReadCall>().unwrap() {
            reader.release(end);
            arrived += 1;
        }
    }
    // There is room again.
    let asked = calls.read(read(), later());
    assert!(futures::poll!(std::pin::pin!(asked)).is_pending());
}

#[tokio::test]
async fn a_call_that_has_not_left_this_process_is_known_not_to_have() {
    use crate::peer::Unanswered;
    use crate::peer::frame::Call;
    use mareedb_ipc::wire::gateway::Target;
    let node = NodeInProcess::small("{}");
    let peers = gateway(&node).peers;
    let target = Target {
        // Nobody listens there.
        addr: "127.0.0.1:1".into(),
        node: None,
    };
    let call = || Call::Transfer { to: None };
    for _ in 0..2 {
        let told = peers.call(&target.addr, Duration::from_secs(60), call());
        assert_eq!(told.await, Err(Unanswered::Unsent));
        peers.set_targets(&hello().identity, std::slice::from_ref(&target));
    }
}

#[test]
fn what_becomes_of_streams_is_told_however_full_the_ring_is() {
    let node = NodeInProcess::small("{}");
    let mut pump = gateway(&node);
    let frame = || PeerIn::Frame {
        from: Box::new(hello()),
        frame: Bytes::from(vec![0; 64 << 10]),
    };
    for _ in 0..200 {
        deliver(&pump.peer, &frame());
    }
    let up = PeerIn::Up {
        addr: "a".into(),
        peer: Box::new(hello()),
    };
    deliver(&pump.peer, &up);
    let mut consensus = node.attach(Role::Consensus);
    let mut receiver = consensus.receiver(Role::Gateway, Lane::Peer);
    let mut last = None;
    loop {
        pump.turn().unwrap();
        let Some((message, end)) = receiver.try_recv::<PeerIn>().unwrap() else {
            break;
        };
        receiver.release(end);
        last = Some(message);
    }
    assert_eq!(last, Some(up));
}

fn hello() -> mareedb_ipc::wire::peer::PeerHello {
    mareedb_ipc::wire::peer::PeerHello {
        protocol: mareedb_ipc::wire::peer::PEER_PROTOCOL,
        start: RandomId(1),
        identity: mareedb_ipc::wire::view::NodeIdentity {
            name: "node1".into(),
            id: None,
            incarnation: RandomId(1),
            cluster: None,
            addr: "a".into(),
            rest_addr: "b".into(),
            version: String::new(),
        },
        expected: None,
    }
}
