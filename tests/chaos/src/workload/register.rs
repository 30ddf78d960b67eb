//! Keys that are written, read, deleted and compared.

use super::{Actor, Object, REGISTERS, unreadable};
use crate::client::{Compare, Condition, Item, Reply, Request, Step, Trouble};
use mareedb_api::ErrorCode;
use mareedb_history::{Answer, Call, Consistency};

impl Actor {
    pub(super) async fn register(&mut self) -> bool {
        let key = self.name("r", REGISTERS);
        self.stage.used(Object::Register(key.clone()));
        match self.random.below(100) {
            0..=34 => self.get(&key, Consistency::Linearizable).await,
            35..=44 => self.get(&key, Consistency::Stale).await,
            45..=47 => match self.seen.get(&key).map(|(_, revision)| *revision) {
                Some(revision) => self.get(&key, Consistency::At(revision)).await,
                None => self.get(&key, Consistency::Linearizable).await,
            },
            48..=74 => self.put(&key).await,
            75..=79 => self.delete(&key).await,
            _ => self.swap(&key).await,
        }
    }

    pub(super) async fn get(&mut self, key: &str, consistency: Consistency) -> bool {
        let call = Call::Get {
            key: key.to_owned(),
            consistency,
        };
        let request = Request::Get {
            key: key.to_owned(),
            stale: consistency == Consistency::Stale,
            revision: match consistency {
                Consistency::At(revision) => Some(revision),
                Consistency::Linearizable | Consistency::Stale => None,
            },
        };
        let name = key.to_owned();
        self.record(call, &request, false, move |actor, reply| {
            let Reply::Items(items) = reply else {
                return None;
            };
            let item = items.into_iter().next();
            if consistency == Consistency::Linearizable {
                actor.remember(&name, item.as_ref());
            }
            let revision = item.as_ref().map(|item| item.revision);
            let value = actor.stage.shown(&name, item.map(|item| item.value));
            Some(Answer::Value {
                revision: revision.filter(|_| value.is_some()),
                value,
            })
        })
        .await
    }

    fn remember(&mut self, key: &str, item: Option<&Item>) {
        match item {
            Some(item) => {
                let known = (item.value.clone(), item.revision);
                self.seen.insert(key.to_owned(), known);
            }
            None => {
                self.seen.remove(key);
            }
        }
    }

    async fn put(&mut self, key: &str) -> bool {
        let value = self.unique().to_string();
        let call = Call::Put {
            key: key.to_owned(),
            value: value.clone(),
        };
        let request = Request::Put(key.to_owned(), value.clone(), Condition::None);
        let keyed = self.keyed();
        let (name, mut planted) = (key.to_owned(), false);
        let done = self
            .record(call, &request, keyed, |actor, reply| {
                let Reply::Written(revision) = reply else {
                    return None;
                };
                planted = actor.stage.plant(&name, &value);
                actor.seen.insert(name, (value, revision));
                Some(Answer::Written {
                    revision: Some(revision),
                })
            })
            .await;
        if planted {
            self.get(key, Consistency::Linearizable).await;
            self.stage.plant_again();
        }
        done
    }

    async fn delete(&mut self, key: &str) -> bool {
        let call = Call::Delete {
            key: key.to_owned(),
        };
        let keyed = self.keyed();
        let name = key.to_owned();
        self.record(
            call,
            &Request::Delete(name),
            keyed,
            |_, reply| match reply {
                Reply::Deleted(deleted, revision) => Some(Answer::Deleted { deleted, revision }),
                _ => None,
            },
        )
        .await
    }

    /// Compare-and-swap: by value in a transaction, or by revision, which says the same where no value is written twice.
    async fn swap(&mut self, key: &str) -> bool {
        let seen = self.seen.get(key).cloned();
        let new = self.unique().to_string();
        let by_value = self.random.percent(50);
        let keyed = self.keyed();
        let name = key.to_owned();
        let (expected, request) = match seen {
            Some((value, _)) if by_value => {
                let compare = Compare::Value(name.clone(), value.clone());
                let steps = vec![Step::Put(name, new.clone())];
                (Some(value), Request::Txn(vec![compare], steps))
            }
            Some((value, revision)) => {
                let condition = Condition::Revision(revision);
                (Some(value), Request::Put(name, new.clone(), condition))
            }
            None if by_value => {
                let compare = Compare::Revision(name.clone(), 0);
                let steps = vec![Step::Put(name, new.clone())];
                (None, Request::Txn(vec![compare], steps))
            }
            None => (None, Request::Put(name, new.clone(), Condition::Absent)),
        };
        let pending = self.start(Call::CompareAndSwap {
            key: key.to_owned(),
            expected,
            new: new.clone(),
        });
        let swapped = match self.client.ask(&request, keyed).await {
            Ok(Reply::Written(revision)) => Ok((true, Some(revision))),
            Ok(Reply::Done {
                succeeded,
                revision,
                ..
            }) => Ok((succeeded, succeeded.then_some(revision))),
            Ok(_) => Err(unreadable()),
            Err(Trouble::Certain(code)) if code == ErrorCode::PreconditionFailed.as_str() => {
                Ok((false, None))
            }
            Err(trouble) => Err(trouble),
        };
        if let Ok((_, revision)) = swapped {
            match revision {
                Some(revision) => self.seen.insert(key.to_owned(), (new, revision)),
                // What it has seen is of the past.
                None => self.seen.remove(key),
            };
        }
        let done = swapped.map(|(succeeded, revision)| Answer::Swapped {
            succeeded,
            revision,
        });
        self.finish(pending, done)
    }
}
