//! A shard whose threads work only when the test says so, with the test as consensusd.

use super::*;
use crate::io::{Disk, StdDisk};
use crate::state::StoreError;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::storage::{
    EntryBody, FromStorage, KeyRange, LogEntry, ReplicaState, SnapshotMeta, StorageAnswer,
    StorageRequest, ToStorage,
};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, RandomId, ReplicaId};
use std::path::PathBuf;
use tempfile::TempDir;

const GROUP: mareedb_ipc::wire::GroupId = FIRST_DATA_GROUP;
const LANE: Lane = Lane::Log(SHARD);

struct Scene {
    dir: TempDir,
    node: NodeInProcess,
    shard: SimShard,
    disk: StdDisk,
    consensus: Consensus,
}

struct Consensus {
    sender: mareedb_ipc::Sender,
    receiver: mareedb_ipc::Receiver,
    heard: Vec<FromStorage>,
}

impl Consensus {
    fn attach(node: &NodeInProcess) -> Consensus {
        let mut inheritance = node.attach(Role::Consensus);
        Consensus {
            sender: inheritance.sender(Role::Storage, LANE),
            receiver: inheritance.receiver(Role::Storage, LANE),
            heard: Vec::new(),
        }
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config::default();
    config.server.data_dir = dir.to_string_lossy().into_owned();
    config.storage.segment_bytes = 1 << 20;
    // What a test changes in files is what is read.
    config.storage.cache_bytes = 0;
    config
}

fn entries(indexes: std::ops::RangeInclusive<u64>) -> Vec<LogEntry> {
    let entry = |index| LogEntry {
        position: at(index),
        body: EntryBody::Blank,
    };
    indexes.map(entry).collect()
}

fn at(index: u64) -> LogPosition {
    LogPosition { term: 1, index }
}

impl Scene {
    fn new() -> Scene {
        let dir = TempDir::new().unwrap();
        let node = NodeInProcess::small("");
        let log_dir: PathBuf = dir.path().join("log");
        StdDisk::open(&log_dir).unwrap();
        let disk = StdDisk::unlocked(&log_dir);
        let disks: Disks = Arc::new(move || Box::new(StdDisk::unlocked(&log_dir)));
        let mut inheritance = node.attach(Role::Storage);
        let shard = SimShard::open(&mut inheritance, &config(dir.path()), disks).unwrap();
        Scene {
            consensus: Consensus::attach(&node),
            dir,
            node,
            shard,
            disk,
        }
    }

    /// With a replica whose log has these entries.
    fn with_log(entries: Vec<LogEntry>) -> Scene {
        let mut scene = Scene::new();
        scene.send(&ToStorage::CreateReplica {
            group: GROUP,
            replica: ReplicaId(1),
            range: KeyRange::whole(),
        });
        scene.send(&ToStorage::Append {
            group: GROUP,
            entries,
        });
        scene.run(&Thread::ALL);
        scene
    }

    fn send(&mut self, message: &ToStorage) {
        assert!(self.consensus.sender.try_send(message).unwrap().is_some());
        self.consensus.sender.publish();
    }

    fn ask(&mut self, request: u64, body: StorageRequest) {
        self.send(&ToStorage::Request { request, body });
    }

    /// Turns and writes until there is nothing to do; of the threads these work.
    fn run(&mut self, threads: &[Thread]) {
        self.try_run(threads).unwrap();
    }

    fn try_run(&mut self, threads: &[Thread]) -> Result<(), Ended> {
        loop {
            let mut quiet = self.shard.turn()?;
            for write in self.shard.begun() {
                let place = &write.location;
                let done = self.disk.write(place.segment, place.offset, &write.bytes);
                self.shard.ended(write.lsn, done);
                quiet = false;
            }
            for thread in threads {
                quiet &= self.shard.work(*thread)? == Did::Nothing;
            }
            while let Some((message, end)) = self.consensus.receiver.try_recv().unwrap() {
                self.consensus.receiver.release(end);
                self.consensus.heard.push(message);
            }
            if quiet {
                return Ok(());
            }
        }
    }

    /// A new consensusd says Hello.
    fn succeed(&mut self) -> u64 {
        self.consensus = Consensus::attach(&self.node);
        let epoch = self.consensus.sender.epoch();
        self.send(&ToStorage::Hello { epoch, number: 1 });
        epoch
    }

    fn bootstrapped(&self) -> Option<&ReplicaState> {
        self.consensus.heard.iter().find_map(|heard| match heard {
            FromStorage::Bootstrapped { replicas, .. } => replicas.first(),
            _ => None,
        })
    }
}

/// A transfer of a snapshot that ends there, whole but for its last step.
fn receive(target: &Store, last: u64) -> (RandomId, SnapshotMeta) {
    let dir = TempDir::new().unwrap();
    let source = Store::open(store_options(&config(dir.path()))).unwrap();
    source
        .create_replica(GROUP, ReplicaId(2), KeyRange::whole())
        .unwrap();
    source.apply(GROUP, &entries(0..=last), u64::MAX).unwrap();
    let (snapshot, meta) = source.open_snapshot(GROUP).unwrap();
    let install = RandomId::draw();
    target.begin_install(GROUP, install).unwrap();
    let chunk = source.read_snapshot(snapshot, &[], 1 << 20).unwrap();
    assert_eq!(chunk.next, None);
    target.install_chunk(install, 0, &chunk).unwrap();
    (install, meta)
}

/// Threads other than the one that applies.
fn others() -> Vec<Thread> {
    let mut threads = Thread::ALL.to_vec();
    threads.retain(|thread| *thread != Thread::Apply);
    threads
}

/// RAFT-2
#[test]
fn a_new_consensusd_hears_nothing_while_a_snapshot_is_being_installed() {
    let mut scene = Scene::with_log(entries(0..=5));
    let (install, meta) = receive(scene.shard.store(), 50);
    scene.ask(
        1,
        StorageRequest::FinishInstall {
            group: GROUP,
            install,
            meta: meta.clone(),
        },
    );
    scene.run(&others());
    let epoch = scene.succeed();
    scene.run(&others());
    assert_eq!(scene.bootstrapped(), None, "the log ends elsewhere soon");
    // It is installed, and the log does not know of it yet.
    assert_eq!(scene.shard.work(Thread::Apply).unwrap(), Did::Work);
    assert!(!scene.shard.turn().unwrap());
    assert_eq!(scene.bootstrapped(), None);
    scene.run(&others());
    let state = scene.bootstrapped().unwrap();
    assert_eq!((state.last, state.purged), (Some(at(50)), Some(at(50))));
    assert_eq!(state.applied, meta);
    assert!(
        scene.consensus.heard.iter().any(
            |heard| matches!(heard, FromStorage::Bootstrapped { epoch: of, .. } if *of == epoch)
        )
    );
    // What it appends then follows.
    scene.send(&ToStorage::Append {
        group: GROUP,
        entries: entries(51..=52),
    });
    scene.run(&Thread::ALL);
    assert_eq!(
        scene.shard.log().index.groups[&GROUP].last,
        Some(at(52)),
        "RAFT-2"
    );
}

#[test]
fn a_new_consensusd_hears_nothing_while_its_predecessors_entries_are_applied() {
    let mut scene = Scene::with_log(entries(0..=5));
    scene.ask(
        1,
        StorageRequest::Apply {
            group: GROUP,
            results_from: u64::MAX,
            upto: at(3),
        },
    );
    scene.run(&others());
    scene.succeed();
    scene.run(&others());
    assert_eq!(scene.bootstrapped(), None);
    scene.run(&Thread::ALL);
    let applied = scene.bootstrapped().unwrap().applied.last_applied;
    assert_eq!(applied, Some(at(3)));
    // What it is told of persisted state later is no newer than that.
    scene.shard.store().flush(GROUP).unwrap();
    scene.ask(2, StorageRequest::CurrentSnapshot { group: GROUP });
    scene.run(&Thread::ALL);
    let told = scene.consensus.heard.iter().find_map(|heard| match heard {
        FromStorage::Answer {
            request: 2,
            body: StorageAnswer::MaybeSnapshot(meta),
        } => meta.clone(),
        _ => None,
    });
    assert_eq!(told.unwrap().last_applied, applied);
}

#[test]
fn a_replica_is_made_beside_the_executor_and_the_stream_waits_for_it() {
    let mut scene = Scene::new();
    scene.send(&ToStorage::CreateReplica {
        group: GROUP,
        replica: ReplicaId(1),
        range: KeyRange::whole(),
    });
    scene.send(&ToStorage::Append {
        group: GROUP,
        entries: entries(0..=2),
    });
    let mut threads = Thread::ALL.to_vec();
    threads.retain(|thread| *thread != Thread::Make);
    scene.run(&threads);
    assert!(scene.shard.has_work(Thread::Make));
    assert_eq!(scene.shard.store().replicas(), []);
    assert!(scene.shard.log().index.groups.is_empty());
    // A disk that takes its time over it is shown as stalled (LIVE-3).
    scene.shard.steps.config.storage.stall_limit_ms = 1;
    std::thread::sleep(Duration::from_millis(5));
    scene.run(&threads);
    let board = scene.shard.shared.board.reader();
    assert_eq!(board.get(Gauge::DiskStalled), 1);
    scene.run(&Thread::ALL);
    assert_eq!(board.get(Gauge::DiskStalled), 0);
    assert!(scene.shard.store().has(GROUP, ReplicaId(1)));
    let log = scene.shard.log();
    assert_eq!(log.index.groups[&GROUP].replica, ReplicaId(1));
    assert_eq!(log.index.groups[&GROUP].last, Some(at(2)));
}

#[test]
fn damage_that_a_reader_meets_ends_the_shard() {
    let mut scene = Scene::with_log(entries(0..=5));
    scene.ask(
        1,
        StorageRequest::Apply {
            group: GROUP,
            results_from: u64::MAX,
            upto: at(5),
        },
    );
    scene.run(&Thread::ALL);
    scene.shard.store().flush(GROUP).unwrap();
    let tables = scene.dir.path().join("state/tree-0/tables");
    for table in std::fs::read_dir(tables).unwrap() {
        let path = table.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, vec![0x55; bytes.len()]).unwrap();
    }
    // Whoever reads only answers, and goes on.
    let store = scene.shard.store();
    let (snapshot, _) = store.open_snapshot(GROUP).unwrap();
    let read = store.read_snapshot(snapshot, &[], 1 << 20);
    assert!(matches!(read, Err(StoreError::Damaged(_))), "{read:?}");
    match scene.try_run(&Thread::ALL) {
        Err(Ended::Failed(ExitCode::StateDamaged, why)) => {
            assert!(why.contains("tree-0"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}
