//! The state machine store: MVCC over one ordered tree a replica, with sessions, so that each command takes effect once.
//!
//! Invariants (docs/formats/state.md): SM-1 readers see whole batches; SM-2 a listed tree is there or it is damage; SM-3
//! entries are applied in order; SM-4 one counter numbers batches and files; SM-5 the data is counted as it comes and goes;
//! SM-6 collecting old versions does not show; SM-7 a snapshot is installed by one manifest record; DET-1 the digest depends
//! on the applied entries alone; ONCE-1.
//! Non-goals: no clock and no randomness here beyond the names of directories; durability of what is not flushed is the
//! raft log's.

mod apply;
mod batch;
mod damage;
mod elections;
mod engine;
mod history;
mod install;
mod kept;
mod keys;
mod manifest;
mod once;
mod query;
mod records;
#[cfg(feature = "simulation")]
mod recount;
mod replica;
mod tree;
mod txn;

use crate::io::sync_dir;
use bytes::Bytes;
use install::{Opened, Receiving};
use lsm_tree::Cache;
use manifest::{Listed, Manifest};
use mareedb_ipc::wire::command::Rules;
use mareedb_ipc::wire::read::{ReadError, ReadRequest, ReadResponse};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry, SnapshotMeta};
use mareedb_ipc::wire::{GroupId, RandomId, ReplicaId};
use parking_lot::{Mutex, RwLock};
use replica::Replica;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tree::Tree;

/// Why the store did not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed.
    #[error("disk: {0}")]
    Io(io::Error),
    /// Files hold what was never written.
    #[error("damaged: {0}")]
    Damaged(String),
    /// A change was made, and nobody knows whether it is durable: nothing may rest on it, or on its absence, before the store is
    /// opened anew.
    #[error("disk: nobody knows what is durable after: {0}")]
    Unsettled(String),
    /// The group has no replica here.
    #[error("{0} has no replica here")]
    NoReplica(GroupId),
    /// Entries do not follow what is applied.
    #[error("SM-3: {group}: entry {found} came, entry {expected} is due")]
    Hole {
        /// The group.
        group: GroupId,
        /// The next index.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Something that cannot be done, with the reason.
    #[error("{0}")]
    Refused(String),
}

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Bytes of the block cache, for all trees.
    pub cache_bytes: u64,
    /// Applied bytes that may be missing in tree files.
    pub unflushed_bytes_max: u64,
    /// What outcomes depend on before a leader has declared it: the same on all nodes.
    pub first_rules: Rules,
}

/// All state machines of a node. Cloning it gives another handle.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    options: StoreOptions,
    cache: Arc<Cache>,
    manifest: Mutex<Manifest>,
    /// Why nobody knows which manifest a crash would leave.
    unsettled: Mutex<Option<String>>,
    replicas: RwLock<BTreeMap<GroupId, Arc<Replica>>>,
    opened: Mutex<HashMap<RandomId, Arc<Opened>>>,
    receiving: Mutex<HashMap<RandomId, Arc<Mutex<Receiving>>>>,
    listeners: RwLock<Vec<Listener>>,
    /// The first damage that anybody met.
    damage: OnceLock<String>,
}

/// Told after each batch and each installed snapshot.
pub type Listener = Arc<dyn Fn() + Send + Sync>;

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> StoreError {
        crate::fault::note(&error);
        StoreError::Io(error)
    }
}

impl Shared {
    /// Replaces the manifest durably.
    fn replace(&self, manifest: &mut Manifest, next: Manifest) -> Result<(), StoreError> {
        self.settled()?;
        let done = next.store(&self.options.dir);
        if let Err(StoreError::Unsettled(why)) = &done {
            self.unsettled.lock().get_or_insert_with(|| why.clone());
        }
        done?;
        *manifest = next;
        Ok(())
    }

    /// Which trees a crash would leave is known. Otherwise nothing is persisted any more: it might be in a tree that is not the
    /// replica's then, while the log forgets it.
    fn settled(&self) -> Result<(), StoreError> {
        match &*self.unsettled.lock() {
            Some(why) => Err(StoreError::Unsettled(why.clone())),
            None => Ok(()),
        }
    }
}

fn tree_dir(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("tree-{number}"))
}

impl Store {
    /// Opens the store, or makes an empty one. Directories that the manifest does not name are removed. Everything that was
    /// open in another store over the same directory must be gone.
    ///
    /// # Errors
    /// Damage (SM-2), or the disk.
    pub fn open(options: StoreOptions) -> Result<Store, StoreError> {
        std::fs::create_dir_all(&options.dir)?;
        // Although it was there: a predecessor may have been killed before it had synced this, or its last manifest.
        for dir in options.dir.ancestors().take(2) {
            sync_dir(dir)?;
        }
        let manifest = Manifest::load(&options.dir)?;
        let cache = Arc::new(Cache::with_capacity_bytes(options.cache_bytes));
        let mut replicas = BTreeMap::new();
        for listed in &manifest.replicas {
            let tree = Tree::open(&tree_dir(&options.dir, listed.tree), cache.clone())?;
            let replica = Replica::new(
                listed.group,
                listed.replica,
                listed.range.clone(),
                listed.tree,
                tree,
                &options,
            )?;
            replicas.insert(listed.group, Arc::new(replica));
        }
        for entry in std::fs::read_dir(&options.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("tree-"))
                .and_then(|number| number.parse::<u64>().ok());
            if let Some(number) = number
                && !manifest.replicas.iter().any(|listed| listed.tree == number)
            {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Store(Arc::new(Shared {
            options,
            cache,
            manifest: Mutex::new(manifest),
            unsettled: Mutex::default(),
            replicas: RwLock::new(replicas),
            opened: Mutex::default(),
            receiving: Mutex::default(),
            listeners: RwLock::default(),
            damage: OnceLock::new(),
        })))
    }

    /// Until it is dropped, nobody finds a replica.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Sized {
        self.0.replicas.write()
    }

    fn replica(&self, group: GroupId) -> Result<Arc<Replica>, StoreError> {
        self.0
            .replicas
            .read()
            .get(&group)
            .cloned()
            .ok_or(StoreError::NoReplica(group))
    }

    /// Makes an empty replica, durably; making it again changes nothing.
    ///
    /// # Errors
    /// The group has another replica here (RAFT-5), or the disk.
    pub fn create_replica(
        &self,
        group: GroupId,
        id: ReplicaId,
        range: KeyRange,
    ) -> Result<(), StoreError> {
        let mut manifest = self.0.manifest.lock();
        if let Some(listed) = manifest
            .replicas
            .iter()
            .find(|listed| listed.group == group)
        {
            return if listed.replica == id {
                Ok(())
            } else {
                Err(StoreError::Refused(format!(
                    "RAFT-5: {group} is replica {} here, not {id}",
                    listed.replica
                )))
            };
        }
        let mut next = manifest.clone();
        let number = next.take_number()?;
        next.replicas.push(Listed {
            group,
            replica: id,
            range: range.clone(),
            tree: number,
        });
        let tree = Tree::create(&tree_dir(&self.0.options.dir, number), self.0.cache.clone())?;
        self.0.replace(&mut manifest, next)?;
        let replica = Replica::new(group, id, range, number, tree, &self.0.options)?;
        self.0.replicas.write().insert(group, Arc::new(replica));
        Ok(())
    }

    /// Whether the replica is made.
    pub fn has(&self, group: GroupId, id: ReplicaId) -> bool {
        self.replica(group).is_ok_and(|replica| replica.id == id)
    }

    /// All replicas.
    pub fn replicas(&self) -> Vec<(GroupId, ReplicaId, KeyRange)> {
        self.0
            .replicas
            .read()
            .values()
            .map(|replica| (replica.group, replica.id, replica.range.clone()))
            .collect()
    }

    /// What is applied.
    pub fn applied(&self, group: GroupId) -> Option<SnapshotMeta> {
        Some(self.replica(group).ok()?.applied())
    }

    /// What of it is in tree files.
    pub fn persisted(&self, group: GroupId) -> Option<SnapshotMeta> {
        Some(self.replica(group).ok()?.persisted())
    }

    /// Applies entries, which follow what is applied without a hole; those at or below change nothing. Gives the outcomes
    /// of commands from index `results_from` on, the first 16 MiB of them.
    ///
    /// # Errors
    /// A hole, damage, or the disk; then nothing of the entry that it is about, and of those after it, was applied.
    pub fn apply(
        &self,
        group: GroupId,
        entries: &[LogEntry],
        results_from: u64,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        loop {
            // A snapshot may be put in force between looking the replica up and applying to it: then look again.
            if let Some(outcomes) = self.replica(group)?.apply(entries, results_from)? {
                self.tell();
                return Ok(outcomes);
            }
        }
    }

    /// Tells whoever waits that more is applied.
    fn tell(&self) {
        for listener in self.0.listeners.read().iter() {
            listener();
        }
    }

    /// Calls `listener` after each batch and after each installed snapshot.
    pub fn on_applied(&self, listener: Listener) {
        self.0.listeners.write().push(listener);
    }

    /// Applied bytes that are not in tree files.
    pub fn unflushed_bytes(&self) -> u64 {
        self.0
            .replicas
            .read()
            .values()
            .map(|replica| replica.unflushed())
            .sum()
    }

    /// Persists what is applied now, and says what that is. Blocks for the disk.
    ///
    /// # Errors
    /// The disk.
    pub fn flush(&self, group: GroupId) -> Result<SnapshotMeta, StoreError> {
        self.0.settled()?;
        self.noted(self.replica(group)?.flush())
    }

    /// Gives back what nobody needs: snapshots that nobody reads, versions that no read may ask for, files that were merged. Blocks
    /// for the disk.
    ///
    /// # Errors
    /// The disk.
    pub fn maintain(&self) -> Result<(), StoreError> {
        self.drop_idle(install::IDLE);
        let replicas: Vec<Arc<Replica>> = self.0.replicas.read().values().cloned().collect();
        for replica in replicas {
            replica.collect()?;
            replica.merge()?;
        }
        Ok(())
    }

    /// Remembers damage that is only answered to somebody: it ends the process all the same ([`Store::damage`]).
    fn noted<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Damaged(what)) = &done {
            self.0.damage.get_or_init(|| what.clone());
        }
        done
    }

    /// The first damage that a read or a flush has met. No restart cures it, and whoever asks again would only meet it again.
    pub fn damage(&self) -> Option<StoreError> {
        self.0.damage.get().cloned().map(StoreError::Damaged)
    }

    /// Reads; never waits: an index that is not applied yet is [`ReadError::NotApplied`].
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, request: &ReadRequest) -> Result<ReadResponse, ReadError> {
        let Ok(replica) = self.replica(request.group) else {
            return Err(ReadError::NoReplica(request.group));
        };
        // Each such read would look for the damaged file.
        if let Some(damage) = self.damage() {
            return Err(ReadError::Storage(damage.to_string()));
        }
        self.noted(replica.read(request))
            .unwrap_or_else(|error| Err(ReadError::Storage(error.to_string())))
    }

    /// The applied index and the digest of everything that replicas must agree on.
    pub fn digest(&self, group: GroupId) -> Option<(u64, String)> {
        Some(self.replica(group).ok()?.digest())
    }

    /// Bytes of all trees on disk.
    pub fn data_bytes(&self) -> u64 {
        self.0
            .replicas
            .read()
            .values()
            .map(|replica| replica.disk_bytes())
            .sum()
    }
}

#[cfg(test)]
mod tests;
