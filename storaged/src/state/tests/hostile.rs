//! Snapshots that no replica sends: refused with an error, whatever they hold, and the state stays as it was.

use super::*;
use crate::state::records::{self, System, Version};
use crate::state::{batch, keys};

pub(super) fn source() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    outcome(&store, &entry(0, 1, &open_session()));
    for index in 1..12u64 {
        let idempotency = (index < 4).then(|| IdempotencyKey {
            key: format!("key-{index}"),
            fingerprint: 1,
        });
        let txn = Txn {
            success: vec![put(&[b'k', u8::try_from(index % 5).unwrap()], b"value")],
            ..Txn::default()
        };
        outcome(
            &store,
            &entry(index, index, &write(index, 1, idempotency, txn)),
        );
    }
    (dir, store)
}

pub(super) fn snapshot(store: &Store) -> (Vec<(Bytes, Bytes)>, SnapshotMeta) {
    let (id, meta) = store.open_snapshot(GROUP).unwrap();
    let chunk = store.read_snapshot(id, &[], u32::MAX).unwrap();
    assert_eq!(chunk.next, None);
    store.close_snapshot(id);
    (chunk.entries, meta)
}

fn install(
    target: &Store,
    entries: &[(Bytes, Bytes)],
    meta: &SnapshotMeta,
) -> Result<(), StoreError> {
    let id = RandomId::draw();
    target.begin_install(GROUP, id)?;
    let chunk = SnapshotChunk {
        entries: entries.to_vec(),
        next: None,
    };
    target.install_chunk(id, 0, &chunk)?;
    target.finish_install(GROUP, id, meta).map(drop)
}

#[test]
fn a_snapshot_is_whole_and_untouched_or_it_is_refused() {
    let (_from, source) = source();
    let (entries, meta) = snapshot(&source);
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    let before = target.digest(GROUP);
    let refused = |entries: &[(Bytes, Bytes)], what: &str| {
        let error = install(&target, entries, &meta).expect_err(what);
        assert!(matches!(error, StoreError::Refused(_)), "{what}: {error}");
        assert_eq!(target.digest(GROUP), before, "{what}");
    };
    for at in 0..entries.len() {
        let name = String::from_utf8_lossy(&entries[at].0).into_owned();
        if keys_that_count(&entries[at].0) {
            let mut less = entries.clone();
            less.remove(at);
            refused(&less, &format!("without {name}"));
        }
        let mut twice = entries.clone();
        twice.insert(at, entries[at].clone());
        refused(&twice, &format!("{name} twice"));
        let mut longer = entries.clone();
        longer[at].1 = [&entries[at].1[..], b"x"].concat().into();
        refused(&longer, &format!("{name} with more"));
    }
    let mut turned = entries.clone();
    turned.swap(0, 1);
    refused(&turned, "out of order");
    for (key, value) in [
        (Bytes::new(), Bytes::new()),
        (Bytes::from_static(b"x"), Bytes::new()),
        (Bytes::from(vec![b'd'; 70_000]), entries[0].1.clone()),
        (Bytes::from_static(b"s-other"), Bytes::new()),
        (Bytes::from_static(b"d\xff"), entries[0].1.clone()),
    ] {
        let mut more = entries.clone();
        more.push((key.clone(), value));
        more.sort();
        refused(&more, &format!("with {key:?}"));
    }
    install(&target, &entries, &meta).unwrap();
    assert_eq!(target.digest(GROUP), source.digest(GROUP), "DET-1");
}

fn keys_that_count(key: &[u8]) -> bool {
    matches!(key[0], b'd' | b'i' | b'o' | b'r' | b's')
}

#[test]
fn a_snapshot_of_keys_outside_the_range_is_refused() {
    let (_from, source) = source();
    let (entries, meta) = snapshot(&source);
    let dir = TempDir::new().unwrap();
    let target = Store::open(options(dir.path())).unwrap();
    let range = KeyRange {
        start: Bytes::from_static(b"m"),
        end: Bytes::new(),
        epoch: 1,
    };
    target.create_replica(GROUP, ReplicaId(1), range).unwrap();
    assert!(install(&target, &entries, &meta).is_err());
}

/// The state record with a changed state and the right checksum.
pub(super) fn put_state(entries: &mut [(Bytes, Bytes)], change: impl FnOnce(&mut System)) {
    let pair = entries
        .iter_mut()
        .find(|(key, _)| key[..] == *keys::SYSTEM)
        .unwrap();
    let mut system = System::parse(&pair.1).unwrap();
    change(&mut system);
    pair.1 = system.write().into();
}

#[test]
fn a_snapshot_after_which_no_number_is_left_is_refused() {
    let (_from, source) = source();
    let (entries, meta) = snapshot(&source);
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    let mut last = entries.clone();
    let mut end = meta.clone();
    end.last_applied = Some(LogPosition {
        term: 1,
        index: u64::MAX,
    });
    put_state(&mut last, |system| system.meta = end.clone());
    let refused = install(&target, &last, &end);
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    // A key that was written so often that its next version has no number.
    let mut worn = entries.clone();
    let pair = worn.iter_mut().find(|(key, _)| key[0] == b'd').unwrap();
    let mut version: Version = records::read(&pair.1).unwrap();
    version.version = u64::MAX;
    let old = batch::hash(&pair.0, &pair.1);
    pair.1 = mareedb_ipc::wire::encode(&version).into();
    let new = batch::hash(&pair.0, &pair.1);
    put_state(&mut worn, |system| {
        system.digest = system.digest.wrapping_sub(old).wrapping_add(new);
    });
    let refused = install(&target, &worn, &meta);
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    install(&target, &entries, &meta).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn bytes_of_any_kind_are_refused_without_a_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (_from, source) = source();
        let (mut entries, meta) = snapshot(&source);
        let whole = entries.clone();
        for (at, in_key, place, byte) in flips {
            let pair = at.get(&entries).clone();
            let part = if in_key { &pair.0 } else { &pair.1 };
            if part.is_empty() {
                continue;
            }
            let mut bytes = part.to_vec();
            *place.get_mut(&mut bytes) = byte;
            let slot = entries.iter_mut().find(|(key, _)| *key == pair.0).unwrap();
            if in_key { slot.0 = bytes.into() } else { slot.1 = bytes.into() }
        }
        let dir = TempDir::new().unwrap();
        let target = store(dir.path());
        let counted = |entries: &[(Bytes, Bytes)]| -> Vec<(Bytes, Bytes)> {
            entries.iter().filter(|(key, _)| key.first().is_some_and(|_| keys_that_count(key))).cloned().collect()
        };
        match install(&target, &entries, &meta) {
            // Only history, and what expires when, is not part of the digest.
            Ok(()) => prop_assert_eq!(counted(&entries), counted(&whole)),
            Err(error) => prop_assert!(matches!(error, StoreError::Refused(_) | StoreError::Damaged(_)), "{}", error),
        }
    }
}
