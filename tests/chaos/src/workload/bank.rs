//! A bank a generation: money moves between its accounts, and never comes or goes.

use super::{Actor, Object, certainly, guard, unreadable};
use crate::client::{Compare, Reply, Request, Step, Trouble};
use mareedb_history::{Answer, Call, Consistency};
use std::collections::BTreeMap;

const ACCOUNTS: u64 = 5;
const FIRST_BALANCE: i64 = 100;
const TRIES: u32 = 4;

/// How far a bank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Somebody opens it.
    Opening,
    /// It may be used.
    Open,
}

fn account(number: u64) -> String {
    format!("a{number}")
}

impl Actor {
    fn bank_name(&self, generation: u64) -> String {
        format!("{}/{generation}/b", self.stage.label)
    }

    pub(super) async fn bank(&mut self) -> bool {
        let generation = self.generation;
        let state = {
            let mut banks = guard(&self.stage.banks);
            let state = banks.get(&generation).copied();
            if state.is_none() {
                banks.insert(generation, State::Opening);
            }
            state
        };
        match state {
            None => self.open_bank(generation).await,
            // It may never be, when nobody knows whether it was opened.
            Some(State::Opening) => self.counter().await,
            Some(State::Open) => match self.random.below(100) {
                0..=64 => self.transfer(generation).await,
                65..=89 => self.read_bank(generation, false).await,
                _ => self.read_bank(generation, true).await,
            },
        }
    }

    async fn open_bank(&mut self, generation: u64) -> bool {
        // It is read at the end even if nobody knows whether there is one.
        self.stage.used(Object::Bank(generation));
        let bank = self.bank_name(generation);
        let accounts: BTreeMap<String, i64> = (0..ACCOUNTS)
            .map(|number| (account(number), FIRST_BALANCE))
            .collect();
        let steps = accounts
            .iter()
            .map(|(name, money)| Step::Put(format!("{bank}/{name}"), money.to_string()));
        let request = Request::Txn(Vec::new(), steps.collect());
        let call = Call::BankOpen { bank, accounts };
        self.record(call, &request, true, |actor, reply| match reply {
            Reply::Done { revision, .. } => {
                guard(&actor.stage.banks).insert(generation, State::Open);
                Some(Answer::Written {
                    revision: Some(revision),
                })
            }
            _ => None,
        })
        .await
    }

    pub(super) async fn read_bank(&mut self, generation: u64, stale: bool) -> bool {
        let bank = self.bank_name(generation);
        let request = Request::Range {
            prefix: format!("{bank}/"),
            stale,
        };
        let consistency = if stale {
            Consistency::Stale
        } else {
            Consistency::Linearizable
        };
        let call = Call::BankRead { bank, consistency };
        self.record(call, &request, false, |_, reply| match reply {
            Reply::Items(items) => {
                let balances = items.iter().map(|item| {
                    let name = item.key.rsplit_once('/')?.1.to_owned();
                    Some((name, item.value.parse().ok()?))
                });
                Some(Answer::Accounts {
                    balances: balances.collect::<Option<_>>()?,
                })
            }
            _ => None,
        })
        .await
    }

    async fn transfer(&mut self, generation: u64) -> bool {
        let bank = self.bank_name(generation);
        let from = self.random.below(ACCOUNTS);
        let to = (from + 1 + self.random.below(ACCOUNTS - 1)) % ACCOUNTS;
        let (from, to) = (account(from), account(to));
        let amount = 1 + self.random.below(30).cast_signed();
        let pending = self.start(Call::Transfer {
            bank: bank.clone(),
            from: from.clone(),
            to: to.clone(),
            amount,
        });
        let keys = [from, to].map(|name| format!("{bank}/{name}"));
        let done = self.move_money(&keys, amount).await;
        self.finish(pending, done)
    }

    async fn move_money(&mut self, keys: &[String; 2], amount: i64) -> Result<Answer, Trouble> {
        for _ in 0..TRIES {
            let gets = keys.iter().cloned().map(Step::Get);
            let read = Request::Txn(Vec::new(), gets.collect());
            // Nothing was moved yet, so a failure of this is certain.
            let asked = self.client.ask(&read, false).await;
            let Reply::Done { read, .. } = asked.map_err(certainly)? else {
                return Err(unreadable());
            };
            let [Some(payer), Some(payee)] = &read[..] else {
                return Err(Trouble::Certain("NO_ACCOUNT".to_owned()));
            };
            let money = |text: &str| text.parse::<i64>().map_err(|_| unreadable());
            let (has, gets) = (money(&payer.value)?, money(&payee.value)?);
            if has < amount {
                return Err(Trouble::Certain("NO_MONEY".to_owned()));
            }
            let compare = [payer, payee]
                .map(|item| Compare::Revision(item.key.clone(), item.revision))
                .to_vec();
            let steps = vec![
                Step::Put(payer.key.clone(), (has - amount).to_string()),
                Step::Put(payee.key.clone(), (gets + amount).to_string()),
            ];
            let keyed = self.keyed();
            match self
                .client
                .ask(&Request::Txn(compare, steps), keyed)
                .await?
            {
                Reply::Done {
                    succeeded: true,
                    revision,
                    ..
                } => {
                    return Ok(Answer::Written {
                        revision: Some(revision),
                    });
                }
                Reply::Done { .. } => {}
                _ => return Err(unreadable()),
            }
        }
        Err(Trouble::Certain("CONFLICT".to_owned()))
    }
}
