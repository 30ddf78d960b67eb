//! The checkers. Each is a function from a [`History`] to a [`Report`], and says in its module what it promises.

pub mod bank;
pub mod committed;
pub mod counter;
pub mod lists;
pub mod register;
pub mod revisions;
pub mod set;

mod source;
mod sweep;

use crate::{History, Report, Verdict};

/// What the checkers are told.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many positions the search for a linearization of one register may visit before it is undecided.
    pub positions_max: usize,
    /// Among which operations revisions must grow in real time.
    pub revisions_grow: Within,
}

/// A part of all operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// All: every key lies in one replication group.
    Group,
    /// Those on one key: keys may lie in several groups.
    Key,
    /// None: somebody else looks at the whole.
    Nothing,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            positions_max: 2_000_000,
            revisions_grow: Within::Group,
        }
    }
}

/// Runs all checkers.
pub fn all(history: &History, options: &Options) -> Vec<Report> {
    vec![
        register::check(history, options),
        set::check(history),
        lists::check(history),
        counter::check(history),
        bank::check(history),
        committed::check(history),
        revisions::check(history, options),
    ]
}

/// What several reports come to: the worst of them.
pub fn verdict(reports: &[Report]) -> Verdict {
    reports
        .iter()
        .map(Report::verdict)
        .max()
        .unwrap_or(Verdict::Holds)
}
