//! What happens at the same time, what fails, and what must be let go of.

use super::*;
use crate::state::engine::{Engine, Lsm, Pairs};
use crate::state::replica::Replica;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

fn pair_of(number: u64) -> Txn {
    let value = number.to_be_bytes();
    Txn {
        success: vec![put(b"a", &value), put(b"z", &value)],
        ..Txn::default()
    }
}

fn both(store: &Store) -> (u64, Vec<Bytes>) {
    let response = read_all(store, None).unwrap();
    let values = response.items.into_iter().map(|item| item.value).collect();
    (response.applied_index, values)
}

#[test]
fn readers_see_whole_batches_while_it_is_flushed_merged_and_copied() {
    // SM-1
    const ENTRIES: u64 = 600;
    const READS: u64 = 100;
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    outcome(&store, &entry(0, 1, &open_session()));
    let done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let (index, values) = both(&store);
                    assert!(index >= last, "SM-3");
                    last = index;
                    if index > 0 {
                        let wanted = Bytes::copy_from_slice(&index.to_be_bytes());
                        assert_eq!(values, vec![wanted.clone(), wanted], "SM-1 at {index}");
                    }
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let persisted = store.flush(GROUP).unwrap();
                    assert!(store.persisted(GROUP).unwrap().last_applied >= persisted.last_applied);
                    assert!(store.unflushed_bytes() < 1 << 40, "it went below nothing");
                    store.maintain().unwrap();
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let dir = TempDir::new().unwrap();
                let other = super::store(dir.path());
                copy(&store, &other);
                let (index, values) = both(&other);
                assert!(index == 0 || values.len() == 2 && values[0] == values[1]);
            }
        });
        let mut index = 1;
        while index < ENTRIES || reads.load(Ordering::Relaxed) < READS {
            let outcome = outcome(
                &store,
                &entry(index, index, &write(index, index, None, pair_of(index))),
            );
            assert!(matches!(outcome, Outcome::Done(_)));
            index += 1;
        }
        done.store(true, Ordering::Release);
    });
    store.flush(GROUP).unwrap();
    assert_eq!(store.unflushed_bytes(), 0);
    let digest = store.digest(GROUP);
    drop(store);
    assert_eq!(
        Store::open(options(dir.path())).unwrap().digest(GROUP),
        digest
    );
}

#[test]
fn who_listens_is_told_of_each_batch_and_of_an_installed_snapshot() {
    let (from_dir, dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (from, store) = (store(from_dir.path()), store(dir.path()));
    let told = Arc::new(AtomicU64::new(0));
    let (tell, listening) = (told.clone(), store.clone());
    store.on_applied(Arc::new(move || {
        // It is there when they are told.
        let applied = listening.applied(GROUP).and_then(|meta| meta.last_applied);
        tell.store(applied.unwrap().index, Ordering::Release);
    }));
    for (index, ms) in [(0, 1), (1, 2), (2, 3)] {
        outcome(&from, &entry(index, ms, &open_session()));
    }
    for (index, ms) in [(0, 1), (1, 2)] {
        outcome(&store, &entry(index, ms, &open_session()));
        assert_eq!(told.load(Ordering::Acquire), index);
    }
    copy(&from, &store);
    assert_eq!(told.load(Ordering::Acquire), 2);
}

/// lsm-tree on a disk that is full when `full` says so, whose numbers are said to be so far ahead.
struct Failing {
    lsm: Lsm,
    full: Arc<AtomicBool>,
    ahead: u64,
}

impl Failing {
    fn check(&self) -> Result<(), StoreError> {
        if self.full.load(Ordering::Acquire) {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        Ok(())
    }
}

impl Engine for Failing {
    fn take_number(&self) -> u64 {
        self.lsm.take_number()
    }
    fn next_number(&self) -> u64 {
        self.lsm.next_number() + self.ahead
    }
    fn insert(&self, key: Vec<u8>, value: &[u8], number: u64) {
        self.lsm.insert(key, value, number);
    }
    fn remove(&self, key: Vec<u8>, number: u64) {
        self.lsm.remove(key, number);
    }
    fn get(&self, key: &[u8], number: u64) -> Result<Option<Bytes>, StoreError> {
        self.lsm.get(key, number)
    }
    fn range(&self, from: Bound<Vec<u8>>, to: Bound<Vec<u8>>, number: u64) -> Pairs {
        self.lsm.range(from, to, number)
    }
    fn rotate(&self) {
        self.lsm.rotate();
    }
    fn flush(&self, watermark: u64) -> Result<(), StoreError> {
        self.check()?;
        self.lsm.flush(watermark)
    }
    fn compact(&self, watermark: u64) -> Result<bool, StoreError> {
        self.check()?;
        self.lsm.compact(watermark)
    }
    fn renew_list(&self, watermark: u64) -> Result<(), StoreError> {
        self.check()?;
        self.lsm.renew_list(watermark)
    }
    fn disk_bytes(&self) -> u64 {
        self.lsm.disk_bytes()
    }
}

#[test]
#[should_panic(expected = "SM-4")]
fn a_batch_comes_after_all_that_readers_see() {
    let dir = TempDir::new().unwrap();
    let cache = Arc::new(Cache::with_capacity_bytes(1 << 20));
    let engine = Failing {
        lsm: Lsm::open(dir.path(), cache).unwrap(),
        full: Arc::default(),
        ahead: 1,
    };
    let tree = Tree::over(Box::new(engine), dir.path());
    drop(tree.write([(b"k".to_vec(), None)]));
}

#[test]
fn a_full_disk_loses_nothing_and_is_not_called_persisted() {
    let dir = TempDir::new().unwrap();
    let cache = Arc::new(Cache::with_capacity_bytes(1 << 20));
    let full = Arc::new(AtomicBool::new(false));
    let engine = Failing {
        lsm: Lsm::open(dir.path(), cache.clone()).unwrap(),
        full: full.clone(),
        ahead: 0,
    };
    let tree = Tree::over(Box::new(engine), dir.path());
    let options = options(dir.path());
    let replica = |tree| {
        let range = KeyRange::whole();
        Replica::new(GROUP, ReplicaId(1), range, 0, tree, &options).unwrap()
    };
    let first = replica(tree);
    first.apply(&[entry(0, 1, &open_session())], 0).unwrap();
    let persisted = first.flush().unwrap();
    assert_eq!(first.unflushed(), 0);
    full.store(true, Ordering::Release);
    for index in 1..10 {
        let command = write(index, 1, None, pair_of(index));
        first.apply(&[entry(index, index, &command)], 0).unwrap();
        assert!(matches!(first.flush(), Err(StoreError::Io(_))));
        assert!(first.merge().is_err());
        assert_eq!(first.persisted(), persisted);
    }
    assert!(first.unflushed() > 0);
    let digest = first.digest();
    full.store(false, Ordering::Release);
    assert_eq!(first.flush().unwrap(), first.applied());
    assert_eq!(first.unflushed(), 0);
    assert_eq!(first.digest(), digest);
    drop(first);
    assert_eq!(
        replica(Tree::open(dir.path(), cache).unwrap()).digest(),
        digest
    );
}

#[test]
fn a_deletion_and_what_it_ended_are_collected_together() {
    // SM-6: or, between two rounds, a read at a later revision would find what was deleted.
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path());
    options.first_rules.history_ms = 10;
    let store = Store::open(options).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    outcome(&store, &entry(0, 1, &open_session()));
    let keys: Vec<[u8; 2]> = (0..3000u16).map(u16::to_be_bytes).collect();
    let puts = keys.iter().map(|key| put(key, b"v")).collect();
    let deletes = keys
        .iter()
        .map(|key| Op::Delete {
            key: Bytes::copy_from_slice(key),
        })
        .collect();
    for (index, success) in [(1, puts), (2, deletes)] {
        let txn = Txn {
            success,
            ..Txn::default()
        };
        let outcome = outcome(&store, &entry(index, index, &write(index, 1, None, txn)));
        assert!(matches!(outcome, Outcome::Done(_)));
    }
    outcome(&store, &later(3, 50, 50, &Command::Tick));
    outcome(&store, &later(4, 100, 50, &Command::Tick));
    let replica = store.replica(GROUP).unwrap();
    let (pin, _) = replica.pin();
    let horizon = Revision::from_unix_ms(50);
    let (found, upto) = crate::state::replica::garbage(&pin, Revision(0), horizon).unwrap();
    assert_eq!(found.len(), 6000, "all of one revision, though it is much");
    assert_eq!(upto, horizon);
    drop(pin);
    store.maintain().unwrap();
    store.maintain().unwrap();
    let (pin, _) = replica.pin();
    let (left, _) = replica::chunk(&pin, b"g", usize::MAX).unwrap();
    assert!(
        left.iter().all(|(key, _)| !matches!(key[0], b'g' | b'h')),
        "everything behind the horizon is gone"
    );
}

#[test]
fn collecting_alone_leaves_nothing_unflushed() {
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path());
    options.first_rules.history_ms = 10;
    let store = Store::open(options).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    outcome(&store, &entry(0, 1, &open_session()));
    for index in 1..20 {
        outcome(
            &store,
            &entry(index, index, &write(index, 1, None, pair_of(index))),
        );
    }
    outcome(&store, &later(20, 500, 500, &Command::Tick));
    outcome(&store, &later(21, 1000, 500, &Command::Tick));
    store.flush(GROUP).unwrap();
    assert_eq!(store.unflushed_bytes(), 0);
    store.maintain().unwrap();
    assert!(store.unflushed_bytes() > 0, "old versions were removed");
    store.flush(GROUP).unwrap();
    assert_eq!(store.unflushed_bytes(), 0);
}

#[test]
fn what_nobody_reads_any_more_is_let_go_of() {
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path());
    options.first_rules.history_ms = 1;
    let store = Store::open(options).unwrap();
    store
        .create_replica(GROUP, ReplicaId(1), KeyRange::whole())
        .unwrap();
    outcome(&store, &entry(0, 1, &open_session()));
    let mut index = 0;
    let mut churn = |store: &Store| {
        for _ in 0..40 {
            for _ in 0..5 {
                index += 1;
                let value = vec![u8::try_from(index % 251).unwrap(); 20_000];
                let txn = Txn {
                    success: vec![put(b"k", &value)],
                    ..Txn::default()
                };
                let command = write(index, index, None, txn);
                outcome(store, &later(index, index * 10, 10, &command));
            }
            store.flush(GROUP).unwrap();
            store.maintain().unwrap();
        }
        store.data_bytes()
    };
    let (snapshot, _) = store.open_snapshot(GROUP).unwrap();
    let pinned = churn(&store);
    assert!(store.read_snapshot(snapshot, &[], 1).is_ok());
    store.drop_idle(Duration::from_secs(600));
    assert!(store.read_snapshot(snapshot, &[], 1).is_ok(), "in use");
    let install = RandomId(3);
    store.begin_install(GROUP, install).unwrap();
    store.drop_idle(Duration::ZERO);
    assert!(store.read_snapshot(snapshot, &[], 1).is_err());
    let chunk = SnapshotChunk::default();
    assert!(store.install_chunk(install, 0, &chunk).is_err());
    let free = churn(&store);
    assert!(free < pinned, "{free} bytes, {pinned} while pinned");
    assert!(
        free < 1_500_000,
        "200 versions of 20 kB were written: {free} bytes are left"
    );
}
