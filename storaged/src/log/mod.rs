//! One segmented log a shard, shared by its groups, so that one device write serves many (docs/formats/log.md).
//!
//! Invariants: LOG-1 only the contiguous prefix of units is acknowledged; LOG-2 a block with acknowledged bytes is never
//! rewritten; LOG-3 what is missing of it is damage; LOG-4 the end is sealed before anything is answered; LOG-5 no write of a
//! predecessor can land after recovery has read; LOG-6 an operation is taken once.
//!
//! [`Log`] is the logic without input and output: it says what to write where, and is told what has been written.

pub mod index;
pub mod recover;
pub mod unit;

use crate::io::Disk;
use index::{Index, Location, weight};
use mareedb_ipc::wire::storage::LogEntry;
use mareedb_ipc::wire::{GroupId, OperationId};
use recover::{LogError, recover};
use std::collections::{BTreeSet, VecDeque};
use unit::{Change, Record, Unit};

/// Bytes of records after which a unit ends.
pub const UNIT_BYTES_MAX: usize = 2 << 20;
/// Entries that pin an old segment are moved forward when they are fewer bytes than this.
const MOVE_BYTES_MAX: usize = 1 << 20;

/// A unit that is to be written.
#[derive(Clone, Debug)]
pub struct Write {
    /// Its number.
    pub lsn: u64,
    /// Where.
    pub location: Location,
    /// What.
    pub bytes: Vec<u8>,
}

/// The log of a shard.
#[derive(Debug)]
pub struct Log {
    /// What it holds, written or about to be.
    pub index: Index,
    segment_bytes: u64,
    incarnation: u64,
    /// Segments in use, ascending; the last one is written to.
    segments: Vec<u64>,
    /// Files to be used again, oldest first: the rest must stay a gapless run, or recovery would call it damaged.
    spare: VecDeque<u64>,
    /// Number of the next new file.
    next_number: u64,
    offset: u64,
    next_lsn: u64,
    /// Every unit up to this one is durable.
    durable: u64,
    /// Units above that are written out of order.
    done: BTreeSet<u64>,
    /// The mark in the last unit, to know whether a closing one is due.
    marked: u64,
}

impl Log {
    /// Reads the log back and seals its end. Whatever was opened before must not write any more (LOG-5).
    ///
    /// # Errors
    /// Damage, or the disk.
    pub fn open(
        disk: &mut dyn Disk,
        segment_bytes: u64,
        cache_bytes_max: usize,
        incarnation: u64,
    ) -> Result<Log, LogError> {
        let recovered = recover(disk, cache_bytes_max)?;
        if recovered.discarded > 0 {
            tracing::info!(
                bytes = recovered.discarded,
                "discarded what was never acknowledged"
            );
        }
        let next_number = disk
            .segments()?
            .into_iter()
            .max()
            .map_or(1, |last| last + 1);
        let mut log = Log {
            next_number,
            index: recovered.index,
            segment_bytes,
            incarnation,
            segments: recovered
                .segments
                .into_iter()
                .map(|(segment, _)| segment)
                .collect(),
            spare: recovered.spare.into(),
            offset: 0,
            next_lsn: recovered.next_lsn,
            durable: recovered.next_lsn - 1,
            done: BTreeSet::new(),
            marked: 0,
        };
        log.begin_segment(disk)?;
        Ok(log)
    }

    /// Units that are not durable yet.
    pub fn unfinished(&self) -> u64 {
        self.next_lsn - 1 - self.durable
    }

    /// Every unit up to this one is durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether an operation is in the log already (LOG-6).
    pub fn has(&self, id: OperationId) -> bool {
        self.index
            .last
            .is_some_and(|last| last.generation == id.generation && id.position <= last.position)
    }

    /// Whether a unit of so many record bytes still fits into the segment.
    pub fn fits(&self, bytes: usize) -> bool {
        let need = (unit::HEADER_BYTES + bytes).next_multiple_of(unit::BLOCK) as u64;
        self.offset + need <= self.segment_bytes
    }

    /// Begins the next segment with a checkpoint. Everything before must be durable: the seal says so.
    ///
    /// # Errors
    /// The disk.
    ///
    /// # Panics
    /// A unit is still being written.
    pub fn begin_segment(&mut self, disk: &mut dyn Disk) -> Result<(), LogError> {
        assert_eq!(
            self.unfinished(),
            0,
            "LOG-4: a segment is sealed with a unit in flight"
        );
        let number = self.reserve();
        match self.spare.pop_front() {
            Some(spare) => disk.rename(spare, number)?,
            None => disk.create(number, self.segment_bytes)?,
        }
        self.segments.push(number);
        self.offset = 0;
        let write = self.unit(vec![Record::Checkpoint(self.index.checkpoint())]);
        disk.write(write.location.segment, write.location.offset, &write.bytes)?;
        self.written(write.lsn);
        Ok(())
    }

    /// A number for a file that is made beside the log; see [`Log::add_spare`].
    pub fn reserve(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// A file of zeros with a reserved number is ready to become a segment.
    pub fn add_spare(&mut self, number: u64) {
        // In front: it is empty, so that taking it leaves no gap among the old ones.
        self.spare.push_front(number);
    }

    /// Files that are ready.
    pub fn spares(&self) -> usize {
        self.spare.len()
    }

    /// The segment that is written to.
    pub fn current(&self) -> u64 {
        *self.segments.last().expect("a segment is open")
    }

    /// The last unit that was begun.
    pub fn issued(&self) -> u64 {
        self.next_lsn - 1
    }

    fn unit(&mut self, records: Vec<Record>) -> Write {
        let segment = self.current();
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        let bytes = Unit {
            segment,
            lsn,
            durable: self.durable,
            incarnation: self.incarnation,
            records,
        }
        .encode();
        let location = Location {
            segment,
            offset: self.offset,
            bytes: bytes.len(),
        };
        self.offset += bytes.len() as u64;
        self.marked = self.durable;
        Write {
            lsn,
            location,
            bytes,
        }
    }

    /// Takes operations in as one unit, and says what to write. The caller has asked [`Log::fits`].
    ///
    /// # Errors
    /// An operation contradicts the log: a broken invariant of consensusd.
    pub fn append(&mut self, operations: Vec<(OperationId, Change)>) -> Result<Write, String> {
        let records: Vec<Record> = operations
            .into_iter()
            .map(|(id, change)| Record::Operation { id, change })
            .collect();
        self.take(records)
    }

    fn take(&mut self, records: Vec<Record>) -> Result<Write, String> {
        let write = self.unit(records.clone());
        for record in records {
            self.index.take(record, write.location)?;
        }
        Ok(write)
    }

    /// A unit that only says how far the log is durable, if nothing said so yet.
    pub fn closing(&mut self) -> Option<Write> {
        // The closing unit itself leaves the mark one behind; another one for that would never end.
        let due = self.unfinished() == 0 && self.durable > self.marked + 1 && self.fits(64);
        due.then(|| self.unit(vec![Record::Mark]))
    }

    /// A unit is on disk. Returns how far the log is durable now (LOG-1).
    pub fn written(&mut self, lsn: u64) -> u64 {
        self.done.insert(lsn);
        while self.done.remove(&(self.durable + 1)) {
            self.durable += 1;
        }
        self.durable
    }

    /// Gives up segments that nobody needs, oldest first. Entries that alone pin the oldest of more than `keep` segments
    /// are moved: then what is to be written comes back, and recycling goes on after it is durable.
    ///
    /// # Errors
    /// The disk, or an entry cannot be read.
    pub fn recycle(&mut self, disk: &dyn Disk, keep: usize) -> Result<Option<Write>, LogError> {
        while self.segments.len() > 1 {
            let oldest = self.segments[0];
            let pinned = self.index.pinned(oldest);
            if pinned.is_empty() {
                self.segments.remove(0);
                self.spare.push_back(oldest);
                continue;
            }
            let bytes: usize = pinned.iter().map(|(_, bytes)| bytes).sum();
            if self.segments.len() <= keep || bytes > MOVE_BYTES_MAX || !self.fits(2 * bytes + 4096)
            {
                break;
            }
            let mut records = Vec::new();
            for (group, _) in pinned {
                let entries = self.entries_in(disk, group, oldest)?;
                records.push(Record::Moved { group, entries });
            }
            return self
                .take(records)
                .map(Some)
                .map_err(|what| LogError::Damaged {
                    segment: oldest,
                    offset: 0,
                    what,
                });
        }
        Ok(None)
    }

    fn entries_in(
        &self,
        disk: &dyn Disk,
        group: GroupId,
        segment: u64,
    ) -> Result<Vec<LogEntry>, LogError> {
        let Some(state) = self.index.groups.get(&group) else {
            return Ok(Vec::new());
        };
        state
            .entries
            .iter()
            .filter(|(_, slot)| slot.location.segment == segment)
            .map(|(index, slot)| match &slot.cached {
                Some(entry) => Ok(entry.clone()),
                None => read_entry(disk, group, *index, slot.location),
            })
            .collect()
    }

    /// Entries `[from, to)` of a group, fewer after `max_bytes`, but at least one; empty when `from` is not there.
    ///
    /// # Errors
    /// The disk, or damage.
    pub fn read(
        &self,
        disk: &dyn Disk,
        group: GroupId,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> Result<Vec<LogEntry>, LogError> {
        let mut out: Vec<LogEntry> = Vec::new();
        let mut bytes = 0;
        let Some(state) = self.index.groups.get(&group) else {
            return Ok(out);
        };
        if from >= to {
            return Ok(out);
        }
        let mut unit: Option<(Location, Vec<LogEntry>)> = None;
        for (index, slot) in state.entries.range(from..to) {
            if *index != from + out.len() as u64
                || (bytes + slot.bytes > max_bytes && !out.is_empty())
            {
                break;
            }
            let entry = match &slot.cached {
                Some(entry) => entry.clone(),
                None => {
                    // Neighbours lie in the same unit: it is read once.
                    if unit
                        .as_ref()
                        .is_none_or(|(location, _)| *location != slot.location)
                    {
                        unit = Some((slot.location, entries_at(disk, group, slot.location)?));
                    }
                    let found = unit
                        .iter()
                        .flat_map(|(_, entries)| entries)
                        .find(|entry| entry.position == slot.position);
                    found
                        .cloned()
                        .ok_or_else(|| missing(slot.location, group, *index))?
                }
            };
            bytes += weight(&entry);
            out.push(entry);
        }
        Ok(out)
    }
}

fn missing(location: Location, group: GroupId, index: u64) -> LogError {
    LogError::Damaged {
        segment: location.segment,
        offset: location.offset,
        what: format!("entry {index} of {group} is not in its unit"),
    }
}

fn read_entry(
    disk: &dyn Disk,
    group: GroupId,
    index: u64,
    location: Location,
) -> Result<LogEntry, LogError> {
    entries_at(disk, group, location)?
        .into_iter()
        .rfind(|entry| entry.position.index == index)
        .ok_or_else(|| missing(location, group, index))
}

/// All entries of a group in a unit, in order.
fn entries_at(
    disk: &dyn Disk,
    group: GroupId,
    location: Location,
) -> Result<Vec<LogEntry>, LogError> {
    let bytes = disk.read_at(location.segment, location.offset, location.bytes)?;
    let (unit, _) = Unit::decode(&bytes).ok_or_else(|| LogError::Damaged {
        segment: location.segment,
        offset: location.offset,
        what: "the unit cannot be read".into(),
    })?;
    let mut out = Vec::new();
    for record in unit.records {
        match record {
            Record::Operation {
                change: Change::Append { group: of, entries },
                ..
            }
            | Record::Moved { group: of, entries }
                if of == group =>
            {
                out.extend(entries);
            }
            _ => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
