//! Where the value of a register can come from.

use crate::{Answer, Call, Object, Operation, Outcome, Report};

/// Who may have written a value.
pub(super) enum Source<'a> {
    /// Nobody ever tried.
    Nowhere,
    /// These tried; each failed, or began only after the value was seen.
    Never(Vec<&'a Operation>),
    /// These may have.
    Possible(Vec<&'a Operation>),
}

/// What an operation would leave in its register.
pub(super) fn written(call: &Call) -> Option<&str> {
    match call {
        Call::Put { value, .. } => Some(value),
        Call::CompareAndSwap { new, .. } => Some(new),
        _ => None,
    }
}

/// Whether the operation can have written anything, as far as its outcome tells.
pub(super) fn may_have_written(operation: &Operation) -> bool {
    !matches!(
        operation.outcome,
        Outcome::Failed(_)
            | Outcome::Ok(Answer::Swapped {
                succeeded: false,
                ..
            })
    )
}

/// Finds out who may have written the value that `seen` saw, among the operations on its key.
pub(super) fn source<'a>(text: &str, seen: &Operation, all: &[&'a Operation]) -> Source<'a> {
    let tried: Vec<&'a Operation> = all
        .iter()
        .copied()
        .filter(|operation| written(&operation.call) == Some(text))
        .collect();
    let (possible, never): (Vec<&Operation>, Vec<&Operation>) =
        tried.into_iter().partition(|tried| {
            may_have_written(tried) && seen.end_ns.is_none_or(|end| tried.start_ns <= end)
        });
    match (possible.is_empty(), never.is_empty()) {
        (false, _) => Source::Possible(possible),
        (true, false) => Source::Never(never),
        (true, true) => Source::Nowhere,
    }
}

impl Source<'_> {
    /// Reports a value that cannot have been there; nothing if it can.
    pub(super) fn violate(
        self,
        object: Object<'_>,
        text: &str,
        seen: &Operation,
        report: &mut Report,
    ) {
        match self {
            Source::Nowhere => {
                let why = format!("it saw '{text}', which nobody ever wrote");
                report.violate("value from nowhere", object, why, &[seen]);
            }
            Source::Never(writers) => {
                let why = format!(
                    "it saw '{text}', and each write of that failed or began only after the answer"
                );
                let operations: Vec<&Operation> = [seen].into_iter().chain(writers).collect();
                report.violate("dirty read", object, why, &operations);
            }
            Source::Possible(_) => {}
        }
    }
}
