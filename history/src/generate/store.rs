//! The store in the model: each call is done at one moment, with a revision of its own.

use super::Fault;
use super::random::Random;
use crate::{Answer, Call, Consistency, Micro};
use std::collections::{BTreeMap, HashMap};

/// The versions of an object with their revisions, the newest last, from revision 0 on, when it was absent.
type Versions<T> = Vec<(u64, T)>;

#[derive(Default)]
pub(super) struct Store {
    revision: u64,
    registers: HashMap<String, Versions<Option<String>>>,
    sets: HashMap<String, Versions<Vec<u64>>>,
    lists: HashMap<String, Versions<Vec<u64>>>,
    counters: HashMap<String, Versions<u64>>,
    banks: HashMap<String, Versions<BTreeMap<String, i64>>>,
    asked_to_open: HashMap<String, ()>,
    /// A transfer that has given nothing yet: bank, account, amount.
    half: Option<(String, String, i64)>,
}

/// How many versions of sets, lists, counters and banks are kept, for reads of the past.
const VERSIONS_KEPT: usize = 6;

fn versions<'a, T: Default>(
    of: &'a mut HashMap<String, Versions<T>>,
    name: &str,
) -> &'a mut Versions<T> {
    if !of.contains_key(name) {
        of.insert(name.to_owned(), vec![(0, T::default())]);
    }
    of.get_mut(name).expect("it was put there")
}

fn newest<'a, T: Default>(of: &'a mut HashMap<String, Versions<T>>, name: &str) -> &'a (u64, T) {
    versions(of, name)
        .last()
        .expect("it has a version from the start")
}

fn push<T: Default>(of: &mut HashMap<String, Versions<T>>, name: &str, revision: u64, new: T) {
    let versions = versions(of, name);
    versions.push((revision, new));
    if versions.len() > VERSIONS_KEPT {
        versions.remove(0);
    }
}

/// The version to answer from, for a read that is `back` versions behind.
fn behind<T>(versions: &Versions<T>, back: u64) -> &(u64, T) {
    let back = usize::try_from(back).unwrap_or(usize::MAX);
    &versions[versions.len().saturating_sub(1).saturating_sub(back)]
}

impl Store {
    /// A revision of the last while.
    pub(super) fn some_revision(&self, random: &mut Random) -> u64 {
        self.revision.saturating_sub(random.below(200))
    }

    /// A value that the key may have, to swap: what it has now or had before.
    pub(super) fn some_value(&mut self, key: &str, random: &mut Random) -> Option<String> {
        let versions = versions(&mut self.registers, key);
        behind(versions, random.below(2)).1.clone()
    }

    /// Whether nobody was told before to open the bank.
    pub(super) fn opens(&mut self, bank: &str) -> bool {
        self.asked_to_open.insert(bank.to_owned(), ()).is_none()
    }

    /// Does a call. A transfer without enough money is answered with the accounts as they are.
    pub(super) fn apply(&mut self, call: &Call, random: &mut Random) -> Answer {
        let back = match call {
            Call::Get { consistency, .. }
            | Call::SetRead { consistency, .. }
            | Call::CounterRead { consistency, .. }
            | Call::BankRead { consistency, .. }
                if *consistency == Consistency::Stale =>
            {
                random.below(4)
            }
            _ => 0,
        };
        if call.is_read() {
            return self.read(call, back);
        }
        if let Some((bank, account, amount)) = self.half.take() {
            let (revision, mut accounts) = newest(&mut self.banks, &bank).clone();
            *accounts.entry(account).or_default() += amount;
            push(&mut self.banks, &bank, revision, accounts);
        }
        self.revision += 1 + random.below(3);
        self.write(call, self.revision)
    }

    fn read(&mut self, call: &Call, back: u64) -> Answer {
        match call {
            Call::Get { key, consistency } => {
                let versions = versions(&mut self.registers, key);
                let (revision, value) = match consistency {
                    Consistency::At(at) => {
                        let until = versions.partition_point(|(revision, _)| revision <= at);
                        &versions[until.saturating_sub(1)]
                    }
                    _ => behind(versions, back),
                };
                Answer::Value {
                    value: value.clone(),
                    revision: value.is_some().then_some(*revision),
                }
            }
            Call::SetRead { set, .. } => Answer::Set {
                elements: behind(versions(&mut self.sets, set), back).1.clone(),
            },
            Call::CounterRead { counter, .. } => Answer::Count {
                value: behind(versions(&mut self.counters, counter), back).1,
            },
            Call::BankRead { bank, .. } => Answer::Accounts {
                balances: behind(versions(&mut self.banks, bank), back).1.clone(),
            },
            Call::Lists(steps) => {
                let results = steps.iter().map(|step| match step {
                    Micro::Read { key } => {
                        Some(behind(versions(&mut self.lists, key), back).1.clone())
                    }
                    Micro::Append { .. } => None,
                });
                Answer::Lists {
                    results: results.collect(),
                    revision: None,
                }
            }
            _ => Answer::Written { revision: None },
        }
    }

    fn write(&mut self, call: &Call, revision: u64) -> Answer {
        let told = Some(revision);
        match call {
            Call::Put { key, value } => {
                versions(&mut self.registers, key).push((revision, Some(value.clone())));
                Answer::Written { revision: told }
            }
            Call::Delete { key } => {
                let deleted = newest(&mut self.registers, key).1.is_some();
                if deleted {
                    versions(&mut self.registers, key).push((revision, None));
                }
                Answer::Deleted {
                    deleted,
                    revision: told.filter(|_| deleted),
                }
            }
            Call::CompareAndSwap { key, expected, new } => {
                let succeeded = newest(&mut self.registers, key).1 == *expected;
                if succeeded {
                    versions(&mut self.registers, key).push((revision, Some(new.clone())));
                }
                Answer::Swapped {
                    succeeded,
                    revision: told,
                }
            }
            Call::SetAdd { set, element } => {
                let mut elements = newest(&mut self.sets, set).1.clone();
                elements.push(*element);
                push(&mut self.sets, set, revision, elements);
                Answer::Written { revision: told }
            }
            Call::Increment { counter, amount } => {
                let value = newest(&mut self.counters, counter).1 + amount;
                push(&mut self.counters, counter, revision, value);
                Answer::Incremented {
                    value: Some(value),
                    revision: told,
                }
            }
            Call::BankOpen { bank, accounts } => {
                push(&mut self.banks, bank, revision, accounts.clone());
                Answer::Written { revision: told }
            }
            Call::Transfer {
                bank,
                from,
                to,
                amount,
            } => {
                let mut accounts = newest(&mut self.banks, bank).1.clone();
                if accounts.get(from).is_none_or(|balance| balance < amount) {
                    return Answer::Accounts { balances: accounts };
                }
                *accounts.entry(from.clone()).or_default() -= amount;
                *accounts.entry(to.clone()).or_default() += amount;
                push(&mut self.banks, bank, revision, accounts);
                Answer::Written { revision: told }
            }
            Call::Lists(steps) => Answer::Lists {
                results: self.transact(steps, revision, 0),
                revision: told,
            },
            _ => Answer::Written { revision: told },
        }
    }

    /// Does a list transaction on the lists as they were `back` versions ago.
    fn transact(&mut self, steps: &[Micro], revision: u64, back: u64) -> Vec<Option<Vec<u64>>> {
        let mut changed: HashMap<&str, Vec<u64>> = HashMap::new();
        let mut results = Vec::new();
        for step in steps {
            let (Micro::Append { key, .. } | Micro::Read { key }) = step;
            let now = changed
                .entry(key)
                .or_insert_with(|| behind(versions(&mut self.lists, key), back).1.clone());
            results.push(match step {
                Micro::Append { element, .. } => {
                    now.push(*element);
                    None
                }
                Micro::Read { .. } => Some(now.clone()),
            });
        }
        for (key, elements) in changed {
            if *elements != newest(&mut self.lists, key).1 {
                push(&mut self.lists, key, revision, elements);
            }
        }
        results
    }

    /// Does a call wrongly.
    pub(super) fn apply_faulty(
        &mut self,
        call: &Call,
        fault: Fault,
        random: &mut Random,
    ) -> Answer {
        match (fault, call) {
            (Fault::StaleRead, _) => self.read(call, 1 + random.below(3)),
            (Fault::Uncommitted, Call::Get { .. }) => Answer::Value {
                value: Some(format!("never-{}", random.below(1 << 30))),
                revision: Some(self.revision),
            },
            (Fault::BlindSwap, Call::CompareAndSwap { key, new, .. }) => {
                self.revision += 1;
                let put = Call::Put {
                    key: key.clone(),
                    value: new.clone(),
                };
                self.write(&put, self.revision);
                Answer::Swapped {
                    succeeded: true,
                    revision: Some(self.revision),
                }
            }
            (Fault::LostUpdate, Call::Lists(steps)) => {
                self.revision += 1;
                Answer::Lists {
                    results: self.transact(steps, self.revision, 1),
                    revision: Some(self.revision),
                }
            }
            (
                Fault::HalfTransfer,
                Call::Transfer {
                    bank, to, amount, ..
                },
            ) => {
                let answer = self.apply(call, random);
                if matches!(answer, Answer::Written { .. }) {
                    let (revision, mut accounts) = newest(&mut self.banks, bank).clone();
                    *accounts.entry(to.clone()).or_default() -= amount;
                    push(&mut self.banks, bank, revision, accounts);
                    self.half = Some((bank.clone(), to.clone(), *amount));
                }
                answer
            }
            (Fault::OldRevision, _) => self.write(call, self.revision),
            (Fault::LostWrite, _) => {
                let before = self.revision;
                let answer = self.apply(call, random);
                self.take_back(call, before);
                answer
            }
            _ => self.apply(call, random),
        }
    }

    /// Takes back all versions of the call's objects that are newer than `revision`.
    fn take_back(&mut self, call: &Call, revision: u64) {
        fn cut<T: Default>(of: &mut HashMap<String, Versions<T>>, name: &str, revision: u64) {
            versions(of, name).retain(|(at, _)| *at <= revision);
        }
        match call {
            Call::Put { key, .. } | Call::Delete { key } | Call::CompareAndSwap { key, .. } => {
                cut(&mut self.registers, key, revision);
            }
            Call::SetAdd { set, .. } => cut(&mut self.sets, set, revision),
            Call::Increment { counter, .. } => cut(&mut self.counters, counter, revision),
            Call::Transfer { bank, .. } => cut(&mut self.banks, bank, revision),
            Call::Lists(steps) => {
                for step in steps {
                    let (Micro::Append { key, .. } | Micro::Read { key }) = step;
                    cut(&mut self.lists, key, revision);
                }
            }
            _ => {}
        }
    }
}
