//! Files of a tree: what was merged goes, unless somebody reads it.

use super::super::engine::{Engine, Lsm};
use super::super::tree::Tree;
use crate::state::StoreError;
use bytes::Bytes;
use lsm_tree::Cache;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// As many flushes as make the engine merge.
const FLUSHES: u8 = 4;

fn lsm(dir: &Path) -> Lsm {
    Lsm::open(dir, Arc::new(Cache::with_capacity_bytes(0))).unwrap()
}

fn tree(dir: &Path) -> Arc<Tree> {
    Tree::over(Box::new(lsm(dir)), dir)
}

fn fill(tree: &Tree, round: u8) {
    for flush in 0..FLUSHES {
        let pairs = (0..100u8).map(|key| (vec![key], Some(Bytes::from(vec![round, flush, key]))));
        tree.write(pairs).show();
        tree.rotate();
        tree.flush().unwrap();
    }
}

fn tables(dir: &Path) -> BTreeSet<PathBuf> {
    let files = std::fs::read_dir(dir.join("tables")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

fn bytes_of_tables(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir.join("tables")).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

#[test]
fn files_that_were_merged_are_gone_before_anything_else_is_written() {
    let dir = TempDir::new().unwrap();
    let tree = tree(dir.path());
    fill(&tree, 1);
    let before = bytes_of_tables(dir.path());
    tree.compact().unwrap();
    let after = bytes_of_tables(dir.path());
    assert!(after < before / 2, "{after} bytes of {before} are left");
    assert_eq!(
        tree.pin().get(&[7]).unwrap().unwrap()[..],
        [1, FLUSHES - 1, 7]
    );
    // With nothing to merge no list is made.
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    let (lists, visible) = (files(), tree.visible());
    tree.compact().unwrap();
    assert_eq!((files(), tree.visible()), (lists, visible));
}

/// 256 runs in a level are a list that nobody can read.
#[test]
fn flushes_without_merges_leave_a_tree_that_can_be_opened() {
    let dir = TempDir::new().unwrap();
    let tree = tree(dir.path());
    for round in 0..300u16 {
        let value = Bytes::copy_from_slice(&round.to_be_bytes());
        tree.write([(b"k".to_vec(), Some(value))]).show();
        tree.rotate();
        tree.flush().unwrap();
    }
    drop(tree);
    let again = self::tree(dir.path());
    assert_eq!(
        again.pin().get(b"k").unwrap().unwrap()[..],
        299u16.to_be_bytes()
    );
}

#[test]
fn a_read_keeps_the_files_that_it_began_with() {
    let dir = TempDir::new().unwrap();
    let tree = tree(dir.path());
    fill(&tree, 1);
    let pin = tree.pin();
    tree.compact().unwrap();
    fill(&tree, 2);
    tree.compact().unwrap();
    assert_eq!(pin.get(&[7]).unwrap().unwrap()[..], [1, FLUSHES - 1, 7]);
    let held = bytes_of_tables(dir.path());
    drop(pin);
    fill(&tree, 3);
    tree.compact().unwrap();
    assert!(bytes_of_tables(dir.path()) < held);
    // And what is opened again has all.
    drop(tree);
    let again = self::tree(dir.path());
    assert_eq!(
        again.pin().get(&[7]).unwrap().unwrap()[..],
        [3, FLUSHES - 1, 7]
    );
}

/// A flush or a merge that begins with too little room would leave parts of its tables, which take more of it.
#[test]
fn nothing_is_begun_that_the_disk_has_no_room_for() {
    static FREE: AtomicU64 = AtomicU64::new(u64::MAX);
    let dir = TempDir::new().unwrap();
    let lsm = lsm(dir.path()).with_room(|_| Ok(FREE.load(Ordering::Relaxed)));
    let tree = Tree::over(Box::new(lsm), dir.path());
    let full = |done: Result<(), StoreError>| match done {
        Err(StoreError::Io(error)) => crate::fault::is_full(&error),
        _ => false,
    };
    fill(&tree, 1);
    let before = tables(dir.path());
    let value = Bytes::from(vec![7; 1 << 20]);
    tree.write([(b"k".to_vec(), Some(value.clone()))]).show();
    tree.rotate();
    // The reserve, and not the bytes that are to be written.
    FREE.store((16 << 20) + 1000, Ordering::Relaxed);
    assert!(full(tree.flush()) && full(tree.flush()));
    assert!(full(tree.compact()));
    assert_eq!(tables(dir.path()), before);
    assert_eq!(tree.pin().get(b"k").unwrap().unwrap(), value);
    FREE.store(u64::MAX, Ordering::Relaxed);
    tree.flush().unwrap();
    tree.compact().unwrap();
    drop(tree);
    assert_eq!(
        self::tree(dir.path()).pin().get(b"k").unwrap().unwrap(),
        value
    );
}

/// As those of a received snapshot, of which there may be more than the disk has room for once more.
#[test]
fn tables_in_order_are_moved_without_room_for_them() {
    static FREE: AtomicU64 = AtomicU64::new(u64::MAX);
    let dir = TempDir::new().unwrap();
    let lsm = lsm(dir.path()).with_room(|_| Ok(FREE.load(Ordering::Relaxed)));
    for table in 0..5u8 {
        let value = vec![table; 1 << 20];
        lsm.insert(vec![table], &value, lsm.take_number());
        lsm.rotate();
        lsm.flush(0).unwrap();
    }
    assert_eq!(lsm.tables(), [5, 0, 0, 0, 0, 0, 0]);
    FREE.store((16 << 20) + 1000, Ordering::Relaxed);
    assert!(lsm.compact(0).unwrap());
    assert_eq!(lsm.tables(), [0, 0, 0, 0, 0, 0, 5]);
    let value = lsm.get(&[3], lsm.next_number()).unwrap().unwrap();
    assert_eq!(value, vec![3_u8; 1 << 20]);
}

#[test]
fn a_merge_that_fails_leaves_no_part_of_a_table() {
    let dir = TempDir::new().unwrap();
    let tree = tree(dir.path());
    for flush in 0..FLUSHES {
        let value = |key: u16| Bytes::from(vec![flush ^ key.to_be_bytes()[1]; 500]);
        let pairs = (0..1000u16).map(|key| (key.to_be_bytes().to_vec(), Some(value(key))));
        tree.write(pairs).show();
        tree.rotate();
        tree.flush().unwrap();
    }
    let before = tables(dir.path());
    let last = before.last().unwrap();
    let mut bytes = std::fs::read(last).unwrap();
    // In the middle of the data: much is merged before it is met.
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(last, bytes).unwrap();
    let failed = tree.compact();
    assert!(matches!(failed, Err(StoreError::Damaged(_))), "{failed:?}");
    assert_eq!(tables(dir.path()), before);
}
