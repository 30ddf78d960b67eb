//! Answers to gatewayd: each goes to the incarnation that asked, or to nobody.
//!
//! A gatewayd that was born anew numbers its calls by itself, so that an answer to its predecessor's call could meet one of
//! its own. What was asked before its `Hello` is therefore never answered after it.

use bytes::Bytes;
use mareedb_ipc::wire::gateway::{ConsensusError, FromConsensus};
use mareedb_ipc::{Outbox, Refusal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The client lane, as seen by whoever answers.
pub struct Client {
    outbox: Arc<Outbox>,
    incarnation: AtomicU64,
}

/// A call of gatewayd, with the incarnation that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    number: u64,
    incarnation: u64,
}

impl Client {
    /// Answers go into this outbox.
    pub fn new(outbox: Arc<Outbox>) -> Arc<Client> {
        Arc::new(Client {
            outbox,
            incarnation: AtomicU64::new(0),
        })
    }

    /// A gatewayd is born: what waits for its predecessor is dropped.
    pub fn born(&self) {
        self.incarnation.fetch_add(1, Ordering::Relaxed);
        self.outbox.clear();
    }

    /// A call of the present gatewayd.
    pub fn call(&self, number: u64) -> Call {
        Call {
            number,
            incarnation: self.incarnation.load(Ordering::Relaxed),
        }
    }

    /// Tells something that answers no call.
    pub fn tell(&self, message: &FromConsensus) {
        if let Err(refusal) = self.outbox.push(message) {
            tracing::error!(%refusal, "gatewayd is not told");
        }
    }

    fn answer(&self, call: Call, message: &FromConsensus) -> Result<(), Refusal> {
        if call.incarnation == self.incarnation.load(Ordering::Relaxed) {
            return self.outbox.push(message);
        }
        Ok(())
    }

    /// Answers `Propose`.
    pub fn proposed(&self, call: Call, result: Result<Bytes, ConsensusError>) {
        let number = call.number;
        let told = |result| FromConsensus::Proposed {
            call: number,
            result,
        };
        if let Err(refusal) = self.answer(call, &told(result)) {
            tracing::error!(%refusal, "an outcome is not told");
            // The command is applied all the same.
            let _ = self.answer(call, &told(Err(ConsensusError::Uncertain)));
        }
    }

    /// Answers `ReadIndex`.
    pub fn read_index(&self, call: Call, result: Result<u64, ConsensusError>) {
        let number = call.number;
        // Answers of a few bytes always fit.
        let _ = self.answer(
            call,
            &FromConsensus::ReadIndex {
                call: number,
                result,
            },
        );
    }

    /// Answers `Admin`.
    pub fn admin(&self, call: Call, result: Result<String, ConsensusError>) {
        let number = call.number;
        let _ = self.answer(
            call,
            &FromConsensus::Admin {
                call: number,
                result,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::{Lane, Role};

    #[test]
    fn a_call_of_a_dead_gatewayd_is_answered_to_nobody() {
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let mut sender = consensus.sender(Role::Gateway, Lane::Client);
        let outbox = Outbox::before(&sender, || {});
        let client = Client::new(outbox.clone());
        let (before, waiting) = (client.call(7), client.call(8));
        client.read_index(waiting, Ok(1));
        client.born();
        client.read_index(before, Ok(1));
        client.read_index(client.call(7), Ok(2));
        outbox.flush(&mut sender).unwrap();
        let mut gateway = node.attach(Role::Gateway);
        let mut receiver = gateway.receiver(Role::Consensus, Lane::Client);
        let (first, _) = receiver.try_recv::<FromConsensus>().unwrap().unwrap();
        assert_eq!(
            first,
            FromConsensus::ReadIndex {
                call: 7,
                result: Ok(2)
            }
        );
        assert!(receiver.try_recv::<FromConsensus>().unwrap().is_none());
    }
}
