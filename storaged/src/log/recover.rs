//! Reads a log back: the only way in which one is opened.
//!
//! The log is the longest run of valid units with consecutive LSNs, segment after segment. What follows it was never
//! acknowledged and is void, unless a later valid unit says that it was durable: that is damage (LOG-3), told with file and
//! offset, and never skipped. The end is sealed by a new segment whose header unit names the next LSN, so that a write of a
//! dead predecessor that lands late can never join the log (LOG-4).

use super::index::{Index, Location};
use super::unit::{BLOCK, Unit};
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
    /// Segments in use, ascending, with the LSN of their first unit.
    pub segments: Vec<(u64, u64)>,
    /// Files that hold no unit of the log: to be used again.
    pub spare: Vec<u64>,
    /// The next LSN.
    pub next_lsn: u64,
    /// Bytes behind the end that are void.
    pub discarded: u64,
}

struct Scanned {
    segment: u64,
    units: Vec<(Unit, Location)>,
    /// Where the run of valid units ends.
    end: u64,
    /// The highest durable-up-to mark of any valid unit after the end.
    beyond: Option<(u64, u64)>,
    bytes: u64,
}

/// Reads all segments.
///
/// # Errors
/// Damage, or the disk.
pub fn recover(disk: &dyn Disk, cache_bytes_max: usize) -> Result<Recovered, LogError> {
    let mut numbers = disk.segments()?;
    numbers.sort_unstable();
    let mut scanned = Vec::new();
    let mut spare = Vec::new();
    for number in numbers {
        let scan = scan(number, &disk.read(number)?);
        if scan.units.is_empty() && scan.beyond.is_none() {
            spare.push(number);
        } else {
            scanned.push(scan);
        }
    }
    let mut recovered = Recovered {
        index: Index::new(cache_bytes_max),
        segments: Vec::new(),
        spare,
        next_lsn: 1,
        discarded: 0,
    };
    let starts: Vec<Option<u64>> = scanned
        .iter()
        .map(|scan| scan.units.first().map(|(unit, _)| unit.lsn))
        .collect();
    let mut durable = 0;
    let last = scanned.len().saturating_sub(1);
    for (at, scan) in scanned.into_iter().enumerate() {
        // What a sealed segment holds from the next one's first LSN on is void (LOG-4).
        let limit = starts.get(at + 1).copied().flatten().unwrap_or(u64::MAX);
        let first = starts[at];
        let expected = recovered.next_lsn;
        if at > 0 && first != Some(expected) {
            return Err(LogError::Damaged {
                segment: scan.segment,
                offset: 0,
                what: format!("begins with unit {first:?}, unit {expected} is due"),
            });
        }
        if at == 0
            && let Some(first) = first
        {
            recovered.next_lsn = first;
        }
        for (unit, location) in scan.units {
            if unit.lsn >= limit {
                break;
            }
            durable = durable.max(unit.durable);
            for record in unit.records {
                recovered
                    .index
                    .take(record, location)
                    .map_err(|what| LogError::Damaged {
                        segment: location.segment,
                        offset: location.offset,
                        what,
                    })?;
            }
            recovered.next_lsn = unit.lsn + 1;
        }
        let missing = if at < last {
            // Another segment follows: everything up to its beginning was durable before it was begun.
            recovered.next_lsn < limit
        } else {
            scan.beyond
                .is_some_and(|(beyond, _)| beyond >= recovered.next_lsn)
        };
        if missing {
            return Err(LogError::Damaged {
                segment: scan.segment,
                offset: scan.end,
                what: format!("unit {} was durable and cannot be read", recovered.next_lsn),
            });
        }
        if at == last {
            recovered.discarded = scan.bytes.saturating_sub(scan.end);
        }
        recovered
            .segments
            .push((scan.segment, first.unwrap_or(recovered.next_lsn)));
    }
    if durable >= recovered.next_lsn {
        let (segment, _) = recovered.segments.last().copied().unwrap_or((0, 0));
        return Err(LogError::Damaged {
            segment,
            offset: 0,
            what: format!(
                "unit {durable} was durable, the log ends before unit {}",
                recovered.next_lsn
            ),
        });
    }
    if let Some((group, index)) = recovered.index.hole() {
        return Err(LogError::Damaged {
            segment: recovered
                .segments
                .first()
                .map_or(0, |(segment, _)| *segment),
            offset: 0,
            what: format!("entry {index} of {group} is missing"),
        });
    }
    Ok(recovered)
}

fn scan(segment: u64, bytes: &[u8]) -> Scanned {
    let mut units: Vec<(Unit, Location)> = Vec::new();
    let mut at = 0;
    while let Some((unit, len)) = bytes.get(at..).and_then(Unit::decode) {
        let follows = units
            .last()
            .is_none_or(|(before, _)| unit.lsn == before.lsn + 1);
        if unit.segment != segment || !follows {
            break;
        }
        let location = Location {
            segment,
            offset: at as u64,
            bytes: len,
        };
        units.push((unit, location));
        at += len;
    }
    let end = at;
    let next = units.last().map_or(0, |(unit, _)| unit.lsn + 1);
    let mut beyond = None;
    let mut used = end;
    while at + BLOCK <= bytes.len() {
        if let Some((unit, len)) = Unit::decode(&bytes[at..])
            && unit.segment == segment
            && unit.lsn >= next
        {
            used = at + len;
            if beyond.is_none_or(|(mark, _)| mark < unit.durable) {
                beyond = Some((unit.durable, at as u64));
            }
            at += len;
        } else {
            at += BLOCK;
        }
    }
    Scanned {
        segment,
        units,
        end: end as u64,
        beyond,
        bytes: used as u64,
    }
}
