//! Reading entries without holding the log: a plan says where they are, and any thread fetches them.
//!
//! While a plan lives, the segments that it points to are not used again (LOG-7), so that a fetch finds what was there when
//! it was planned even if the entries have been purged or moved since.

use super::Log;
use super::index::Location;
use super::recover::LogError;
use super::unit::{Change, Found, Record, Unit};
use crate::io::Disk;
use mareedb_ipc::wire::storage::LogEntry;
use mareedb_ipc::wire::{GroupId, LogPosition};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many plans point to a segment.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<BTreeMap<u64, usize>>);

impl Pins {
    pub(super) fn holds(&self, segment: u64) -> bool {
        self.0.lock().contains_key(&segment)
    }

    fn pin(self: &Arc<Self>, segment: u64) -> Pin {
        *self.0.lock().entry(segment).or_default() += 1;
        Pin {
            pins: self.clone(),
            segment,
        }
    }
}

#[derive(Debug)]
struct Pin {
    pins: Arc<Pins>,
    segment: u64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock();
        if let Some(count) = pins.get_mut(&self.segment) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.segment);
            }
        }
    }
}

#[derive(Debug)]
enum Place {
    Here(LogEntry),
    At(LogPosition, Location),
}

/// Entries of a group that are to be read.
#[derive(Debug)]
pub struct Plan {
    group: GroupId,
    key: u64,
    places: Vec<Place>,
    pins: Vec<Pin>,
}

impl Log {
    /// Plans to read entries `[from, to)` of a group: fewer after `max_bytes`, but at least one; none when `from` is not
    /// there.
    ///
    /// # Panics
    /// An entry has left the memory before its unit was durable.
    pub fn plan(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> Plan {
        let mut plan = Plan {
            group,
            key: self.key,
            places: Vec::new(),
            pins: Vec::new(),
        };
        let Some(state) = self.index.groups.get(&group) else {
            return plan;
        };
        if from >= to {
            return plan;
        }
        let mut bytes = 0;
        for (index, slot) in state.entries.range(from..to) {
            let follows = *index == from + plan.places.len() as u64;
            let full = bytes + slot.bytes > max_bytes && !plan.places.is_empty();
            if !follows || full {
                break;
            }
            bytes += slot.bytes;
            plan.places.push(match &slot.cached {
                Some(entry) => Place::Here(entry.clone()),
                None => {
                    assert!(
                        slot.location.lsn <= self.durable,
                        "LOG-8: {group}: entry {index} is in unit {} alone, durable is {}",
                        slot.location.lsn,
                        self.durable
                    );
                    let segment = slot.location.segment;
                    if !plan.pins.iter().any(|pin| pin.segment == segment) {
                        plan.pins.push(self.pins.pin(segment));
                    }
                    Place::At(slot.position, slot.location)
                }
            });
        }
        plan
    }

    /// Plans to read these entries of a group, as far as they are there.
    pub(super) fn plan_of(&self, group: GroupId, indexes: &[u64]) -> Plan {
        let mut whole = Plan {
            group,
            key: self.key,
            places: Vec::new(),
            pins: Vec::new(),
        };
        for index in indexes {
            let one = self.plan(group, *index, index + 1, usize::MAX);
            whole.places.extend(one.places);
            whole.pins.extend(one.pins);
        }
        whole
    }
}

impl Plan {
    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The group that the entries are of.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Reads. Blocks for the disk unless all was cached.
    ///
    /// # Errors
    /// The disk, or damage.
    pub fn fetch(self, disk: &dyn Disk) -> Result<Vec<LogEntry>, LogError> {
        let mut out = Vec::with_capacity(self.places.len());
        let mut unit: Option<(Location, Vec<LogEntry>)> = None;
        for place in self.places {
            let (position, location) = match place {
                Place::Here(entry) => {
                    out.push(entry);
                    continue;
                }
                Place::At(position, location) => (position, location),
            };
            // Neighbours lie in the same unit: it is read once.
            if unit.as_ref().is_none_or(|(at, _)| *at != location) {
                unit = Some((location, entries_at(disk, self.key, self.group, location)?));
            }
            let found = unit
                .iter()
                .flat_map(|(_, entries)| entries)
                .find(|entry| entry.position == position);
            let entry = found.cloned().ok_or_else(|| LogError::Damaged {
                segment: location.segment,
                offset: location.offset,
                what: format!("entry {position} of {} is not in its unit", self.group),
            })?;
            out.push(entry);
        }
        Ok(out)
    }
}

/// All entries of a group in a unit, in order.
fn entries_at(
    disk: &dyn Disk,
    key: u64,
    group: GroupId,
    location: Location,
) -> Result<Vec<LogEntry>, LogError> {
    let bytes = disk.read_at(location.segment, location.offset, location.bytes)?;
    let unit = match Unit::decode(&bytes, key) {
        Found::Unit(unit, _) if unit.segment == location.segment && unit.lsn == location.lsn => {
            unit
        }
        _ => {
            return Err(LogError::Damaged {
                segment: location.segment,
                offset: location.offset,
                what: "the unit cannot be read".into(),
            });
        }
    };
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
