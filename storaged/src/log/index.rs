//! What the log holds, in memory: small state of each group, and where each entry lies.

use super::live::Live;
use super::planted::{Fault, planted};
use super::unit::{Change, Checkpoint, GroupMark, Record};
use mareedb_ipc::wire::storage::{KeyRange, LogEntry, NodeRecord};
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId, ReplicaId, Vote};
use std::collections::{BTreeMap, VecDeque};

/// Bytes that an entry takes beside its payload, about, in memory and in its unit.
const ENTRY_EXTRA_BYTES: usize = 48;

/// Where a unit lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The segment.
    pub segment: u64,
    /// First byte in it.
    pub offset: u64,
    /// Bytes, whole blocks.
    pub bytes: usize,
    /// Its number.
    pub lsn: u64,
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
    /// Entries by index. Changed through [`Index`] only, which counts their bytes by segment.
    pub entries: BTreeMap<u64, Slot>,
}

impl Group {
    fn new(replica: ReplicaId, range: KeyRange) -> Group {
        Group {
            replica,
            range,
            vote: None,
            purged: None,
            last: None,
            committed: None,
            entries: BTreeMap::new(),
        }
    }

    /// Whether an index lies between purge mark and last entry.
    fn spans(&self, index: u64) -> bool {
        self.purged.is_none_or(|purged| purged.index < index)
            && self.last.is_some_and(|last| index <= last.index)
    }
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
    live: Live,
    /// Units up to this one can be read from the disk.
    durable: u64,
    cached_bytes: usize,
    cache_bytes_max: usize,
    /// Cached entries with their bytes, oldest first.
    cache_order: VecDeque<(GroupId, u64, usize)>,
}

/// The index after a position. What comes from a disk or another process may claim the last index of all, which no log
/// reaches.
fn after(position: Option<LogPosition>) -> Result<u64, String> {
    position.map_or(Ok(0), |position| {
        let next = position.index.checked_add(1);
        next.ok_or_else(|| format!("no index is left after {position}"))
    })
}

/// Bytes of an entry, about.
pub fn weight(entry: &LogEntry) -> usize {
    ENTRY_EXTRA_BYTES + entry.body.payload_bytes()
}

impl Index {
    /// An empty index that caches so many bytes of entries.
    pub fn new(cache_bytes_max: usize) -> Index {
        Index {
            cache_bytes_max,
            ..Index::default()
        }
    }

    /// Units up to this one can be read from the disk. Entries of later ones stay cached whatever the limit (LOG-8).
    pub fn set_durable(&mut self, lsn: u64) {
        self.durable = lsn;
        self.evict();
    }

    /// Takes a record in.
    ///
    /// # Errors
    /// It contradicts what is there: a broken invariant of the writer, or damage (DUR-2).
    pub fn take(&mut self, record: Record, location: Location) -> Result<(), String> {
        match record {
            Record::Operation { id, change } => {
                self.change(id, change, location)?;
                // Commit positions are logged late.
                let later = |last: &OperationId| {
                    last.generation == id.generation && last.position > id.position
                };
                if !self.last.as_ref().is_some_and(later) {
                    self.last = Some(id);
                }
            }
            Record::Checkpoint(checkpoint) => self.restore(checkpoint)?,
            Record::Moved { group, entries } => self.moved(group, entries, location)?,
            Record::Installed { group, upto, alone } => self.installed(group, upto, alone)?,
            Record::Mark => {}
        }
        Ok(())
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
                let state = self
                    .groups
                    .entry(group)
                    .or_insert_with(|| Group::new(replica, range.clone()));
                if state.replica != replica || state.range != range {
                    return Err(format!(
                        "RAFT-5: {group} is replica {} of {:?}, not {replica} of {range:?}",
                        state.replica, state.range
                    ));
                }
            }
            Change::Vote { group, vote } => self.group(group)?.vote = Some((vote, id)),
            Change::Append { group, entries } => self.append(group, entries, location)?,
            Change::Truncate { group, last } => self.truncate(group, last)?,
            Change::Purge { group, upto } => self.purge(group, upto)?,
            Change::Committed { group, committed } => self.group(group)?.committed = committed,
            Change::Node(record) => {
                self.records.insert(record.name.clone(), record);
            }
        }
        Ok(())
    }

    fn truncate(&mut self, group: GroupId, last: Option<LogPosition>) -> Result<(), String> {
        let state = self.group(group)?;
        if let Some(purged) = state.purged
            && last.is_none_or(|last| last.index < purged.index)
        {
            return Err(format!(
                "{group}: truncation to {last:?} below the purge mark {purged}"
            ));
        }
        let keep = after(last)?;
        // RAFT-2: what is appended next would lie behind a hole.
        if keep > after(state.last)? {
            return Err(format!(
                "RAFT-2: {group}: truncation to {last:?} beyond the end {:?}",
                state.last
            ));
        }
        let gone = state.entries.split_off(&keep);
        state.last = last;
        self.live.forget(gone);
        Ok(())
    }

    fn purge(&mut self, group: GroupId, upto: LogPosition) -> Result<(), String> {
        let state = self.group(group)?;
        if state
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return Ok(());
        }
        let from = after(Some(upto))?;
        state.purged = Some(upto);
        let kept = state.entries.split_off(&from);
        let gone = std::mem::replace(&mut state.entries, kept);
        if state.last.is_none_or(|last| last.index <= upto.index) {
            state.last = Some(upto);
        }
        self.live.forget(gone);
        Ok(())
    }

    fn installed(&mut self, group: GroupId, upto: LogPosition, alone: bool) -> Result<(), String> {
        let state = self.group(group)?;
        // What was purged stays so: the end of the log never lies below the mark.
        if state
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return Ok(());
        }
        if alone {
            state.last = Some(upto);
            let gone = std::mem::take(&mut state.entries);
            self.live.forget(gone);
        }
        self.purge(group, upto)
    }

    fn moved(
        &mut self,
        group: GroupId,
        entries: Vec<LogEntry>,
        location: Location,
    ) -> Result<(), String> {
        self.group(group)?;
        let Some(state) = self.groups.get_mut(&group) else {
            return Ok(());
        };
        for entry in entries {
            let index = entry.position.index;
            let spanned = state.spans(index);
            match state.entries.get_mut(&index) {
                Some(slot) if slot.position == entry.position => {
                    self.live.remove(slot.location.segment, slot.bytes);
                    slot.location = location;
                    self.live.add(location.segment, slot.bytes);
                    if slot.cached.is_none() {
                        slot.cached = Some(entry);
                        self.cached_bytes += slot.bytes;
                        self.cache_order.push_back((group, index, slot.bytes));
                    }
                }
                Some(slot) => {
                    return Err(format!(
                        "{group}: entry {} was moved where {} is",
                        entry.position, slot.position
                    ));
                }
                // Its first home was recycled before this log was read.
                None if spanned => {
                    let bytes = weight(&entry);
                    self.live.add(location.segment, bytes);
                    let slot = Slot {
                        position: entry.position,
                        location,
                        cached: None,
                        bytes,
                    };
                    state.entries.insert(index, slot);
                }
                None => {}
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
            let expected = after(state.last)?;
            // RAFT-2
            if index != expected {
                return Err(format!(
                    "RAFT-2: {group}: entry {index} where {expected} is due"
                ));
            }
            after(Some(entry.position))?;
            state.last = Some(entry.position);
            let slot = Slot {
                position: entry.position,
                location,
                cached: Some(entry),
                bytes,
            };
            state.entries.insert(index, slot);
            self.live.add(location.segment, bytes);
            self.cached_bytes += bytes;
            self.cache_order.push_back((group, index, bytes));
        }
        self.evict();
        Ok(())
    }

    fn evict(&mut self) {
        while self.cached_bytes > self.cache_bytes_max {
            let Some((group, index, bytes)) = self.cache_order.front().copied() else {
                break;
            };
            let slot = self
                .groups
                .get_mut(&group)
                .and_then(|state| state.entries.get_mut(&index));
            if let Some(slot) = slot {
                // LOG-8
                if slot.location.lsn > self.durable && !planted(Fault::Evicted) {
                    break;
                }
                slot.cached = None;
            }
            // Counted by the order, not by the slots: a truncated or purged entry's bytes leave with its turn.
            self.cached_bytes -= bytes;
            self.cache_order.pop_front();
        }
    }

    /// A checkpoint is all small state: the segments before it may be gone at the next start, and with them what they said beyond it.
    fn restore(&mut self, checkpoint: Checkpoint) -> Result<(), String> {
        let lists = |group: &GroupId| checkpoint.groups.iter().any(|mark| mark.group == *group);
        if let Some(group) = self.groups.keys().find(|group| !lists(group)) {
            return Err(format!("a checkpoint without {group}, which was there"));
        }
        let lists = |name: &String| checkpoint.records.iter().any(|record| record.name == *name);
        if let Some(name) = self.records.keys().find(|name| !lists(name)) {
            return Err(format!(
                "a checkpoint without record '{name}', which was there"
            ));
        }
        for mark in checkpoint.groups {
            let (from, to) = (after(mark.purged)?, after(mark.last)?);
            // Entries at and below the mark would come again.
            if from > to {
                return Err(format!(
                    "{}: a checkpoint whose last entry {:?} lies below its purge mark {:?}",
                    mark.group, mark.last, mark.purged
                ));
            }
            let state = self
                .groups
                .entry(mark.group)
                .or_insert_with(|| Group::new(mark.replica, mark.range.clone()));
            if state.replica != mark.replica || state.range != mark.range {
                return Err(format!(
                    "RAFT-5: {}: a checkpoint of replica {} and {:?} after replica {} and {:?}",
                    mark.group, mark.replica, mark.range, state.replica, state.range
                ));
            }
            state.vote = mark.vote;
            state.committed = mark.committed;
            state.purged = mark.purged;
            state.last = mark.last;
            let mut kept = state.entries.split_off(&from);
            let beyond = kept.split_off(&to);
            let below = std::mem::replace(&mut state.entries, kept);
            self.live.forget(below);
            self.live.forget(beyond);
        }
        for record in checkpoint.records {
            self.records.insert(record.name.clone(), record);
        }
        self.last = checkpoint.last;
        Ok(())
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

    /// The first entry between a purge mark and a last entry that is not there (DUR-2).
    pub fn hole(&self) -> Option<(GroupId, u64)> {
        self.groups.iter().find_map(|(group, state)| {
            let from = state.purged.map_or(0, |purged| purged.index + 1);
            let to = state.last.map_or(0, |last| last.index + 1);
            (from..to)
                .find(|index| !state.entries.contains_key(index))
                .map(|index| (*group, index))
        })
    }

    /// Bytes of entries that are alive in a segment.
    pub fn live_in(&self, segment: u64) -> usize {
        self.live.in_segment(segment)
    }

    /// Bytes of all entries that are alive.
    pub fn live_bytes(&self) -> usize {
        self.live.total()
    }

    /// Indexes of a group's entries in a segment, up to about so many bytes of them.
    pub fn entries_in(&self, segment: u64, max_bytes: usize) -> Vec<(GroupId, Vec<u64>)> {
        let mut left = max_bytes.min(self.live_in(segment));
        let mut out = Vec::new();
        for (group, state) in &self.groups {
            let mut indexes = Vec::new();
            for (index, slot) in &state.entries {
                if left == 0 {
                    break;
                }
                if slot.location.segment == segment {
                    left = left.saturating_sub(slot.bytes);
                    indexes.push(*index);
                }
            }
            if !indexes.is_empty() {
                out.push((*group, indexes));
            }
        }
        out
    }

    /// What [`Index::live_in`] and [`Index::live_bytes`] must say, counted anew.
    #[cfg(test)]
    pub fn recount(&self) -> (BTreeMap<u64, usize>, usize) {
        let mut segments: BTreeMap<u64, usize> = BTreeMap::new();
        for slot in self
            .groups
            .values()
            .flat_map(|state| state.entries.values())
        {
            *segments.entry(slot.location.segment).or_default() += slot.bytes;
        }
        let total = segments.values().sum();
        (segments, total)
    }

    /// What is counted.
    #[cfg(test)]
    pub fn counted(&self) -> (BTreeMap<u64, usize>, usize) {
        self.live.counted()
    }
}
