//! Links as daemons use them: order, restarts, wake-ups, back-pressure, boards.

use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::{
    Cell, ExitCode, Gauge, InheritError, Lane, Receiver, RingError, RingSizes, Role, Sender,
    Topology, Waiter,
};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;

fn tiny() -> NodeInProcess {
    NodeInProcess::new(
        Topology {
            shards: 1,
            readers: 1,
            sizes: RingSizes::each(4096),
        },
        "{}",
    )
}

fn sender(node: &NodeInProcess) -> Sender {
    node.attach(Role::Consensus)
        .sender(Role::Storage, Lane::Log(0))
}

fn receiver(node: &NodeInProcess) -> Receiver {
    node.attach(Role::Storage)
        .receiver(Role::Consensus, Lane::Log(0))
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Publish,
    Receive,
    Release(usize),
    RestartSender,
    RestartReceiver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..900).prop_map(Step::Send),
        6 => Just(Step::Publish),
        10 => Just(Step::Receive),
        4 => (1usize..5).prop_map(Step::Release),
        1 => Just(Step::RestartSender),
        1 => Just(Step::RestartReceiver),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// RING-1, RING-2: what was published is received in order, at least once, whatever restarts; what was not is gone.
    #[test]
    fn a_ring_is_a_queue_that_survives_both_ends(steps in prop::collection::vec(step(), 1..300)) {
        let node = tiny();
        let mut tx = sender(&node);
        let mut rx = receiver(&node);
        let mut unpublished: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut queue: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
        let mut received = 0;
        let mut number = 0u32;
        for step in steps {
            match step {
                Step::Send(len) => {
                    number += 1;
                    let mut bytes = number.to_le_bytes().to_vec();
                    bytes.resize(4 + len, u8::try_from(number % 251).unwrap());
                    if let Some(end) = tx.try_send_encoded(&bytes).unwrap() {
                        prop_assert_eq!(end, tx.written());
                        unpublished.push((end, bytes));
                    } else {
                        prop_assert!(tx.used().unwrap() + 16 + 8 + len as u64 + 8 > tx.capacity());
                    }
                }
                Step::Publish => {
                    tx.publish();
                    queue.extend(unpublished.drain(..));
                }
                Step::Receive => match rx.try_recv_encoded().unwrap() {
                    Some((bytes, end)) => {
                        let (expected_end, expected) = &queue[received];
                        prop_assert_eq!(&bytes[..], &expected[..]);
                        prop_assert_eq!(end, *expected_end);
                        received += 1;
                    }
                    None => prop_assert_eq!(received, queue.len()),
                },
                Step::Release(count) => {
                    let count = count.min(received);
                    if count > 0 {
                        rx.release(queue[count - 1].0);
                        queue.drain(..count);
                        received -= count;
                    }
                }
                Step::RestartSender => {
                    let epoch = tx.epoch();
                    tx = sender(&node);
                    prop_assert!(tx.epoch() > epoch);
                    unpublished.clear();
                }
                Step::RestartReceiver => {
                    rx = receiver(&node);
                    received = 0;
                }
            }
        }
    }

    /// An environment variable of anybody's making gives an error, never a panic.
    #[test]
    fn hostile_board_and_ring_messages_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let node = tiny();
        let mut tx = sender(&node);
        let mut rx = receiver(&node);
        tx.try_send_encoded(&bytes).unwrap();
        tx.publish();
        match rx.try_recv::<mareedb_ipc::wire::storage::ToStorage>() {
            Ok(Some(_)) | Err(RingError::Decode { .. }) => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn a_message_beyond_a_quarter_of_the_ring_is_refused() {
    let node = tiny();
    let mut tx = sender(&node);
    let max = tx.max_message();
    assert!(tx.try_send_encoded(&vec![0; max]).unwrap().is_some());
    assert!(matches!(
        tx.try_send_encoded(&vec![0; max + 1]),
        Err(RingError::TooLarge { .. })
    ));
}

#[test]
fn a_sleeping_consumer_is_rung_and_a_waiting_producer_too() {
    let node = tiny();
    let mut storage = node.attach(Role::Storage);
    let mut rx = storage.receiver(Role::Consensus, Lane::Log(0));
    let shard = storage.bell(Waiter::Shard(0));
    let mut consensus = node.attach(Role::Consensus);
    let mut tx = consensus.sender(Role::Storage, Lane::Log(0));
    let bell = consensus.bell(Waiter::Consensus);

    assert!(rx.arm().unwrap(), "nothing is there");
    assert!(!shard.wait(Some(Duration::ZERO)));
    tx.try_send_encoded(b"x").unwrap();
    tx.publish();
    assert!(shard.wait(Some(Duration::from_secs(10))), "RING-5");
    assert!(!rx.arm().unwrap(), "something is there");
    tx.try_send_encoded(b"y").unwrap();
    tx.publish();
    assert!(
        !shard.wait(Some(Duration::ZERO)),
        "an awake consumer is not rung"
    );

    let (_, end) = rx.try_recv_encoded().unwrap().unwrap();
    let seen = tx.head().unwrap();
    assert!(tx.arm_progress(seen).unwrap());
    rx.release(end);
    assert!(bell.wait(Some(Duration::from_secs(10))), "RING-5");
    assert!(!tx.arm_progress(seen).unwrap(), "the head has moved");
    assert_eq!(tx.head().unwrap(), end);
}

#[test]
fn attaching_rings_everybody() {
    let node = tiny();
    let mut storage = node.attach(Role::Storage);
    let shard = storage.bell(Waiter::Shard(0));
    let reader = storage.bell(Waiter::Reader(0));
    // RING-6
    node.attach(Role::Consensus).ring_all_bells();
    assert!(shard.wait(Some(Duration::ZERO)));
    assert!(reader.wait(Some(Duration::ZERO)));
}

#[test]
fn a_renewed_link_is_empty_and_has_a_new_generation() {
    let mut node = tiny();
    let mut tx = sender(&node);
    tx.try_send_encoded(b"x").unwrap();
    tx.publish();
    let generation = tx.generation();
    let client = node
        .attach(Role::Consensus)
        .sender(Role::Gateway, Lane::Client)
        .generation();
    node.renew_links(Role::Consensus, Role::Storage).unwrap();
    let mut rx = receiver(&node);
    assert_ne!(rx.generation(), generation, "RING-4");
    assert!(rx.try_recv_encoded().unwrap().is_none());
    let same = node
        .attach(Role::Consensus)
        .sender(Role::Gateway, Lane::Client)
        .generation();
    assert_eq!(client, same, "other links stay");
}

#[test]
fn boards_outlive_their_writers() {
    let node = tiny();
    let board = node.attach(Role::Storage).board();
    let gateway = node.attach(Role::Gateway);
    let seen = gateway.peer_board(Role::Storage);
    assert_eq!(seen.read::<String>(Cell::LastWords), None);
    board.beat();
    board.set(Gauge::DataBytes, 7);
    board.put(Cell::LastWords, &"first".to_owned());
    board.put(Cell::LastWords, &"second".to_owned());
    drop(board);
    assert_eq!(
        seen.read::<String>(Cell::LastWords).as_deref(),
        Some("second")
    );
    assert_eq!((seen.beats(), seen.get(Gauge::DataBytes)), (1, 7));
    let successor = node.attach(Role::Storage).board();
    successor.put(Cell::LastWords, &"third".to_owned());
    assert_eq!(
        seen.read::<String>(Cell::LastWords).as_deref(),
        Some("third")
    );
    successor.put(Cell::LastWords, &"x".repeat(10_000));
    assert_eq!(
        seen.read::<String>(Cell::LastWords).as_deref(),
        Some("third"),
        "too large a record is not shown"
    );
}

#[test]
fn exit_codes_come_back_from_their_numbers() {
    for exit in ExitCode::ALL {
        assert_eq!(ExitCode::from_code(i32::from(exit.code())), Some(exit));
        assert!(!exit.meaning().is_empty() && !exit.remedy().is_empty());
    }
    assert_eq!(ExitCode::from_code(3), None);
}

#[test]
fn a_process_without_a_supervisor_is_told_so() {
    assert!(matches!(
        mareedb_ipc::Inheritance::from_env(),
        Err(InheritError::Missing)
    ));
}
