//! Transactions over several keys (TXN-1): a bank whose accounts are keys. A transfer compares what it read of two of them and writes
//! both; a read takes all of them at one moment.

use super::ask::Went;
use super::{Client, EPOCH};
use bytes::Bytes;
use mareedb_history::{Answer, Call, Consistency, Outcome as Came};
use mareedb_ipc::wire::command::{
    Compare, CompareOp, CompareTarget, Item, Op, OpResult, Txn, TxnResult,
};
use mareedb_ipc::wire::read::Query;
use std::collections::BTreeMap;

/// The only bank.
const BANK: &str = "bank";
/// Before the names of its accounts in their keys, and the first key after all of them.
const KEYS: (&str, &str) = ("bank.", "bank/");
/// Its accounts.
const ACCOUNTS: [&str; 4] = ["a", "b", "c", "d"];
/// What each is opened with.
const OPENED_WITH: i64 = 100;
/// So often a transfer is tried that finds its accounts changed.
const TRIES: usize = 3;

fn key(account: &str) -> Bytes {
    Bytes::from(format!("{}{account}", KEYS.0))
}

fn put(account: &str, balance: i64) -> Op {
    Op::Put {
        key: key(account),
        value: Bytes::from(balance.to_string()),
    }
}

fn compare(account: &str, target: CompareTarget) -> Compare {
    Compare {
        key: key(account),
        target,
        op: CompareOp::Equal,
    }
}

fn balance(item: &Item) -> i64 {
    let text = std::str::from_utf8(&item.value).ok();
    text.and_then(|text| text.parse().ok())
        .expect("only numbers are written")
}

fn all() -> Query {
    Query::Range {
        start: Bytes::from_static(KEYS.0.as_bytes()),
        end: Bytes::from_static(KEYS.1.as_bytes()),
        limit: 100,
        max_bytes: 1 << 20,
        revision: None,
        keys_only: false,
    }
}

/// Two accounts of which one pays the other.
struct Transfer<'a> {
    from: &'a Item,
    to: &'a Item,
    names: (&'a str, &'a str),
    amount: i64,
}

impl Transfer<'_> {
    /// Only if nobody has changed either; afterwards the payer is read within it.
    fn txn(&self) -> Txn {
        let (from, to) = self.names;
        let unchanged = |item: &Item| CompareTarget::ModRevision(item.mod_revision.0);
        let look = Op::Get { key: key(from) };
        Txn {
            compare: vec![
                compare(from, unchanged(self.from)),
                compare(to, unchanged(self.to)),
            ],
            success: vec![
                put(from, balance(self.from) - self.amount),
                put(to, balance(self.to) + self.amount),
                look.clone(),
            ],
            failure: vec![look],
        }
    }

    /// Whether the answer fits: what a transaction reads is what it wrote, at its revision.
    fn fits(&self, result: &TxnResult) -> bool {
        match &result.results[..] {
            [
                OpResult::Put,
                OpResult::Put,
                OpResult::Get { item: Some(item) },
            ] if result.succeeded => {
                item.mod_revision == result.revision
                    && balance(item) == balance(self.from) - self.amount
            }
            [OpResult::Get { item: Some(_) }] => !result.succeeded,
            _ => false,
        }
    }
}

impl Client {
    /// Something at the bank.
    pub(super) async fn bank(&mut self) {
        if self.rng.chance(500) {
            return self.transfer().await;
        }
        let stale = self.rng.chance(300);
        let consistency = if stale {
            Consistency::Stale
        } else {
            Consistency::Linearizable
        };
        self.accounts(consistency).await;
    }

    /// One client opens it, again only if that certainly had no effect.
    pub(super) async fn open(&mut self) {
        let txn = Txn {
            compare: vec![compare(ACCOUNTS[0], CompareTarget::Version(0))],
            success: ACCOUNTS.map(|name| put(name, OPENED_WITH)).into(),
            failure: Vec::new(),
        };
        let start_ns = self.cluster.world.now_ns();
        let went = self.send(txn, EPOCH, None).await;
        let outcome = match went {
            Went::Done(result) => Came::Ok(Answer::Written {
                revision: Some(result.revision.0),
            }),
            Went::Refused(why) => Came::Failed(why),
            Went::Unknown(why) => Came::Unknown(why),
        };
        self.clients.opened.set(!matches!(outcome, Came::Failed(_)));
        let accounts = ACCOUNTS.map(|name| (name.to_owned(), OPENED_WITH));
        let call = Call::BankOpen {
            bank: BANK.into(),
            accounts: accounts.into(),
        };
        self.record(start_ns, call, outcome);
    }

    async fn transfer(&mut self) {
        let from = self.rng.index(ACCOUNTS.len());
        let to = (from + 1 + self.rng.index(ACCOUNTS.len() - 1)) % ACCOUNTS.len();
        let names = (ACCOUNTS[from], ACCOUNTS[to]);
        let amount = self.rng.within(1..40).cast_signed();
        let start_ns = self.cluster.world.now_ns();
        let call = Call::Transfer {
            bank: BANK.into(),
            from: names.0.into(),
            to: names.1.into(),
            amount,
        };
        let mut outcome = Came::Failed("the accounts change all the time".into());
        for _ in 0..TRIES {
            let (done, again) = self.try_transfer(names, amount).await;
            outcome = done;
            if !again {
                break;
            }
        }
        self.record(start_ns, call, outcome);
    }

    /// What came of it, and whether it may be tried again.
    async fn try_transfer(&mut self, names: (&str, &str), amount: i64) -> (Came, bool) {
        let items = match self.read(&all()).await {
            Ok(items) => items,
            // Nothing was written.
            Err(why) => return (Came::Failed(why), false),
        };
        let find = |name| items.iter().find(|item| item.key == key(name));
        let (Some(from), Some(to)) = (find(names.0), find(names.1)) else {
            return (Came::Failed("not open".into()), false);
        };
        if balance(from) < amount {
            return (Came::Failed("too little".into()), false);
        }
        let transfer = Transfer {
            from,
            to,
            names,
            amount,
        };
        let result = match self.send(transfer.txn(), EPOCH, None).await {
            Went::Done(result) => result,
            Went::Refused(why) => return (Came::Failed(why), false),
            Went::Unknown(why) => return (Came::Unknown(why), false),
        };
        if !transfer.fits(&result) {
            let what = format!("client{}: a transfer answered {result:?}", self.number);
            self.cluster.violated("TXN-1", what);
        }
        if !result.succeeded {
            return (Came::Failed("the accounts have changed".into()), true);
        }
        let revision = Some(result.revision.0);
        (Came::Ok(Answer::Written { revision }), false)
    }

    /// Reads all accounts at one moment.
    pub(super) async fn accounts(&mut self, consistency: Consistency) {
        let start_ns = self.cluster.world.now_ns();
        let read = if consistency == Consistency::Stale {
            self.read_anywhere(&all())
        } else {
            self.read(&all()).await
        };
        let outcome = match read {
            Ok(items) => {
                let named = |item: &Item| {
                    let name = String::from_utf8_lossy(&item.key[KEYS.0.len()..]).into_owned();
                    (name, balance(item))
                };
                let balances: BTreeMap<String, i64> = items.iter().map(named).collect();
                Came::Ok(Answer::Accounts { balances })
            }
            Err(why) => Came::Unknown(why),
        };
        let call = Call::BankRead {
            bank: BANK.into(),
            consistency,
        };
        self.record(start_ns, call, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::Revision;

    fn item(account: &str, balance: i64, revision: u64) -> Item {
        Item {
            key: key(account),
            value: Bytes::from(balance.to_string()),
            create_revision: Revision(1),
            mod_revision: Revision(revision),
            version: 2,
        }
    }

    #[test]
    fn txn_1_a_transaction_reads_what_it_wrote_at_its_revision() {
        let (from, to) = (item("a", 100, 5), item("b", 50, 7));
        let transfer = Transfer {
            from: &from,
            to: &to,
            names: ("a", "b"),
            amount: 30,
        };
        let answer = |succeeded, results| TxnResult {
            succeeded,
            revision: Revision(9),
            results,
        };
        let read = |item| OpResult::Get { item: Some(item) };
        let wrote = |item| answer(true, vec![OpResult::Put, OpResult::Put, read(item)]);
        assert!(transfer.fits(&wrote(item("a", 70, 9))));
        assert!(
            !transfer.fits(&wrote(item("a", 100, 9))),
            "its own write is not seen"
        );
        assert!(!transfer.fits(&wrote(item("a", 70, 8))), "two revisions");
        assert!(transfer.fits(&answer(false, vec![read(item("a", 100, 6))])));
        let both = vec![OpResult::Put, OpResult::Put, read(item("a", 70, 9))];
        assert!(!transfer.fits(&answer(false, both)), "done and not done");
    }
}
