//! Read indexes: one round to the voters serves all calls that wait for it (LIN-1), and none rests on a lease (RAFT-4).

use crate::client::{Call, Client};
use crate::planted::{Fault, planted};
use crate::raft::{Raft, leader_node, position};
use crate::rt;
use mareedb_ipc::wire::LogPosition;
use mareedb_ipc::wire::gateway::ConsensusError;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use parking_lot::Mutex;
use std::sync::Arc;

/// The leadership with which a replica was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Its term.
    pub term: u64,
    /// The last index that the log held.
    pub last: u64,
}

/// The read indexes of a group.
#[derive(Clone)]
pub struct Reads(Arc<Shared>);

struct Shared {
    raft: Raft,
    client: Arc<Client>,
    restored: Option<Restored>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Call>,
    running: bool,
}

impl Reads {
    /// Read indexes of this group.
    pub fn new(raft: Raft, client: Arc<Client>, restored: Option<Restored>) -> Reads {
        Reads(Arc::new(Shared {
            raft,
            client,
            restored,
            queue: Mutex::default(),
        }))
    }

    /// Takes a call. One that comes while a round is on its way waits for the next: that round may have begun before a
    /// write which the caller knows of.
    pub fn add(&self, call: Call) {
        let mut queue = self.0.queue.lock();
        queue.waiting.push(call);
        if !std::mem::replace(&mut queue.running, true) {
            let me = self.clone();
            rt::spawn(async move { me.run().await });
        }
    }

    async fn run(&self) {
        loop {
            let calls = {
                let mut queue = self.0.queue.lock();
                if queue.waiting.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let result = self.index().await;
            for call in calls {
                self.0.client.read_index(call, result.clone());
            }
        }
    }

    async fn index(&self) -> Result<u64, ConsensusError> {
        let raft = &self.0.raft;
        if !raft.is_leader() {
            return Err(ConsensusError::NotLeader {
                leader: leader_node(raft),
            });
        }
        match raft.get_read_linearizer(policy()).await {
            Ok(linearizer) => Ok(self.not_before(position(linearizer.read_log_id().log_id()))),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(ConsensusError::NotLeader {
                    leader: forward.leader_node.as_ref().map(|place| place.node),
                })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ConsensusError::NoQuorum)
            }
            Err(error) => {
                tracing::warn!(%error, "read index");
                Err(ConsensusError::NotReady)
            }
        }
    }

    /// openraft reuses the blank entry of a restored leader, and releases the commit index before it is saved: its read
    /// index may lie before entries that were acknowledged before the restart. All that the log held then must be applied
    /// before anything is read. Only in the restored term: a later one has a blank entry of its own, and a log that may be
    /// shorter. openraft's read index is of the term in which it was asked for.
    fn not_before(&self, at: LogPosition) -> u64 {
        match self.0.restored {
            Some(restored) if restored.term == at.term && !planted(Fault::RestoredReads) => {
                at.index.max(restored.last)
            }
            _ => at.index,
        }
    }
}

/// RAFT-4: a round to the voters, whatever lease runs.
fn policy() -> ReadPolicy {
    if planted(Fault::LeaseReads) {
        return ReadPolicy::LeaseRead;
    }
    ReadPolicy::ReadIndex
}
