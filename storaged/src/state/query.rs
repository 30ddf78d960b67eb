//! Reads at a pinned moment, of the present or of the past.

use super::StoreError;
use super::keys;
use super::records::{self, Version};
use super::tree::{Pin, after_prefix};
use super::txn::item;
use mareedb_ipc::wire::Revision;
use mareedb_ipc::wire::command::Item;
use std::iter::Peekable;
use std::ops::Bound;

/// One key, as of `at`; `None`: the newest.
pub(super) fn get(pin: &Pin, key: &[u8], at: Option<Revision>) -> Result<Option<Item>, StoreError> {
    let current = pin
        .get(&keys::current(key))?
        .map(|bytes| records::read::<Version>(&bytes))
        .transpose()?;
    let Some(at) = at else {
        return Ok(current.and_then(|version| item(key, version)));
    };
    if let Some(version) = current
        && version.modified <= at
    {
        return Ok(item(key, version));
    }
    // History is newest first, from the asked revision on.
    let from = keys::history(key, at);
    let to = after_prefix(&keys::history_of(key));
    match pin.range(Bound::Included(from), to).next() {
        None => Ok(None),
        Some(pair) => Ok(item(key, records::read(&pair?.1)?)),
    }
}

/// What bounds a range read.
pub(super) struct Limits {
    pub(super) items: usize,
    pub(super) bytes: usize,
    pub(super) keys_only: bool,
}

/// Items of `[start, end)`, and whether a limit cut them.
pub(super) fn range(
    pin: &Pin,
    start: &[u8],
    end: &[u8],
    at: Option<Revision>,
    limits: &Limits,
) -> Result<(Vec<Item>, bool), StoreError> {
    let to = if end.is_empty() {
        after_prefix(b"d")
    } else {
        Bound::Excluded(keys::current(end))
    };
    let mut items = Vec::new();
    let mut bytes = 0;
    if !end.is_empty() && end <= start {
        return Ok((items, false));
    }
    let mut versions: Box<dyn Iterator<Item = Result<Item, StoreError>> + '_> = {
        let current = pin
            .range(Bound::Included(keys::current(start)), to)
            .map(|pair| {
                let (key, value) = pair?;
                Ok((key[1..].to_vec(), records::read::<Version>(&value)?))
            });
        match at {
            None => Box::new(current.filter_map(|pair| match pair {
                Ok((key, version)) => item(&key, version).map(Ok),
                Err(error) => Some(Err(error)),
            })),
            Some(at) => {
                let to = if end.is_empty() {
                    after_prefix(b"h")
                } else {
                    Bound::Excluded(keys::history_from(end))
                };
                let history = pin
                    .range(Bound::Included(keys::history_from(start)), to)
                    .map(|pair| {
                        let (key, value) = pair?;
                        let (key, _) = keys::parse_history(&key)
                            .ok_or_else(|| StoreError::Damaged("a history key".into()))?;
                        Ok((key, records::read::<Version>(&value)?))
                    });
                Box::new(Past {
                    current: current.peekable(),
                    history: history.peekable(),
                    at,
                })
            }
        }
    };
    loop {
        let Some(next) = versions.next() else {
            return Ok((items, false));
        };
        let mut next = next?;
        if limits.keys_only {
            next.value.clear();
        }
        let size = next.key.len() + next.value.len();
        if items.len() >= limits.items || (bytes + size > limits.bytes && !items.is_empty()) {
            return Ok((items, true));
        }
        bytes += size;
        items.push(next);
    }
}

type Pair = Result<(Vec<u8>, Version), StoreError>;

/// Merges current versions and history, key by key, into what was there at a revision.
struct Past<A: Iterator<Item = Pair>, B: Iterator<Item = Pair>> {
    current: Peekable<A>,
    history: Peekable<B>,
    at: Revision,
}

impl<A: Iterator<Item = Pair>, B: Iterator<Item = Pair>> Iterator for Past<A, B> {
    type Item = Result<Item, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for failed in [
                self.current.next_if(Result::is_err),
                self.history.next_if(Result::is_err),
            ] {
                if let Some(Err(error)) = failed {
                    return Some(Err(error));
                }
            }
            let key_of = |pair: Option<&Pair>| {
                pair.and_then(|pair| pair.as_ref().ok())
                    .map(|(key, _)| key.clone())
            };
            let (current, history) = (key_of(self.current.peek()), key_of(self.history.peek()));
            let key = match (current, history) {
                (None, None) => return None,
                (Some(a), Some(b)) => a.min(b),
                (Some(key), None) | (None, Some(key)) => key,
            };
            let mut best: Option<Version> = None;
            let mut consider = |version: Version| {
                if version.modified <= self.at
                    && best
                        .as_ref()
                        .is_none_or(|best| best.modified < version.modified)
                {
                    best = Some(version);
                }
            };
            while let Some(Ok((_, version))) = self.current.next_if(|pair| is_of(pair, &key)) {
                consider(version);
            }
            while let Some(Ok((_, version))) = self.history.next_if(|pair| is_of(pair, &key)) {
                consider(version);
            }
            if let Some(found) = best.and_then(|version| item(&key, version)) {
                return Some(Ok(found));
            }
        }
    }
}

fn is_of(pair: &Pair, key: &[u8]) -> bool {
    pair.as_ref().is_ok_and(|(found, _)| found == key)
}
