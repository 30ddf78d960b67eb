//! Reads a log back: the only way in which one is opened.
//!
//! The log is the longest run of valid units with consecutive LSNs, segment after segment. What follows it was never
//! acknowledged and is void, unless a later valid unit says that it was durable: that is damage (LOG-3), told with file and
//! offset, and never skipped. The end is sealed by a new segment whose header unit names the next LSN, so that a write of a
//! dead predecessor that lands late can never join the log (LOG-4).

use super::index::{Index, Location};
use super::unit::{BLOCK, Found, Unit};
use crate::io::Disk;
use std::io;

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error("log: {0}")]
    Io(#[from] io::Error),
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
    fn damaged(segment: u64, offset: u64, what: String) -> LogError {
        LogError::Damaged {
            segment,
            offset,
            what,
        }
    }
}

/// What a segment holds.
struct Scanned {
    segment: u64,
    /// The run of valid units from the start.
    units: Vec<(Unit, Location)>,
    /// Where that run ends.
    end: u64,
    /// The highest durable-up-to mark of any valid unit after the end.
    beyond: Option<u64>,
    /// Where the last valid unit after the end ends.
    used: u64,
}

/// Reads all segments. `alive` is called between them.
///
/// # Errors
/// Damage, or the disk.
pub fn recover(
    disk: &dyn Disk,
    cache_bytes_max: usize,
    alive: &dyn Fn(),
) -> Result<Recovered, LogError> {
    let mut numbers = disk.segments()?;
    numbers.sort_unstable();
    let mut recovered = Recovered {
        index: Index::new(cache_bytes_max),
        segments: Vec::new(),
        spare: Vec::new(),
        next_lsn: 1,
        end: (0, 0),
        discarded: 0,
    };
    // What is read is there.
    recovered.index.set_durable(u64::MAX);
    let mut run = Run::default();
    for number in numbers {
        alive();
        let scanned = scan(number, &disk.read(number)?)?;
        if scanned.units.is_empty() && scanned.beyond.is_none() {
            recovered.spare.push(number);
        } else {
            run.add(scanned, &mut recovered)?;
        }
    }
    run.end(&mut recovered)?;
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

    fn end(mut self, recovered: &mut Recovered) -> Result<(), LogError> {
        let Some(last) = self.waiting.take() else {
            return Ok(());
        };
        let (segment, end, beyond) = (last.segment, last.end, last.beyond);
        recovered.end = (segment, end);
        recovered.discarded = last.used.saturating_sub(end);
        self.take(last, u64::MAX, recovered)?;
        let due = recovered.next_lsn;
        // LOG-3
        let durable = self.durable.max(beyond.unwrap_or(0));
        if durable >= due {
            let what = format!("unit {due} cannot be read, unit {durable} was durable");
            return Err(LogError::damaged(segment, end, what));
        }
        if let Some((group, index)) = recovered.index.hole() {
            let first = recovered.segments.first().copied().unwrap_or(segment);
            let what = format!("entry {index} of {group} is missing");
            return Err(LogError::damaged(first, 0, what));
        }
        Ok(())
    }
}

fn scan(segment: u64, bytes: &[u8]) -> Result<Scanned, LogError> {
    let mut units: Vec<(Unit, Location)> = Vec::new();
    let mut at = 0;
    loop {
        let due = units.last().map(|(unit, _)| unit.lsn + 1);
        match Unit::decode(&bytes[at..]) {
            Found::Unit(unit, len)
                if unit.segment == segment && due.is_none_or(|due| unit.lsn == due) =>
            {
                let location = Location {
                    segment,
                    offset: at as u64,
                    bytes: len,
                    lsn: unit.lsn,
                };
                units.push((unit, location));
                at = (at + len).min(bytes.len());
            }
            Found::Foreign { segment: of, lsn }
                if of == segment && due.is_none_or(|due| lsn == due) =>
            {
                let what = format!("unit {lsn} is whole, but of a format that is not known here");
                return Err(LogError::damaged(segment, at as u64, what));
            }
            _ => break,
        }
    }
    let end = at;
    let next = units.last().map_or(0, |(unit, _)| unit.lsn + 1);
    let mut beyond = None;
    let mut used = end;
    while at + BLOCK <= bytes.len() {
        match Unit::decode(&bytes[at..]) {
            Found::Unit(unit, len) if unit.segment == segment && unit.lsn >= next => {
                beyond = beyond.max(Some(unit.durable));
                at += len;
                used = at;
            }
            _ => at += BLOCK,
        }
    }
    Ok(Scanned {
        segment,
        units,
        end: end as u64,
        beyond,
        used: used as u64,
    })
}
