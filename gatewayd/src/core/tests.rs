//! Requests over real rings, with the test as consensusd.

use super::*;
use crate::links::Pump;
use crate::links::tests::{Consensus, gateway, later};
use bytes::Bytes;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::command::{Command, Op, Outcome, Txn};
use mareedb_ipc::wire::gateway::{ConsensusError, FromConsensus, ToConsensus};
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::view::{GroupView, MemberView, NodeIdentity};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, NodeId, RandomId, decode, encode};
use std::fmt::Debug;
use std::pin::Pin;

/// Node 1 of three, with its gateway and without the others.
pub(crate) struct Bed {
    pub(crate) core: Arc<Core>,
    pump: Pump,
    consensus: Consensus,
    _node: NodeInProcess,
}

impl Bed {
    pub(crate) fn new(config: Config) -> Bed {
        let node = NodeInProcess::small("{}");
        let pump = gateway(&node);
        let (calls, peers) = (pump.calls.clone(), pump.peers.clone());
        Bed {
            core: Core::new(calls, peers, Sessions::new(), config),
            pump,
            consensus: Consensus::new(&node),
            _node: node,
        }
    }

    /// consensusd tells who leads the meta group and the data.
    pub(crate) fn led_by(&mut self, meta: u64, data: u64) {
        let view = Box::new(view(meta, data));
        self.told(&FromConsensus::View(view));
    }

    pub(crate) fn told(&mut self, message: &FromConsensus) {
        self.consensus.tell(message);
        self.pump.turn().unwrap();
    }

    /// What consensusd is asked next, for a request that goes on.
    pub(crate) async fn asked<T: Debug>(
        &mut self,
        mut request: Pin<&mut impl Future<Output = T>>,
    ) -> ToConsensus {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let std::task::Poll::Ready(answer) = futures::poll!(request.as_mut()) {
                panic!("it is answered: {answer:?}");
            }
            self.pump.turn().unwrap();
            if let Some(message) = self.consensus.heard() {
                return message;
            }
            assert!(Instant::now() < end, "consensusd is not asked");
            // A pause between two attempts passes.
            tokio::task::yield_now().await;
        }
    }

    /// The same of a proposal: its call and its command.
    pub(crate) async fn proposed<T: Debug>(
        &mut self,
        request: Pin<&mut impl Future<Output = T>>,
    ) -> (u64, Bytes) {
        match self.asked(request).await {
            ToConsensus::Propose { call, command, .. } => (call, command),
            other => panic!("{other:?}"),
        }
    }

    /// Whether consensusd is asked nothing more at this moment.
    pub(crate) fn unasked(&mut self) -> bool {
        self.pump.turn().unwrap();
        self.consensus.heard().is_none()
    }

    /// consensusd answers a proposal.
    pub(crate) fn answer(&mut self, call: u64, result: Result<&Outcome, ConsensusError>) {
        let result = result.map(|outcome| encode(outcome).into());
        self.told(&FromConsensus::Proposed { call, result });
    }

    /// Opens the session that a first write asks for, and gives what it proposes then.
    pub(crate) async fn first_proposed<T: Debug>(
        &mut self,
        mut write: Pin<&mut impl Future<Output = T>>,
    ) -> (u64, Bytes) {
        let (call, command) = self.proposed(write.as_mut()).await;
        let command: Command = decode(&command).unwrap();
        assert!(
            matches!(command, Command::OpenSession { .. }),
            "{command:?}"
        );
        self.answer(call, Ok(&Outcome::SessionOpen));
        self.proposed(write).await
    }
}

fn view(meta: u64, data: u64) -> ClusterView {
    let member = |id: u64| MemberView {
        id: NodeId(id),
        name: format!("node{id}"),
        // Nobody listens there.
        addr: format!("127.0.0.{id}:1"),
        rest_addr: String::new(),
        version: String::new(),
        voter: true,
        online: true,
        disk_stalled: false,
        clock_ahead: false,
        last_contact_ms: None,
        lag_ms: None,
    };
    let group = |id, leader| GroupView {
        id,
        range: KeyRange::whole(),
        replicas: Vec::new(),
        leader: Some(NodeId(leader)),
        quorum_ok: true,
        term: 1,
        local: None,
    };
    ClusterView {
        me: NodeIdentity {
            name: "node1".into(),
            id: Some(NodeId(1)),
            incarnation: RandomId(1),
            cluster: Some(RandomId(2)),
            addr: "127.0.0.1:1".into(),
            rest_addr: String::new(),
            version: String::new(),
        },
        ready: true,
        forming: None,
        refused: None,
        members: vec![member(1), member(2), member(3)],
        groups: vec![group(META_GROUP, meta), group(FIRST_DATA_GROUP, data)],
    }
}

fn put() -> Txn {
    Txn {
        success: vec![Op::Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
        }],
        ..Txn::default()
    }
}

#[tokio::test]
async fn once_1_a_refused_repeat_says_nothing_of_what_was_proposed_before() {
    for (before, code) in [
        (None, ErrorCode::ValueTooLarge),
        (Some(ConsensusError::Uncertain), ErrorCode::OutcomeUnknown),
    ] {
        let mut bed = Bed::new(Config::default());
        bed.led_by(1, 1);
        let core = bed.core.clone();
        let write = core.write(put(), None, later());
        tokio::pin!(write);
        let (mut call, _) = bed.first_proposed(write.as_mut()).await;
        if let Some(before) = before {
            bed.answer(call, Err(before));
            (call, _) = bed.proposed(write.as_mut()).await;
        }
        let no_ring = ConsensusError::TooLarge("no ring carries it".into());
        bed.answer(call, Err(no_ring));
        let told = write.await.unwrap_err();
        assert_eq!(told.code, code, "{told}");
        assert!(told.message.contains("no ring carries it"), "{told}");
    }
}

#[tokio::test]
async fn once_1_what_waits_for_a_leader_that_is_replaced_is_proposed_again_at_once() {
    let mut bed = Bed::new(Config::default());
    bed.led_by(1, 1);
    let core = bed.core.clone();
    let write = core.write(put(), None, later());
    tokio::pin!(write);
    let (first, command) = bed.first_proposed(write.as_mut()).await;
    // It is never answered: this node hands over, and leads again.
    bed.led_by(1, 2);
    assert!(futures::poll!(write.as_mut()).is_pending());
    bed.led_by(1, 1);
    let (second, again) = bed.proposed(write.as_mut()).await;
    assert_ne!(second, first);
    assert_eq!(again, command);
}

#[tokio::test]
async fn a_read_that_waits_for_a_leader_that_is_replaced_is_asked_again_at_once() {
    let mut bed = Bed::new(Config::default());
    bed.led_by(1, 1);
    let core = bed.core.clone();
    let query = Query::Get {
        key: Bytes::from_static(b"k"),
        revision: None,
    };
    let read = core.read(b"k", query, false, later());
    tokio::pin!(read);
    let index = |asked| match asked {
        ToConsensus::ReadIndex { call, .. } => call,
        other => panic!("{other:?}"),
    };
    let first = index(bed.asked(read.as_mut()).await);
    bed.led_by(1, 2);
    assert!(futures::poll!(read.as_mut()).is_pending());
    bed.led_by(1, 1);
    let second = index(bed.asked(read.as_mut()).await);
    assert_ne!(second, first);
}
