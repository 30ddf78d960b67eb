//! What a checker found.

use crate::Operation;
use serde::Serialize;

/// How many violations and undecided objects a report keeps in full; the rest is only counted. One cause tends to show in
/// thousands of operations, and a reader needs the first.
pub const KEPT_MAX: usize = 50;

/// How many operations a violation shows at most.
pub const SHOWN_MAX: usize = 12;

/// One breach of a promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The name of the anomaly, in the field's words: `lost update`, `G1a`, ...
    pub anomaly: String,
    /// The object that it is about, such as `register a`.
    pub object: String,
    /// Why these operations cannot all be.
    pub explanation: String,
    /// The operations that show it, in the order of the explanation; at most [`SHOWN_MAX`].
    pub operations: Vec<Operation>,
}

/// An object of which a checker can say neither that it is right nor that it is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Undecided {
    /// The object.
    pub object: String,
    /// Why nothing can be said: a bound was reached, or the clients did what the checker cannot judge.
    pub why: String,
}

/// What the whole comes to, the worse the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything was checked and nothing is wrong.
    Holds,
    /// Nothing was found wrong, and not everything could be checked.
    Undecided,
    /// Something is wrong.
    Violated,
}

/// What one checker found in a history, or in all pieces of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The checker.
    pub checker: &'static str,
    /// How many objects it looked at.
    pub objects: u64,
    /// How many operations it looked at.
    pub operations: u64,
    /// The first violations.
    pub violations: Vec<Violation>,
    /// How many violations there are in all.
    pub violations_total: u64,
    /// The first objects of which nothing can be said.
    pub undecided: Vec<Undecided>,
    /// How many of them there are in all.
    pub undecided_total: u64,
}

impl Report {
    /// The report of a checker that has seen nothing yet.
    pub fn new(checker: &'static str) -> Report {
        Report {
            checker,
            objects: 0,
            operations: 0,
            violations: Vec::new(),
            violations_total: 0,
            undecided: Vec::new(),
            undecided_total: 0,
        }
    }

    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        if self.violations_total > 0 {
            Verdict::Violated
        } else if self.undecided_total > 0 {
            Verdict::Undecided
        } else {
            Verdict::Holds
        }
    }

    /// Takes in what the same checker found in another piece of the history.
    ///
    /// # Panics
    /// The other report is another checker's.
    pub fn merge(&mut self, other: Report) {
        assert_eq!(self.checker, other.checker, "reports of one checker");
        self.objects += other.objects;
        self.operations += other.operations;
        self.violations_total += other.violations_total;
        self.undecided_total += other.undecided_total;
        self.violations.extend(other.violations);
        self.violations.truncate(KEPT_MAX);
        self.undecided.extend(other.undecided);
        self.undecided.truncate(KEPT_MAX);
    }

    pub(crate) fn violate(
        &mut self,
        anomaly: impl Into<String>,
        object: impl ToString,
        explanation: impl Into<String>,
        operations: &[&Operation],
    ) {
        self.violations_total += 1;
        if self.violations.len() < KEPT_MAX {
            self.violations.push(Violation {
                anomaly: anomaly.into(),
                object: object.to_string(),
                explanation: explanation.into(),
                operations: operations
                    .iter()
                    .take(SHOWN_MAX)
                    .map(|operation| (*operation).clone())
                    .collect(),
            });
        }
    }

    pub(crate) fn undecided(&mut self, object: impl ToString, why: impl Into<String>) {
        self.undecided_total += 1;
        if self.undecided.len() < KEPT_MAX {
            self.undecided.push(Undecided {
                object: object.to_string(),
                why: why.into(),
            });
        }
    }
}
