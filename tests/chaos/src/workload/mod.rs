//! What clients do in a round, and how it is recorded.
//!
//! Names change with each generation of a few seconds, so that every object has a short history. A client's choices are a function of
//! the seed and its number; what it meets is not.

mod bank;
mod counter;
mod lists;
mod register;
mod set;

use crate::client::{Client, Reply, Request, Trouble};
use crate::random::Random;
use mareedb_history::{Answer, Call, Consistency, Outcome, Pending, Recorder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long names are in use.
const GENERATION: Duration = Duration::from_secs(2);
/// Clients of a node that share the objects of a generation as they are numbered here; of more clients' objects there are more.
const FEW: u64 = 4;
/// Objects of a generation.
const REGISTERS: u64 = 10;
const SETS: u64 = 2;
const COUNTERS: u64 = 3;
const LISTS: u64 = 6;

/// A violation that is planted, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// None.
    Nothing,
    /// An acknowledged put is missing in later answers, each second another one: one alone might be explained by a delete under way.
    LostWrite,
}

/// What the clients of a round share.
pub struct Stage {
    /// First part of all keys.
    pub label: String,
    recorder: Recorder,
    names: Vec<String>,
    /// Clients of a node.
    clients: u64,
    began: Instant,
    stop: AtomicBool,
    banks: Mutex<BTreeMap<u64, bank::State>>,
    /// What reads of it have to be made at the end.
    objects: Mutex<BTreeSet<Object>>,
    plant: Plant,
    lost: Mutex<Option<Lost>>,
}

/// The put that is hidden.
struct Lost {
    key: String,
    value: String,
    at: Instant,
    /// Somebody was told that it is not there.
    told: bool,
}

/// A thing that was written in a round.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Register(String),
    Set(String),
    Counter(String),
    List(String),
    Bank(u64),
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}

impl Stage {
    /// A stage for a round; names are those of the nodes, each of which has so many clients.
    pub fn new(
        label: String,
        recorder: Recorder,
        names: Vec<String>,
        clients: u8,
        plant: Plant,
    ) -> Arc<Stage> {
        Arc::new(Stage {
            label,
            recorder,
            names,
            clients: u64::from(clients),
            began: Instant::now(),
            stop: AtomicBool::new(false),
            banks: Mutex::default(),
            objects: Mutex::default(),
            plant,
            lost: Mutex::default(),
        })
    }

    /// Clients end with the operation that they are at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn generation(&self) -> u64 {
        let passed = self.began.elapsed().as_millis() / GENERATION.as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// Remembers that an object exists.
    fn used(&self, object: Object) {
        guard(&self.objects).insert(object);
    }

    /// After a client has put `value`: whether the planted loss is this one.
    fn plant(&self, key: &str, value: &str) -> bool {
        let mut lost = guard(&self.lost);
        let since = lost.as_ref().map_or(self.began, |lost| lost.at);
        if self.plant == Plant::LostWrite && since.elapsed() > Duration::from_secs(1) {
            *lost = Some(Lost {
                key: key.to_owned(),
                value: value.to_owned(),
                at: Instant::now(),
                told: false,
            });
            return true;
        }
        false
    }

    /// If nobody could see the loss (another client wrote the key before it was read), the next put is lost.
    fn plant_again(&self) {
        let mut lost = guard(&self.lost);
        if lost.as_ref().is_some_and(|lost| !lost.told) {
            *lost = None;
        }
    }

    /// What a read of a key is told, with the planted loss.
    fn shown(&self, key: &str, value: Option<String>) -> Option<String> {
        let mut lost = guard(&self.lost);
        match lost.as_mut() {
            Some(lost) if lost.key == key && value.as_deref() == Some(&lost.value) => {
                lost.told = true;
                None
            }
            _ => value,
        }
    }
}

/// A client with its numbers and what it knows.
struct Actor {
    stage: Arc<Stage>,
    client: Client,
    random: Random,
    generation: u64,
    /// Last value and revision that it has seen of each register of the generation.
    seen: BTreeMap<String, (String, u64)>,
    written: u64,
}

/// Acts until the stage is stopped, `per_s` times a second at most.
pub async fn act(stage: Arc<Stage>, client: Client, random: Random, per_s: f64) {
    let mut actor = Actor::new(stage, client, random);
    let pace = Duration::from_secs_f64(1.0 / per_s);
    let mut due = Instant::now() + pace.mul_f64(actor.random.below(100) as f64 / 100.0);
    while !actor.stage.stop.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        // Who was held up does not catch up.
        due = (due + pace).max(Instant::now());
        actor.step().await;
    }
}

/// After the faults: reads everything that the round has written. Returns what a healed cluster does not answer within `limit`.
pub async fn read_all(
    stage: Arc<Stage>,
    client: Client,
    random: Random,
    limit: Duration,
) -> Vec<String> {
    let objects = std::mem::take(&mut *guard(&stage.objects));
    let mut actor = Actor::new(stage, client, random);
    let began = Instant::now();
    let mut unread = Vec::new();
    for object in objects {
        while !actor.read(&object).await {
            if began.elapsed() > limit {
                unread.push(format!("{object:?}"));
                break;
            }
        }
    }
    unread
}

impl Actor {
    fn new(stage: Arc<Stage>, client: Client, random: Random) -> Actor {
        Actor {
            stage,
            client,
            random,
            generation: 0,
            seen: BTreeMap::new(),
            written: 0,
        }
    }

    /// Reads an object of any generation. `false`: no answer.
    async fn read(&mut self, object: &Object) -> bool {
        match object {
            Object::Register(key) => self.get(key, Consistency::Linearizable).await,
            Object::Set(set) => self.read_set(set, Consistency::Linearizable).await,
            Object::Counter(counter) => self.read_counter(counter).await,
            Object::List(list) => self.read_list(list).await,
            Object::Bank(generation) => self.read_bank(*generation, false).await,
        }
    }

    async fn step(&mut self) -> bool {
        let generation = self.stage.generation();
        if generation != self.generation {
            self.generation = generation;
            self.seen.clear();
        }
        match self.random.below(100) {
            0..=54 => self.register().await,
            55..=64 => self.set().await,
            65..=76 => self.lists().await,
            77..=86 => self.counter().await,
            _ => self.bank().await,
        }
    }

    /// A name of this generation, one of `of` when clients are few. All have as many digits, so that no name begins another one.
    fn name(&mut self, family: &str, of: u64) -> String {
        let number = self.random.below(of * self.stage.clients.max(FEW) / FEW);
        let Stage { label, .. } = &*self.stage;
        format!("{label}/{}/{family}{number:04}", self.generation)
    }

    /// A number that nobody else uses in this round.
    fn unique(&mut self) -> u64 {
        self.written += 1;
        (self.client.number << 32) | self.written
    }

    /// Half of the writes can be sent again.
    fn keyed(&mut self) -> bool {
        self.random.percent(50)
    }

    /// Sends a request and records it as `call`, with the answer that `answer` makes of the reply. `false`: there was none.
    async fn record(
        &mut self,
        call: Call,
        request: &Request,
        keyed: bool,
        answer: impl FnOnce(&mut Actor, Reply) -> Option<Answer>,
    ) -> bool {
        let pending = self.start(call);
        let done = match self.client.ask(request, keyed).await {
            Ok(reply) => answer(self, reply).ok_or_else(unreadable),
            Err(trouble) => Err(trouble),
        };
        self.finish(pending, done)
    }

    /// Records what came of an operation. `false`: no answer.
    fn finish(&self, pending: Pending, done: Result<Answer, Trouble>) -> bool {
        let answered = done.is_ok();
        pending.finish(match done {
            Ok(answer) => Outcome::Ok(answer),
            Err(Trouble::Certain(code)) => Outcome::Failed(code),
            Err(Trouble::Refused) => Outcome::Failed("nobody listens".to_owned()),
            Err(Trouble::Unknown(why)) => Outcome::Unknown(why),
            Err(Trouble::Unreadable(why)) => {
                self.client.makes_no_sense(why.clone());
                Outcome::Unknown(why)
            }
        });
        answered
    }

    fn start(&self, call: Call) -> Pending {
        let node = &self.stage.names[self.client.home()];
        self.stage
            .recorder
            .start(self.client.number, node.as_str(), call)
    }
}

/// The answer to something else, or no value of those that are written.
fn unreadable() -> Trouble {
    Trouble::Unreadable("an answer that nobody can read".to_owned())
}

/// Of a read that comes before a write: nothing was written yet.
fn certainly(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Unknown(why) => Trouble::Certain(why),
        known => known,
    }
}
