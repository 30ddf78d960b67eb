//! What each node's state machine really holds, told by that node itself without asking the leader.
//!
//! The digest of DET-1 is a sum over changes, and a linearizable read is answered by the leader: a tree that has lost a key since, in a
//! merge or a restart, would show in neither.

use crate::bed::Bed;
use crate::client::{Client, Item, Reply, Request};
use crate::judge::{Finding, HEAL_LIMIT, replicas_agree};

/// How often it is looked again. A storaged that has just started shows what it had flushed until the rest is applied again, which is no
/// breach; a tree that lacks something lacks it for good.
const TRIES: usize = 4;

/// What a round has left behind, to be read again later.
#[derive(Debug)]
pub struct Left {
    /// First part of the round's keys.
    pub label: String,
    items: Vec<Item>,
}

/// DET-1: all replicas come to one digest, and all of these clients' nodes hold the same of a round. Nobody may write meanwhile.
///
/// # Errors
/// Two nodes differ, and go on to, or one does not answer.
pub async fn same(bed: &Bed, clients: &mut [Client], label: &str) -> Result<Left, Finding> {
    again(TRIES, async || {
        replicas_agree(bed).await?;
        Ok(all_hold(clients, label).await)
    })
    .await
}

/// What the first look that finds nothing sees, or else what the last one finds. The outer finding is final.
async fn again<T>(
    tries: usize,
    mut look: impl AsyncFnMut() -> Result<Result<T, Finding>, Finding>,
) -> Result<T, Finding> {
    for _ in 1..tries {
        if let Ok(seen) = look().await? {
            return Ok(seen);
        }
    }
    look().await?
}

async fn all_hold(clients: &mut [Client], label: &str) -> Result<Left, Finding> {
    let mut first: Option<(usize, Vec<Item>)> = None;
    for client in clients {
        let items = held(client, label).await?;
        match &first {
            None => first = Some((client.home(), items)),
            Some((other, known)) => differ(known, &items).map_err(|what| {
                let (here, there) = (client.home() + 1, *other + 1);
                Finding::new("DET-1", format!("node{there} and node{here}: {what}"))
            })?,
        }
    }
    Ok(Left {
        label: label.to_owned(),
        items: first.map_or_else(Vec::new, |(_, items)| items),
    })
}

/// DUR-1: all nodes still hold what they held then.
///
/// # Errors
/// One does not, or two differ.
pub async fn kept(bed: &Bed, clients: &mut [Client], left: &Left) -> Result<(), Finding> {
    let now = same(bed, clients, &left.label).await?;
    differ(&left.items, &now.items)
        .map_err(|what| Finding::new("DUR-1", format!("once and now, nobody wrote: {what}")))
}

async fn held(client: &mut Client, label: &str) -> Result<Vec<Item>, Finding> {
    let request = Request::Range {
        prefix: format!("{label}/"),
        stale: true,
    };
    let at = client.home() + 1;
    let silent = |why: String| {
        let why = format!("node{at} cannot say what it holds: {why}");
        Finding::new("LIVE-4", why)
    };
    match client.ask_home(&request, HEAL_LIMIT).await {
        Ok(Reply::Items(items)) => Ok(items),
        Ok(other) => Err(silent(format!("{other:?}"))),
        Err(trouble) => Err(silent(format!("{trouble:?}"))),
    }
}

/// The first difference.
fn differ(one: &[Item], other: &[Item]) -> Result<(), String> {
    let pairs = one.iter().zip(other).find(|(one, other)| one != other);
    match pairs {
        Some((one, other)) => Err(format!("{one:?} and {other:?}")),
        None if one.len() != other.len() => {
            let longer = if one.len() > other.len() { one } else { other };
            let extra = &longer[one.len().min(other.len())];
            let (one, other) = (one.len(), other.len());
            Err(format!("{one} and {other} keys; one has {extra:?}"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, version: u64) -> Item {
        Item {
            key: key.into(),
            value: "v".into(),
            revision: 7,
            version,
        }
    }

    #[tokio::test]
    async fn a_difference_is_a_finding_when_it_stays() {
        let found = |what: &str| Finding::new("DET-1", what);
        for (differ, same) in [(0, true), (1, true), (TRIES - 1, true), (TRIES, false)] {
            let mut looks = 0;
            let came = again(TRIES, async || {
                looks += 1;
                Ok(if looks > differ {
                    Ok(looks)
                } else {
                    Err(found("trees differ"))
                })
            })
            .await;
            assert_eq!(came.is_ok(), same, "{differ} times: {came:?}");
            assert_eq!(looks, TRIES.min(differ + 1));
        }
        let mut looks = 0;
        let came: Result<(), Finding> = again(TRIES, async || {
            looks += 1;
            Err(found("digests differ"))
        })
        .await;
        assert_eq!((came, looks), (Err(found("digests differ")), 1));
    }

    #[test]
    fn a_lost_key_and_another_version_are_differences() {
        let all = [item("a", 1), item("b", 1), item("c", 2)];
        assert_eq!(differ(&all, &all), Ok(()));
        let lost = [item("a", 1), item("c", 2)];
        assert!(differ(&all, &lost).unwrap_err().contains("\"b\""));
        assert!(differ(&all, &all[..2]).unwrap_err().contains("\"c\""));
        let mut twice = all.clone();
        twice[1].version = 2;
        assert!(differ(&all, &twice).is_err());
    }
}
