//! Lists: transactions that read and append to several of them at one moment.
//!
//! The database appends nothing by itself: a client reads the lists, then writes the longer ones if none has changed meanwhile.

use super::{Actor, LISTS, Object, certainly, unreadable};
use crate::client::{Compare, Reply, Request, Step, Trouble};
use mareedb_history::{Answer, Call, Micro};
use std::collections::BTreeMap;

/// Lost races before a transaction is given up.
const TRIES: u32 = 4;

/// A list as it lies in the database.
type Known = BTreeMap<String, (Vec<u64>, u64)>;

fn parse(value: &str) -> Option<Vec<u64>> {
    value.split(',').map(|word| word.parse().ok()).collect()
}

fn text(list: &[u64]) -> String {
    let words: Vec<String> = list.iter().map(u64::to_string).collect();
    words.join(",")
}

impl Actor {
    pub(super) async fn lists(&mut self) -> bool {
        let mut steps = Vec::new();
        for _ in 0..=self.random.below(3) {
            let key = self.name("l", LISTS);
            // A key is written once in a transaction of the database.
            let appended =
                |step: &Micro| matches!(step, Micro::Append { key: of, .. } if *of == key);
            if self.random.percent(55) && !steps.iter().any(appended) {
                self.stage.used(Object::List(key.clone()));
                let element = self.unique();
                steps.push(Micro::Append { key, element });
            } else {
                steps.push(Micro::Read { key });
            }
        }
        self.transact(steps).await
    }

    pub(super) async fn read_list(&mut self, list: &str) -> bool {
        self.transact(vec![Micro::Read {
            key: list.to_owned(),
        }])
        .await
    }

    async fn transact(&mut self, steps: Vec<Micro>) -> bool {
        let call = Call::Lists(steps.clone());
        let reads_only = call.is_read();
        let pending = self.start(call);
        let done = if reads_only {
            self.read_only(&steps).await
        } else {
            self.append(&steps).await
        };
        self.finish(pending, done)
    }

    async fn read_only(&mut self, steps: &[Micro]) -> Result<Answer, Trouble> {
        let gets = steps.iter().map(|step| Step::Get(key_of(step).to_owned()));
        let request = Request::Txn(Vec::new(), gets.collect());
        match self.client.ask(&request, false).await? {
            Reply::Done { read, revision, .. } => answer(steps, &read, revision),
            _ => Err(unreadable()),
        }
    }

    async fn append(&mut self, steps: &[Micro]) -> Result<Answer, Trouble> {
        for _ in 0..TRIES {
            let known = self.read_lists(steps).await?;
            let (compare, operations) = plan(steps, &known);
            let keyed = self.keyed();
            let request = Request::Txn(compare, operations);
            match self.client.ask(&request, keyed).await? {
                Reply::Done {
                    succeeded: true,
                    revision,
                    read,
                } => return answer(steps, &read, revision),
                Reply::Done { .. } => {}
                _ => return Err(unreadable()),
            }
        }
        Err(Trouble::Certain("CONFLICT".to_owned()))
    }

    /// The lists that the steps touch. A failure of this is certain: nothing was written yet.
    async fn read_lists(&mut self, steps: &[Micro]) -> Result<Known, Trouble> {
        let mut keys: Vec<&str> = steps.iter().map(key_of).collect();
        keys.sort_unstable();
        keys.dedup();
        let gets = keys.iter().map(|key| Step::Get((*key).to_owned()));
        let request = Request::Txn(Vec::new(), gets.collect());
        let asked = self.client.ask(&request, false).await;
        let Reply::Done { read, .. } = asked.map_err(certainly)? else {
            return Err(unreadable());
        };
        let mut known = Known::new();
        for (key, item) in keys.into_iter().zip(read) {
            let state = match item {
                Some(item) => (parse(&item.value).ok_or_else(unreadable)?, item.revision),
                None => (Vec::new(), 0),
            };
            known.insert(key.to_owned(), state);
        }
        Ok(known)
    }
}

/// The transaction that carries the steps out if nothing has changed since `known` was read.
fn plan(steps: &[Micro], known: &Known) -> (Vec<Compare>, Vec<Step>) {
    let compare = known
        .iter()
        .map(|(key, (_, revision))| Compare::Revision(key.clone(), *revision));
    let operations = steps.iter().map(|step| match step {
        Micro::Append { key, element } => {
            let mut list = known.get(key).map_or(Vec::new(), |(list, _)| list.clone());
            list.push(*element);
            Step::Put(key.clone(), text(&list))
        }
        Micro::Read { key } => Step::Get(key.clone()),
    });
    (compare.collect(), operations.collect())
}

fn answer(
    steps: &[Micro],
    read: &[Option<crate::client::Item>],
    revision: u64,
) -> Result<Answer, Trouble> {
    let mut results = Vec::new();
    for (step, read) in steps.iter().zip(read) {
        results.push(match (step, read) {
            (Micro::Append { .. }, _) => None,
            (Micro::Read { .. }, None) => Some(Vec::new()),
            (Micro::Read { .. }, Some(item)) => Some(parse(&item.value).ok_or_else(unreadable)?),
        });
    }
    if results.len() != steps.len() {
        return Err(unreadable());
    }
    Ok(Answer::Lists {
        results,
        revision: Some(revision),
    })
}

fn key_of(step: &Micro) -> &str {
    match step {
        Micro::Append { key, .. } | Micro::Read { key } => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_survive_their_text() {
        assert_eq!(parse(&text(&[3, 1, 2])), Some(vec![3, 1, 2]));
        assert_eq!(parse("1,x"), None);
    }

    #[test]
    fn a_plan_compares_all_that_it_has_read() {
        let append = Micro::Append {
            key: "a".into(),
            element: 7,
        };
        let read = Micro::Read { key: "b".into() };
        let known = Known::from([
            ("a".to_owned(), (vec![5], 11)),
            ("b".to_owned(), (Vec::new(), 0)),
        ]);
        let (compare, operations) = plan(&[append, read], &known);
        assert_eq!(compare.len(), 2);
        assert!(matches!(&operations[0], Step::Put(key, value) if key == "a" && value == "5,7"));
        assert!(matches!(&operations[1], Step::Get(key) if key == "b"));
    }
}
