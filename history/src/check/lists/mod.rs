//! Append lists: transactions that append to lists and read them are strictly serializable (TXN-1).
//!
//! The method is Elle's (Kingsbury and Alvaro, "Elle: inferring isolation anomalies from experimental observations", 2020): since every
//! element is appended once, a list that was read tells which transactions it came from and in which order, so that dependencies
//! between transactions follow from what clients saw, without any knowledge of the database. A transaction that appended the
//! next element comes after the one before (`ww`), one that read comes after what it read (`wr`) and before what it did
//! not see yet (`rw`); what began after an acknowledgement comes after it. A cycle among these is a breach, named after the
//! dependencies in it:
//!
//! | name | what it is |
//! |---|---|
//! | G0 | writes interleave: only `ww` |
//! | G1a, dirty read | a read has what a failed transaction appended |
//! | G1b | a read has what was between two appends of one transaction |
//! | G1c | a circle of information: `ww` and `wr` |
//! | G-single | one `rw`: a read of a moment at which something later already counted (read skew, lost append) |
//! | G2 | two or more `rw` (write skew) |
//! | lost update | two transactions read the same version of a list and both appended to it |
//! | incompatible order | two reads of a list of which neither begins with the other |
//! | duplicate | an element is in a list twice, though it was appended once |
//! | element from nowhere | nobody appended it |
//! | internal | a transaction contradicts itself |
//!
//! `-process` after a name: the cycle needs the order of one client's transactions; `-realtime`: it needs the order of
//! transactions of different clients that did not overlap. A transaction of unknown outcome counts once somebody saw an element of it.

mod cycles;
mod graph;
mod reads;

use crate::{History, Object, Report};

/// The name of this checker.
pub const NAME: &str = "lists";

/// Checks all list transactions of a history.
pub fn check(history: &History) -> Report {
    let mut report = Report::new(NAME);
    let operations = history
        .by_object()
        .remove(&Object::Lists)
        .unwrap_or_default();
    report.operations = operations.len() as u64;
    let Some(observed) = reads::Observed::new(&operations, &mut report) else {
        return report;
    };
    report.objects = observed.lists.len() as u64;
    let graph = graph::Graph::new(&operations, &observed);
    cycles::find(&graph, &operations, &observed, &mut report);
    report
}
