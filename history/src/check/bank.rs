//! Banks: money is neither made nor lost, and no account is overdrawn (TXN-1).
//!
//! For each bank, a read shows the accounts that were opened and no others, their sum is what they were opened with, and none is
//! negative; this holds for stale reads, too, since each shows one moment. A linearizable read moreover shows in each account every
//! transfer that was acknowledged before it began, and no read shows one that failed or began after it ended: what an account holds lies between what these
//! allow. A read before the bank was surely open may find nothing.

use super::sweep::Sums;
use crate::{Answer, Call, Consistency, History, Object, Operation, Outcome, Report};
use std::collections::{BTreeMap, HashMap};

/// The name of this checker.
pub const NAME: &str = "bank";

/// What must have gone in and out of an account, and what can have, by a moment.
#[derive(Default)]
struct Flows {
    must_in: Vec<(u64, i128)>,
    must_out: Vec<(u64, i128)>,
    can_in: Vec<(u64, i128)>,
    can_out: Vec<(u64, i128)>,
}

struct Account {
    opened_with: i128,
    must_in: Sums,
    must_out: Sums,
    can_in: Sums,
    can_out: Sums,
}

/// Checks all banks of a history.
pub fn check(history: &History) -> Report {
    let mut report = Report::new(NAME);
    for (object, operations) in history.by_object() {
        if matches!(object, Object::Bank(_)) {
            report.objects += 1;
            report.operations += operations.len() as u64;
            one(object, &operations, &mut report);
        }
    }
    report
}

fn one(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let mut opened: Option<(&Operation, &BTreeMap<String, i64>)> = None;
    let mut again = false;
    let mut flows: HashMap<&str, Flows> = HashMap::new();
    for operation in operations {
        match (&operation.call, &operation.outcome) {
            (_, Outcome::Failed(_)) => {}
            (Call::BankOpen { accounts, .. }, _) => {
                again |= opened.is_some();
                opened = Some((operation, accounts));
            }
            (
                Call::Transfer {
                    from, to, amount, ..
                },
                outcome,
            ) => {
                let amount = i128::from(*amount);
                let (begun, done) = (operation.start_ns, operation.end_ns);
                let done = done.filter(|_| matches!(outcome, Outcome::Ok(_)));
                let payer = flows.entry(from).or_default();
                payer.can_out.push((begun, amount));
                payer.must_out.extend(done.map(|done| (done, amount)));
                let payee = flows.entry(to).or_default();
                payee.can_in.push((begun, amount));
                payee.must_in.extend(done.map(|done| (done, amount)));
            }
            _ => {}
        }
    }
    if again {
        return report.undecided(object, "the bank was opened more than once");
    }
    let Some((open, accounts)) = opened else {
        return never_opened(object, operations, report);
    };
    let accounts: BTreeMap<&str, Account> = accounts
        .iter()
        .map(|(name, opened_with)| {
            let flows = flows.remove(name.as_str()).unwrap_or_default();
            let account = Account {
                opened_with: i128::from(*opened_with),
                must_in: Sums::new(flows.must_in),
                must_out: Sums::new(flows.must_out),
                can_in: Sums::new(flows.can_in),
                can_out: Sums::new(flows.can_out),
            };
            (name.as_str(), account)
        })
        .collect();
    if let Some(name) = flows.keys().next() {
        return report.undecided(
            object,
            format!("a transfer names '{name}', which was never opened"),
        );
    }
    for operation in operations {
        if let (Call::BankRead { consistency, .. }, Outcome::Ok(Answer::Accounts { balances })) =
            (&operation.call, &operation.outcome)
        {
            let linearizable = *consistency == Consistency::Linearizable;
            read(
                object,
                (operation, balances, linearizable),
                open,
                &accounts,
                report,
            );
        }
    }
}

/// A bank that nobody opened, or only in vain, has nothing in it.
fn never_opened(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let attempt = operations
        .iter()
        .find(|operation| matches!(operation.call, Call::BankOpen { .. }));
    let found = operations
        .iter()
        .find(|operation| match &operation.outcome {
            Outcome::Ok(Answer::Accounts { balances }) => !balances.is_empty(),
            Outcome::Ok(_) => true,
            Outcome::Failed(_) | Outcome::Unknown(_) => false,
        });
    match (attempt, found) {
        (Some(attempt), Some(found)) => {
            let why = "there are accounts, and opening the bank failed";
            report.violate("dirty read", object, why, &[found, attempt]);
        }
        (None, Some(_)) => report.undecided(object, "nobody opened the bank in this history"),
        (_, None) => {}
    }
}

fn read(
    object: Object<'_>,
    (operation, balances, linearizable): (&Operation, &BTreeMap<String, i64>, bool),
    open: &Operation,
    accounts: &BTreeMap<&str, Account>,
    report: &mut Report,
) {
    let surely_open = linearizable && open.done_ns().is_some_and(|end| end < operation.start_ns);
    if balances.is_empty() && !surely_open {
        return;
    }
    if !balances
        .keys()
        .map(String::as_str)
        .eq(accounts.keys().copied())
    {
        let why = "the accounts that are there are not those that were opened";
        return report.violate("wrong accounts", object, why, &[operation, open]);
    }
    let expected: i128 = accounts.values().map(|account| account.opened_with).sum();
    let total: i128 = balances.values().map(|balance| i128::from(*balance)).sum();
    if total != expected {
        let why = format!("all accounts together hold {total}, and were opened with {expected}");
        return report.violate("wrong total", object, why, &[operation, open]);
    }
    for (name, balance) in balances {
        if *balance < 0 {
            let why = format!("'{name}' holds {balance}");
            report.violate("negative balance", object, why, &[operation]);
        }
        let account = &accounts[name.as_str()];
        let balance = i128::from(*balance);
        let end = operation.end_ns.unwrap_or(u64::MAX);
        let begun = if linearizable { operation.start_ns } else { 0 };
        let least =
            account.opened_with + account.must_in.before(begun) - account.can_out.until(end);
        let most = account.opened_with + account.can_in.until(end) - account.must_out.before(begun);
        if balance < least || balance > most {
            let why = format!(
                "'{name}' holds {balance}; with the transfers acknowledged before and those begun by then it holds at least \
                 {least} and at most {most}: one was lost, done twice, or done although it failed"
            );
            report.violate("wrong balance", object, why, &[operation]);
        }
    }
}
