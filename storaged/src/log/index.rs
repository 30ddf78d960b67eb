//! What the log holds, in memory: small state of each group, and where each entry lies.

use super::unit::{Change, Checkpoint, GroupMark, Record};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry, NodeRecord};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId, ReplicaId, Vote};
use std::collections::{BTreeMap, VecDeque};

/// Where a unit lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The segment.
    pub segment: u64,
    /// First byte in it.
    pub offset: u64,
    /// Bytes, whole blocks.
    pub bytes: usize,
}

/// An entry: where it is on disk, and itself while it is cached.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its position.
    pub position: LogPosition,
    /// The unit that holds it.
    pub location: Location,
    /// The entry, if cached.
    pub cached: Option<LogEntry>,
    /// Its bytes, about.
    pub bytes: usize,
}

/// A group's log.
#[derive(Clone, Debug)]
pub struct Group {
    /// The replica.
    pub replica: ReplicaId,
    /// Its range.
    pub range: KeyRange,
    /// Its vote, and the operation that wrote it.
    pub vote: Option<(Vote, OperationId)>,
    /// Purge mark.
    pub purged: Option<LogPosition>,
    /// Last entry; the purge mark when there is none.
    pub last: Option<LogPosition>,
    /// Commit position.
    pub committed: Option<LogPosition>,
    /// Entries by index.
    pub entries: BTreeMap<u64, Slot>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Groups.
    pub groups: BTreeMap<GroupId, Group>,
    /// Records of the node, by name.
    pub records: BTreeMap<String, NodeRecord>,
    /// The last operation.
    pub last: Option<OperationId>,
    cached_bytes: usize,
    cache_bytes_max: usize,
    /// Cached entries with their bytes, oldest first.
    cache_order: VecDeque<(GroupId, u64, usize)>,
}

/// Bytes of an entry, about.
pub fn weight(entry: &LogEntry) -> usize {
    48 + match &entry.body {
        EntryBody::Blank => 0,
        EntryBody::Normal(bytes) | EntryBody::Membership(bytes) => bytes.len(),
    }
}

impl Index {
    /// An empty index that caches so many bytes of entries.
    pub fn new(cache_bytes_max: usize) -> Index {
        Index {
            cache_bytes_max,
            ..Index::default()
        }
    }

    /// Takes a record in.
    ///
    /// # Errors
    /// It contradicts what is there: a broken invariant of the writer, or damage.
    pub fn take(&mut self, record: Record, location: Location) -> Result<(), String> {
        match record {
            Record::Operation { id, change } => {
                self.change(id, change, location)?;
                self.last = Some(id);
                Ok(())
            }
            Record::Checkpoint(checkpoint) => {
                self.restore(checkpoint);
                Ok(())
            }
            Record::Moved { group, entries } => {
                let state = self.group(group)?;
                for entry in entries {
                    if let Some(slot) = state.entries.get_mut(&entry.position.index)
                        && slot.position == entry.position
                    {
                        slot.location = location;
                    } else if state.entries.is_empty()
                        || !state.entries.contains_key(&entry.position.index)
                    {
                        // Its first home was recycled before this log was read.
                        let live = state
                            .purged
                            .is_none_or(|purged| purged.index < entry.position.index)
                            && state
                                .last
                                .is_some_and(|last| entry.position.index <= last.index);
                        if live {
                            let bytes = weight(&entry);
                            state.entries.insert(
                                entry.position.index,
                                Slot {
                                    position: entry.position,
                                    location,
                                    cached: None,
                                    bytes,
                                },
                            );
                        }
                    }
                }
                Ok(())
            }
            Record::Mark => Ok(()),
        }
    }

    fn group(&mut self, group: GroupId) -> Result<&mut Group, String> {
        self.groups
            .get_mut(&group)
            .ok_or_else(|| format!("{group} has no replica in this log"))
    }

    fn change(
        &mut self,
        id: OperationId,
        change: Change,
        location: Location,
    ) -> Result<(), String> {
        match change {
            Change::Create {
                group,
                replica,
                range,
            } => {
                let state = self.groups.entry(group).or_insert_with(|| Group {
                    replica,
                    range,
                    vote: None,
                    purged: None,
                    last: None,
                    committed: None,
                    entries: BTreeMap::new(),
                });
                if state.replica != replica {
                    return Err(format!(
                        "RAFT-5: {group} is replica {}, not {replica}",
                        state.replica
                    ));
                }
            }
            Change::Vote { group, vote } => self.group(group)?.vote = Some((vote, id)),
            Change::Append { group, entries } => self.append(group, entries, location)?,
            Change::Truncate { group, last } => {
                let state = self.group(group)?;
                let keep = last.map_or(0, |last| last.index + 1);
                state.entries.split_off(&keep);
                state.last = last;
            }
            Change::Purge { group, upto } => {
                let state = self.group(group)?;
                if state.purged.is_none_or(|purged| purged.index < upto.index) {
                    state.purged = Some(upto);
                    state.entries = state.entries.split_off(&(upto.index + 1));
                    if state.last.is_none_or(|last| last.index < upto.index) {
                        state.last = Some(upto);
                    }
                }
            }
            Change::Committed { group, committed } => self.group(group)?.committed = committed,
            Change::Node(record) => {
                self.records.insert(record.name.clone(), record);
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        group: GroupId,
        entries: Vec<LogEntry>,
        location: Location,
    ) -> Result<(), String> {
        for entry in entries {
            let bytes = weight(&entry);
            let index = entry.position.index;
            let state = self.group(group)?;
            let expected = state.last.map_or(0, |last| last.index + 1);
            // RAFT-2
            if index != expected {
                return Err(format!("{group}: entry {index} where {expected} is due"));
            }
            state.last = Some(entry.position);
            state.entries.insert(
                index,
                Slot {
                    position: entry.position,
                    location,
                    cached: Some(entry),
                    bytes,
                },
            );
            self.cached_bytes += bytes;
            self.cache_order.push_back((group, index, bytes));
        }
        while self.cached_bytes > self.cache_bytes_max {
            let Some((group, index, bytes)) = self.cache_order.pop_front() else {
                break;
            };
            // Counted by the order, not by the slots: a truncated or purged entry's bytes leave with its turn.
            self.cached_bytes -= bytes;
            let slot = self
                .groups
                .get_mut(&group)
                .and_then(|state| state.entries.get_mut(&index));
            if let Some(slot) = slot {
                slot.cached = None;
            }
        }
        Ok(())
    }

    fn restore(&mut self, checkpoint: Checkpoint) {
        for mark in checkpoint.groups {
            let state = self.groups.entry(mark.group).or_insert_with(|| Group {
                replica: mark.replica,
                range: mark.range.clone(),
                vote: None,
                purged: None,
                last: None,
                committed: None,
                entries: BTreeMap::new(),
            });
            state.vote = mark.vote;
            state.committed = mark.committed;
            state.purged = mark.purged;
            state.last = mark.last;
            let from = mark.purged.map_or(0, |purged| purged.index + 1);
            let to = mark.last.map_or(0, |last| last.index + 1);
            state.entries = state.entries.split_off(&from);
            state.entries.split_off(&to);
        }
        for record in checkpoint.records {
            self.records.insert(record.name.clone(), record);
        }
        self.last = checkpoint.last;
    }

    /// Small state of everything.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            groups: self
                .groups
                .iter()
                .map(|(group, state)| GroupMark {
                    group: *group,
                    replica: state.replica,
                    range: state.range.clone(),
                    vote: state.vote,
                    purged: state.purged,
                    last: state.last,
                    committed: state.committed,
                })
                .collect(),
            records: self.records.values().cloned().collect(),
            last: self.last,
        }
    }

    /// Whether every entry between purge mark and last is there; otherwise which one is missing.
    pub fn hole(&self) -> Option<(GroupId, u64)> {
        self.groups.iter().find_map(|(group, state)| {
            let from = state.purged.map_or(0, |purged| purged.index + 1);
            let to = state.last.map_or(0, |last| last.index + 1);
            (from..to)
                .find(|index| !state.entries.contains_key(index))
                .map(|index| (*group, index))
        })
    }

    /// The oldest segment with live entries, and for each group how many bytes pin it.
    pub fn pinned(&self, segment: u64) -> Vec<(GroupId, usize)> {
        self.groups
            .iter()
            .map(|(group, state)| {
                let bytes = state
                    .entries
                    .values()
                    .filter(|slot| slot.location.segment == segment)
                    .map(|slot| slot.bytes)
                    .sum();
                (*group, bytes)
            })
            .filter(|(_, bytes)| *bytes > 0)
            .collect()
    }
}
