//! Registers: gets, puts, deletes and compare-and-swaps of a key are linearizable (LIN-1).
//!
//! For each key there is one order of all operations on it that keeps real time and explains every answer; the key is absent
//! at first. Operations that failed are left out, so an effect of theirs is a violation as soon as it is seen. Operations of
//! unknown outcome may have their effect at any time after they began, or never. Stale reads and reads of the past are no
//! part of this (see [`committed`](super::committed)). Keys are judged one by one, which loses nothing: a history is linearizable
//! exactly if it is for each object.

use super::Options;
use super::source::{Source, source};
use crate::linear::{Conflict, Linearization, Model, Timed, linearize};
use crate::{Answer, Call, Consistency, History, Object, Operation, Outcome, Report};
use std::collections::HashMap;

/// How many operations of the end of an order a violation shows.
const ORDER_SHOWN: usize = 5;

/// The name of this checker.
pub const NAME: &str = "register";

/// A value, by its number in the key's [`Values`].
type Value = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Read(Option<Value>),
    Write(Value),
    /// With what it answered about whether there was something.
    Delete(Option<bool>),
    /// With whether it answered that it succeeded.
    Swap(Option<Value>, Value, Option<bool>),
}

struct Register;

impl Model for Register {
    type State = Option<Value>;
    type Step = Step;

    fn initial(&self) -> Option<Value> {
        None
    }

    fn apply(&self, state: &Option<Value>, step: &Step) -> Option<Option<Value>> {
        match *step {
            Step::Read(value) => (value == *state).then_some(value),
            Step::Write(value) => Some(Some(value)),
            Step::Delete(None) => Some(None),
            Step::Delete(Some(deleted)) => (deleted == state.is_some()).then_some(None),
            Step::Swap(expected, new, succeeded) => {
                let holds = expected == *state;
                if succeeded.is_some_and(|succeeded| succeeded != holds) {
                    return None;
                }
                Some(if holds { Some(new) } else { *state })
            }
        }
    }

    fn is_read(&self, step: &Step) -> bool {
        matches!(
            step,
            Step::Read(_) | Step::Delete(Some(false)) | Step::Swap(_, _, Some(false))
        )
    }
}

/// The values of one key as small numbers. Those that no operation ever claims to have found are all the same to the search, and
/// have one number: then writes of them do the same, and fewer orders are different.
struct Values<'a> {
    numbers: HashMap<&'a str, Value>,
    texts: Vec<&'a str>,
}

/// How the values that nobody claims to have found are shown.
const OTHER: &str = "(a value that nobody read)";

impl<'a> Values<'a> {
    /// The values that some operation claims to have found, or swaps for.
    fn new(operations: &[&'a Operation]) -> Values<'a> {
        let mut values = Values {
            numbers: HashMap::new(),
            texts: vec![OTHER],
        };
        for operation in operations {
            let found = match (&operation.call, &operation.outcome) {
                (Call::CompareAndSwap { expected, .. }, _) => expected.as_deref(),
                (_, Outcome::Ok(Answer::Value { value, .. })) => value.as_deref(),
                _ => None,
            };
            if let Some(text) = found {
                let texts = &mut values.texts;
                values.numbers.entry(text).or_insert_with(|| {
                    texts.push(text);
                    Value::try_from(texts.len() - 1).expect("fewer than 2^32 values of one key")
                });
            }
        }
        values
    }

    fn number(&self, text: &str) -> Value {
        self.numbers.get(text).copied().unwrap_or(0)
    }

    fn show(&self, value: Option<Value>) -> String {
        match value {
            Some(number) => format!("'{}'", self.texts[number as usize]),
            None => "absent".to_owned(),
        }
    }
}

/// Checks all registers of a history.
pub fn check(history: &History, options: &Options) -> Report {
    let mut report = Report::new(NAME);
    for (object, operations) in history.by_object() {
        if matches!(object, Object::Register(_)) {
            report.objects += 1;
            report.operations += operations.len() as u64;
            one(object, &operations, options, &mut report);
        }
    }
    report
}

fn one(object: Object<'_>, operations: &[&Operation], options: &Options, report: &mut Report) {
    let values = Values::new(operations);
    let mut timed: Vec<Timed<Step>> = Vec::with_capacity(operations.len());
    let mut shown: Vec<&Operation> = Vec::with_capacity(operations.len());
    for operation in operations {
        if let Some(step) = step(operation, &values) {
            timed.push(Timed {
                start: operation.start_ns,
                end: operation.done_ns(),
                step,
            });
            shown.push(operation);
        }
    }
    match linearize(&Register, &timed, options.positions_max) {
        Linearization::Exists => {}
        Linearization::GivenUp(positions) => report.undecided(
            object,
            format!("no order was found in {positions} positions of the search"),
        ),
        Linearization::Impossible(conflict) => {
            explain(
                object, operations, &shown, &timed, &values, &conflict, report,
            );
        }
    }
}

/// What an operation does to the key; `None` if it says nothing about linearizability.
fn step(operation: &Operation, values: &Values<'_>) -> Option<Step> {
    let answer = match &operation.outcome {
        Outcome::Ok(answer) => Some(answer),
        Outcome::Unknown(_) => None,
        Outcome::Failed(_) => return None,
    };
    match (&operation.call, answer) {
        (
            Call::Get {
                consistency: Consistency::Linearizable,
                ..
            },
            Some(Answer::Value { value, .. }),
        ) => Some(Step::Read(value.as_deref().map(|text| values.number(text)))),
        (Call::Put { value, .. }, _) => Some(Step::Write(values.number(value))),
        (Call::Delete { .. }, Some(Answer::Deleted { deleted, .. })) => {
            Some(Step::Delete(Some(*deleted)))
        }
        (Call::Delete { .. }, None) => Some(Step::Delete(None)),
        (Call::CompareAndSwap { expected, new, .. }, answer) => {
            let succeeded = match answer {
                Some(Answer::Swapped { succeeded, .. }) => Some(*succeeded),
                _ => None,
            };
            let expected = expected.as_deref().map(|text| values.number(text));
            Some(Step::Swap(expected, values.number(new), succeeded))
        }
        _ => None,
    }
}

/// The value that an answer claims to have found, if it claims one.
fn claimed(step: Step) -> Option<Value> {
    match step {
        Step::Read(value) => value,
        Step::Swap(expected, _, Some(true)) => expected,
        _ => None,
    }
}

fn explain(
    object: Object<'_>,
    all: &[&Operation],
    shown: &[&Operation],
    timed: &[Timed<Step>],
    values: &Values<'_>,
    conflict: &Conflict<Option<Value>>,
    report: &mut Report,
) {
    let stuck = conflict.stuck;
    let operation = shown[stuck];
    let mut operations = vec![operation];
    let end_of_order = conflict.order.len().saturating_sub(ORDER_SHOWN);
    let order = conflict.order[end_of_order..].iter();
    operations.extend(order.map(|&index| shown[index]));
    let mut told = format!(
        "no order that keeps real time explains T1: in one that explains everything which returned before it, and whose end is \
         T2 to T{}, the key is left {}",
        operations.len(),
        values.show(conflict.state)
    );
    if operations.len() == 1 {
        told = "no order explains T1, before which nothing returned".to_owned();
    }
    if let Some(number) = claimed(timed[stuck].step) {
        let text = values.texts[number as usize];
        match source(text, operation, all) {
            Source::Possible(writers) => {
                let known = operations.len();
                operations.extend(writers.into_iter().take(2));
                let mut at = known;
                while at < operations.len() {
                    if operations[..known]
                        .iter()
                        .any(|other| std::ptr::eq(*other, operations[at]))
                    {
                        operations.remove(at);
                    } else {
                        at += 1;
                    }
                }
                if operations.len() > known {
                    told += &format!("; what T1 had was written by T{}", known + 1);
                }
            }
            impossible => return impossible.violate(object, text, operation, report),
        }
    }
    let open = timed.iter().enumerate().filter(|&(index, other)| {
        index != stuck
            && other.end.is_none_or(|end| end >= timed[stuck].start)
            && timed[stuck].end.is_none_or(|end| other.start <= end)
    });
    told += &format!(
        "; {} operations were open at the same time, and none of them helps",
        open.count()
    );
    report.violate("not linearizable", object, told, &operations);
}
