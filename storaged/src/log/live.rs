//! How much of each segment is alive.

use super::index::Slot;
use std::collections::BTreeMap;

/// Bytes of live entries by segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    segments: BTreeMap<u64, usize>,
    total: usize,
}

impl Live {
    pub(super) fn add(&mut self, segment: u64, bytes: usize) {
        *self.segments.entry(segment).or_default() += bytes;
        self.total += bytes;
    }

    pub(super) fn remove(&mut self, segment: u64, bytes: usize) {
        let left = self.segments.entry(segment).or_default();
        *left -= bytes;
        if *left == 0 {
            self.segments.remove(&segment);
        }
        self.total -= bytes;
    }

    /// Entries that are alive no more.
    pub(super) fn forget(&mut self, slots: BTreeMap<u64, Slot>) {
        for slot in slots.into_values() {
            self.remove(slot.location.segment, slot.bytes);
        }
    }

    /// Those of a segment.
    pub(super) fn in_segment(&self, segment: u64) -> usize {
        self.segments.get(&segment).copied().unwrap_or(0)
    }

    /// Those of all segments.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// By segment, and all.
    #[cfg(test)]
    pub(super) fn counted(&self) -> (BTreeMap<u64, usize>, usize) {
        (self.segments.clone(), self.total)
    }
}
