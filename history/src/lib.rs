//! Histories of what clients did, and the checkers that judge them.
//!
//! A client records each operation with a [`Recorder`]: what it asked, when, and what came of it. Afterwards the
//! [`History`] is held against what the database promises. Nothing in here knows how the database works, has a clock of
//! its own, or talks to anything: the same checkers serve the chaos runner on real processes and the simulation.

pub mod check;
pub mod edn;
pub mod generate;
pub mod json;
pub mod linear;
pub mod pieces;

mod history;
mod operation;
mod recorder;
mod report;

pub use history::{History, HistoryError};
pub use operation::{Answer, Call, Consistency, Micro, Object, Operation, Outcome};
pub use recorder::{Pending, Recorder};
pub use report::{KEPT_MAX, Report, SHOWN_MAX, Undecided, Verdict, Violation};
