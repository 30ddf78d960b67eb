//! What clients ask.

use super::{Generator, Kind};
use crate::{Call, Consistency, Micro};
use std::collections::BTreeMap;

/// How many operations an object sees before it is given up, about.
const LIFE: u64 = 240;

impl Generator {
    /// What a client asks next.
    pub(super) fn call(&mut self) -> Call {
        let kinds = self.plan.kinds.len() as u64;
        let kind = self.plan.kinds[usize::try_from(self.random.below(kinds)).unwrap_or(0)];
        let generation = self.begun / (LIFE * self.plan.objects * kinds);
        let object = generation * self.plan.objects + self.random.below(self.plan.objects);
        let unique = self.begun;
        let consistency = match self.random.below(5) {
            0 => Consistency::Stale,
            1 => Consistency::At(self.store.some_revision(&mut self.random)),
            _ => Consistency::Linearizable,
        };
        // Only keys can be read in the past here.
        let simple = match consistency {
            Consistency::At(_) => Consistency::Linearizable,
            other => other,
        };
        match kind {
            Kind::Register => {
                let key = format!("key-{object}");
                match self.random.below(10) {
                    0..4 => Call::Get { key, consistency },
                    4..7 => Call::Put {
                        key,
                        value: format!("v{unique}"),
                    },
                    7 => Call::Delete { key },
                    _ => Call::CompareAndSwap {
                        expected: self.store.some_value(&key, &mut self.random),
                        key,
                        new: format!("v{unique}"),
                    },
                }
            }
            Kind::Set => {
                let set = format!("set-{object}");
                if self.random.below(2) == 0 {
                    Call::SetAdd {
                        set,
                        element: unique,
                    }
                } else {
                    Call::SetRead {
                        set,
                        consistency: simple,
                    }
                }
            }
            Kind::Lists => {
                let steps = 1 + self.random.below(4);
                let first = generation * self.plan.objects * 4;
                let steps = (0..steps).map(|at| {
                    let key = format!("list-{}", first + self.random.below(self.plan.objects * 4));
                    if self.random.below(2) == 0 {
                        Micro::Append {
                            key,
                            element: unique * 8 + at,
                        }
                    } else {
                        Micro::Read { key }
                    }
                });
                Call::Lists(steps.collect())
            }
            Kind::Counter => {
                let counter = format!("counter-{object}");
                if self.random.below(2) == 0 {
                    Call::Increment {
                        counter,
                        amount: 1 + self.random.below(3),
                    }
                } else {
                    Call::CounterRead {
                        counter,
                        consistency: simple,
                    }
                }
            }
            Kind::Bank => {
                let bank = format!("bank-{object}");
                if self.store.opens(&bank) {
                    let accounts = (0..4).map(|account| (format!("account-{account}"), 50));
                    return Call::BankOpen {
                        bank,
                        accounts: BTreeMap::from_iter(accounts),
                    };
                }
                if self.random.below(2) == 0 {
                    let from = self.random.below(4);
                    let to = (from + 1 + self.random.below(3)) % 4;
                    Call::Transfer {
                        bank,
                        from: format!("account-{from}"),
                        to: format!("account-{to}"),
                        amount: 1 + i64::try_from(self.random.below(30)).unwrap_or(0),
                    }
                } else {
                    Call::BankRead {
                        bank,
                        consistency: simple,
                    }
                }
            }
        }
    }
}
