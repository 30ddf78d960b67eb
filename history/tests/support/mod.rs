//! What the tests share: short ways to write histories, and the slow truth about small ones.

// Each test is a program of its own and uses its part of this.
#![allow(dead_code)]

use mareedb_history::{Answer, Call, Consistency, History, Micro, Operation, Outcome, Report};
use std::collections::BTreeMap;

/// An acknowledged operation.
pub fn ok(process: u64, start_ns: u64, end_ns: u64, call: Call, answer: Answer) -> Operation {
    done(process, start_ns, end_ns, call, Outcome::Ok(answer))
}

/// An operation with any outcome.
pub fn done(process: u64, start_ns: u64, end_ns: u64, call: Call, outcome: Outcome) -> Operation {
    Operation {
        process,
        node: "node-1".to_owned(),
        start_ns,
        end_ns: Some(end_ns),
        call,
        outcome,
    }
}

pub fn failed() -> Outcome {
    Outcome::Failed("NO_QUORUM".to_owned())
}

pub fn unknown() -> Outcome {
    Outcome::Unknown("OUTCOME_UNKNOWN".to_owned())
}

pub fn history(operations: Vec<Operation>) -> History {
    History::new(operations).expect("a history")
}

pub fn get(key: &str) -> Call {
    Call::Get {
        key: key.to_owned(),
        consistency: Consistency::Linearizable,
    }
}

pub fn get_at(key: &str, consistency: Consistency) -> Call {
    Call::Get {
        key: key.to_owned(),
        consistency,
    }
}

pub fn put(key: &str, value: &str) -> Call {
    Call::Put {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

pub fn swap(key: &str, expected: Option<&str>, new: &str) -> Call {
    Call::CompareAndSwap {
        key: key.to_owned(),
        expected: expected.map(str::to_owned),
        new: new.to_owned(),
    }
}

pub fn value(value: Option<&str>, revision: Option<u64>) -> Answer {
    Answer::Value {
        value: value.map(str::to_owned),
        revision,
    }
}

pub fn written(revision: u64) -> Answer {
    Answer::Written {
        revision: Some(revision),
    }
}

pub fn append(key: &str, element: u64) -> Micro {
    Micro::Append {
        key: key.to_owned(),
        element,
    }
}

pub fn read(key: &str) -> Micro {
    Micro::Read {
        key: key.to_owned(),
    }
}

pub fn lists(results: Vec<Option<Vec<u64>>>) -> Answer {
    Answer::Lists {
        results,
        revision: None,
    }
}

/// Asserts that a checker finds this anomaly, and shows `shown` operations for it.
pub fn finds(report: &Report, anomaly: &str, shown: usize) {
    let found: Vec<_> = report
        .violations
        .iter()
        .map(|v| (v.anomaly.as_str(), v.operations.len()))
        .collect();
    assert!(
        found.contains(&(anomaly, shown)),
        "{anomaly} with {shown} operations was to be found in {}, and found was {found:?}: {report:#?}",
        report.checker
    );
    assert_eq!(report.violations_total, report.violations.len() as u64);
}

/// The database as one thread would have it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sequential {
    registers: BTreeMap<String, String>,
    lists: BTreeMap<String, Vec<u64>>,
    sets: BTreeMap<String, Vec<u64>>,
    counters: BTreeMap<String, u64>,
    banks: BTreeMap<String, BTreeMap<String, i64>>,
}

impl Sequential {
    /// Does a call; `None` if it fails for lack of money.
    pub fn apply(&mut self, call: &Call) -> Option<Answer> {
        let revision = None;
        Some(match call {
            Call::Get { key, .. } => value(self.registers.get(key).map(String::as_str), None),
            Call::Put { key, value } => {
                self.registers.insert(key.clone(), value.clone());
                Answer::Written { revision }
            }
            Call::Delete { key } => Answer::Deleted {
                deleted: self.registers.remove(key).is_some(),
                revision,
            },
            Call::CompareAndSwap { key, expected, new } => {
                let succeeded = self.registers.get(key) == expected.as_ref();
                if succeeded {
                    self.registers.insert(key.clone(), new.clone());
                }
                Answer::Swapped {
                    succeeded,
                    revision,
                }
            }
            Call::Lists(steps) => {
                let mut results = Vec::new();
                for step in steps {
                    results.push(match step {
                        Micro::Append { key, element } => {
                            self.lists.entry(key.clone()).or_default().push(*element);
                            None
                        }
                        Micro::Read { key } => {
                            Some(self.lists.get(key).cloned().unwrap_or_default())
                        }
                    });
                }
                Answer::Lists { results, revision }
            }
            Call::SetAdd { set, element } => {
                let elements = self.sets.entry(set.clone()).or_default();
                elements.push(*element);
                elements.sort_unstable();
                Answer::Written { revision }
            }
            Call::SetRead { set, .. } => Answer::Set {
                elements: self.sets.get(set).cloned().unwrap_or_default(),
            },
            Call::Increment { counter, amount } => {
                let value = self.counters.entry(counter.clone()).or_default();
                *value += amount;
                Answer::Incremented {
                    value: Some(*value),
                    revision,
                }
            }
            Call::CounterRead { counter, .. } => Answer::Count {
                value: self.counters.get(counter).copied().unwrap_or_default(),
            },
            Call::BankOpen { bank, accounts } => {
                self.banks.insert(bank.clone(), accounts.clone());
                Answer::Written { revision }
            }
            Call::Transfer {
                bank,
                from,
                to,
                amount,
            } => {
                let accounts = self.banks.get_mut(bank)?;
                let payer = accounts
                    .get_mut(from)
                    .filter(|balance| **balance >= *amount)?;
                *payer -= amount;
                *accounts.get_mut(to)? += amount;
                Answer::Written { revision }
            }
            Call::BankRead { bank, .. } => Answer::Accounts {
                balances: self.banks.get(bank).cloned().unwrap_or_default(),
            },
        })
    }
}

/// Whether some order of the operations keeps real time and explains every answer, found by trying all.
pub fn has_an_order(operations: &[Operation]) -> bool {
    let left: Vec<&Operation> = operations
        .iter()
        .filter(|operation| !matches!(operation.outcome, Outcome::Failed(_)))
        .collect();
    search(&left, &Sequential::default())
}

fn search(left: &[&Operation], state: &Sequential) -> bool {
    let required = |operation: &&Operation| matches!(operation.outcome, Outcome::Ok(_));
    if !left.iter().any(required) {
        return true;
    }
    (0..left.len()).any(|at| {
        let next = left[at];
        let too_early = left
            .iter()
            .any(|other| other.done_ns().is_some_and(|end| end < next.start_ns));
        if too_early {
            return false;
        }
        let mut after = state.clone();
        let answer = after.apply(&next.call);
        let fits = match &next.outcome {
            Outcome::Ok(told) => answer.as_ref() == Some(told),
            Outcome::Failed(_) | Outcome::Unknown(_) => true,
        };
        let mut rest = left.to_vec();
        rest.remove(at);
        fits && search(&rest, &after)
    })
}
