//! A stand-in for storaged: a disk that keeps what is durable, and an incarnation that loses everything else.
//!
//! An operation is on the disk when the ring's head has passed it, and not before; a paused incarnation takes operations
//! off the ring and makes none durable, as a slow device does. The state machine is a map, durable at once.

use super::lock;
use bytes::Bytes;
use mareedb_ipc::wire::command::{Command, Op, Outcome, TxnResult, unstamp};
use mareedb_ipc::wire::storage::{
    EntryBody, FromStorage, KeyRange, LogEntry, NodeRecord, ReplicaState, SnapshotChunk,
    SnapshotMeta, StorageAnswer, StorageRequest, ToStorage,
};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId, RandomId, ReplicaId, Vote, encode};
use mareedb_ipc::{BoardWriter, Inheritance, Lane, Role, Sender, Waiter};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Outcomes in one answer: few, so that asking again is exercised.
const OUTCOMES_MAX: usize = 3;

/// A replica on the disk.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its id.
    pub replica: ReplicaId,
    range: KeyRange,
    /// Its vote.
    pub vote: Option<(Vote, OperationId)>,
    /// Last entry purged.
    pub purged: Option<LogPosition>,
    /// Its log.
    pub log: BTreeMap<u64, LogEntry>,
    committed: Option<LogPosition>,
    /// Its state machine.
    pub state: State,
}

/// A state machine.
#[derive(Clone, Debug)]
pub struct State {
    /// What it holds.
    pub meta: SnapshotMeta,
    /// Its keys.
    pub map: BTreeMap<Bytes, Bytes>,
    outcomes: BTreeMap<u64, Bytes>,
}

const NOTHING: SnapshotMeta = SnapshotMeta {
    last_applied: None,
    membership: None,
};

impl Default for State {
    fn default() -> Self {
        State {
            meta: NOTHING,
            map: BTreeMap::new(),
            outcomes: BTreeMap::new(),
        }
    }
}

/// What outlives every incarnation.
#[derive(Default)]
pub struct Disk {
    content: Mutex<Content>,
    changed: Condvar,
}

/// What lies on the disk.
#[derive(Default)]
pub struct Content {
    /// Replicas.
    pub groups: BTreeMap<GroupId, Group>,
    records: BTreeMap<String, NodeRecord>,
    /// Snapshots that were installed.
    pub installed: u64,
}

impl Disk {
    /// Looks at it.
    pub fn look<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(&lock(&self.content))
    }

    /// Waits until it shows something.
    pub fn wait<T>(&self, what: &str, mut look: impl FnMut(&Content) -> Option<T>) -> T {
        let deadline = Instant::now() + super::PATIENCE;
        let mut content = lock(&self.content);
        loop {
            if let Some(found) = look(&content) {
                return found;
            }
            assert!(Instant::now() < deadline, "the disk never shows: {what}");
            content = self
                .changed
                .wait_timeout(content, Duration::from_millis(100))
                .expect("no poison")
                .0;
        }
    }
}

/// A running incarnation.
pub struct Storage {
    end: Arc<AtomicBool>,
    /// While set, nothing becomes durable and no request is answered.
    pub paused: Arc<AtomicBool>,
    /// Its part of the status board.
    pub board: BoardWriter,
    thread: Option<JoinHandle<()>>,
}

impl Storage {
    /// Attaches.
    pub fn start(inheritance: Inheritance, disk: Arc<Disk>) -> Storage {
        let (end, paused) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let (ended, pausing) = (end.clone(), paused.clone());
        let board = inheritance.board();
        let thread = std::thread::spawn(move || run(inheritance, &disk, &ended, &pausing));
        Storage {
            end,
            paused,
            board,
            thread: Some(thread),
        }
    }
}

/// It is killed: what is not on the disk is gone, unless the ring has it.
impl Drop for Storage {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the model does not panic");
        }
    }
}

struct Running<'a> {
    disk: &'a Disk,
    generation: RandomId,
    sender: Sender,
    answers: VecDeque<FromStorage>,
    open: BTreeMap<RandomId, State>,
    receiving: BTreeMap<RandomId, BTreeMap<Bytes, Bytes>>,
}

fn run(mut inheritance: Inheritance, disk: &Disk, end: &AtomicBool, paused: &AtomicBool) {
    let lane = Lane::Log(0);
    let mut receiver = inheritance.receiver(Role::Consensus, lane);
    let bell = inheritance.bell(Waiter::Shard(0));
    let mut running = Running {
        disk,
        generation: receiver.generation(),
        sender: inheritance.sender(Role::Consensus, lane),
        answers: VecDeque::new(),
        open: BTreeMap::new(),
        receiving: BTreeMap::new(),
    };
    let epoch = running.sender.epoch();
    running.answers.push_back(FromStorage::Up { epoch });
    inheritance.ring_all_bells();
    let mut pending = VecDeque::new();
    while !end.load(Ordering::SeqCst) {
        while let Some(taken) = receiver.try_recv::<ToStorage>().expect("a sound ring") {
            pending.push_back(taken);
        }
        if !paused.load(Ordering::SeqCst) {
            while let Some((message, position)) = pending.pop_front() {
                running.handle(message, position);
                receiver.release(position);
            }
            disk.changed.notify_all();
        }
        while let Some(answer) = running.answers.front() {
            if running
                .sender
                .try_send(answer)
                .expect("a sound ring")
                .is_none()
            {
                break;
            }
            running.answers.pop_front();
        }
        running.sender.publish();
        if receiver.arm().expect("a sound ring") {
            bell.wait(Some(Duration::from_millis(2)));
            bell.drain();
        }
    }
}

impl Running<'_> {
    fn handle(&mut self, message: ToStorage, position: u64) {
        let disk = self.disk;
        let mut content = lock(&disk.content);
        let group = |content: &mut Content, group: GroupId| -> Group {
            content
                .groups
                .get(&group)
                .expect("the replica exists")
                .clone()
        };
        match message {
            ToStorage::Hello { epoch, number } => {
                let answer = bootstrapped(&content, epoch, number, self.generation);
                self.answers.push_back(answer);
            }
            ToStorage::Request { request, body } => {
                let body = self.answer(&mut content, body);
                self.answers
                    .push_back(FromStorage::Answer { request, body });
            }
            ToStorage::CreateReplica {
                group,
                replica,
                range,
            } => {
                content.groups.entry(group).or_insert(Group {
                    replica,
                    range,
                    vote: None,
                    purged: None,
                    log: BTreeMap::new(),
                    committed: None,
                    state: State::default(),
                });
            }
            ToStorage::SaveNodeRecord { record } => {
                content.records.insert(record.name.clone(), record);
            }
            ToStorage::SaveVote { group: id, vote } => {
                let mut changed = group(&mut content, id);
                let generation = self.generation;
                changed.vote = Some((
                    vote,
                    OperationId {
                        generation,
                        position,
                    },
                ));
                content.groups.insert(id, changed);
            }
            ToStorage::Append { group: id, entries } => {
                let changed = content.groups.get_mut(&id).expect("the replica exists");
                for entry in entries {
                    let next = changed
                        .log
                        .last_key_value()
                        .map(|(index, _)| index + 1)
                        .or(changed.purged.map(|at| at.index + 1))
                        .unwrap_or(0);
                    assert_eq!(entry.position.index, next, "RAFT-2: {id} has a hole");
                    changed.log.insert(next, entry);
                }
            }
            ToStorage::Truncate { group: id, last } => {
                let changed = content.groups.get_mut(&id).expect("the replica exists");
                changed
                    .log
                    .split_off(&last.map_or(0, |last| last.index + 1));
            }
            ToStorage::Purge { group: id, upto } => {
                let changed = content.groups.get_mut(&id).expect("the replica exists");
                assert!(
                    changed
                        .state
                        .meta
                        .last_applied
                        .is_some_and(|at| at.index >= upto.index),
                    "STO-PURGE"
                );
                changed.log = changed.log.split_off(&(upto.index + 1));
                changed.purged = Some(upto);
            }
            ToStorage::SaveCommitted {
                group: id,
                committed,
            } => {
                let changed = content.groups.get_mut(&id).expect("the replica exists");
                changed.committed = committed;
            }
        }
    }

    fn answer(&mut self, content: &mut Content, request: StorageRequest) -> StorageAnswer {
        match request {
            StorageRequest::Apply {
                group,
                results_from,
                upto,
            } => {
                let group = content.groups.get_mut(&group).expect("the replica exists");
                apply(group, upto, results_from)
            }
            StorageRequest::ReadLog {
                group, from, to, ..
            } => StorageAnswer::Log {
                entries: content.groups[&group]
                    .log
                    .range(from..to)
                    .map(|(_, entry)| entry.clone())
                    .collect(),
            },
            StorageRequest::BuildSnapshot { group } => {
                StorageAnswer::Snapshot(content.groups[&group].state.meta.clone())
            }
            StorageRequest::CurrentSnapshot { group } => {
                let meta = content.groups[&group].state.meta.clone();
                StorageAnswer::MaybeSnapshot(meta.last_applied.is_some().then_some(meta))
            }
            StorageRequest::OpenSnapshot { group } => {
                let (snapshot, state) = (RandomId::draw(), content.groups[&group].state.clone());
                let meta = state.meta.clone();
                self.open.insert(snapshot, state);
                StorageAnswer::Opened { snapshot, meta }
            }
            StorageRequest::ReadSnapshot {
                snapshot, cursor, ..
            } => match self.open.get(&snapshot) {
                None => failed("no such snapshot"),
                Some(state) => {
                    let mut rest = state.map.range(cursor..);
                    let entries: Vec<(Bytes, Bytes)> = rest
                        .by_ref()
                        .take(2)
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect();
                    let next = rest.next().map(|(key, _)| key.clone());
                    StorageAnswer::Chunk(SnapshotChunk { entries, next })
                }
            },
            StorageRequest::CloseSnapshot { snapshot } => {
                self.open.remove(&snapshot);
                StorageAnswer::Done
            }
            StorageRequest::BeginInstall { install, .. } => {
                self.receiving.insert(install, BTreeMap::new());
                StorageAnswer::Done
            }
            StorageRequest::InstallChunk { install, chunk, .. } => {
                match self.receiving.get_mut(&install) {
                    None => failed("no such transfer"),
                    Some(map) => {
                        map.extend(chunk.entries);
                        StorageAnswer::Done
                    }
                }
            }
            StorageRequest::FinishInstall {
                group,
                install,
                meta,
            } => match self.receiving.remove(&install) {
                None => failed("no such transfer"),
                Some(map) => {
                    content.installed += 1;
                    let group = content.groups.get_mut(&group).expect("the replica exists");
                    group.state = State {
                        meta: meta.clone(),
                        map,
                        outcomes: BTreeMap::new(),
                    };
                    StorageAnswer::Snapshot(meta)
                }
            },
        }
    }
}

fn failed(why: &str) -> StorageAnswer {
    StorageAnswer::Failed {
        message: why.into(),
    }
}

fn bootstrapped(content: &Content, epoch: u64, number: u64, generation: RandomId) -> FromStorage {
    let replicas = content
        .groups
        .iter()
        .map(|(id, group)| ReplicaState {
            group: *id,
            replica: group.replica,
            range: group.range.clone(),
            vote: group.vote,
            purged: group.purged,
            last: group
                .log
                .last_key_value()
                .map(|(_, entry)| entry.position)
                .or(group.purged),
            committed: group.committed,
            applied: group.state.meta.clone(),
            persisted: group.state.meta.clone(),
        })
        .collect();
    FromStorage::Bootstrapped {
        epoch,
        number,
        generation,
        replicas,
        records: content.records.values().cloned().collect(),
    }
}

fn apply(group: &mut Group, upto: LogPosition, results_from: u64) -> StorageAnswer {
    let next = group.state.meta.last_applied.map_or(0, |at| at.index + 1);
    let due: Vec<LogEntry> = group
        .log
        .range(next..=upto.index.max(next))
        .map(|(_, entry)| entry.clone())
        .filter(|entry| entry.position.index <= upto.index)
        .collect();
    for entry in due {
        let state = &mut group.state;
        state.meta.last_applied = Some(entry.position);
        match entry.body {
            EntryBody::Blank => {}
            EntryBody::Membership(bytes) => state.meta.membership = Some((entry.position, bytes)),
            EntryBody::Normal(payload) => {
                let (stamp, command) = unstamp(&payload).expect("a stamped command");
                let outcome = match command {
                    Command::Write { txn, .. } => {
                        for op in txn.success {
                            if let Op::Put { key, value } = op {
                                state.map.insert(key, value);
                            }
                        }
                        Outcome::Done(TxnResult {
                            succeeded: true,
                            revision: stamp.revision,
                            results: Vec::new(),
                        })
                    }
                    Command::OpenSession { .. } => Outcome::SessionOpen,
                    Command::Tick => Outcome::Ticked,
                    Command::Split { .. } => Outcome::Unsupported,
                    Command::Lead { .. } => Outcome::Led,
                };
                let outcome = Bytes::from(encode(&outcome));
                state.outcomes.insert(entry.position.index, outcome);
            }
        }
    }
    let outcomes = if results_from > upto.index {
        Vec::new()
    } else {
        group
            .state
            .outcomes
            .range(results_from..=upto.index)
            .take(OUTCOMES_MAX)
            .map(|(index, outcome)| (*index, outcome.clone()))
            .collect()
    };
    StorageAnswer::Applied {
        applied: upto,
        outcomes,
    }
}
