//! openraft's own tests of a log store, over consensusd's log store, real rings, and a real storaged on a real directory.
//!
//! One storaged serves all of them: each test gets a group of its own. The state machine is a map in memory, since the suite
//! applies entries that were never in a log, which ours cannot do: it takes them from there.

use futures::{Stream, TryStreamExt};
use mareedb_config::Config;
use mareedb_consensusd::log_link::LogLink;
use mareedb_consensusd::raft::log_store::LogStore;
use mareedb_consensusd::raft::{C, Reply, log_id, position};
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::storage::{
    FromStorage, KeyRange, ReplicaState, SnapshotMeta, StorageAnswer, StorageRequest, ToStorage,
};
use mareedb_ipc::wire::{GroupId, LogPosition, ReplicaId};
use mareedb_ipc::{Bell, ExitCode, Lane, Receiver, RingSizes, Role, Topology, Waiter};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder, StorageError,
};
use std::fmt::Debug;
use std::io;
use std::ops::{Range, RangeBounds};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// The log store, except for two things that the suite does and raft never does.
///
/// - It purges a log of which nothing was applied, even beyond its end; storaged takes no purge beyond what its state machine
///   has persisted (STO-PURGE). Before a purge, log and state machine are therefore brought as far.
/// - It begins a log at index 1; ours has no holes (RAFT-2). What is missing is filled, and hidden from the suite.
#[derive(Clone)]
struct Log {
    store: LogStore,
    link: Arc<LogLink>,
    group: GroupId,
    hidden: Arc<AtomicU64>,
}

impl Log {
    /// Appends blank entries.
    async fn fill(&mut self, term: u64, indexes: Range<u64>) -> Result<(), io::Error> {
        if indexes.is_empty() {
            return Ok(());
        }
        let blank = |index| EntryOf::<C>::new_blank(log_id(LogPosition { term, index }));
        let entries: Vec<_> = indexes.map(blank).collect();
        self.store.append(entries, IOFlushed::<C>::noop()).await
    }
}

impl RaftLogReader<C> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<EntryOf<C>>, io::Error> {
        let hidden = self.hidden.load(Ordering::Relaxed);
        let mut entries = self.store.try_get_log_entries(range).await?;
        entries.retain(|entry| entry.index() >= hidden);
        Ok(entries)
    }
    async fn read_vote(&mut self) -> Result<Option<VoteOf<C>>, io::Error> {
        self.store.read_vote().await
    }
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<EntryOf<C>>, io::Error> {
        self.store.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<C> for Log {
    type LogReader = Log;
    async fn get_log_state(&mut self) -> Result<LogState<C>, io::Error> {
        self.store.get_log_state().await
    }
    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }
    async fn save_vote(&mut self, vote: &VoteOf<C>) -> Result<(), io::Error> {
        self.store.save_vote(vote).await
    }
    async fn save_committed(&mut self, committed: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        self.store.save_committed(committed).await
    }
    async fn read_committed(&mut self) -> Result<Option<LogIdOf<C>>, io::Error> {
        self.store.read_committed().await
    }
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = EntryOf<C>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries = entries.into_iter().peekable();
        let first = entries.peek().map(|entry| position(&entry.log_id()));
        if let Some(LogPosition { term, index }) = first
            && self.store.last().is_none()
        {
            self.hidden.store(index, Ordering::Relaxed);
            self.fill(term, 0..index).await?;
        }
        self.store.append(entries, callback).await
    }
    async fn truncate_after(&mut self, last: Option<LogIdOf<C>>) -> Result<(), io::Error> {
        self.store.truncate_after(last).await
    }
    async fn purge(&mut self, upto: LogIdOf<C>) -> Result<(), io::Error> {
        let group = self.group;
        let next = self.store.last().map_or(0, |last| last.index + 1);
        let LogPosition { term, .. } = position(&upto);
        self.fill(term, next..upto.index + 1).await?;
        for request in [
            StorageRequest::Apply {
                group,
                results_from: u64::MAX,
                upto: position(&upto),
            },
            StorageRequest::BuildSnapshot { group },
        ] {
            if let StorageAnswer::Failed { message } = self.link.request(request).await {
                return Err(io::Error::other(message));
            }
        }
        self.store.purge(upto).await
    }
}

/// A state machine that remembers what was applied last.
#[derive(Clone, Default)]
struct Machine {
    applied: Option<LogIdOf<C>>,
    membership: StoredMembershipOf<C>,
}

impl RaftSnapshotBuilder<C> for Machine {
    type SnapshotData = ();
    async fn build_snapshot(&mut self) -> Result<SnapshotOf<C, ()>, io::Error> {
        Ok(SnapshotOf::<C, ()> {
            meta: SnapshotMetaOf::<C> {
                last_log_id: self.applied,
                last_membership: self.membership.clone(),
            },
            snapshot: (),
        })
    }
}

impl RaftStateMachine<C> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Self;
    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<C>>, StoredMembershipOf<C>), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }
    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id());
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembershipOf::<C>::new(self.applied, membership);
            }
            if let Some(responder) = responder {
                responder.send(Reply(bytes::Bytes::new()));
            }
        }
        Ok(())
    }
    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }
    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<C>,
        _snapshot: (),
    ) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }
    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<C, ()>>, io::Error> {
        Ok(match self.applied {
            Some(_) => Some(self.build_snapshot().await?),
            None => None,
        })
    }
}

struct Groups {
    link: Arc<LogLink>,
    /// Bytes that the tail cache may hold: with few, most reads go to storaged.
    cache_bytes: usize,
    next: Arc<AtomicU32>,
}

impl StoreBuilder<C, Log, Machine> for Groups {
    async fn build(&self) -> Result<((), Log, Machine), StorageError<C>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (group, replica) = (GroupId(number), ReplicaId(number.into()));
        let range = KeyRange::whole();
        let create = ToStorage::CreateReplica {
            group,
            replica,
            range: range.clone(),
        };
        self.link.durable(&create).await;
        let nothing = SnapshotMeta {
            last_applied: None,
            membership: None,
        };
        let state = ReplicaState {
            group,
            replica,
            range,
            vote: None,
            purged: None,
            last: None,
            committed: None,
            applied: nothing.clone(),
            persisted: nothing,
        };
        let log = Log {
            store: LogStore::recovered(self.link.clone(), &state, self.cache_bytes, usize::MAX),
            link: self.link.clone(),
            group,
            hidden: Arc::default(),
        };
        Ok(((), log, Machine::default()))
    }
}

/// Ends the pump, whatever the suite finds.
struct End<'a>(&'a AtomicBool);
impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// consensusd's main loop, as far as the log lane needs it.
fn pump(link: &LogLink, mut receiver: Receiver, bell: &Bell, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        while let Some((message, upto)) = receiver.try_recv::<FromStorage>().unwrap() {
            receiver.release(upto);
            link.receive(message);
        }
        let quiet = link.progress().unwrap() & receiver.arm().unwrap();
        if quiet {
            bell.wait(Some(Duration::from_millis(50)));
            bell.drain();
        }
    }
}

#[test]
fn openrafts_log_suite_over_storaged() {
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.server.data_dir = dir.path().to_str().unwrap().into();
    config.storage.segment_bytes = 2 << 20;
    let json = serde_json::to_string(&config).unwrap();
    let topology = Topology {
        shards: 1,
        readers: 1,
        sizes: RingSizes::each(4 << 20),
    };
    let node = NodeInProcess::new(topology, &json);
    let mut consensus = node.attach(Role::Consensus);
    let storage = node.attach(Role::Storage);
    let storaged = std::thread::spawn(move || mareedb_storaged::run(storage));

    let wake = Arc::new(Notify::new());
    let lane = Lane::Log(0);
    let link = LogLink::new(consensus.sender(Role::Storage, lane), wake.clone());
    let receiver = consensus.receiver(Role::Storage, lane);
    let bell = consensus.bell(Waiter::Consensus);
    let ringer = consensus.ringer(Waiter::Consensus);
    consensus.ring_all_bells();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| pump(&link, receiver, &bell, &end));
        let _end = End(&end);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let suite = async {
            tokio::spawn(async move {
                loop {
                    wake.notified().await;
                    ringer.ring();
                }
            });
            let next = Arc::new(AtomicU32::new(1));
            for cache_bytes in [1 << 20, 1] {
                let link = link.clone();
                let groups = Groups {
                    link,
                    cache_bytes,
                    next: next.clone(),
                };
                Box::pin(Suite::test_all(groups)).await?;
            }
            Ok::<(), StorageError<C>>(())
        };
        // A storaged that ended answers nobody.
        let ended = async {
            let mut look = tokio::time::interval(Duration::from_millis(50));
            while !storaged.is_finished() {
                look.tick().await;
            }
        };
        runtime.block_on(async {
            tokio::select! {
                tested = suite => tested.unwrap(),
                () = ended => panic!("storaged ended"),
            }
        });
    });
    // It waits for the signal in that thread, where it is blocked; nobody else receives it.
    // SAFETY: the thread has not been joined, so that its id is valid.
    let told = unsafe { libc::pthread_kill(storaged.as_pthread_t(), libc::SIGTERM) };
    assert_eq!(told, 0);
    assert_eq!(storaged.join().unwrap(), ExitCode::Done);
}
