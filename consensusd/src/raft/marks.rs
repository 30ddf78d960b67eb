//! How large a log is up to where, coarsely: what retention goes by.

use std::collections::VecDeque;

/// A recovered entry counts as so many bytes: a rather large one, since sizes are not known, so that retention errs early.
const RECOVERED_ENTRY_BYTES: u64 = 2 << 10;
/// Bytes between two marks.
const MARK_BYTES: u64 = 256 << 10;

/// Marks in a log.
pub(super) struct Marks {
    /// Indexes, ascending, each with the bytes that were written before it.
    marks: VecDeque<(u64, u64)>,
    /// Bytes written in all, what was recovered included.
    written: u64,
}

impl Marks {
    /// Of a log with the entries `[first, next)`.
    pub(super) fn recovered(first: u64, next: u64) -> Marks {
        let step = usize::try_from(MARK_BYTES / RECOVERED_ENTRY_BYTES).unwrap_or(usize::MAX);
        Marks {
            marks: (first..next)
                .step_by(step)
                .chain([next])
                .map(|index| (index, (index - first) * RECOVERED_ENTRY_BYTES))
                .collect(),
            written: next.saturating_sub(first) * RECOVERED_ENTRY_BYTES,
        }
    }

    /// The log has an entry more.
    pub(super) fn append(&mut self, index: u64, bytes: u64) {
        if self
            .marks
            .back()
            .is_none_or(|(_, before)| self.written - before >= MARK_BYTES)
        {
            self.marks.push_back((index, self.written));
        }
        self.written += bytes;
    }

    /// The log ends before `next`.
    pub(super) fn cut(&mut self, next: u64) {
        while self.marks.back().is_some_and(|(index, _)| *index > next) {
            self.marks.pop_back();
        }
    }

    /// The log begins at `first`.
    pub(super) fn purge(&mut self, first: u64) {
        // The mark before the first entry stays, so that the size is known.
        while self.marks.get(1).is_some_and(|(index, _)| *index <= first) {
            self.marks.pop_front();
        }
    }

    /// About how many bytes the log has.
    pub(super) fn held(&self) -> u64 {
        let before = self.marks.front().map_or(0, |(_, before)| *before);
        self.written - before
    }

    /// The index up to which the log is beyond its last `bytes`, about; `None`: it has no more than that.
    pub(super) fn beyond(&self, bytes: u64) -> Option<u64> {
        let limit = self.written.checked_sub(bytes)?;
        let found = self.marks.iter().rev().find(|(_, before)| *before <= limit);
        found?.0.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that is restarted often must bound its log all the same.
    #[test]
    fn a_recovered_log_can_be_purged_in_parts() {
        let marks = Marks::recovered(10, 1_010).marks;
        assert_eq!(marks.front(), Some(&(10, 0)));
        assert_eq!(marks.back(), Some(&(1_010, 1_000 * RECOVERED_ENTRY_BYTES)));
        let apart = |(a, b): (&(u64, u64), &(u64, u64))| b.1 - a.1;
        assert!(
            marks
                .iter()
                .zip(marks.iter().skip(1))
                .map(apart)
                .all(|bytes| bytes <= MARK_BYTES)
        );
        assert_eq!(Marks::recovered(5, 5).marks, VecDeque::from([(5, 0)]));
    }
}
