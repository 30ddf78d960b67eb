//! Clients: each does one thing at a time, asks again until it has an answer or gives up, and takes down what came of it.
//!
//! Some of them share a session, as the requests of one gateway do, so that it has several requests under way. What each does is
//! drawn in `Client::one`; how it asks is in `ask`, transactions over several keys are in `bank`, and what is read once
//! everything is over is in `last`.

mod ask;
mod bank;
mod last;
mod session;
mod txn;

pub use last::last;

use crate::cluster::Cluster;
use crate::rng::Rng;
use ask::Went;
use bytes::Bytes;
use mareedb_history::{Answer, Call, Consistency, Operation, Outcome as Came};
use mareedb_ipc::wire::Revision;
use mareedb_ipc::wire::command::{IdempotencyKey, Item, Op, Txn};
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::world::Timer;
use session::Session;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use txn::{came, txn_of};

/// How often a write with an idempotency key is sent in all.
const AGAIN: usize = 3;
/// Before it is sent again, at most so many milliseconds pass.
const AGAIN_MS: u64 = 4_000;
/// What each such write writes is a key of its own, with this before its number: whoever applies one twice shows it there for ever.
const ONCE: &str = "once.";
/// The key of the counter.
const COUNTER: &str = "counter";
/// The key that only commands of a stale epoch write.
const STRAY: &str = "stray";
/// Number of the client that writes once all is healed.
const PROBE: usize = 99;
/// Number of the client that reads everything at the end.
const LAST: usize = 98;
/// The epoch of the only range.
const EPOCH: u64 = 1;
/// Revisions that a client remembers, to read the past.
const REVISIONS_MAX: usize = 32;

/// What clients share.
#[derive(Default)]
pub struct Clients {
    /// Set: they begin nothing more.
    pub over: Cell<bool>,
    /// Those that have something open.
    pub busy: Cell<usize>,
    /// When the write was acknowledged that is made once all is healed.
    pub probed_ns: Cell<Option<u64>>,
    /// Everything that was written was read at the end.
    pub read: Cell<bool>,
    /// The bank was opened, or somebody may have opened it.
    opened: Cell<bool>,
    sessions: RefCell<BTreeMap<usize, Rc<Session>>>,
}

struct Client {
    cluster: Rc<Cluster>,
    clients: Rc<Clients>,
    number: usize,
    rng: Rng,
    session: Rc<Session>,
    leader: usize,
    values: u64,
    /// What this client read last of each key.
    known: Vec<Option<String>>,
    /// Revisions that it was told, later ones last.
    revisions: Vec<u64>,
}

/// Lives until all is over.
pub async fn run(cluster: Rc<Cluster>, clients: Rc<Clients>, seed: u64, number: usize) {
    let mut client = Client::new(cluster, clients.clone(), seed, number);
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
    let mut client = Client::new(cluster, clients.clone(), seed, PROBE);
    while clients.probed_ns.get().is_none() {
        let call = Call::Put {
            key: "probe".into(),
            value: client.value(),
        };
        let start_ns = client.cluster.world.now_ns();
        let outcome = client.change(&call).await;
        if matches!(outcome, Came::Ok(_)) {
            clients.probed_ns.set(Some(client.cluster.world.now_ns()));
        }
        client.record(start_ns, call, outcome);
    }
}

fn get(key: &str, revision: Option<u64>) -> Query {
    Query::Get {
        key: Bytes::copy_from_slice(key.as_bytes()),
        revision: revision.map(Revision),
    }
}

/// A key as the history has it.
fn shown(items: Vec<Item>) -> (Option<String>, Option<u64>) {
    let item = items.into_iter().next();
    let revision = item.as_ref().map(|item| item.mod_revision.0);
    let value = item.map(|item| String::from_utf8_lossy(&item.value).into_owned());
    (value, revision)
}

impl Client {
    fn new(cluster: Rc<Cluster>, clients: Rc<Clients>, seed: u64, number: usize) -> Client {
        let session = {
            let mut sessions = clients.sessions.borrow_mut();
            let shared = sessions.entry(number / cluster.plan.crew);
            shared.or_insert_with(Session::new).clone()
        };
        Client {
            rng: Rng::new(seed, 100 + number as u64),
            number,
            session,
            leader: number % cluster.nodes.len(),
            values: 0,
            known: vec![None; cluster.plan.keys],
            revisions: Vec::new(),
            cluster,
            clients,
        }
    }

    /// One operation.
    async fn one(&mut self) {
        // Some stay with whom they know, some ask around.
        if self.number % 2 == 1 && self.rng.chance(500) {
            self.turn_away();
        }
        if self.number == 0 && !self.clients.opened.get() {
            return self.open().await;
        }
        let which = self.rng.index(self.cluster.plan.keys);
        match self.rng.below(100) {
            0..2 => self.stray().await,
            2..10 => self.increment().await,
            10..14 => self.again().await,
            14..22 => self.bank().await,
            22..50 => self.get(which, Consistency::Linearizable).await,
            50..54 => self.get(which, Consistency::Stale).await,
            54..59 => {
                let consistency = self.past();
                self.get(which, consistency).await;
            }
            draw => self.put(which, draw).await,
        }
    }

    /// A write of one key.
    async fn put(&mut self, which: usize, draw: u64) {
        let key = format!("k{which}");
        let call = match draw {
            ..80 => Call::Put {
                key,
                value: self.value(),
            },
            80..85 => Call::Delete { key },
            _ => Call::CompareAndSwap {
                key,
                expected: self.known[which].clone(),
                new: self.value(),
            },
        };
        let start_ns = self.cluster.world.now_ns();
        let outcome = self.change(&call).await;
        self.record(start_ns, call, outcome);
    }

    async fn change(&mut self, call: &Call) -> Came {
        let went = self.send(txn_of(call), EPOCH, None).await;
        came(call, went)
    }

    /// A moment that this client knows of, or the one before it.
    fn past(&mut self) -> Consistency {
        if self.revisions.is_empty() {
            return Consistency::Linearizable;
        }
        let revision = *self.rng.pick(&self.revisions);
        Consistency::At(revision - u64::from(self.rng.chance(300)))
    }

    async fn get(&mut self, which: usize, consistency: Consistency) {
        let key = format!("k{which}");
        let start_ns = self.cluster.world.now_ns();
        let at = match consistency {
            Consistency::At(revision) => Some(revision),
            Consistency::Linearizable | Consistency::Stale => None,
        };
        let query = get(&key, at);
        // A moment of the past may be read of any replica that has reached it.
        let anywhere = consistency == Consistency::Stale || (at.is_some() && self.rng.chance(500));
        let read = if anywhere {
            self.read_anywhere(&query)
        } else {
            self.read(&query).await
        };
        let outcome = match read {
            Ok(items) => {
                let (value, revision) = shown(items);
                if consistency == Consistency::Linearizable {
                    self.known[which].clone_from(&value);
                }
                Came::Ok(Answer::Value { value, revision })
            }
            Err(why) => Came::Unknown(why),
        };
        self.record(start_ns, Call::Get { key, consistency }, outcome);
    }

    fn record(&mut self, start_ns: u64, call: Call, outcome: Came) {
        let end_ns = self.cluster.world.now_ns();
        let answered = !matches!(outcome, Came::Unknown(_));
        self.cluster.world.trace.note(end_ns, || {
            let told = format!("client{}: {call:?} -> {outcome:?}", self.number);
            // A long value tells nothing more.
            told.replace(&"x".repeat(self.cluster.plan.value_bytes.max(1)), "")
        });
        let operation = Operation {
            process: self.number as u64,
            node: format!("node{}", self.leader + 1),
            start_ns,
            end_ns: answered.then_some(end_ns),
            call,
            outcome,
        };
        let read = match operation.outcome {
            Came::Ok(Answer::Value { revision, .. }) => revision,
            _ => None,
        };
        if let Some(revision) = operation.write_revision().or(read) {
            if self.revisions.len() == REVISIONS_MAX {
                self.revisions.remove(0);
            }
            self.revisions.push(revision);
        }
        self.cluster.history.borrow_mut().push(operation);
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
        let start_ns = self.cluster.world.now_ns();
        let call = Call::Increment {
            counter: COUNTER.into(),
            amount: 1,
        };
        let outcome = loop {
            let read = match self.read(&get(COUNTER, None)).await {
                Ok(items) => shown(items).0,
                // Nothing was written.
                Err(why) => break Came::Failed(why),
            };
            let value = read.as_ref().map_or(0, |text| text.parse().unwrap_or(0)) + 1_u64;
            let swap = Call::CompareAndSwap {
                key: COUNTER.into(),
                expected: read,
                new: value.to_string(),
            };
            match self.send(txn_of(&swap), EPOCH, None).await {
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

    /// A write with an idempotency key that is sent again some time later, as a new request: all answers are the first one, and
    /// its key shows for ever how often it took effect. In the history it is one operation.
    async fn again(&mut self) {
        let value = self.value();
        let number = format!("{}.{}", self.number, self.values);
        let call = Call::Put {
            key: format!("{ONCE}{number}"),
            value,
        };
        let key = IdempotencyKey {
            key: number,
            fingerprint: 1,
        };
        let start_ns = self.cluster.world.now_ns();
        let mut first = None;
        let mut unanswered = Came::Failed("refused each time".into());
        for _ in 0..AGAIN {
            match (self.send(txn_of(&call), EPOCH, Some(&key)).await, &first) {
                (Went::Done(result), None) => {
                    first = Some(result.clone());
                    let outcome = came(&call, Went::Done(result));
                    self.record(start_ns, call.clone(), outcome);
                }
                (Went::Done(result), Some(first)) if *first != result => {
                    let what = format!("client{}: {first:?}, then {result:?}", self.number);
                    self.cluster.violated("ONCE-1", what);
                }
                (Went::Unknown(why), _) => unanswered = Came::Unknown(why),
                (Went::Done(_) | Went::Refused(_), _) => {}
            }
            let later = self.rng.below(AGAIN_MS);
            Timer::after(Duration::from_millis(later)).await;
        }
        if first.is_none() {
            self.record(start_ns, call, unanswered);
        }
    }

    /// A command that was routed by an epoch that is not in force must do nothing.
    async fn stray(&mut self) {
        let txn = Txn {
            success: vec![Op::Put {
                key: Bytes::from_static(STRAY.as_bytes()),
                value: Bytes::from_static(b"x"),
            }],
            ..Txn::default()
        };
        if let Went::Done(_) = self.send(txn, EPOCH + 1, None).await {
            let what = "a write that was routed by another range epoch was carried out".to_owned();
            self.cluster.violated("EPOCH", what);
        }
    }
}
