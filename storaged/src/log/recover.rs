//! Reads a log back: the only way in which one is opened. It finds what was acknowledged, and nothing that was never written (DUR-2).
//!
//! The log is the longest run of valid units with consecutive LSNs, segment after segment. What follows it was never
//! acknowledged and is void, unless a later valid unit says that it was durable: that is damage (LOG-3), told with file and
//! offset, and never skipped. The end is sealed by a new segment whose header unit names the next LSN, so that a write of a
//! dead predecessor that lands late can never join the log (LOG-4).

use super::index::{Index, Location};
use super::planted::{Fault, planted};
use super::unit::{self, BLOCK, Found, Unit};
use crate::io::Disk;
use std::io;

/// Bytes that are read at once.
const WINDOW_BYTES: u64 = 512 << 10;
/// How far a file without a unit at its start is looked at for later ones. One that has none there is to be used again: a
/// segment begins with a small unit, and is in use only once that is durable.
const SPARE_BYTES: u64 = 1 << 20;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error("log: {0}")]
    Io(#[from] io::Error),
    /// The log's key is not what was written: no unit can be told from bytes of somebody else.
    #[error("log damaged: {0}")]
    Key(io::Error),
    /// Acknowledged bytes are not what was written.
    #[error("log damaged: segment {segment}, offset {offset}: {what}")]
    Damaged {
        /// The segment.
        segment: u64,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// What was read.
#[derive(Debug)]
pub struct Recovered {
    /// The content.
    pub index: Index,
    /// Segments in use, ascending.
    pub segments: Vec<u64>,
    /// The unit that begins the last of them; 0: there is none.
    pub first: u64,
    /// Files that hold no unit of the log: to be used again.
    pub spare: Vec<u64>,
    /// The next LSN.
    pub next_lsn: u64,
    /// Segment and offset of the end.
    pub end: (u64, u64),
    /// Bytes behind the end that are void.
    pub discarded: u64,
}

impl LogError {
    /// What an error of [`Disk::key`] means.
    pub(super) fn of_key(error: io::Error) -> LogError {
        match error.kind() {
            io::ErrorKind::InvalidData => LogError::Key(error),
            _ => LogError::Io(error),
        }
    }

    fn damaged(segment: u64, offset: u64, what: String) -> LogError {
        LogError::Damaged {
            segment,
            offset,
            what,
        }
    }
}

/// What a segment holds: the run of valid units from its start.
struct Scanned {
    segment: u64,
    units: Vec<(Unit, Location)>,
    /// Where that run ends.
    end: u64,
}

/// What lies after the end of the log, in its last segment.
#[derive(Default)]
struct Beyond {
    /// The highest durable-up-to mark of any valid unit.
    durable: Option<u64>,
    /// Where the last valid unit ends.
    used: u64,
}

/// Reads all segments of the log with this key. Every unit up to `acknowledged` was, as somebody else remembers. `alive` is
/// called again and again.
///
/// # Errors
/// Damage, or the disk.
pub fn recover(
    disk: &dyn Disk,
    key: u64,
    cache_bytes_max: usize,
    acknowledged: u64,
    alive: &dyn Fn(),
) -> Result<Recovered, LogError> {
    let mut numbers = disk.segments()?;
    numbers.sort_unstable();
    let mut recovered = Recovered {
        index: Index::new(cache_bytes_max),
        segments: Vec::new(),
        first: 0,
        spare: Vec::new(),
        next_lsn: 1,
        end: (0, 0),
        discarded: 0,
    };
    // What is read is there.
    recovered.index.set_durable(u64::MAX);
    for number in &numbers {
        // Those that are not in memory come while the first ones are looked at.
        let header = unit::HEADER_BYTES.min(usize::try_from(disk.bytes(*number)?).unwrap_or(0));
        let claim = Unit::claim(&disk.read_at(*number, 0, header)?, key);
        if claim.is_some_and(|(segment, _)| segment == *number) {
            disk.expect_read(*number);
        }
    }
    let mut run = Run::default();
    for number in numbers {
        alive();
        let mut source = Source::new(disk, key, number, alive)?;
        let scanned = scan(&mut source)?;
        if scanned.units.is_empty() && beyond(&mut source, 0, SPARE_BYTES, 0)?.durable.is_none() {
            recovered.spare.push(number);
        } else {
            run.add(scanned, &mut recovered)?;
        }
    }
    alive();
    run.end(disk, key, alive, &mut recovered)?;
    let (segment, end) = recovered.end;
    if recovered.next_lsn <= acknowledged {
        let due = recovered.next_lsn;
        let what = format!("the log ends before unit {due}, unit {acknowledged} was acknowledged");
        return Err(LogError::damaged(segment, end, what));
    }
    // Last, for an end that cannot be read may have said that they are not needed.
    if let Some((group, index)) = recovered.index.hole() {
        let first = recovered.segments.first().copied().unwrap_or(segment);
        let what = format!("entry {index} of {group} is missing");
        return Err(LogError::damaged(first, 0, what));
    }
    Ok(recovered)
}

/// The log as far as it was read. A segment is taken in when the one after it is known, which says where it ends.
#[derive(Default)]
struct Run {
    waiting: Option<Scanned>,
    durable: u64,
}

impl Run {
    fn add(&mut self, scanned: Scanned, recovered: &mut Recovered) -> Result<(), LogError> {
        let first = scanned.units.first().map(|(unit, _)| unit.lsn);
        if let Some(before) = self.waiting.take() {
            // What a sealed segment holds from the next one's first LSN on is void (LOG-4).
            let (segment, end) = (before.segment, before.end);
            self.take(before, first.unwrap_or(u64::MAX), recovered)?;
            let due = recovered.next_lsn;
            match first {
                Some(first) if first == due => {}
                // Everything before a segment was durable before it was begun.
                Some(first) if first > due => {
                    let what = format!("unit {due} was durable and cannot be read");
                    return Err(LogError::damaged(segment, end, what));
                }
                other => {
                    let what = format!("begins with unit {other:?}, unit {due} is due");
                    return Err(LogError::damaged(scanned.segment, 0, what));
                }
            }
        } else if let Some(first) = first {
            recovered.next_lsn = first;
        } else {
            let what = "later units are there, the first one cannot be read".to_owned();
            return Err(LogError::damaged(scanned.segment, 0, what));
        }
        self.waiting = Some(scanned);
        Ok(())
    }

    fn take(
        &mut self,
        scanned: Scanned,
        limit: u64,
        recovered: &mut Recovered,
    ) -> Result<(), LogError> {
        recovered.segments.push(scanned.segment);
        for (unit, location) in scanned.units {
            if unit.lsn >= limit {
                break;
            }
            self.durable = self.durable.max(unit.durable);
            for record in unit.records {
                recovered
                    .index
                    .take(record, location)
                    .map_err(|what| LogError::damaged(location.segment, location.offset, what))?;
            }
            recovered.next_lsn = unit.lsn + 1;
        }
        Ok(())
    }

    fn end(
        mut self,
        disk: &dyn Disk,
        key: u64,
        alive: &dyn Fn(),
        recovered: &mut Recovered,
    ) -> Result<(), LogError> {
        let Some(last) = self.waiting.take() else {
            return Ok(());
        };
        let (segment, end) = (last.segment, last.end);
        let next = last.units.last().map_or(0, |(unit, _)| unit.lsn + 1);
        recovered.first = last.units.first().map_or(0, |(unit, _)| unit.lsn);
        let beyond = beyond(
            &mut Source::new(disk, key, segment, alive)?,
            end,
            u64::MAX,
            next,
        )?;
        recovered.end = (segment, end);
        recovered.discarded = beyond.used.saturating_sub(end);
        self.take(last, u64::MAX, recovered)?;
        let due = recovered.next_lsn;
        // LOG-3
        let durable = self.durable.max(beyond.durable.unwrap_or(0));
        if durable >= due && !planted(Fault::Confirmed) {
            let what = format!("unit {due} cannot be read, unit {durable} was durable");
            return Err(LogError::damaged(segment, end, what));
        }
        Ok(())
    }
}

/// A segment, read in windows: often most of a file is not looked at.
struct Source<'a> {
    disk: &'a dyn Disk,
    key: u64,
    segment: u64,
    alive: &'a dyn Fn(),
    bytes: u64,
    start: u64,
    window: Vec<u8>,
}

impl<'a> Source<'a> {
    fn new(
        disk: &'a dyn Disk,
        key: u64,
        segment: u64,
        alive: &'a dyn Fn(),
    ) -> io::Result<Source<'a>> {
        Ok(Source {
            disk,
            key,
            segment,
            alive,
            bytes: disk.bytes(segment)?,
            start: 0,
            window: Vec::new(),
        })
    }

    /// What is at an offset: so many bytes or more, as far as the file goes.
    fn at(&mut self, offset: u64, wanted: u64) -> io::Result<&[u8]> {
        let end = offset.saturating_add(wanted).min(self.bytes);
        let offset = offset.min(end);
        let held = self.start + self.window.len() as u64;
        if offset < self.start || end > held {
            let len = (end - offset).max(WINDOW_BYTES).min(self.bytes - offset);
            let len = usize::try_from(len).map_err(io::Error::other)?;
            (self.alive)();
            self.window = self.disk.read_at(self.segment, offset, len)?;
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).map_err(io::Error::other)?;
        Ok(&self.window[from..])
    }

    /// The unit at an offset that was written to this segment. Others are not looked at closely.
    fn unit(&mut self, offset: u64) -> io::Result<Found> {
        let key = self.key;
        let claim = Unit::claim(self.at(offset, unit::HEADER_BYTES as u64)?, key);
        match claim {
            Some((segment, bytes)) if segment == self.segment || planted(Fault::Segment) => {
                Ok(Unit::decode(self.at(offset, bytes)?, key))
            }
            _ => Ok(Found::Nothing),
        }
    }
}

fn scan(source: &mut Source) -> Result<Scanned, LogError> {
    let segment = source.segment;
    let mut units: Vec<(Unit, Location)> = Vec::new();
    let mut at = 0;
    loop {
        let due = units.last().map(|(unit, _)| unit.lsn + 1);
        match source.unit(at)? {
            Found::Unit(unit, len)
                if (unit.segment == segment || planted(Fault::Segment))
                    && due.is_none_or(|due| unit.lsn == due) =>
            {
                if unit.lsn == u64::MAX {
                    let what = "no number is left after its unit".to_owned();
                    return Err(LogError::damaged(segment, at, what));
                }
                let location = Location {
                    segment,
                    offset: at,
                    bytes: len,
                    lsn: unit.lsn,
                };
                units.push((unit, location));
                at = (at + len as u64).min(source.bytes);
            }
            Found::Foreign { segment: of, lsn }
                if of == segment && due.is_none_or(|due| lsn == due) =>
            {
                let what = format!("unit {lsn} is whole, but of a format that is not known here");
                return Err(LogError::damaged(segment, at, what));
            }
            _ => break,
        }
    }
    Ok(Scanned {
        segment,
        units,
        end: at,
    })
}

/// Looks for valid units from an offset on, in so many bytes.
fn beyond(source: &mut Source, from: u64, bytes: u64, next: u64) -> Result<Beyond, LogError> {
    let mut found = Beyond::default();
    let mut at = from;
    let end = from.saturating_add(bytes).min(source.bytes);
    while at + BLOCK as u64 <= end {
        match source.unit(at)? {
            Found::Unit(unit, len) if unit.segment == source.segment && unit.lsn >= next => {
                found.durable = found.durable.max(Some(unit.durable));
                at += len as u64;
                found.used = at;
            }
            _ => at += BLOCK as u64,
        }
    }
    Ok(found)
}
