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
use mareedb_history::{Answer, Call, Consistency, Outcome, Recorder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long names are in use.
const GENERATION: Duration = Duration::from_secs(2);
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
    /// A stage for a round; names are those of the nodes.
    pub fn new(label: String, recorder: Recorder, names: Vec<String>, plant: Plant) -> Arc<Stage> {
        Arc::new(Stage {
            label,
            recorder,
            names,
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

/// After the faults: reads everything that the round has written.
pub async fn read_all(stage: Arc<Stage>, client: Client, random: Random) {
    let objects = std::mem::take(&mut *guard(&stage.objects));
    let mut actor = Actor::new(stage, client, random);
    for object in objects {
        match object {
            Object::Register(key) => actor.get(&key, Consistency::Linearizable).await,
            Object::Set(set) => actor.read_set(&set, Consistency::Linearizable).await,
            Object::Counter(counter) => actor.read_counter(&counter).await,
            Object::List(list) => actor.read_list(&list).await,
            Object::Bank(generation) => actor.read_bank(generation, false).await,
        }
    }
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

    async fn step(&mut self) {
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

    /// A name of this generation.
    fn name(&mut self, family: &str, of: u64) -> String {
        let number = self.random.below(of);
        format!("{}/{}/{family}{number}", self.stage.label, self.generation)
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

    /// Sends a request and records it as `call`, with the answer that `answer` makes of the reply.
    async fn record(
        &mut self,
        call: Call,
        request: &Request,
        keyed: bool,
        answer: impl FnOnce(&mut Actor, Reply) -> Option<Answer>,
    ) {
        let pending = self.start(call);
        let outcome = match self.client.ask(request, keyed).await {
            Ok(reply) => match answer(self, reply) {
                Some(answer) => Outcome::Ok(answer),
                None => Outcome::Unknown("an answer that nobody can read".to_owned()),
            },
            Err(trouble) => failed(trouble),
        };
        pending.finish(outcome);
    }

    fn start(&self, call: Call) -> mareedb_history::Pending {
        let node = &self.stage.names[self.client.home()];
        self.stage
            .recorder
            .start(self.client.number, node.as_str(), call)
    }
}

fn failed(trouble: Trouble) -> Outcome {
    match trouble {
        Trouble::Certain(code) => Outcome::Failed(code),
        Trouble::Unknown(why) => Outcome::Unknown(why),
    }
}
