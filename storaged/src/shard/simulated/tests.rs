//! A shard whose threads work only when the test says so, with the test as consensusd.

use super::super::steps::{Internal, Pending, Step, What};
use super::super::threads::Installed;
use super::*;
use crate::io::said::{NoSync, Room};
use crate::io::{Disk, StdDisk};
use crate::state::StoreError;
use bytes::Bytes;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::command::{Command, Op, SessionRef, Stamp, Txn, encode_command};
use mareedb_ipc::wire::storage::{
    EntryBody, FromStorage, KeyRange, LogEntry, ReplicaState, SnapshotMeta, StorageAnswer,
    StorageRequest, ToStorage,
};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, NodeId, RandomId, ReplicaId, Revision};
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

fn open(node: &NodeInProcess, dir: &Path) -> SimShard {
    let log_dir = dir.join("log");
    StdDisk::open(&log_dir).unwrap();
    let disks: Disks = Arc::new(move || Box::new(StdDisk::unlocked(&log_dir)));
    let mut inheritance = node.attach(Role::Storage);
    SimShard::open(&mut inheritance, &config(dir), disks).unwrap()
}

impl Scene {
    fn new() -> Scene {
        let dir = TempDir::new().unwrap();
        let node = NodeInProcess::small("");
        Scene {
            shard: open(&node, dir.path()),
            disk: StdDisk::unlocked(&dir.path().join("log")),
            consensus: Consensus::attach(&node),
            dir,
            node,
        }
    }

    /// Another shard takes the place of this one, which ends as it stands.
    fn restart(self) -> Scene {
        let Scene {
            dir,
            node,
            shard,
            disk,
            consensus,
        } = self;
        drop(shard);
        let shard = open(&node, dir.path());
        Scene {
            dir,
            node,
            shard,
            disk,
            consensus,
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

    fn answer(&self, wanted: u64) -> Option<&StorageAnswer> {
        self.consensus.heard.iter().find_map(|heard| match heard {
            FromStorage::Answer { request, body } if *request == wanted => Some(body),
            _ => None,
        })
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

/// RAFT-2: from when it is asked for until what it does to the log is durable.
#[test]
fn nothing_is_settled_while_an_installation_is_on_its_way() {
    let mut scene = Scene::with_log(entries(0..=2));
    let meta = SnapshotMeta {
        last_applied: Some(at(2)),
        membership: None,
    };
    let installed = || Installed {
        request: Some(1),
        group: GROUP,
        meta: meta.clone(),
    };
    let answer = || What::Answer {
        request: 1,
        body: StorageAnswer::Snapshot(meta.clone()),
    };
    let steps = &mut scene.shard.steps;
    assert!(steps.is_settled(u64::MAX));
    steps.handed += 1;
    assert!(!steps.is_settled(u64::MAX), "the thread has it");
    steps.reports.lock().applied += 1;
    steps.reports.lock().installed.push(installed());
    assert!(!steps.is_settled(u64::MAX), "the thread has told");
    steps.reports.lock().installed.clear();
    steps.internal.push_back(Internal::Installed(installed()));
    assert!(!steps.is_settled(u64::MAX), "it is to be logged");
    steps.internal.clear();
    let mut pending = Pending::default();
    pending.steps.push((None, answer()));
    steps.pending = Some(pending);
    assert!(!steps.is_settled(u64::MAX), "it waits for a segment");
    steps.pending = None;
    let (end, lsn, what) = (None, 7, answer());
    steps.queue.push_back(Step { end, lsn, what });
    assert!(!steps.is_settled(6), "it is being written");
    assert!(steps.is_settled(7));
}

/// RAFT-2: who is answered that nothing was installed believes in a log that ends where the old state does.
#[test]
fn an_installation_that_may_be_in_force_or_not_is_answered_by_the_next_shard() {
    let mut scene = Scene::with_log(entries(0..=5));
    let (install, meta) = receive(scene.shard.store(), 50);
    let finish = || StorageRequest::FinishInstall {
        group: GROUP,
        install,
        meta: meta.clone(),
    };
    scene.ask(1, finish());
    scene.run(&others());
    // No fault of the disk, which would end the process by itself.
    let unsynced = NoSync::with(libc::ENOMEM);
    match scene.shard.work(Thread::Apply) {
        Err(Ended::Failed(ExitCode::Io, why)) => assert!(why.contains("state"), "{why}"),
        other => panic!("{other:?}"),
    }
    drop(unsynced);
    let mut scene = scene.restart();
    scene.ask(2, finish());
    scene.run(&Thread::ALL);
    assert_eq!(scene.answer(1), None);
    assert_eq!(scene.answer(2), Some(&StorageAnswer::Snapshot(meta)));
    let log = scene.shard.log();
    assert_eq!(log.index.groups[&GROUP].last, Some(at(50)));
}

/// An answer that there is none would end the group, again and again.
#[test]
fn a_snapshot_is_built_when_the_disk_has_room_for_it() {
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
    let full = Room::of(0);
    scene.ask(2, StorageRequest::BuildSnapshot { group: GROUP });
    scene.run(&Thread::ALL);
    scene.shard.look().unwrap();
    scene.run(&Thread::ALL);
    assert_eq!(scene.answer(2), None);
    drop(full);
    scene.shard.look().unwrap();
    scene.run(&Thread::ALL);
    match scene.answer(2) {
        Some(StorageAnswer::Snapshot(meta)) => assert_eq!(meta.last_applied, Some(at(5))),
        other => panic!("{other:?}"),
    }
}

/// Outcomes that do not fit into one answer are looked up again by their entries. What is persisted could be purged, and so consensusd
/// purges nothing whose outcome it still waits for.
#[test]
fn an_entry_that_is_purged_gives_its_outcome_no_more() {
    const LAST: u64 = 9;
    let normal = |index, command: &Command| {
        let stamp = Stamp::at(Revision::from_unix_ms(index + 1));
        LogEntry {
            position: at(index),
            body: EntryBody::Normal(stamp.on(&encode_command(command))),
        }
    };
    let key = Bytes::from_static(b"k");
    let session = RandomId(1);
    let write = |sequence, op| Command::Write {
        origin: SessionRef {
            session,
            sequence,
            low_water: 1,
        },
        epoch: 1,
        idempotency: None,
        txn: Txn {
            success: vec![op],
            ..Txn::default()
        },
    };
    let open = Command::OpenSession {
        session,
        node: NodeId(1),
    };
    let put = Op::Put {
        key: key.clone(),
        value: vec![7_u8; 60 << 10].into(),
    };
    let mut log = vec![normal(0, &open), normal(1, &write(1, put))];
    // Together they are larger than any message in this ring.
    for index in 2..=LAST {
        let key = key.clone();
        log.push(normal(index, &write(index, Op::Get { key })));
    }
    let mut scene = Scene::with_log(log);
    let apply = |results_from| StorageRequest::Apply {
        group: GROUP,
        results_from,
        upto: at(LAST),
    };
    let told = |scene: &Scene, request| match scene.answer(request) {
        Some(StorageAnswer::Applied { outcomes, .. }) => {
            let indexes = outcomes.iter().map(|(index, _)| *index);
            indexes.collect::<Vec<u64>>()
        }
        other => panic!("{other:?}"),
    };
    let purge = |upto| ToStorage::Purge {
        group: GROUP,
        upto: at(upto),
    };
    scene.ask(1, apply(0));
    scene.ask(2, StorageRequest::BuildSnapshot { group: GROUP });
    scene.run(&Thread::ALL);
    assert!(matches!(
        scene.answer(2),
        Some(StorageAnswer::Snapshot(meta)) if meta.last_applied == Some(at(LAST))
    ));
    let first = told(&scene, 1);
    let next = first.len() as u64;
    assert_eq!(first, (0..next).collect::<Vec<_>>());
    assert!(next < LAST, "the last ones are untold");
    // Up to what is told: the others come.
    scene.send(&purge(next - 1));
    scene.ask(3, apply(next));
    scene.run(&Thread::ALL);
    assert_eq!(told(&scene, 3).first(), Some(&next));
    // One more.
    scene.send(&purge(next));
    scene.ask(4, apply(next));
    scene.run(&Thread::ALL);
    match scene.answer(4) {
        Some(StorageAnswer::Failed { message }) => {
            let gone = format!("entry {next} is not in the log");
            assert!(message.contains(&gone), "{message}");
        }
        other => panic!("{other:?}"),
    }
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
