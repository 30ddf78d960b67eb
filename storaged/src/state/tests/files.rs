//! Files of a tree: what was merged goes, unless somebody reads it.

use super::super::engine::Lsm;
use super::super::tree::Tree;
use bytes::Bytes;
use lsm_tree::Cache;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// As many flushes as make the engine merge.
const FLUSHES: u8 = 4;

fn tree(dir: &Path) -> Arc<Tree> {
    let cache = Arc::new(Cache::with_capacity_bytes(1 << 20));
    Tree::over(Box::new(Lsm::open(dir, cache).unwrap()), dir)
}

fn fill(tree: &Tree, round: u8) {
    for flush in 0..FLUSHES {
        let pairs = (0..100u8).map(|key| (vec![key], Some(Bytes::from(vec![round, flush, key]))));
        tree.write(pairs).show();
        tree.rotate();
        tree.flush().unwrap();
    }
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
