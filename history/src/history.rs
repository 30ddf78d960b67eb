//! A whole history, in the order in which its operations began.

use crate::{Object, Operation, Outcome};
use std::collections::{BTreeMap, HashMap};

/// What clients did, ordered by when they asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    operations: Vec<Operation>,
}

/// Why operations are not a history: nothing can be said of them, right or wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// An operation ends before it begins, is done without an end, or has an answer to another call.
    #[error("an operation that cannot be: {why}: {operation:?}")]
    Impossible {
        /// What is wrong with it.
        why: &'static str,
        /// The operation.
        operation: Box<Operation>,
    },
    /// A client asked before it had its answer.
    #[error(
        "two operations of process {process} overlap: from {first_ns} ns and from {second_ns} ns"
    )]
    Overlap {
        /// The client.
        process: u64,
        /// When the first one began.
        first_ns: u64,
        /// When the second one began.
        second_ns: u64,
    },
}

impl History {
    /// A history of these operations, in whatever order they come.
    ///
    /// # Errors
    /// An operation is impossible in itself, or two of one process overlap.
    pub fn new(mut operations: Vec<Operation>) -> Result<History, HistoryError> {
        operations.sort_by_key(|operation| (operation.start_ns, operation.end_ns));
        let mut last: HashMap<u64, (u64, u64)> = HashMap::new();
        for operation in &operations {
            check(operation)?;
            // A client that gave up on an operation may ask on at once: then the end says nothing.
            let until = operation.end_ns.unwrap_or(operation.start_ns);
            let previous = last.insert(operation.process, (operation.start_ns, until));
            if let Some((first_ns, until)) = previous
                && operation.start_ns < until
            {
                return Err(HistoryError::Overlap {
                    process: operation.process,
                    first_ns,
                    second_ns: operation.start_ns,
                });
            }
        }
        Ok(History { operations })
    }

    /// The operations, ordered by when they began.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The operations of each object, each in the order of the whole.
    pub fn by_object(&self) -> BTreeMap<Object<'_>, Vec<&Operation>> {
        let mut objects: BTreeMap<Object<'_>, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            objects
                .entry(operation.call.object())
                .or_default()
                .push(operation);
        }
        objects
    }
}

fn check(operation: &Operation) -> Result<(), HistoryError> {
    let why = match (&operation.outcome, operation.end_ns) {
        (_, Some(end_ns)) if end_ns < operation.start_ns => "it ends before it begins",
        (Outcome::Ok(_) | Outcome::Failed(_), None) => "it has an outcome and no end",
        (Outcome::Ok(answer), _) if !operation.call.takes(answer) => {
            "its answer belongs to another call"
        }
        _ => return Ok(()),
    };
    Err(HistoryError::Impossible {
        why,
        operation: Box::new(operation.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Call};

    fn operation(process: u64, start_ns: u64, end_ns: Option<u64>) -> Operation {
        Operation {
            process,
            node: "a".to_owned(),
            start_ns,
            end_ns,
            call: Call::Delete {
                key: "k".to_owned(),
            },
            outcome: Outcome::Unknown("lost".to_owned()),
        }
    }

    #[test]
    fn operations_are_ordered_and_one_process_asks_one_thing_at_a_time() {
        let history = History::new(vec![
            operation(1, 20, None),
            operation(2, 5, Some(30)),
            operation(1, 0, Some(20)),
        ])
        .expect("a history");
        let starts: Vec<u64> = history.operations().iter().map(|o| o.start_ns).collect();
        assert_eq!(starts, [0, 5, 20]);
        let overlap = History::new(vec![operation(1, 0, Some(20)), operation(1, 19, None)]);
        assert_eq!(
            overlap,
            Err(HistoryError::Overlap {
                process: 1,
                first_ns: 0,
                second_ns: 19
            })
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(History::new(vec![operation(1, 2, Some(1))]).is_err());
        let mut endless = operation(1, 0, None);
        endless.outcome = Outcome::Failed("NO_QUORUM".to_owned());
        assert!(History::new(vec![endless]).is_err());
        let mut foreign = operation(1, 0, Some(1));
        foreign.outcome = Outcome::Ok(Answer::Count { value: 1 });
        assert!(History::new(vec![foreign]).is_err());
    }
}
