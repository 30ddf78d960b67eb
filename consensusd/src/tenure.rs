//! What one incarnation of a group asks of storaged, which ends with it.
//!
//! A group that fails is started anew, alone, in the same process. openraft's shutdown waits for its core and not for the task of its
//! state machine: a request of that one that storaged has not answered would be sent again to the next storaged, and install an old
//! snapshot under the successor, which has been told a state without it. What is in the ring already is before the Hello that
//! the successor is started by, and storaged finishes it first.

use crate::log_link::LogLink;
use mareedb_ipc::wire::storage::{StorageAnswer, StorageRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Requests of one incarnation. Cloning it gives another handle.
#[derive(Clone)]
pub struct Tenure {
    link: Arc<LogLink>,
    ended: Arc<AtomicBool>,
}

impl Tenure {
    /// A new incarnation's.
    pub fn new(link: Arc<LogLink>) -> Tenure {
        Tenure {
            link,
            ended: Arc::default(),
        }
    }

    /// [`LogLink::request`], refused after the end.
    pub async fn request(&self, body: StorageRequest) -> StorageAnswer {
        if self.ended.load(Ordering::Relaxed) {
            return StorageAnswer::Failed {
                message: "the group has ended".into(),
            };
        }
        self.link.request_of(Some(self.ended.clone()), body).await
    }

    /// Ends it: what waits for an answer gets none, and is never sent again.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.link.forget_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::storage::{FromStorage, SnapshotMeta, ToStorage};
    use mareedb_ipc::wire::{FIRST_DATA_GROUP, RandomId};
    use mareedb_ipc::{Lane, Receiver, Role};

    fn taken(receiver: &mut Receiver) -> Vec<ToStorage> {
        let mut taken = Vec::new();
        while let Some((message, end)) = receiver.try_recv::<ToStorage>().unwrap() {
            receiver.release(end);
            taken.push(message);
        }
        taken
    }

    fn finish() -> StorageRequest {
        StorageRequest::FinishInstall {
            group: FIRST_DATA_GROUP,
            install: RandomId(7),
            meta: SnapshotMeta {
                last_applied: None,
                membership: None,
            },
        }
    }

    /// RAFT-2: an old snapshot is not installed under a group that has started anew.
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "tasks whose end is looked at")]
    async fn what_an_ended_group_asked_is_not_asked_of_the_next_storaged() {
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let sender = consensus.sender(Role::Storage, Lane::Log(0));
        let mut storage = node.attach(Role::Storage);
        let mut receiver = storage.receiver(Role::Consensus, Lane::Log(0));
        let link = LogLink::new(sender, Arc::default());
        let (old, new) = (Tenure::new(link.clone()), Tenure::new(link.clone()));
        let mut asked = Vec::new();
        for tenure in [&old, &new] {
            let tenure = tenure.clone();
            asked.push(tokio::spawn(async move { tenure.request(finish()).await }));
        }
        tokio::task::yield_now().await;
        assert_eq!(taken(&mut receiver).len(), 2);
        old.end();
        link.receive(FromStorage::Up { epoch: 9 });
        assert_eq!(taken(&mut receiver).len(), 1, "the successor's");
        let failed = StorageAnswer::Failed {
            message: "the request was dropped".into(),
        };
        assert_eq!(asked.remove(0).await.unwrap(), failed);
        let refused = old.request(finish()).await;
        assert!(matches!(refused, StorageAnswer::Failed { .. }));
        assert_eq!(taken(&mut receiver), Vec::new());
    }

    /// A request that nobody waits for is sent by the next turn of the main loop.
    #[tokio::test]
    async fn what_is_left_behind_is_sent_all_the_same() {
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let sender = consensus.sender(Role::Storage, Lane::Log(0));
        let mut storage = node.attach(Role::Storage);
        let mut receiver = storage.receiver(Role::Consensus, Lane::Log(0));
        let link = LogLink::new(sender, Arc::default());
        let snapshot = RandomId(3);
        link.leave(StorageRequest::CloseSnapshot { snapshot });
        assert_eq!(taken(&mut receiver), Vec::new());
        link.progress().unwrap();
        let sent = taken(&mut receiver);
        assert!(
            matches!(
                sent[..],
                [ToStorage::Request {
                    body: StorageRequest::CloseSnapshot { .. },
                    ..
                }]
            ),
            "{sent:?}"
        );
    }
}
