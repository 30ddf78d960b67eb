//! How a client asks: of whom it believes to lead, again and again, with the care of gatewayd about what is certain.

use super::{Client, EPOCH};
use crate::gateway::call;
use bytes::Bytes;
use futures::future::{Either, select};
use mareedb_ipc::wire::command::{
    Command, IdempotencyKey, Item, Outcome, Txn, TxnResult, encode_command,
};
use mareedb_ipc::wire::gateway::{ConsensusError, FromConsensus, ToConsensus};
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, NodeId, decode};
use mareedb_ipc::world::Timer;
use std::time::Duration;

/// A client waits so long for one answer, in milliseconds, before it asks again. Less than it takes to elect somebody, so that who
/// asked a leader that is cut off asks others while that one still believes to lead.
const PATIENCE_MS: std::ops::Range<u64> = 150..1_500;

/// It gives up after so long, in milliseconds; now and then soon.
const LONG_MS: std::ops::Range<u64> = 2_000..15_000;
const SOON_MS: std::ops::Range<u64> = 10..1_000;

/// How a command went.
pub(super) enum Went {
    Done(TxnResult),
    /// It had no effect, and will have none.
    Refused(String),
    Unknown(String),
}

/// What came of one question.
enum Reply {
    Told(FromConsensus),
    /// It was put to somebody, and no answer came.
    Lost,
    /// There is nobody to put it to.
    Unsent,
}

/// What is known of a command after all attempts so far that gave no outcome.
#[derive(Default)]
struct Attempts {
    /// One of them may be in a log.
    uncertain: bool,
    refusal: String,
}

impl Attempts {
    fn refused(&mut self, error: &ConsensusError) {
        self.uncertain |= !is_certain(error);
        self.refusal = error.to_string();
    }

    fn lost(&mut self) {
        self.uncertain = true;
    }

    fn unsent(&mut self) {
        self.refusal = "nobody is there".into();
    }

    /// Nobody asks any more.
    fn given_up(self) -> Went {
        if self.uncertain {
            Went::Unknown("no answer in time".into())
        } else {
            Went::Refused(self.refusal)
        }
    }
}

/// Whether a command that was answered like this is in no log and never will be. gatewayd tells its clients the same
/// (`core/answers.rs`, docs/errors.md).
fn is_certain(error: &ConsensusError) -> bool {
    !matches!(error, ConsensusError::Uncertain)
}

impl Client {
    /// Has a transaction carried out once.
    pub(super) async fn send(
        &mut self,
        txn: Txn,
        epoch: u64,
        key: Option<&IdempotencyKey>,
    ) -> Went {
        if !self.open_session().await {
            return Went::Refused("no session".into());
        }
        let session = self.session.clone();
        let origin = session.begin();
        let command = encode_command(&Command::Write {
            origin,
            epoch,
            idempotency: key.cloned(),
            txn,
        });
        let decided = self.propose(command).await;
        session.settle(origin);
        match decided {
            Ok(Outcome::Done(result)) => Went::Done(result),
            Ok(Outcome::WrongEpoch { .. }) => Went::Refused("another epoch".into()),
            Ok(Outcome::SessionUnknown) => {
                // A life is shorter than a session that is not used.
                session.lost(origin.session);
                let what = format!("client{}: its session is forgotten", self.number);
                self.cluster.violated("ONCE-1", what);
                Went::Unknown("the session is gone".into())
            }
            Ok(other) => {
                let what = format!("client{} was told {other:?}", self.number);
                self.cluster.violated("ANSWER", what);
                Went::Unknown("something else".into())
            }
            Err(went) => went,
        }
    }

    /// Opens the session, unless it is open.
    async fn open_session(&mut self) -> bool {
        let session = self.session.clone();
        if session.unopened().is_none() {
            return true;
        }
        let _one = session.opening.lock().await;
        let Some(id) = session.unopened() else {
            return true;
        };
        let command = encode_command(&Command::OpenSession {
            session: id,
            node: NodeId(self.number as u64),
        });
        let open = matches!(self.propose(command).await, Ok(Outcome::SessionOpen));
        if open {
            session.opened(id);
        }
        open
    }

    /// Asks until there is an outcome, or the time is over: then the command was refused for certain only if each answer was
    /// a refusal that is certain.
    async fn propose(&mut self, command: Bytes) -> Result<Outcome, Went> {
        let limit = self.limit();
        let mut attempts = Attempts::default();
        loop {
            let propose = |call| ToConsensus::Propose {
                call,
                group: FIRST_DATA_GROUP,
                command: command.clone(),
            };
            match self.ask(propose).await {
                Reply::Told(FromConsensus::Proposed {
                    result: Ok(bytes), ..
                }) => {
                    return decode::<Outcome>(&bytes)
                        .map_err(|error| Went::Unknown(error.to_string()));
                }
                Reply::Told(FromConsensus::Proposed {
                    result: Err(error), ..
                }) => {
                    attempts.refused(&error);
                    self.turn_to(&error);
                }
                Reply::Unsent => {
                    attempts.unsent();
                    self.turn_away();
                }
                Reply::Told(_) | Reply::Lost => {
                    attempts.lost();
                    self.turn_away();
                }
            }
            if self.cluster.world.now_ns() > limit {
                return Err(attempts.given_up());
            }
            self.pause().await;
        }
    }

    /// Reads behind a read index.
    pub(super) async fn read(&mut self, query: &Query) -> Result<Vec<Item>, String> {
        let limit = self.limit();
        loop {
            let index = |call| ToConsensus::ReadIndex {
                call,
                group: FIRST_DATA_GROUP,
            };
            let node = self.leader;
            match self.ask(index).await {
                Reply::Told(FromConsensus::ReadIndex {
                    result: Ok(index), ..
                }) => {
                    if let Some(items) = self.read_from(node, query, index).await {
                        return Ok(items);
                    }
                }
                Reply::Told(FromConsensus::ReadIndex {
                    result: Err(error), ..
                }) => self.turn_to(&error),
                _ => self.turn_away(),
            }
            if self.cluster.world.now_ns() > limit {
                return Err("no answer in time".into());
            }
            self.pause().await;
        }
    }

    /// Reads of a node once an index is applied there, as a reader thread does.
    async fn read_from(&mut self, node: usize, query: &Query, min_index: u64) -> Option<Vec<Item>> {
        for _ in 0..200 {
            match self.read_now(node, query, min_index)? {
                Ok(items) => return Some(items),
                Err(ReadError::NotApplied) => {}
                Err(ReadError::NoReplica(_)) => return None,
                // Who asks for a moment of the past was told it, so that it is no future of a replica that has all of it.
                Err(error) => {
                    self.told_wrongly(&error);
                    return None;
                }
            }
            Timer::after(Duration::from_millis(5)).await;
        }
        None
    }

    /// Reads of any node what it has applied.
    pub(super) fn read_anywhere(&mut self, query: &Query) -> Result<Vec<Item>, String> {
        let node = self.rng.index(self.cluster.nodes.len());
        match self.read_now(node, query, 0) {
            None => Err("storaged does not run".into()),
            Some(Ok(items)) => Ok(items),
            // It is behind.
            Some(Err(error @ (ReadError::NoReplica(_) | ReadError::FutureRevision { .. }))) => {
                Err(error.to_string())
            }
            Some(Err(error)) => {
                self.told_wrongly(&error);
                Err(error.to_string())
            }
        }
    }

    fn read_now(
        &self,
        node: usize,
        query: &Query,
        min_index: u64,
    ) -> Option<Result<Vec<Item>, ReadError>> {
        let request = ReadRequest {
            group: FIRST_DATA_GROUP,
            epoch: EPOCH,
            min_index,
            query: query.clone(),
        };
        let shard = self.cluster.nodes[node].shard.borrow().clone()?;
        let read = shard.borrow().store().read(&request);
        Some(read.map(|response| response.items))
    }

    fn told_wrongly(&self, error: &ReadError) {
        let what = format!("client{} was told {error}", self.number);
        self.cluster.violated("ANSWER", what);
    }

    async fn ask(&mut self, make: impl FnOnce(u64) -> ToConsensus) -> Reply {
        let Some(answer) = call(&self.cluster, self.leader, make) else {
            return Reply::Unsent;
        };
        let patience = Duration::from_millis(self.rng.within(PATIENCE_MS));
        match select(answer, Timer::after(patience)).await {
            Either::Left((Ok(answer), _)) => Reply::Told(answer),
            Either::Left((Err(_), _)) | Either::Right(_) => Reply::Lost,
        }
    }

    /// When it gives up. Now and then that is soon: what was refused until then has failed, which a client that always asks on
    /// hardly ever learns.
    fn limit(&mut self) -> u64 {
        let soon = self.rng.chance(150);
        let ms = self.rng.within(if soon { SOON_MS } else { LONG_MS });
        self.cluster.world.now_ns() + ms * 1_000_000
    }

    /// Whom to ask next, after this answer.
    fn turn_to(&mut self, error: &ConsensusError) {
        match error {
            // Nodes are numbered in the order of their names.
            ConsensusError::NotLeader {
                leader: Some(leader),
            } if (1..=self.cluster.nodes.len() as u64).contains(&leader.0) => {
                self.leader = usize::try_from(leader.0 - 1).expect("a small number");
            }
            _ => self.turn_away(),
        }
    }

    pub(super) fn turn_away(&mut self) {
        self.leader = self.rng.index(self.cluster.nodes.len());
    }

    async fn pause(&mut self) {
        let pause = self.rng.around(20_000_000) + 1_000_000;
        Timer::after(Duration::from_nanos(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(what: &[&dyn Fn(&mut Attempts)]) -> bool {
        let mut attempts = Attempts::default();
        for attempt in what {
            attempt(&mut attempts);
        }
        matches!(attempts.given_up(), Went::Refused(_))
    }

    #[test]
    fn what_was_refused_each_time_has_failed_and_what_may_be_in_a_log_has_not() {
        let elsewhere: &dyn Fn(&mut Attempts) =
            &|attempts| attempts.refused(&ConsensusError::NotLeader { leader: None });
        let nobody: &dyn Fn(&mut Attempts) = &Attempts::unsent;
        let lost: &dyn Fn(&mut Attempts) = &Attempts::lost;
        let uncertain: &dyn Fn(&mut Attempts) =
            &|attempts| attempts.refused(&ConsensusError::Uncertain);
        assert!(after(&[elsewhere, nobody, elsewhere]));
        assert!(!after(&[elsewhere, lost, elsewhere]));
        assert!(!after(&[uncertain, elsewhere, nobody]));
    }
}
