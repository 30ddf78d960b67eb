//! How long superseded versions can be read: by logged time, since a revision clock that jumps would end the past early, or, when the
//! jump is taken back, keep it until the wall clock has caught up.

use super::records::System;

/// Marks in the time that versions are kept: they are kept for an eighth longer at most.
const MARKS: u64 = 8;
/// Marks that are kept at most, whatever settings there were.
const MARKS_MAX: usize = 32;

/// After an entry: moves the oldest revision that may be read. It never goes back, since what lies before it may be gone already.
pub(super) fn advance(system: &mut System) {
    let (now, keep) = (system.ms, system.rules.history_ms);
    let since = system.marks.last().map(|(at, _)| now.saturating_sub(*at));
    if since.is_none_or(|since| since >= (keep / MARKS).max(1)) {
        system.marks.push((now, system.clock));
    }
    let past = |at: &u64| now.saturating_sub(*at) >= keep;
    if let Some(newest) = system.marks.iter().rposition(|(at, _)| past(at)) {
        system.oldest = system.oldest.max(system.marks[newest].1);
        system.marks.drain(..newest);
    }
    if system.marks.len() > MARKS_MAX {
        system.marks.remove(0);
    }
}
