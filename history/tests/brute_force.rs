//! The checkers against the truth about small histories: all orders tried, and, for registers, stateright's tester as well.
//!
//! A history is made by running calls one after another in a random order that keeps real time; most histories then get one answer
//! or one time changed. For registers a checker must agree with both in each case. The others are not search but reasoning: they must never accuse
//! a history that has an order, and they must find most of those that have none.

mod support;

use mareedb_history::check::{self, Options};
use mareedb_history::{Answer, Call, Consistency, Micro, Operation, Outcome, Verdict};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};
use std::cell::Cell;
use std::collections::BTreeMap;
use support::{Sequential, has_an_order, history, unknown};

/// An operation before it has its answer.
#[derive(Clone, Debug)]
struct Draft {
    start_ns: u64,
    /// When it has its effect, and ends, after the start.
    effect: u64,
    end: u64,
    known: bool,
    happens: bool,
    call: Call,
}

fn draft(call: impl Strategy<Value = Call>) -> impl Strategy<Value = Draft> {
    (
        0..40_u64,
        0..12_u64,
        0..12_u64,
        prop::bool::weighted(0.8),
        any::<bool>(),
        call,
    )
        .prop_map(|(start_ns, effect, more, known, happens, call)| Draft {
            start_ns,
            effect: start_ns + effect,
            end: start_ns + effect + more,
            known,
            happens,
            call,
        })
}

/// Gives the drafts their answers. Each operation has a process of its own, so that any may overlap.
fn answered(drafts: &[Draft]) -> Vec<Operation> {
    let mut order: Vec<usize> = (0..drafts.len()).collect();
    order.sort_by_key(|&at| drafts[at].effect);
    let mut state = Sequential::default();
    let mut operations: Vec<Option<Operation>> = vec![None; drafts.len()];
    for at in order {
        let draft = &drafts[at];
        let outcome = if draft.known {
            match state.apply(&draft.call) {
                Some(answer) => Outcome::Ok(answer),
                None => Outcome::Failed("PRECONDITION_FAILED".to_owned()),
            }
        } else {
            if draft.happens {
                state.apply(&draft.call);
            }
            unknown()
        };
        operations[at] = Some(Operation {
            process: at as u64,
            node: "node-1".to_owned(),
            start_ns: draft.start_ns,
            end_ns: draft.known.then_some(draft.end),
            call: draft.call.clone(),
            outcome,
        });
    }
    operations.into_iter().flatten().collect()
}

/// What is done to a history that had an order.
#[derive(Clone, Debug)]
enum Spoil {
    Nothing,
    /// An answer is given to another operation, too, that can take it and got another one.
    Answer(prop::sample::Index, prop::sample::Index),
    /// An operation took place at another time.
    Time(prop::sample::Index, u64),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        Just(Spoil::Nothing),
        (index(), index()).prop_map(|(from, to)| Spoil::Answer(from, to)),
        (index(), 0..60_u64).prop_map(|(which, to)| Spoil::Time(which, to)),
    ]
}

impl Spoil {
    fn apply(&self, operations: &mut [Operation]) {
        match self {
            Spoil::Nothing => {}
            Spoil::Answer(from, to) => {
                let outcome = operations[from.index(operations.len())].outcome.clone();
                let Outcome::Ok(answer) = &outcome else {
                    return;
                };
                let middle = to.index(operations.len());
                operations.rotate_left(middle);
                if let Some(other) = operations.iter_mut().find(|other| {
                    matches!(other.outcome, Outcome::Ok(_))
                        && other.outcome != outcome
                        && other.call.takes(answer)
                }) {
                    other.outcome = outcome;
                }
            }
            Spoil::Time(which, to) => {
                let operation = &mut operations[which.index(operations.len())];
                let length = operation.end_ns.map(|end| end - operation.start_ns);
                operation.start_ns = *to;
                operation.end_ns = length.map(|length| to + length.min(3));
            }
        }
    }
}

/// How many histories had an order, how many had none, and how many of these a checker found.
#[derive(Default)]
struct Tally {
    right: Cell<u32>,
    wrong: Cell<u32>,
    found: Cell<u32>,
}

fn bump(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

/// Runs a checker over random histories of such calls.
fn compare(
    cases: u32,
    call: impl Strategy<Value = Call>,
    length: std::ops::Range<usize>,
    exact: bool,
    prepare: impl Fn(&mut Vec<Draft>),
) -> Tally {
    let tally = Tally::default();
    let strategy = (prop::collection::vec(draft(call), length), spoil());
    // More than the usual number, for an hour of spare time.
    let asked = std::env::var("CHECKER_CASES").map(|cases| cases.parse().expect("a number"));
    let mut runner = TestRunner::new(Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&strategy, |(mut drafts, spoil)| {
        prepare(&mut drafts);
        let mut operations = answered(&drafts);
        spoil.apply(&mut operations);
        let truth = has_an_order(&operations);
        let reports = check::all(&history(operations.clone()), &Options::default());
        let verdict = check::verdict(&reports);
        bump(if truth { &tally.right } else { &tally.wrong });
        if !truth && verdict == Verdict::Violated {
            bump(&tally.found);
        }
        if exact {
            let other = LinearizabilityTester::new(Reference::default());
            prop_assert_eq!(
                stateright(other, &operations),
                truth,
                "stateright and all orders"
            );
            prop_assert_eq!(verdict == Verdict::Holds, truth, "{:#?}", reports);
        } else if truth {
            prop_assert_eq!(verdict, Verdict::Holds, "{:#?}", reports);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    tally
}

fn nothing(_: &mut Vec<Draft>) {}

#[test]
fn registers_agree_with_all_orders_and_with_stateright() {
    let text = || prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned);
    let key = || "k".to_owned();
    let call = prop_oneof![
        4 => Just(support::get("k")),
        3 => text().prop_map(move |value| Call::Put { key: key(), value }),
        1 => Just(Call::Delete { key: key() }),
        2 => (prop::option::of(text()), text())
            .prop_map(move |(expected, new)| Call::CompareAndSwap { key: key(), expected, new }),
    ];
    let tally = compare(4000, call, 1..8, true, nothing);
    judge(&tally, 100);
}

#[test]
fn lists_are_never_accused_wrongly_and_seldom_missed() {
    let key = || prop::sample::select(vec!["x", "y"]).prop_map(str::to_owned);
    let step = || {
        prop_oneof![
            key().prop_map(|key| Micro::Append { key, element: 0 }),
            key().prop_map(|key| Micro::Read { key }),
        ]
    };
    let call = prop::collection::vec(step(), 1..4).prop_map(Call::Lists);
    let tally = compare(3000, call, 2..7, false, |drafts| {
        let mut next = 0;
        for draft in drafts {
            if let Call::Lists(steps) = &mut draft.call {
                for step in steps {
                    if let Micro::Append { element, .. } = step {
                        next += 1;
                        *element = next;
                    }
                }
            }
        }
    });
    judge(&tally, 90);
}

#[test]
fn sets_are_never_accused_wrongly_and_seldom_missed() {
    let set = || "s".to_owned();
    let call = prop_oneof![
        Just(Call::SetAdd {
            set: set(),
            element: 0
        }),
        Just(Call::SetRead {
            set: set(),
            consistency: Consistency::Linearizable
        }),
    ];
    let tally = compare(3000, call, 2..8, false, |drafts| {
        for (at, draft) in drafts.iter_mut().enumerate() {
            if let Call::SetAdd { element, .. } = &mut draft.call {
                *element = at as u64;
            }
        }
    });
    judge(&tally, 100);
}

#[test]
fn counters_are_never_accused_wrongly_and_seldom_missed() {
    let counter = || "c".to_owned();
    let call = prop_oneof![
        (1..3_u64).prop_map(move |amount| Call::Increment {
            counter: counter(),
            amount
        }),
        Just(Call::CounterRead {
            counter: counter(),
            consistency: Consistency::Linearizable
        }),
    ];
    let tally = compare(3000, call, 2..8, false, nothing);
    judge(&tally, 75);
}

#[test]
fn banks_are_never_accused_wrongly_and_seldom_missed() {
    let bank = || "b".to_owned();
    let account = || prop::sample::select(vec!["x", "y", "z"]).prop_map(str::to_owned);
    let call = prop_oneof![
        (account(), account(), 1..9_i64).prop_map(move |(from, to, amount)| Call::Transfer {
            bank: bank(),
            from,
            to,
            amount
        }),
        Just(Call::BankRead {
            bank: bank(),
            consistency: Consistency::Linearizable
        }),
    ];
    let tally = compare(3000, call, 3..8, false, |drafts| {
        let accounts = ["x", "y", "z"].map(|name| (name.to_owned(), 10));
        let first = &mut drafts[0];
        first.call = Call::BankOpen {
            bank: bank(),
            accounts: BTreeMap::from(accounts),
        };
        first.known = true;
        (first.start_ns, first.effect, first.end) = (0, 0, 0);
        for draft in &mut drafts[1..] {
            draft.start_ns += 1;
            draft.effect += 1;
            draft.end += 1;
        }
    });
    judge(&tally, 40);
}

/// Enough of both kinds occurred, and of the wrong ones this percentage was found.
fn judge(tally: &Tally, percent: u32) {
    let (right, wrong, found) = (tally.right.get(), tally.wrong.get(), tally.found.get());
    eprintln!("{right} right, {wrong} wrong, of which {found} found");
    assert!(
        right > 300 && wrong > 100,
        "{right} right, {wrong} wrong: both kinds must occur"
    );
    assert!(found * 100 >= wrong * percent, "{found} of {wrong} found");
}

/// The register in stateright's words.
#[derive(Clone, Debug, Default)]
struct Reference(Option<String>);

#[derive(Clone, Debug, PartialEq)]
enum Ret {
    Value(Option<String>),
    Done,
    Deleted(bool),
    Swapped(bool),
}

impl SequentialSpec for Reference {
    type Op = Call;
    type Ret = Ret;

    fn invoke(&mut self, call: &Call) -> Ret {
        match call {
            Call::Put { value, .. } => {
                self.0 = Some(value.clone());
                Ret::Done
            }
            Call::Delete { .. } => Ret::Deleted(self.0.take().is_some()),
            Call::CompareAndSwap { expected, new, .. } => {
                let holds = self.0 == *expected;
                if holds {
                    self.0 = Some(new.clone());
                }
                Ret::Swapped(holds)
            }
            _ => Ret::Value(self.0.clone()),
        }
    }
}

fn stateright(mut tester: LinearizabilityTester<u64, Reference>, operations: &[Operation]) -> bool {
    // At one moment questions come first: the clock cannot tell, so they count as concurrent.
    let mut events: Vec<(u64, bool, &Operation)> = Vec::new();
    for operation in operations {
        events.push((operation.start_ns, false, operation));
        events.extend(operation.done_ns().map(|end| (end, true, operation)));
    }
    events.sort_by_key(|(at, returns, _)| (*at, *returns));
    for (_, returns, operation) in events {
        if returns {
            let ret = match &operation.outcome {
                Outcome::Ok(Answer::Value { value, .. }) => Ret::Value(value.clone()),
                Outcome::Ok(Answer::Deleted { deleted, .. }) => Ret::Deleted(*deleted),
                Outcome::Ok(Answer::Swapped { succeeded, .. }) => Ret::Swapped(*succeeded),
                _ => Ret::Done,
            };
            tester.on_return(operation.process, ret).expect("a history");
        } else {
            tester
                .on_invoke(operation.process, operation.call.clone())
                .expect("a history");
        }
    }
    tester.is_consistent()
}
