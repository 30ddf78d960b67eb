//! Keys of a replica's tree. The first byte is the keyspace:
//!
//! | byte | key | value |
//! |---|---|---|
//! | `d` | user key | current version |
//! | `h` | escaped user key, inverted revision | an older version, or a deletion |
//! | `g` | revision at which it was superseded, the `h` key | nothing: what may be forgotten when |
//! | `i` | idempotency key | fingerprint, time, first outcome |
//! | `e` | logged time, idempotency key | nothing: what expires when |
//! | `o` | session | its node, low-water mark, last use |
//! | `r` | session, request number | outcome |
//! | `v` | when | an election |
//! | `s` | name | the replica's own records |
//!
//! Escaping keeps the order of user keys and makes them prefix-free: 0x00 becomes 0x00 0xFF, the end is 0x00 0x01.

use super::engine;
use mareedb_config::bounds;
use mareedb_ipc::wire::{RandomId, Revision};

/// Longest user key, whatever the settings say: escaping doubles it at worst, and the engine takes no longer one.
pub(super) const KEY_BYTES_MAX: usize = bounds::KEY_BYTES_MAX;
/// Longest bound of a range: the first key after the longest one.
pub(super) const BOUND_BYTES_MAX: usize = KEY_BYTES_MAX + 1;
/// What a key in the tree takes beside the escaped user key: two keyspaces, two revisions, the end of the key.
const EXTRA_BYTES: usize = 2 + 2 * 8 + 2;
// The engine ends the process over a longer key, whether it is written, read or only a bound.
const _: () = assert!(2 * BOUND_BYTES_MAX + EXTRA_BYTES <= engine::KEY_BYTES_MAX);

/// The applied position, membership, clock, counters.
pub(super) const SYSTEM: &[u8] = b"s-state";

pub(super) fn current(key: &[u8]) -> Vec<u8> {
    prefixed(b'd', key)
}

fn prefixed(space: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + rest.len());
    out.push(space);
    out.extend_from_slice(rest);
    out
}

fn escaped(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 12);
    out.push(b'h');
    for byte in key {
        out.push(*byte);
        if *byte == 0 {
            out.push(0xff);
        }
    }
    out
}

/// First history key of a user key: its newest older version.
pub(super) fn history_of(key: &[u8]) -> Vec<u8> {
    let mut out = escaped(key);
    out.extend_from_slice(&[0, 1]);
    out
}

/// History key of a version.
pub(super) fn history(key: &[u8], revision: Revision) -> Vec<u8> {
    let mut out = history_of(key);
    out.extend_from_slice(&(!revision.0).to_be_bytes());
    out
}

/// Lower bound in the history of everything at or after a user key.
pub(super) fn history_from(key: &[u8]) -> Vec<u8> {
    escaped(key)
}

/// The user key and revision of a history key; `None` if it is none.
pub(super) fn parse_history(bytes: &[u8]) -> Option<(Vec<u8>, Revision)> {
    let (body, revision) = bytes.strip_prefix(b"h")?.split_last_chunk::<8>()?;
    let mut body = body.strip_suffix(&[0, 1])?.iter();
    let mut key = Vec::with_capacity(bytes.len());
    while let Some(byte) = body.next() {
        key.push(*byte);
        if *byte == 0 && body.next() != Some(&0xff) {
            return None;
        }
    }
    Some((key, Revision(!u64::from_be_bytes(*revision))))
}

pub(super) fn garbage(superseded: Revision, history: &[u8]) -> Vec<u8> {
    let mut out = prefixed(b'g', &superseded.0.to_be_bytes());
    out.extend_from_slice(history);
    out
}

/// When a version was superseded, and its history key.
pub(super) fn parse_garbage(bytes: &[u8]) -> Option<(Revision, &[u8])> {
    let (revision, history) = bytes.strip_prefix(b"g")?.split_first_chunk::<8>()?;
    Some((Revision(u64::from_be_bytes(*revision)), history))
}

pub(super) fn idempotency(key: &str) -> Vec<u8> {
    prefixed(b'i', key.as_bytes())
}

pub(super) fn expiry(at: u64, key: &str) -> Vec<u8> {
    let mut out = prefixed(b'e', &at.to_be_bytes());
    out.extend_from_slice(key.as_bytes());
    out
}

pub(super) fn parse_expiry(bytes: &[u8]) -> Option<(u64, &str)> {
    let (at, key) = bytes.strip_prefix(b"e")?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*at), std::str::from_utf8(key).ok()?))
}

pub(super) fn session(session: RandomId) -> Vec<u8> {
    prefixed(b'o', &session.0.to_be_bytes())
}

pub(super) fn parse_session(bytes: &[u8]) -> Option<RandomId> {
    let bytes = bytes.strip_prefix(b"o")?;
    Some(RandomId(u128::from_be_bytes(bytes.try_into().ok()?)))
}

/// What all results of a session begin with.
pub(super) fn results(session: RandomId) -> Vec<u8> {
    prefixed(b'r', &session.0.to_be_bytes())
}

pub(super) fn result(session: RandomId, sequence: u64) -> Vec<u8> {
    let mut out = results(session);
    out.extend_from_slice(&sequence.to_be_bytes());
    out
}

pub(super) fn election(at: Revision) -> Vec<u8> {
    prefixed(b'v', &at.0.to_be_bytes())
}

/// When an election was; `None` if the key is none.
pub(super) fn parse_election(bytes: &[u8]) -> Option<Revision> {
    let at = bytes.strip_prefix(b"v")?;
    Some(Revision(u64::from_be_bytes(at.try_into().ok()?)))
}

/// The session and number of a result's key; `None` if it is none.
pub(super) fn parse_result(bytes: &[u8]) -> Option<(RandomId, u64)> {
    let (session, sequence) = bytes.strip_prefix(b"r")?.split_first_chunk::<16>()?;
    Some((
        RandomId(u128::from_be_bytes(*session)),
        u64::from_be_bytes(sequence.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn history_keeps_the_order_of_keys_and_comes_back(
            a in prop::collection::vec(0u8..3, 0..6), b in prop::collection::vec(0u8..3, 0..6), x: u64, y: u64,
        ) {
            let (ha, hb) = (history(&a, Revision(x)), history(&b, Revision(y)));
            let expected = a.cmp(&b).then(y.cmp(&x));
            prop_assert_eq!(ha.cmp(&hb), expected);
            prop_assert_eq!(parse_history(&ha), Some((a.clone(), Revision(x))));
            prop_assert!(history_from(&a) <= ha);
            if b < a {
                prop_assert!(hb < history_from(&a));
            }
        }

        #[test]
        fn hostile_keys_are_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse_history(&bytes);
            let _ = parse_garbage(&bytes);
            let _ = parse_expiry(&bytes);
            let _ = parse_session(&bytes);
            let _ = parse_result(&bytes);
            let _ = parse_election(&bytes);
        }
    }
}
