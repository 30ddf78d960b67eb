//! Clients: each does one thing at a time, asks again until it has an answer or gives up, and takes down what came of it.

use crate::cluster::Cluster;
use crate::gateway::call;
use crate::rng::Rng;
use bytes::Bytes;
use futures::future::{Either, select};
use mareedb_history::{Answer, Call, Consistency, Operation, Outcome as Came};
use mareedb_ipc::wire::command::{
    Command, Compare, CompareOp, CompareTarget, IdempotencyKey, Op, OpResult, Outcome, SessionRef,
    Txn, TxnResult, encode_command,
};
use mareedb_ipc::wire::gateway::{ConsensusError, FromConsensus, ToConsensus};
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, NodeId, RandomId, decode};
use mareedb_ipc::world::Timer;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// A client waits so long for one answer, in milliseconds, before it asks again. Less than it takes to elect somebody, so that who
/// asked a leader that is cut off asks others while that one still believes to lead.
const PATIENCE_MS: std::ops::Range<u64> = 150..1_500;
/// How often a write with an idempotency key is sent in all.
const AGAIN: usize = 3;
/// Before it is sent again, at most so many milliseconds pass.
const AGAIN_MS: u64 = 4_000;
/// Number of the client that writes once all is healed.
const PROBE: usize = 99;
/// The epoch of the only range.
const EPOCH: u64 = 1;

/// What clients share.
#[derive(Default)]
pub struct Clients {
    /// Set: they begin nothing more.
    pub over: Cell<bool>,
    /// Those that have something open.
    pub busy: Cell<usize>,
    /// When the write was acknowledged that is made once all is healed.
    pub probed_ns: Cell<Option<u64>>,
}

struct Client {
    cluster: Rc<Cluster>,
    number: usize,
    rng: Rng,
    session: Option<RandomId>,
    sequence: u64,
    leader: usize,
    values: u64,
    /// What this client read last of each key.
    known: Vec<Option<String>>,
}

/// How a command went.
enum Went {
    Done(TxnResult),
    /// It had no effect, and will have none.
    Refused(String),
    Unknown(String),
}

/// Lives until all is over.
pub async fn run(cluster: Rc<Cluster>, clients: Rc<Clients>, seed: u64, number: usize) {
    let mut client = Client::new(cluster, seed, number);
    while !clients.over.get() {
        let think = client.rng.around(client.cluster.plan.think_ms * 1_000_000);
        Timer::after(Duration::from_nanos(think)).await;
        if clients.over.get() {
            return;
        }
        clients.busy.set(clients.busy.get() + 1);
        client.one().await;
        clients.busy.set(clients.busy.get() - 1);
    }
}

/// Writes until that is acknowledged.
pub async fn probe(cluster: Rc<Cluster>, clients: Rc<Clients>, seed: u64) {
    let mut client = Client::new(cluster, seed, PROBE);
    loop {
        let call = Call::Put {
            key: "probe".into(),
            value: client.value(),
        };
        if let Went::Done(_) = client.write(txn_of(&call)).await {
            clients.probed_ns.set(Some(client.cluster.world.now_ns()));
            return;
        }
    }
}

impl Client {
    fn new(cluster: Rc<Cluster>, seed: u64, number: usize) -> Client {
        Client {
            rng: Rng::new(seed, 100 + number as u64),
            number,
            session: None,
            sequence: 0,
            leader: number % cluster.nodes.len(),
            values: 0,
            known: vec![None; cluster.plan.keys],
            cluster,
        }
    }

    /// One operation.
    async fn one(&mut self) {
        // Some stay with whom they know, some ask around.
        if self.number % 2 == 1 && self.rng.chance(500) {
            self.turn_away();
        }
        let which = self.rng.index(self.cluster.plan.keys);
        let key = format!("k{which}");
        let draw = self.rng.below(100);
        if draw < 3 {
            return self.stray().await;
        }
        if draw < 12 {
            return self.increment().await;
        }
        if draw < 16 {
            return self.again().await;
        }
        let call = if draw < 47 {
            Call::Get {
                key: key.clone(),
                consistency: Consistency::Linearizable,
            }
        } else if draw < 75 {
            Call::Put {
                key: key.clone(),
                value: self.value(),
            }
        } else if draw < 80 {
            Call::Delete { key: key.clone() }
        } else {
            Call::CompareAndSwap {
                key: key.clone(),
                expected: self.known[which].clone(),
                new: self.value(),
            }
        };
        let start_ns = self.cluster.world.now_ns();
        let outcome = match &call {
            Call::Get { .. } => match self.get(&key).await {
                Ok((value, revision)) => {
                    self.known[which].clone_from(&value);
                    Came::Ok(Answer::Value { value, revision })
                }
                Err(why) => Came::Unknown(why),
            },
            other => {
                let went = self.write(txn_of(other)).await;
                came(other, went)
            }
        };
        self.record(start_ns, call, outcome);
    }

    fn record(&self, start_ns: u64, call: Call, outcome: Came) {
        let end_ns = self.cluster.world.now_ns();
        let answered = !matches!(outcome, Came::Unknown(_));
        self.cluster.world.trace.note(end_ns, || {
            let told = format!("client{}: {call:?} -> {outcome:?}", self.number);
            // A long value tells nothing more.
            told.replace(&"x".repeat(self.cluster.plan.value_bytes.max(1)), "")
        });
        self.cluster.history.borrow_mut().push(Operation {
            process: self.number as u64,
            node: format!("node{}", self.leader + 1),
            start_ns,
            end_ns: answered.then_some(end_ns),
            call,
            outcome,
        });
    }

    /// A value that nobody else writes.
    fn value(&mut self) -> String {
        self.values += 1;
        let mut value = format!("{}.{}", self.number, self.values);
        if self.cluster.plan.value_bytes > 0 {
            value.push('.');
            value.extend(std::iter::repeat_n('x', self.cluster.plan.value_bytes));
        }
        value
    }

    /// A counter in one key: read, then written if it still is what was read, until it is.
    async fn increment(&mut self) {
        let key = "counter";
        let start_ns = self.cluster.world.now_ns();
        let call = Call::Increment {
            counter: key.into(),
            amount: 1,
        };
        let outcome = loop {
            let read = match self.get(key).await {
                Ok((value, _)) => value,
                // Nothing was written.
                Err(why) => break Came::Failed(why),
            };
            let value = read.as_ref().map_or(0, |text| text.parse().unwrap_or(0)) + 1_u64;
            let swap = Call::CompareAndSwap {
                key: key.into(),
                expected: read,
                new: value.to_string(),
            };
            match self.write(txn_of(&swap)).await {
                Went::Done(result) if result.succeeded => {
                    break Came::Ok(Answer::Incremented {
                        value: Some(value),
                        revision: Some(result.revision.0),
                    });
                }
                Went::Done(_) => {}
                Went::Refused(why) => break Came::Failed(why),
                Went::Unknown(why) => break Came::Unknown(why),
            }
        };
        self.record(start_ns, call, outcome);
    }

    /// A write with an idempotency key that is sent again some time later, as a new request: all answers are the first one.
    async fn again(&mut self) {
        let value = self.value();
        let key = IdempotencyKey {
            key: format!("{}.{}", self.number, self.values),
            fingerprint: 1,
        };
        let call = Call::Put {
            key: "once".into(),
            value,
        };
        let mut first = None;
        for _ in 0..AGAIN {
            if let Went::Done(result) = self.send(txn_of(&call), EPOCH, Some(&key)).await {
                let first = first.get_or_insert_with(|| result.clone());
                if *first != result {
                    let what = format!("client{}: {first:?}, then {result:?}", self.number);
                    self.cluster.violated("ONCE-1", what);
                }
            }
            let later = self.rng.below(AGAIN_MS);
            Timer::after(Duration::from_millis(later)).await;
        }
    }

    /// A command that was routed by an epoch that is not in force must do nothing.
    async fn stray(&mut self) {
        let txn = Txn {
            success: vec![Op::Put {
                key: Bytes::from_static(b"stray"),
                value: Bytes::from_static(b"x"),
            }],
            ..Txn::default()
        };
        if let Went::Done(_) = self.send(txn, EPOCH + 1, None).await {
            let what = "a write that was routed by another range epoch was carried out".to_owned();
            self.cluster.violated("EPOCH", what);
        }
    }

    async fn write(&mut self, txn: Txn) -> Went {
        self.send(txn, EPOCH, None).await
    }

    async fn send(&mut self, txn: Txn, epoch: u64, key: Option<&IdempotencyKey>) -> Went {
        let Some(session) = self.session().await else {
            return Went::Refused("no session".into());
        };
        self.sequence += 1;
        let command = encode_command(&Command::Write {
            origin: SessionRef {
                session,
                sequence: self.sequence,
                low_water: self.sequence,
            },
            epoch,
            idempotency: key.cloned(),
            txn,
        });
        let (first, outcome) = match self.propose(command).await {
            Ok(decided) => decided,
            Err(why) => return Went::Unknown(why),
        };
        match outcome {
            Outcome::Done(result) => Went::Done(result),
            Outcome::WrongEpoch { .. } => Went::Refused("another epoch".into()),
            Outcome::SessionUnknown | Outcome::BelowLowWater => {
                self.session = None;
                // An earlier attempt may have been carried out.
                if first {
                    Went::Refused("no session".into())
                } else {
                    Went::Unknown("the session is gone".into())
                }
            }
            other => {
                let what = format!("client{} was told {other:?}", self.number);
                self.cluster.violated("ANSWER", what);
                Went::Unknown("something else".into())
            }
        }
    }

    async fn session(&mut self) -> Option<RandomId> {
        if self.session.is_none() {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&self.rng.draw().to_le_bytes());
            let session = RandomId(u128::from_le_bytes(bytes));
            let command = encode_command(&Command::OpenSession {
                session,
                node: NodeId(self.number as u64),
            });
            if let Ok((_, Outcome::SessionOpen)) = self.propose(command).await {
                self.session = Some(session);
                self.sequence = 0;
            }
        }
        self.session
    }

    /// Asks until there is an outcome; also says whether it was that of the first attempt that may have had an effect.
    async fn propose(&mut self, command: Bytes) -> Result<(bool, Outcome), String> {
        let limit = self.limit();
        let mut uncertain = false;
        loop {
            let propose = |call| ToConsensus::Propose {
                call,
                group: FIRST_DATA_GROUP,
                command: command.clone(),
            };
            match self.ask(propose).await {
                Some(FromConsensus::Proposed {
                    result: Ok(bytes), ..
                }) => {
                    let outcome = decode::<Outcome>(&bytes).map_err(|error| error.to_string())?;
                    return Ok((!uncertain, outcome));
                }
                Some(FromConsensus::Proposed {
                    result: Err(error), ..
                }) => {
                    uncertain |= matches!(error, ConsensusError::Uncertain);
                    self.turn_to(&error);
                }
                _ => {
                    uncertain = true;
                    self.turn_away();
                }
            }
            if self.cluster.world.now_ns() > limit {
                return Err("no answer in time".into());
            }
            self.pause().await;
        }
    }

    async fn get(&mut self, key: &str) -> Result<(Option<String>, Option<u64>), String> {
        let limit = self.limit();
        loop {
            let index = |call| ToConsensus::ReadIndex {
                call,
                group: FIRST_DATA_GROUP,
            };
            let node = self.leader;
            match self.ask(index).await {
                Some(FromConsensus::ReadIndex {
                    result: Ok(index), ..
                }) => {
                    if let Some(read) = self.read(node, key, index).await {
                        return Ok(read);
                    }
                }
                Some(FromConsensus::ReadIndex {
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

    /// Reads at a node once an index is applied there, as a reader thread does.
    async fn read(
        &mut self,
        node: usize,
        key: &str,
        min_index: u64,
    ) -> Option<(Option<String>, Option<u64>)> {
        let request = ReadRequest {
            group: FIRST_DATA_GROUP,
            epoch: EPOCH,
            min_index,
            query: Query::Get {
                key: Bytes::copy_from_slice(key.as_bytes()),
                revision: None,
            },
        };
        for _ in 0..200 {
            let shard = self.cluster.nodes[node].shard.borrow().clone()?;
            let read = shard.borrow().store().read(&request);
            match read {
                Ok(response) => {
                    let item = response.items.into_iter().next();
                    let revision = item.as_ref().map(|item| item.mod_revision.0);
                    let value = item.map(|item| String::from_utf8_lossy(&item.value).into_owned());
                    return Some((value, revision));
                }
                Err(ReadError::NotApplied) => {}
                Err(ReadError::NoReplica(_)) => return None,
                Err(error) => {
                    let what = format!("client{} was told {error}", self.number);
                    self.cluster.violated("ANSWER", what);
                    return None;
                }
            }
            drop(shard);
            Timer::after(Duration::from_millis(5)).await;
        }
        None
    }

    async fn ask(&mut self, make: impl FnOnce(u64) -> ToConsensus) -> Option<FromConsensus> {
        let answer = call(&self.cluster, self.leader, make)?;
        let patience = Duration::from_millis(self.rng.within(PATIENCE_MS));
        match select(answer, Timer::after(patience)).await {
            Either::Left((answer, _)) => answer.ok(),
            Either::Right(_) => None,
        }
    }

    fn limit(&mut self) -> u64 {
        self.cluster.world.now_ns() + self.rng.within(2_000..15_000) * 1_000_000
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

    fn turn_away(&mut self) {
        self.leader = self.rng.index(self.cluster.nodes.len());
    }

    async fn pause(&mut self) {
        let pause = self.rng.around(20_000_000) + 1_000_000;
        Timer::after(Duration::from_nanos(pause)).await;
    }
}

/// The transaction that does what is asked.
fn txn_of(call: &Call) -> Txn {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    match call {
        Call::Put { key, value } => Txn {
            success: vec![Op::Put {
                key: bytes(key),
                value: bytes(value),
            }],
            ..Txn::default()
        },
        Call::Delete { key } => Txn {
            success: vec![Op::Delete { key: bytes(key) }],
            ..Txn::default()
        },
        Call::CompareAndSwap { key, expected, new } => Txn {
            compare: vec![Compare {
                key: bytes(key),
                target: match expected {
                    Some(value) => CompareTarget::Value(bytes(value)),
                    None => CompareTarget::Version(0),
                },
                op: CompareOp::Equal,
            }],
            success: vec![Op::Put {
                key: bytes(key),
                value: bytes(new),
            }],
            failure: Vec::new(),
        },
        other => unreachable!("{other:?} is no write"),
    }
}

fn came(call: &Call, went: Went) -> Came {
    let result = match went {
        Went::Done(result) => result,
        Went::Refused(why) => return Came::Failed(why),
        Went::Unknown(why) => return Came::Unknown(why),
    };
    let revision = Some(result.revision.0);
    Came::Ok(match call {
        Call::Delete { .. } => Answer::Deleted {
            deleted: matches!(result.results[..], [OpResult::Delete { deleted: true }]),
            revision,
        },
        Call::CompareAndSwap { .. } => Answer::Swapped {
            succeeded: result.succeeded,
            revision,
        },
        _ => Answer::Written { revision },
    })
}
