//! Counters: the version of a key, which every write raises by one. So a write that is applied twice is counted twice, whatever it writes.

use super::{Actor, COUNTERS, Object};
use crate::client::{Condition, Reply, Request};
use mareedb_history::{Answer, Call, Consistency};

impl Actor {
    pub(super) async fn counter(&mut self) -> bool {
        let counter = self.name("c", COUNTERS);
        self.stage.used(Object::Counter(counter.clone()));
        if self.random.percent(30) {
            return self.read_counter(&counter).await;
        }
        let call = Call::Increment {
            counter: counter.clone(),
            amount: 1,
        };
        let value = self.unique().to_string();
        let request = Request::Put(counter, value, Condition::None);
        // Repeats are what it is about.
        let keyed = self.random.percent(80);
        self.record(call, &request, keyed, |_, reply| match reply {
            Reply::Written(revision) => Some(Answer::Incremented {
                value: None,
                revision: Some(revision),
            }),
            _ => None,
        })
        .await
    }

    pub(super) async fn read_counter(&mut self, counter: &str) -> bool {
        let call = Call::CounterRead {
            counter: counter.to_owned(),
            consistency: Consistency::Linearizable,
        };
        // A range tells the version over both interfaces; the counter's name begins no other name.
        let request = Request::Range {
            prefix: counter.to_owned(),
            stale: false,
        };
        self.record(call, &request, false, |_, reply| match reply {
            Reply::Items(items) => Some(Answer::Count {
                value: items.first().map_or(0, |item| item.version),
            }),
            _ => None,
        })
        .await
    }
}
