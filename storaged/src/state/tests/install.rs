//! Where a transfer fails: with its last chunk, of which its sender is told. An installation that fails ends the group.

use super::hostile::{put_state, snapshot, source};
use super::*;
use crate::fault;
use crate::io::said::Room;

const INSTALL: RandomId = RandomId(3);

/// A snapshot in two chunks.
fn halves(entries: &[(Bytes, Bytes)]) -> [SnapshotChunk; 2] {
    let (first, last) = entries.split_at(entries.len() / 2);
    let next = Some(last[0].0.clone());
    let chunk = |entries: &[(Bytes, Bytes)], next| SnapshotChunk {
        entries: entries.to_vec(),
        next,
    };
    [chunk(first, next), chunk(last, None)]
}

fn is_full<T>(done: Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::Io(error)) if fault::is_full(&error))
}

/// Files of the tree that is received.
fn tables(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("tree-1").join("tables"))
        .unwrap()
        .count()
}

#[test]
fn the_last_chunk_is_refused_until_the_disk_has_room_for_all_of_them() {
    let (_from, source) = source();
    let (entries, meta) = snapshot(&source);
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    target.begin_install(GROUP, INSTALL).unwrap();
    let [first, last] = halves(&entries);
    target.install_chunk(INSTALL, 0, &first).unwrap();
    let full = Room::of(0);
    for _ in 0..2 {
        assert!(is_full(target.install_chunk(INSTALL, 1, &last)));
    }
    assert_eq!(tables(dir.path()), 0);
    drop(full);
    target.install_chunk(INSTALL, 1, &last).unwrap();
    assert_eq!(tables(dir.path()), 1);
    // Nothing of what is left to do asks for any.
    let full = Room::of(0);
    assert_eq!(target.finish_install(GROUP, INSTALL, &meta).unwrap(), meta);
    drop(full);
    assert_eq!(target.digest(GROUP), source.digest(GROUP));
}

#[test]
fn a_snapshot_that_is_not_what_its_record_says_is_refused_with_its_last_chunk() {
    let (_from, source) = source();
    let (mut entries, meta) = snapshot(&source);
    put_state(&mut entries, |system| system.digest ^= 1);
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    target.begin_install(GROUP, INSTALL).unwrap();
    let [first, last] = halves(&entries);
    target.install_chunk(INSTALL, 0, &first).unwrap();
    for _ in 0..2 {
        let refused = target.install_chunk(INSTALL, 1, &last);
        assert!(
            matches!(refused, Err(StoreError::Refused(_))),
            "{refused:?}"
        );
    }
    let refused = target.finish_install(GROUP, INSTALL, &meta);
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    assert_eq!(target.applied(GROUP).unwrap().last_applied, None);
}

/// The answer to the first one was lost, and the disk is full since.
#[test]
fn an_installation_that_comes_again_asks_for_no_room() {
    let (_from, source) = source();
    let (_, meta) = snapshot(&source);
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    copy(&source, &target);
    let next = meta.last_applied.unwrap().index + 1;
    outcome(&target, &entry(next, next, &Command::Tick));
    let _full = Room::of(0);
    assert!(is_full(target.flush(GROUP)));
    let again = target.finish_install(GROUP, INSTALL, &meta);
    assert_eq!(again.unwrap(), meta);
}

/// Before the first flush of the replica, after which all of it would have to be merged, and its bytes written once more.
#[test]
fn what_is_installed_lies_where_the_engine_keeps_it() {
    let (_from, source) = source();
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    copy(&source, &target);
    let list = || std::fs::read(dir.path().join("tree-1").join("current")).unwrap();
    let installed = list();
    target.maintain().unwrap();
    assert_eq!(list(), installed, "it was moved only now");
}
