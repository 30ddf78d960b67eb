//! A reader thread over real rings, with the test as gatewayd.

use super::*;
use crate::state::StoreOptions;
use bytes::Bytes;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::command::{
    Command, Op, Outcome, Rules, SessionRef, Stamp, Txn, encode_command,
};
use mareedb_ipc::wire::read::{Query, ReadRequest};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{
    FIRST_DATA_GROUP, LogPosition, NodeId, RandomId, ReplicaId, Revision, decode,
};
use mareedb_ipc::{Lane, Role, Waiter};
use tempfile::TempDir;

const LANE: Lane = Lane::Read(0);
const LONG: Duration = Duration::from_secs(60);

struct Scene {
    store: Store,
    node: NodeInProcess,
    sender: Sender,
    receiver: Receiver,
    bell: Bell,
    next: u64,
    _dir: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = TempDir::new().unwrap();
        let store = Store::open(StoreOptions {
            dir: dir.path().join("state"),
            cache_bytes: 1 << 20,
            unflushed_bytes_max: 1 << 20,
            first_rules: Rules {
                history_ms: 1000,
                ..Rules::default()
            },
        })
        .unwrap();
        store
            .create_replica(FIRST_DATA_GROUP, ReplicaId(1), KeyRange::whole())
            .unwrap();
        let node = NodeInProcess::small("");
        let mut gateway = node.attach(Role::Gateway);
        let mut scene = Scene {
            store,
            node,
            sender: gateway.sender(Role::Storage, LANE),
            receiver: gateway.receiver(Role::Storage, LANE),
            bell: gateway.bell(Waiter::Gateway),
            next: 0,
            _dir: dir,
        };
        scene.apply(&Command::OpenSession {
            session: RandomId(1),
            node: NodeId(1),
        });
        scene
    }

    fn start(&self) -> JoinHandle<RingError> {
        let mut storage = self.node.attach(Role::Storage);
        let parts = Parts {
            store: self.store.clone(),
            sender: storage.sender(Role::Gateway, LANE),
            receiver: storage.receiver(Role::Gateway, LANE),
            bell: storage.bell(Waiter::Reader(0)),
            ringer: storage.ringer(Waiter::Reader(0)),
        };
        spawn(parts, "reader-test")
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        let position = LogPosition {
            term: 1,
            index: self.next,
        };
        self.next += 1;
        let payload = Stamp::at(Revision::from_unix_ms(self.next)).on(&encode_command(command));
        let entry = LogEntry {
            position,
            body: EntryBody::Normal(payload),
        };
        let outcomes = self.store.apply(FIRST_DATA_GROUP, &[entry], 0).unwrap();
        decode(&outcomes[0].1).unwrap()
    }

    /// Gives the index of the entry.
    fn put(&mut self, key: &[u8], value: &[u8]) -> u64 {
        let origin = SessionRef {
            session: RandomId(1),
            sequence: self.next,
            low_water: self.next,
        };
        let op = Op::Put {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
        };
        let txn = Txn {
            success: vec![op],
            ..Txn::default()
        };
        let outcome = self.apply(&Command::Write {
            origin,
            epoch: 1,
            idempotency: None,
            txn,
        });
        assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        self.next - 1
    }

    fn call(&mut self, call: u64, min_index: u64, wait: Duration) {
        let call = SentReadCall::now(self.asked(call, min_index, wait));
        self.send(&call);
    }

    fn asked(&self, call: u64, min_index: u64, wait: Duration) -> ReadCall {
        let query = Query::Range {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 1000,
            max_bytes: u32::MAX,
            revision: None,
            keys_only: false,
        };
        ReadCall {
            call,
            wait_ms: u32::try_from(wait.as_millis()).unwrap(),
            read: ReadRequest {
                group: FIRST_DATA_GROUP,
                epoch: 1,
                min_index,
                query,
            },
        }
    }

    fn send(&mut self, call: &SentReadCall) {
        assert!(self.sender.try_send(call).unwrap().is_some());
        self.sender.publish();
    }

    fn reply(&mut self) -> ReadReply {
        loop {
            if let Some((reply, end)) = self.receiver.try_recv().unwrap() {
                self.receiver.release(end);
                return reply;
            }
            if self.receiver.arm().unwrap() {
                assert!(self.bell.wait(Some(LONG)), "no reply");
            }
        }
    }

    fn up(&mut self) -> u64 {
        match self.reply() {
            ReadReply::Up { epoch } => epoch,
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self) -> (u64, Result<ReadResponse, ReadError>) {
        match self.reply() {
            ReadReply::Reply { call, result } => (call, result),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn it_says_that_it_is_up_and_then_answers() {
    let mut scene = Scene::new();
    let index = scene.put(b"k", b"v");
    let _reader = scene.start();
    assert!(scene.up() > 0);
    scene.call(7, index, LONG);
    let (call, result) = scene.answer();
    let response = result.unwrap();
    assert_eq!((call, response.applied_index), (7, index));
    assert_eq!(response.items[0].value, Bytes::from_static(b"v"));
    scene.call(8, index + 1, Duration::ZERO);
    assert_eq!(scene.answer(), (8, Err(ReadError::NotApplied)));
}

#[test]
fn a_call_for_an_index_to_come_waits_for_it_and_holds_nobody_up() {
    // LIN-1
    let mut scene = Scene::new();
    let _reader = scene.start();
    scene.up();
    let index = scene.next;
    scene.call(1, index + 1, LONG);
    scene.call(2, index, LONG);
    scene.call(3, 0, LONG);
    assert_eq!(scene.answer().0, 3);
    scene.put(b"k", b"1");
    let (call, result) = scene.answer();
    assert_eq!((call, result.unwrap().applied_index), (2, index));
    scene.put(b"k", b"2");
    let (call, result) = scene.answer();
    assert_eq!(
        (call, result.unwrap().items[0].value.clone()),
        (1, Bytes::from_static(b"2"))
    );
}

#[test]
fn a_call_that_waited_its_time_is_told_so() {
    let mut scene = Scene::new();
    let _reader = scene.start();
    scene.up();
    scene.call(1, 1_000_000, Duration::from_millis(20));
    assert_eq!(scene.answer(), (1, Err(ReadError::NotApplied)));
}

#[test]
fn a_call_that_nobody_waits_for_any_more_is_not_carried_out() {
    let mut scene = Scene::new();
    let index = scene.put(b"k", b"v");
    // It waited in the ring while the reader was busy, or not there.
    let mut late = SentReadCall::now(scene.asked(1, index, Duration::from_millis(5)));
    late.sent_us -= 6_000;
    scene.send(&late);
    let mut long = SentReadCall::now(scene.asked(2, index, LONG));
    long.sent_us -= 6_000;
    scene.send(&long);
    let _reader = scene.start();
    scene.up();
    assert_eq!(scene.answer(), (1, Err(ReadError::NotApplied)));
    let (call, result) = scene.answer();
    assert_eq!((call, result.unwrap().applied_index), (2, index));
}

/// One that ends the process would end each of its successors, too.
#[test]
fn a_call_has_left_the_ring_when_it_is_carried_out() {
    let mut scene = Scene::new();
    let index = scene.put(b"k", b"v");
    let _reader = scene.start();
    scene.up();
    let store = scene.store.clone();
    let held = store.hold();
    scene.call(1, index, LONG);
    loop {
        let head = scene.sender.head().unwrap();
        if head == scene.sender.tail() {
            break;
        }
        if scene.sender.arm_progress(head).unwrap() {
            assert!(scene.bell.wait(Some(LONG)), "it is still in the ring");
        }
    }
    drop(held);
    let (call, result) = scene.answer();
    assert_eq!((call, result.unwrap().applied_index), (1, index));
}

#[test]
fn no_wake_up_is_lost_between_parking_and_applying() {
    let mut scene = Scene::new();
    let _reader = scene.start();
    scene.up();
    for _ in 0..2000 {
        let index = scene.next;
        scene.call(index, index, LONG);
        // At this moment the reader is anywhere between reading the call and sleeping.
        scene.put(b"k", b"v");
        let (call, result) = scene.answer();
        assert_eq!(call, index);
        assert!(result.unwrap().applied_index >= index);
    }
}

#[test]
fn answers_wait_for_room_and_large_ones_are_cut() {
    let mut scene = Scene::new();
    for number in 0..4u8 {
        scene.put(&[number], &vec![number; 100 << 10]);
    }
    let _reader = scene.start();
    scene.up();
    // A ring of 1 MiB takes messages of a quarter: two values fit into one, and five answers into the ring.
    for call in 0..40 {
        scene.call(call, 0, LONG);
    }
    for wanted in 0..40 {
        let (call, result) = scene.answer();
        let response = result.unwrap();
        assert_eq!(call, wanted);
        assert_eq!((response.items.len(), response.more), (2, true));
    }
}

#[test]
fn a_new_incarnation_says_so_and_takes_the_calls_that_are_left() {
    let mut scene = Scene::new();
    // A reader that ends: its thread is another role's crash here, so that a first attach is enough.
    let first = {
        let mut storage = scene.node.attach(Role::Storage);
        storage.sender(Role::Gateway, LANE).epoch()
    };
    scene.call(1, 0, LONG);
    let _reader = scene.start();
    assert!(scene.up() > first);
    assert_eq!(scene.answer().0, 1);
}
