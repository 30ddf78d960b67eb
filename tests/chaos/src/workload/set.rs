//! Sets: a key an element, read as a range.

use super::{Actor, Object, SETS};
use crate::client::{Condition, Reply, Request};
use mareedb_history::{Answer, Call, Consistency};

fn prefix(set: &str) -> String {
    format!("{set}/")
}

impl Actor {
    pub(super) async fn set(&mut self) -> bool {
        let set = self.name("s", SETS);
        self.stage.used(Object::Set(set.clone()));
        match self.random.below(100) {
            0..=69 => self.add(&set).await,
            70..=89 => self.read_set(&set, Consistency::Linearizable).await,
            _ => self.read_set(&set, Consistency::Stale).await,
        }
    }

    async fn add(&mut self, set: &str) -> bool {
        let element = self.unique();
        let call = Call::SetAdd {
            set: set.to_owned(),
            element,
        };
        let key = format!("{}{element}", prefix(set));
        let request = Request::Put(key, element.to_string(), Condition::None);
        let keyed = self.keyed();
        self.record(call, &request, keyed, |_, reply| match reply {
            Reply::Written(revision) => Some(Answer::Written {
                revision: Some(revision),
            }),
            _ => None,
        })
        .await
    }

    pub(super) async fn read_set(&mut self, set: &str, consistency: Consistency) -> bool {
        let call = Call::SetRead {
            set: set.to_owned(),
            consistency,
        };
        let request = Request::Range {
            prefix: prefix(set),
            stale: consistency == Consistency::Stale,
        };
        self.record(call, &request, false, |_, reply| match reply {
            Reply::Items(items) => {
                let elements = items.iter().map(|item| item.value.parse().ok());
                Some(Answer::Set {
                    elements: elements.collect::<Option<_>>()?,
                })
            }
            _ => None,
        })
        .await
    }
}
