//! When everything is over and all replicas are equal, one client reads all that anybody wrote: what was lost or done twice late in
//! a life would show to nobody else.

use super::{COUNTER, Client, Clients, LAST, ONCE, STRAY, get, shown};
use crate::cluster::Cluster;
use mareedb_history::{Answer, Call, Consistency, Object, Outcome as Came};
use mareedb_ipc::wire::command::Item;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Reads every key into the history.
pub async fn last(cluster: Rc<Cluster>, clients: Rc<Clients>, seed: u64) {
    let mut client = Client::new(cluster, clients.clone(), seed, LAST);
    let mut keys: BTreeSet<String> = BTreeSet::from([STRAY.to_owned(), COUNTER.to_owned()]);
    for operation in client.cluster.history.borrow().iter() {
        if let Object::Register(key) = operation.call.object() {
            keys.insert(key.to_owned());
        }
    }
    for key in keys {
        client.look(&key).await;
    }
    if clients.opened.get() {
        client.accounts(Consistency::Linearizable).await;
    }
    clients.read.set(true);
}

/// What is wrong with a key that is found like this at the end, whatever its clients were told.
fn wrong(key: &str, item: &Item) -> Option<(&'static str, String)> {
    if key == STRAY {
        let what = "a write that was routed by another range epoch took effect".to_owned();
        return Some(("EPOCH", what));
    }
    // It is written once, and never deleted.
    if key.starts_with(ONCE) && item.version != 1 {
        let what = format!(
            "the write of {key} with an idempotency key took effect {} times",
            item.version
        );
        return Some(("ONCE-1", what));
    }
    None
}

impl Client {
    async fn look(&mut self, key: &str) {
        let start_ns = self.cluster.world.now_ns();
        let items = loop {
            // Nothing is wrong any more: who gives up is the one that waits for this.
            if let Ok(items) = self.read(&get(key, None)).await {
                break items;
            }
        };
        if let Some((id, what)) = items.first().and_then(|item| wrong(key, item)) {
            self.cluster.violated(id, what);
        }
        let (value, revision) = shown(items);
        let consistency = Consistency::Linearizable;
        let (call, answer) = if key == COUNTER {
            let value = value.map_or(0, |text| text.parse().unwrap_or(0));
            let counter = key.to_owned();
            let call = Call::CounterRead {
                counter,
                consistency,
            };
            (call, Answer::Count { value })
        } else {
            let key = key.to_owned();
            (
                Call::Get { key, consistency },
                Answer::Value { value, revision },
            )
        };
        self.record(start_ns, call, Came::Ok(answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::Revision;

    #[test]
    fn what_took_effect_twice_or_never_may_shows_in_its_key() {
        let item = |version| Item {
            key: "any".into(),
            value: "any".into(),
            create_revision: Revision(3),
            mod_revision: Revision(3),
            version,
        };
        let id = |key, version| wrong(key, &item(version)).map(|(id, _)| id);
        assert_eq!(id("once.1.4", 1), None);
        assert_eq!(id("once.1.4", 2), Some("ONCE-1"));
        assert_eq!(id("stray", 1), Some("EPOCH"));
        assert_eq!(id("k1", 7), None);
    }
}
