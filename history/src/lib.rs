//! Histories of what clients did, and the checkers that judge them.
//!
//! A client records each operation with a [`Recorder`]: what it asked, when, and what came of it. Afterwards the
//! [`History`] is held against what the database promises. Nothing in here knows how the database works, has a clock of
//! its own, or talks to anything: the same checkers serve the chaos runner on real processes and the simulation.
//!
//! # Why the linearizability tester is our own
//!
//! The existing one in Rust, [stateright's](https://docs.rs/stateright), is made for the few operations of a model checker's state: it
//! tries interleavings without remembering what it tried, copies all that is left of the history at each step, knows one open
//! operation a thread, and says no more than yes or no. A chaos run has hundreds of operations a key, many of them open for ever, and
//! must say what is wrong. Porcupine is Go; no port of it to Rust is kept up. [`linear`] is therefore ours, with the ideas of these and of the papers
//! behind them; stateright's tester stays as a second opinion in the tests, on small histories, beside all orders tried one by one.
//!
//! What else is promised, by which checker, and how outside checkers read the same histories: `docs/reliability-checkers.md`.

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
