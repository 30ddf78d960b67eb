//! Histories made by a model of a correct store, or of one with a planted fault: what the checkers are measured with.
//!
//! Concurrent clients ask a store that lives in one thread and in a time of its own. Each operation has its effect at one moment
//! between question and answer; some fail without effect, some are never answered and have their effect later, even
//! after their client has moved on, or never. The same [`Plan`] gives the same history.

mod calls;
mod fault;
mod random;
mod store;

pub use fault::Fault;

use crate::{Answer, Operation, Outcome};
use random::Random;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use store::Store;

/// What kinds of objects clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Keys.
    Register,
    /// Sets.
    Set,
    /// Lists.
    Lists,
    /// Counters.
    Counter,
    /// Banks.
    Bank,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 5] = [
        Kind::Register,
        Kind::Set,
        Kind::Lists,
        Kind::Counter,
        Kind::Bank,
    ];
}

/// What history is made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What all chance follows from.
    pub seed: u64,
    /// How many operations clients begin.
    pub operations: u64,
    /// How many clients there are, above 0.
    pub clients: u32,
    /// What they use, in equal parts; not empty.
    pub kinds: Vec<Kind>,
    /// How many objects of a kind are in use at a time, above 0. Each is given up for a new one after some hundred operations.
    pub objects: u64,
    /// How many of 1,000 operations have an unknown outcome; 10 more fail.
    pub unknown_per_mille: u64,
    /// What is planted, about once in 100 chances.
    pub fault: Option<Fault>,
}

impl Plan {
    /// A plan for a correct store, with 8 clients and all kinds.
    pub fn new(seed: u64, operations: u64) -> Plan {
        Plan {
            seed,
            operations,
            clients: 8,
            kinds: Kind::ALL.to_vec(),
            objects: 4,
            unknown_per_mille: 20,
            fault: None,
        }
    }
}

/// What happens when.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask(u32),
    Effect(usize),
    Answer(usize),
    Again(usize),
}

/// How an operation will end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Fails,
    Unknown,
    Never,
}

struct Running {
    operation: Operation,
    fate: Fate,
    /// What the store said, once it has done it.
    answer: Option<Answer>,
    /// Whether its client has been told.
    answered: bool,
}

/// The operations of a history, in the order in which their outcome was known.
pub struct Generator {
    plan: Plan,
    random: Random,
    store: Store,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    /// Those that still wait for an effect or an answer; `first` is the number of the front.
    running: VecDeque<Option<Running>>,
    first: usize,
    begun: u64,
    ready: VecDeque<Operation>,
    planted: u64,
}

impl Generator {
    /// Starts a history.
    pub fn new(plan: Plan) -> Generator {
        let mut generator = Generator {
            random: Random::new(plan.seed),
            store: Store::default(),
            events: BinaryHeap::new(),
            sequence: 0,
            running: VecDeque::new(),
            first: 0,
            begun: 0,
            ready: VecDeque::new(),
            planted: 0,
            plan,
        };
        for client in 0..generator.plan.clients {
            generator.schedule(u64::from(client), Event::Ask(client));
        }
        generator
    }

    /// How often the fault has struck so far. Not every stroke can be seen by clients.
    pub fn planted(&self) -> u64 {
        self.planted
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn step(&mut self) -> bool {
        let Some(Reverse((now, _, event))) = self.events.pop() else {
            return false;
        };
        match event {
            Event::Ask(client) => self.ask(now, client),
            Event::Effect(id) => self.effect(id),
            Event::Answer(id) => self.answer(id),
            Event::Again(id) => {
                if let Some(running) = self.forget(id) {
                    self.store.apply(&running.operation.call, &mut self.random);
                }
            }
        }
        true
    }

    fn ask(&mut self, now: u64, client: u32) {
        if self.begun == self.plan.operations {
            return;
        }
        self.begun += 1;
        let call = self.call();
        let fate = match self.random.below(1000) {
            chance if chance < 10 => Fate::Fails,
            chance if chance < 10 + self.plan.unknown_per_mille / 2 => Fate::Unknown,
            chance if chance < 10 + self.plan.unknown_per_mille => Fate::Never,
            _ => Fate::Done,
        };
        let id = self.first + self.running.len();
        let effect = now + 1 + self.random.below(100);
        let end = match fate {
            Fate::Done => effect + 1 + self.random.below(100),
            Fate::Fails | Fate::Unknown | Fate::Never => now + 1 + self.random.below(200),
        };
        let effect = match fate {
            Fate::Unknown => now + 1 + self.random.below(2000),
            _ => effect,
        };
        let unanswered = matches!(fate, Fate::Unknown | Fate::Never) && self.random.below(3) == 0;
        self.running.push_back(Some(Running {
            operation: Operation {
                process: u64::from(client),
                node: format!("node-{}", self.random.below(3) + 1),
                start_ns: now,
                end_ns: (!unanswered).then_some(end),
                call,
                outcome: Outcome::Unknown("OUTCOME_UNKNOWN".to_owned()),
            },
            fate,
            answer: None,
            answered: false,
        }));
        match fate {
            Fate::Done => self.schedule(effect, Event::Effect(id)),
            Fate::Unknown => {
                self.schedule(end, Event::Answer(id));
                self.schedule(effect, Event::Effect(id));
            }
            Fate::Fails | Fate::Never => self.schedule(end, Event::Answer(id)),
        }
        let pause = self.random.below(20);
        let next = if fate == Fate::Done {
            effect.max(end)
        } else {
            end
        };
        self.schedule(next + 1 + pause, Event::Ask(client));
        if fate == Fate::Fails && self.strikes(Fault::FailedWrite, id) {
            self.copy_later(effect, id);
        }
        if fate == Fate::Done {
            self.schedule(end, Event::Answer(id));
            if self.strikes(Fault::Twice, id) {
                let later = effect + 1 + self.random.below(300);
                self.copy_later(later, id);
            }
        }
    }

    /// Has the effect of an operation at a later moment, whatever becomes of itself.
    fn copy_later(&mut self, at: u64, id: usize) {
        let copy = self.running[id - self.first]
            .as_ref()
            .map(|running| Running {
                operation: running.operation.clone(),
                fate: Fate::Never,
                answer: None,
                answered: false,
            });
        let copied = self.first + self.running.len();
        self.running.push_back(copy);
        self.schedule(at, Event::Again(copied));
    }

    /// Whether the planted fault is this one and strikes this write now.
    fn strikes(&mut self, fault: Fault, id: usize) -> bool {
        let fits = self.plan.fault == Some(fault)
            && self.running[id - self.first]
                .as_ref()
                .is_some_and(|running| fault.fits(&running.operation.call));
        let strikes = fits
            && self
                .random
                .below(if fault == Fault::FailedWrite { 2 } else { 50 })
                == 0;
        self.planted += u64::from(strikes);
        strikes
    }

    fn effect(&mut self, id: usize) {
        let fault = self
            .plan
            .fault
            .filter(|fault| !matches!(fault, Fault::FailedWrite | Fault::Twice))
            .filter(|fault| self.strikes(*fault, id));
        let Some(running) = &mut self.running[id - self.first] else {
            return;
        };
        let answer = match fault {
            Some(fault) => {
                self.store
                    .apply_faulty(&running.operation.call, fault, &mut self.random)
            }
            None => self.store.apply(&running.operation.call, &mut self.random),
        };
        running.answer = Some(answer);
        // An operation that was answered before it had its effect is of no more use.
        if running.answered && running.fate == Fate::Unknown {
            self.forget(id);
        }
    }

    fn answer(&mut self, id: usize) {
        let Some(running) = &mut self.running[id - self.first] else {
            return;
        };
        let mut operation = running.operation.clone();
        let had_effect = running.answer.is_some();
        operation.outcome = match (running.fate, running.answer.take()) {
            (Fate::Done, Some(answer)) => {
                // A bank refuses a transfer for lack of money, and that is no effect.
                match answer {
                    Answer::Accounts { .. } if !operation.call.takes(&answer) => {
                        Outcome::Failed("PRECONDITION_FAILED".to_owned())
                    }
                    answer => Outcome::Ok(answer),
                }
            }
            (Fate::Fails, _) => Outcome::Failed("NO_QUORUM".to_owned()),
            _ => operation.outcome,
        };
        running.answered = true;
        let waits = running.fate == Fate::Unknown && !had_effect;
        self.ready.push_back(operation);
        if !waits {
            self.forget(id);
        }
    }

    /// Drops an operation that waits for nothing any more.
    fn forget(&mut self, id: usize) -> Option<Running> {
        let running = self.running.get_mut(id.checked_sub(self.first)?)?.take();
        while matches!(self.running.front(), Some(None)) {
            self.running.pop_front();
            self.first += 1;
        }
        running
    }
}

impl Iterator for Generator {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        loop {
            if let Some(operation) = self.ready.pop_front() {
                return Some(operation);
            }
            if !self.step() {
                return None;
            }
        }
    }
}
