//! The main loop over rings whose other ends are the test's.

use super::*;
use crate::formation::{IDENTITY, Identity};
use crate::testing::{self, END};
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::storage::StorageRequest;
use mareedb_ipc::wire::{FIRST_DATA_GROUP, META_GROUP, encode};
use std::time::Duration;

/// A generous bound: a loaded machine is slow, a hang is for ever.
const PATIENCE: Duration = Duration::from_secs(40);

/// The main loop of a node of this name.
pub(super) fn host(node: &NodeInProcess, name: &str) -> Host {
    let mut inheritance = node.attach(Role::Consensus);
    let lanes = Lanes::take(&mut inheritance);
    Host::new(
        Config::default(),
        name.into(),
        inheritance.board(),
        inheritance.peer_board(Role::Storage),
        lanes,
        inheritance.sender(Role::Storage, Lane::Log(0)),
        Arc::default(),
    )
}

#[tokio::test]
async fn what_a_member_takes_outlives_consensusd() {
    let node = NodeInProcess::small("{}");
    let first = host(&node, "node1");
    first.exchange.takes().told("b", "node2", 1000);
    drop(first);
    let second = host(&node, "node1");
    let largest = second.exchange.takes().largest();
    assert_eq!(largest.refuses(1000), None);
    assert!(largest.refuses(1001).is_some());
}

/// LIVE-4: storaged may be born anew between what it has told and the start of the replicas. Its new incarnation has forgotten what it had
/// applied without a flush.
#[tokio::test]
async fn what_was_applied_is_applied_again_when_replicas_start() {
    let node = NodeInProcess::small("{}");
    let mut host = host(&node, "node2");
    let mut storage = node.attach(Role::Storage);
    let mut receiver = storage.receiver(Role::Consensus, Lane::Log(0));
    let mut sender = storage.sender(Role::Consensus, Lane::Log(0));
    let identity = Identity {
        incarnation: RandomId(testing::ME.0.into()),
        name: "node2".into(),
        formed: Some(testing::formed()),
    };
    let record = NodeRecord {
        name: IDENTITY.into(),
        value: encode(&identity).into(),
    };
    host.hello();
    let mut applied = Vec::new();
    let deadline = rt::now() + PATIENCE;
    // Some turns more show whether it is asked for once.
    let mut more = 100;
    while more > 0 && rt::now() < deadline {
        host.turn().unwrap();
        tokio::task::yield_now().await;
        while let Some((message, end)) = receiver.try_recv::<ToStorage>().unwrap() {
            receiver.release(end);
            let answers = match message {
                ToStorage::Hello { epoch, number } => vec![
                    FromStorage::Bootstrapped {
                        epoch,
                        number,
                        generation: receiver.generation(),
                        replicas: [META_GROUP, FIRST_DATA_GROUP].map(testing::state).into(),
                        records: vec![record.clone()],
                    },
                    FromStorage::Up {
                        epoch: sender.epoch(),
                    },
                ],
                ToStorage::Request { request, body } => {
                    let group = match body {
                        StorageRequest::Apply {
                            group,
                            results_from,
                            upto,
                        } => {
                            applied.push((group, results_from, upto));
                            group
                        }
                        StorageRequest::CurrentSnapshot { group } => group,
                        ref other => panic!("{other:?}"),
                    };
                    let body = testing::answer(&testing::state(group), &body);
                    vec![FromStorage::Answer { request, body }]
                }
                _ => Vec::new(),
            };
            for answer in answers {
                assert!(sender.try_send(&answer).unwrap().is_some());
            }
            sender.publish();
        }
        if applied.len() >= 2 && host.replicas().count() == 2 {
            more -= 1;
        }
    }
    applied.sort();
    let again = |group| (group, u64::MAX, END);
    assert_eq!(applied, [again(META_GROUP), again(FIRST_DATA_GROUP)]);
}
