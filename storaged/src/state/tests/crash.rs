//! What a crash may leave. An image is a copy of the directory as it stands between two steps, or one that mixes the files from
//! before and after a step while the one file that decides (the tree's `current`, the store's `manifest`) is the old one.

use super::*;

fn copy_dir(from: &Path, to: &Path, overwrite: bool) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target, overwrite);
        } else if overwrite || !target.exists() {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn image(of: &Path) -> TempDir {
    let image = TempDir::new().unwrap();
    copy_dir(of, image.path(), true);
    image
}

/// Everything that `before` had, and of `after` only what is new: a step that had written all but what decides.
fn halfway(before: &Path, after: &Path) -> TempDir {
    let image = image(before);
    copy_dir(after, image.path(), false);
    image
}

struct Scene {
    dir: TempDir,
    store: Store,
    log: Vec<LogEntry>,
    /// By index.
    digests: Vec<(u64, String)>,
}

impl Scene {
    fn new() -> Scene {
        let dir = TempDir::new().unwrap();
        let store = store(dir.path());
        let mut scene = Scene {
            dir,
            store,
            log: Vec::new(),
            digests: Vec::new(),
        };
        scene.add(&open_session());
        scene
    }

    fn add(&mut self, command: &Command) {
        let index = self.log.len() as u64;
        self.log.push(entry(index, 1 + index * 10, command));
        self.store
            .apply(GROUP, &self.log[self.log.len() - 1..], 0)
            .unwrap();
        self.digests.push(self.store.digest(GROUP).unwrap());
    }

    fn write(&mut self) {
        let number = self.log.len() as u64;
        let idempotency = number.is_multiple_of(3).then(|| IdempotencyKey {
            key: format!("key-{}", number % 5),
            fingerprint: 1,
        });
        let name = [b'k', u8::try_from(number % 7).unwrap()];
        let op = if number.is_multiple_of(4) {
            Op::Delete {
                key: Bytes::copy_from_slice(&name),
            }
        } else {
            put(&name, &number.to_be_bytes())
        };
        let txn = Txn {
            success: vec![op],
            ..Txn::default()
        };
        self.add(&write(number, number.saturating_sub(2), idempotency, txn));
    }

    /// A store over the image is at `applied`, says that this is persisted, and comes to the same end with the log.
    fn recovers(&self, image: &Path, applied: &SnapshotMeta, what: &str) {
        let again = Store::open(options(image)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(again.applied(GROUP).as_ref(), Some(applied), "{what}");
        assert_eq!(again.persisted(GROUP).as_ref(), Some(applied), "{what}");
        let from = applied
            .last_applied
            .map_or(0, |at| usize::try_from(at.index).unwrap() + 1);
        if from > 0 {
            assert_eq!(
                again.digest(GROUP).as_ref(),
                Some(&self.digests[from - 1]),
                "{what}"
            );
        }
        again.apply(GROUP, &self.log[from..], u64::MAX).unwrap();
        assert_eq!(
            again.digest(GROUP).as_ref(),
            self.digests.last(),
            "DET-1: {what}"
        );
        // And it goes on from there.
        again.flush(GROUP).unwrap();
        again.maintain().unwrap();
        assert_eq!(again.persisted(GROUP), self.store.applied(GROUP), "{what}");
    }
}

#[test]
fn whatever_a_flush_or_a_merge_leaves_the_log_brings_the_state_back() {
    let mut scene = Scene::new();
    for round in 0..12 {
        for _ in 0..3 {
            scene.write();
            let persisted = scene.store.persisted(GROUP).unwrap();
            scene.recovers(image(scene.dir.path()).path(), &persisted, "between writes");
        }
        let (before, persisted) = (
            image(scene.dir.path()),
            scene.store.persisted(GROUP).unwrap(),
        );
        let flushed = scene.store.flush(GROUP).unwrap();
        let what = format!("in the middle of flush {round}");
        scene.recovers(
            halfway(before.path(), scene.dir.path()).path(),
            &persisted,
            &what,
        );
        scene.recovers(image(scene.dir.path()).path(), &flushed, "after a flush");
        let before = image(scene.dir.path());
        scene.store.maintain().unwrap();
        let what = format!("in the middle of merge {round}");
        scene.recovers(
            halfway(before.path(), scene.dir.path()).path(),
            &flushed,
            &what,
        );
        scene.recovers(image(scene.dir.path()).path(), &flushed, "after a merge");
    }
}

#[test]
fn whatever_an_installation_leaves_is_the_old_state_or_the_new_one() {
    // SM-7
    let mut scene = Scene::new();
    for _ in 0..20 {
        scene.write();
    }
    let behind = TempDir::new().unwrap();
    let target = store(behind.path());
    target
        .apply(GROUP, &scene.log[..5], u64::MAX)
        .and_then(|_| target.flush(GROUP))
        .unwrap();
    let old = target.applied(GROUP).unwrap();
    let (snapshot, meta) = scene.store.open_snapshot(GROUP).unwrap();
    // The state goes on while the snapshot is read.
    scene.write();
    scene.store.flush(GROUP).unwrap();
    scene.store.maintain().unwrap();
    let install = RandomId(1);
    target.begin_install(GROUP, install).unwrap();
    scene.recovers(image(behind.path()).path(), &old, "begun");
    let mut cursor = Bytes::new();
    for number in 0.. {
        let chunk = scene.store.read_snapshot(snapshot, &cursor, 300).unwrap();
        target.install_chunk(install, number, &chunk).unwrap();
        scene.recovers(image(behind.path()).path(), &old, "a chunk is taken");
        match chunk.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    let before = image(behind.path());
    target.finish_install(GROUP, install, &meta).unwrap();
    scene.recovers(
        halfway(before.path(), behind.path()).path(),
        &old,
        "all but the manifest",
    );
    std::fs::copy(
        behind.path().join("manifest"),
        before.path().join("manifest.new"),
    )
    .unwrap();
    scene.recovers(before.path(), &old, "a new manifest that was not renamed");
    scene.recovers(image(behind.path()).path(), &meta, "installed");
    // What replaced trees leave is removed.
    drop(target);
    drop(Store::open(options(behind.path())).unwrap());
    let trees = std::fs::read_dir(behind.path())
        .unwrap()
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("tree-")
        })
        .count();
    assert_eq!(trees, 1);
}

#[test]
fn a_transfer_that_comes_again_takes_nothing_back_and_tells_only_what_is_durable() {
    let mut scene = Scene::new();
    for _ in 0..10 {
        scene.write();
    }
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    copy(&scene.store, &target);
    let (old, old_meta) = scene.store.open_snapshot(GROUP).unwrap();
    let old_chunk = scene.store.read_snapshot(old, &[], u32::MAX).unwrap();
    scene.write();
    target
        .apply(GROUP, &scene.log[scene.log.len() - 1..], u64::MAX)
        .unwrap();
    let install = RandomId(5);
    target.begin_install(GROUP, install).unwrap();
    target.install_chunk(install, 0, &old_chunk).unwrap();
    let told = target.finish_install(GROUP, install, &old_meta).unwrap();
    assert_eq!(
        target.digest(GROUP).as_ref(),
        scene.digests.last(),
        "nothing is taken back"
    );
    drop(target);
    let again = Store::open(options(dir.path())).unwrap();
    assert!(
        again.applied(GROUP).unwrap().last_applied >= told.last_applied,
        "the log is emptied up to what was told"
    );
}

#[test]
fn damage_is_an_error_and_no_empty_state() {
    let mut scene = Scene::new();
    for _ in 0..10 {
        scene.write();
    }
    scene.store.flush(GROUP).unwrap();
    // SM-2
    let break_one = |break_it: fn(&Path)| {
        let image = image(scene.dir.path());
        break_it(image.path());
        match Store::open(options(image.path())) {
            Err(StoreError::Damaged(why)) => why,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it opens"),
        }
    };
    let tree = |dir: &Path| dir.join("tree-0");
    assert_eq!(tree(scene.dir.path()), scene.dir.path().join("tree-0"));
    break_one(|dir| std::fs::remove_file(dir.join("tree-0/current")).unwrap());
    break_one(|dir| std::fs::remove_dir_all(dir.join("tree-0")).unwrap());
    break_one(|dir| std::fs::remove_file(dir.join("manifest")).unwrap());
    break_one(|dir| std::fs::write(dir.join("manifest"), b"").unwrap());
    break_one(|dir| {
        let mut bytes = std::fs::read(dir.join("manifest")).unwrap();
        bytes[8] = 9;
        std::fs::write(dir.join("manifest"), bytes).unwrap();
    });
    break_one(|dir| {
        for entry in std::fs::read_dir(dir.join("tree-0/tables")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    });
    break_one(|dir| {
        for entry in std::fs::read_dir(dir.join("tree-0")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with('v') {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    });
}

/// A read that meets damage is only answered, but the process must not go on: no restart cures it, and who asked asks again.
#[test]
fn damage_that_a_reader_meets_is_remembered_with_its_file() {
    let mut scene = Scene::new();
    for _ in 0..10 {
        scene.write();
    }
    scene.store.flush(GROUP).unwrap();
    let image = image(scene.dir.path());
    let table = std::fs::read_dir(image.path().join("tree-0/tables")).unwrap();
    let table = table.last().unwrap().unwrap().path();
    let again = Store::open(StoreOptions {
        cache_bytes: 0,
        ..options(image.path())
    });
    let again = again.unwrap();
    let (snapshot, _) = again.open_snapshot(GROUP).unwrap();
    let mut bytes = std::fs::read(&table).unwrap();
    for byte in &mut bytes {
        *byte ^= 1;
    }
    std::fs::write(&table, bytes).unwrap();
    assert!(again.damage().is_none());
    let request = ReadRequest {
        group: GROUP,
        epoch: 1,
        min_index: 0,
        query: Query::Get {
            key: Bytes::from_static(b"k\x01"),
            revision: None,
        },
    };
    let Err(ReadError::Storage(told)) = again.read(&request) else {
        panic!("it is read");
    };
    assert!(told.contains(&*table.to_string_lossy()), "{told}");
    let damage = again.damage().unwrap();
    assert!(matches!(damage, StoreError::Damaged(_)), "{damage}");
    assert_eq!(damage.to_string(), told);
    // The files are not looked through again for the next one.
    std::fs::remove_dir_all(image.path().join("tree-0")).unwrap();
    let next = again.read(&request);
    assert_eq!(next, Err(ReadError::Storage(told)));
    let chunk = again.read_snapshot(snapshot, &[], 1 << 20);
    assert!(matches!(chunk, Err(StoreError::Damaged(_))));
}

#[test]
fn a_transfer_that_cannot_be_put_in_force_leaves_no_files() {
    let mut scene = Scene::new();
    for _ in 0..10 {
        scene.write();
    }
    let dir = TempDir::new().unwrap();
    let target = store(dir.path());
    let trees = || {
        let names = std::fs::read_dir(dir.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("tree-")).count()
    };
    let (snapshot, meta) = scene.store.open_snapshot(GROUP).unwrap();
    let chunk = scene.store.read_snapshot(snapshot, &[], 1 << 20).unwrap();
    let install = RandomId(3);
    target.begin_install(GROUP, install).unwrap();
    target.install_chunk(install, 0, &chunk).unwrap();
    assert_eq!(trees(), 2);
    // No manifest can be written.
    let new = dir.path().join("manifest.new");
    std::fs::create_dir(&new).unwrap();
    let failed = target.finish_install(GROUP, install, &meta);
    assert!(matches!(failed, Err(StoreError::Io(_))), "{failed:?}");
    assert_eq!(trees(), 1);
    assert!(target.begin_install(GROUP, install).is_err());
    assert_eq!(trees(), 1);
    std::fs::remove_dir(&new).unwrap();
    copy(&scene.store, &target);
    assert_eq!(target.digest(GROUP), scene.store.digest(GROUP));
    assert_eq!(trees(), 1);
}
