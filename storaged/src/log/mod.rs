//! One segmented log a shard, shared by its groups, so that one device write serves many (docs/formats/log.md).
//!
//! Invariants: LOG-1 only the contiguous prefix of units is acknowledged; LOG-2 a block with acknowledged bytes is never
//! rewritten; LOG-3 what is missing of it is damage; LOG-4 the end is sealed before anything is answered; LOG-5 no write of a
//! predecessor can land after recovery has read; LOG-6 an operation is taken once; LOG-7 a segment is used again only when
//! nothing in it is needed; LOG-8 an entry is read from its unit only when that is durable. LOG-9, commit positions that wait for
//! company, is the shard's.
//!
//! [`Log`] is the logic without input and output: it says what to write where, and is told what has been written. Non-goals:
//! it knows nothing of state machines, nor of who may purge what.

pub mod index;
mod live;
mod planted;
mod read;
pub mod recover;
pub mod unit;

pub use read::Plan;

use crate::io::Disk;
use index::{Index, Location};
use mareedb_ipc::wire::storage::LogEntry;
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId};
use planted::{Fault, planted};
use read::Pins;
use recover::{LogError, recover};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use unit::{Record, Unit};

/// Bytes of records after which a unit ends.
pub const UNIT_BYTES_MAX: usize = 2 << 20;
/// So many bytes of entries are moved forward at once.
const MOVE_BYTES_MAX: usize = 256 << 10;
/// Files without content that are kept for later; more are deleted.
const SPARES_MAX: usize = 4;

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

/// What is to be done with files, one after the other, in the order in which it was asked: the old ones must stay a gapless
/// run, or recovery would take a gap for damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileWork {
    /// A file for the next segment: this old one, or a new one.
    Prepare {
        /// Number of the next segment.
        number: u64,
        /// Number that the file has now.
        from: Option<u64>,
        /// Its size.
        bytes: u64,
    },
    /// Nobody needs this file any more.
    Delete {
        /// Its number.
        number: u64,
    },
    /// This segment is written to its end. A successor reads it back, and the writes went past the kernel's memory.
    Sealed {
        /// Its number.
        number: u64,
    },
}

impl FileWork {
    /// Does it, durably.
    ///
    /// # Errors
    /// The disk.
    pub fn run(self, disk: &mut dyn Disk) -> std::io::Result<()> {
        match self {
            FileWork::Prepare {
                number,
                from: Some(from),
                bytes,
            } => {
                if disk.bytes(from)? == bytes {
                    return disk.rename(from, number);
                }
                // The setting has changed.
                disk.create(number, bytes)?;
                disk.delete(from)
            }
            FileWork::Prepare {
                number,
                from: None,
                bytes,
            } => disk.create(number, bytes),
            FileWork::Delete { number } => disk.delete(number),
            FileWork::Sealed { number } => {
                disk.expect_read(number);
                Ok(())
            }
        }
    }
}

/// The file of the next segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Missing,
    /// With the number of the old file that is to become it.
    Asked(u64, Option<u64>),
    Ready(u64),
}

/// The log of a shard.
#[derive(Debug)]
pub struct Log {
    /// What it holds, written or about to be.
    pub index: Index,
    segment_bytes: u64,
    key: u64,
    incarnation: u64,
    /// Segments in use, ascending; the last one is written to.
    segments: Vec<u64>,
    /// Files to be used again, oldest first.
    spare: VecDeque<u64>,
    next: Next,
    /// Number of the next file.
    next_number: u64,
    offset: u64,
    next_lsn: u64,
    /// Every unit up to this one is durable.
    durable: u64,
    /// Units above that are written out of order.
    done: BTreeSet<u64>,
    /// Whether the last unit holds nothing that would be missed.
    closed: bool,
    /// The unit that begins the current segment.
    first: u64,
    /// The oldest segment when nothing in it is needed any more, and the unit that was the last one then.
    unneeded: Option<(u64, u64)>,
    pins: Arc<Pins>,
    sealed: Option<u64>,
}

/// How a log is opened.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Bytes of entries that are cached.
    pub cache_bytes_max: usize,
    /// Incarnation of storaged.
    pub incarnation: u64,
    /// Every unit up to this one was acknowledged, as somebody else remembers.
    pub acknowledged: u64,
}

impl Log {
    /// Reads the log back and seals its end. Whatever was opened before must not write any more (LOG-5). `alive` is called
    /// now and then.
    ///
    /// # Errors
    /// Damage, or the disk.
    pub fn open(
        disk: &mut dyn Disk,
        options: LogOptions,
        alive: &dyn Fn(),
    ) -> Result<Log, LogError> {
        let key = disk.key().map_err(LogError::of_key)?;
        // LOG-3: before anything is written that would hide what is missing.
        let recovered = recover(
            disk,
            key,
            options.cache_bytes_max,
            options.acknowledged,
            alive,
        )?;
        if recovered.discarded > 0 {
            tracing::info!(
                bytes = recovered.discarded,
                "discarded what was never acknowledged"
            );
        }
        let numbers = disk.segments()?;
        let mut log = Log {
            next_number: numbers.into_iter().max().map_or(1, |last| last + 1),
            index: recovered.index,
            segment_bytes: options.segment_bytes,
            key,
            incarnation: options.incarnation,
            segments: recovered.segments,
            spare: recovered.spare.into(),
            next: Next::Missing,
            offset: 0,
            next_lsn: recovered.next_lsn,
            durable: recovered.next_lsn - 1,
            done: BTreeSet::new(),
            closed: true,
            first: recovered.first,
            unneeded: None,
            pins: Arc::default(),
            sealed: None,
        };
        log.index.set_durable(log.durable);
        // On a full disk the next segment takes the file of one that nobody needs.
        log.recycle();
        alive();
        // LOG-4: in a new segment, so that nothing which lands late in an old one can ever follow it.
        if let Err(error) = log.make_next(disk) {
            if !crate::fault::is_full(&error) {
                return Err(error.into());
            }
            // Rather a beginning that stands alone for a moment than no log (LOG-7).
            log.unprepared();
            log.first = 0;
            log.recycle();
            log.make_next(disk)?;
        }
        if let Some(write) = log.begin_segment() {
            if !planted(Fault::Seal) {
                disk.write(write.location.segment, write.location.offset, &write.bytes)?;
            }
            log.written(write.lsn);
        }
        alive();
        Ok(log)
    }

    fn make_next(&mut self, disk: &mut dyn Disk) -> std::io::Result<()> {
        if let Some(work) = self.prepare() {
            work.run(disk)?;
            self.prepared();
        }
        Ok(())
    }

    /// Units that are not durable yet.
    pub fn unfinished(&self) -> u64 {
        self.next_lsn - 1 - self.durable
    }

    /// Every unit up to this one is durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The last unit that was begun.
    pub fn issued(&self) -> u64 {
        self.next_lsn - 1
    }

    /// Whether an operation is in the log already (LOG-6).
    pub fn has(&self, id: OperationId) -> bool {
        self.index
            .last
            .is_some_and(|last| last.generation == id.generation && id.position <= last.position)
    }

    /// Bytes of the segments in use.
    pub fn file_bytes(&self) -> u64 {
        self.segments.len() as u64 * self.segment_bytes
    }

    /// Bytes of the open segment that are taken.
    pub fn used(&self) -> u64 {
        self.offset
    }

    /// Whether a unit of so many record bytes still fits into the segment.
    pub fn fits(&self, bytes: usize) -> bool {
        let need = (unit::HEADER_BYTES + bytes).next_multiple_of(unit::BLOCK) as u64;
        self.offset + need <= self.segment_bytes
    }

    /// Whether a unit of so many record bytes fits into a segment that holds nothing but its checkpoint.
    pub fn fits_empty(&self, bytes: usize) -> bool {
        let checkpoint = mareedb_ipc::wire::encode(&self.index.checkpoint()).len();
        let checkpoint = checkpoint + unit::RECORD_EXTRA_BYTES;
        let need = |bytes: usize| (unit::HEADER_BYTES + bytes).next_multiple_of(unit::BLOCK) as u64;
        need(checkpoint) + need(bytes) <= self.segment_bytes
    }

    /// What to do for the next segment's file, if nothing is under way. Its end is told by [`Log::prepared`].
    pub fn prepare(&mut self) -> Option<FileWork> {
        if self.next != Next::Missing {
            return None;
        }
        let number = self.next_number;
        self.next_number += 1;
        // LOG-7: one that nobody reads. The oldest one, or none: a gap among them would look like damage.
        let usable = self
            .spare
            .front()
            .is_some_and(|oldest| !self.pins.holds(*oldest) || planted(Fault::Pinned));
        let from = if usable { self.spare.pop_front() } else { None };
        self.next = Next::Asked(number, from);
        Some(FileWork::Prepare {
            number,
            from,
            bytes: self.segment_bytes,
        })
    }

    /// The file of the next segment is there, durably.
    pub fn prepared(&mut self) {
        if let Next::Asked(number, _) = self.next {
            self.next = Next::Ready(number);
        }
    }

    /// The segment that was sealed last, told once.
    pub fn sealed(&mut self) -> Option<FileWork> {
        let number = *self.segments.iter().rev().nth(1)?;
        if self.sealed == Some(number) {
            return None;
        }
        self.sealed = Some(number);
        Some(FileWork::Sealed { number })
    }

    /// The file of the next segment could not be made. The old one that was to become it is the oldest still: were it
    /// forgotten, those behind it would go first, and recovery would take the gap for damage.
    pub fn unprepared(&mut self) {
        if let Next::Asked(_, from) = self.next {
            self.next = Next::Missing;
            if let Some(from) = from {
                self.spare.push_front(from);
            }
        }
    }

    /// A file that is to be deleted, when too many wait to be used again.
    pub fn surplus(&mut self) -> Option<FileWork> {
        let oldest = *self.spare.front()?;
        // One that is older may come back.
        let asked = matches!(self.next, Next::Asked(_, Some(_)));
        if asked || self.spare.len() <= SPARES_MAX || self.pins.holds(oldest) {
            return None;
        }
        self.spare.pop_front();
        Some(FileWork::Delete { number: oldest })
    }

    /// Begins the next segment with a checkpoint; `None`: its file is not ready. Nothing else may be begun until the
    /// checkpoint is durable: recovery takes a segment whose first unit is missing for damaged.
    ///
    /// # Panics
    /// A unit is still being written.
    pub fn begin_segment(&mut self) -> Option<Write> {
        assert_eq!(
            self.unfinished(),
            0,
            "LOG-4: a segment is begun with a unit in flight"
        );
        let Next::Ready(number) = self.next else {
            return None;
        };
        self.next = Next::Missing;
        self.segments.push(number);
        self.offset = 0;
        self.first = self.next_lsn;
        let (write, _) = self.unit(vec![Record::Checkpoint(self.index.checkpoint())]);
        Some(write)
    }

    /// Whether the beginning of the segment is not durable yet: until it is, nothing else may be begun.
    pub fn is_beginning(&self) -> bool {
        self.first > self.durable
    }

    /// The next unit, and the records that it was made of.
    fn unit(&mut self, records: Vec<Record>) -> (Write, Vec<Record>) {
        assert!(
            self.first == self.next_lsn || !self.is_beginning(),
            "LOG-4: a unit follows the beginning of a segment that is not durable"
        );
        let segment = *self.segments.last().expect("a segment is open");
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        self.closed = matches!(records[..], [Record::Mark | Record::Checkpoint(_)]);
        let unit = Unit {
            segment,
            lsn,
            durable: self.durable,
            incarnation: self.incarnation,
            key: self.key,
            records,
        };
        let bytes = unit.encode();
        let location = Location {
            segment,
            offset: self.offset,
            bytes: bytes.len(),
            lsn,
        };
        self.offset += bytes.len() as u64;
        assert!(
            self.offset <= self.segment_bytes,
            "LOG-2: unit {lsn} reaches beyond segment {segment}"
        );
        let write = Write {
            lsn,
            location,
            bytes,
        };
        (write, unit.records)
    }

    /// Takes records in as one unit, and says what to write. The caller has asked [`Log::fits`].
    ///
    /// # Errors
    /// A record contradicts the log: a broken invariant of consensusd.
    pub fn take(&mut self, records: Vec<Record>) -> Result<Write, String> {
        let (write, records) = self.unit(records);
        for record in records {
            self.index.take(record, write.location)?;
        }
        Ok(write)
    }

    /// A unit that says how far the log is durable, if nothing said so yet (LOG-3): a mark, or the beginning of the next
    /// segment when this one is full and the next one's file is ready.
    pub fn closing(&mut self) -> Option<Write> {
        if self.unfinished() > 0 || self.closed {
            None
        } else if self.fits(unit::RECORD_EXTRA_BYTES) {
            let (write, _) = self.unit(vec![Record::Mark]);
            Some(write)
        } else {
            self.begin_segment()
        }
    }

    /// A unit is on disk. Returns how far the log is durable now (LOG-1).
    pub fn written(&mut self, lsn: u64) -> u64 {
        self.done.insert(lsn);
        if planted(Fault::Prefix) {
            self.durable = self.durable.max(lsn);
        }
        while self.done.remove(&(self.durable + 1)) {
            self.durable += 1;
        }
        self.index.set_durable(self.durable);
        self.durable
    }

    /// Gives up the oldest segments while nothing in them is needed, once it is durable that nothing is (LOG-7).
    pub fn recycle(&mut self) {
        // Until something follows the beginning of the open segment, nothing would tell that it cannot be read, and all small
        // state would be gone with it: the segment before, which says the same, is kept so long.
        let kept = 1 + usize::from(self.durable <= self.first);
        while self.segments.len() > kept && self.index.live_in(self.segments[0]) == 0 {
            let oldest = self.segments[0];
            let since = match self.unneeded {
                Some((segment, since)) if segment == oldest => since,
                _ => self.issued(),
            };
            self.unneeded = Some((oldest, since));
            if self.durable < since && !planted(Fault::Unneeded) {
                return;
            }
            self.segments.remove(0);
            self.spare.push_back(oldest);
        }
    }

    /// Some entries that pin the oldest segment, when much of what the log takes on disk is not needed any more; see
    /// [`Log::moved`].
    pub fn cold(&self) -> Vec<Plan> {
        let live = self.index.live_bytes() as u64;
        // One to write to, one that is being filled up with what is moved, and what this rule bounds.
        let allowed = 2 * live + 3 * self.segment_bytes;
        let used = self.segments.len() as u64 * self.segment_bytes;
        if used <= allowed {
            return Vec::new();
        }
        self.index
            .entries_in(self.segments[0], MOVE_BYTES_MAX)
            .into_iter()
            .map(|(group, indexes)| self.plan_of(group, &indexes))
            .collect()
    }

    /// Whether the log contradicts, or ends before, a position that is applied: it has not been told of a snapshot.
    pub fn lacks(&self, group: GroupId, applied: LogPosition) -> bool {
        self.index.groups.get(&group).is_some_and(|state| {
            let slot = state.entries.get(&applied.index);
            state.last.is_none_or(|last| last.index < applied.index)
                || slot.is_some_and(|slot| slot.position != applied)
        })
    }

    /// The record that empties a group's log up to the end of an installed snapshot; `None`: it holds nothing of that. To be
    /// taken before anything else changes, and durable before anybody builds on it.
    pub fn installed(&self, group: GroupId, upto: LogPosition) -> Option<Record> {
        let state = self.index.groups.get(&group)?;
        if state
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return None;
        }
        // RAFT-2: what follows an entry that the snapshot contradicts is of another history.
        let known = state.entries.get(&upto.index).map(|slot| slot.position);
        Some(Record::Installed {
            group,
            upto,
            alone: known.is_some_and(|known| known != upto),
        })
    }

    /// The record that keeps entries when the segment that they were in is used again; `None` when all were purged or
    /// replaced since they were read. To be taken before anything else changes.
    pub fn moved(&self, group: GroupId, mut entries: Vec<LogEntry>) -> Option<Record> {
        let state = self.index.groups.get(&group)?;
        entries.retain(|entry| {
            let slot = state.entries.get(&entry.position.index);
            slot.is_some_and(|slot| slot.position == entry.position)
        });
        (!entries.is_empty()).then_some(Record::Moved { group, entries })
    }
}

#[cfg(test)]
mod tests;
