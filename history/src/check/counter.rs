//! Counters: every increment counts exactly once (ONCE-1).
//!
//! For each counter, a read's value lies between what must have been counted and what can have been: at least all that was
//! acknowledged before the read began and all that an earlier read saw; at most all increments that began before the read
//! ended, without those that failed. What an increment itself answered as the new value is held against the same bounds,
//! and two acknowledged increments never claim the same step of the counter. So after all clients are done: acknowledged
//! ≤ value ≤ acknowledged + unknown. A stale read has the upper bound only.
//!
//! Not promised: with increments of unknown outcome, one that failed and was counted all the same may hide among them.

use super::sweep::Sums;
use crate::{Answer, Call, Consistency, History, Object, Operation, Outcome, Report};

/// The name of this checker.
pub const NAME: &str = "counter";

/// Somebody saw the counter at a value.
struct Sight<'a> {
    operation: &'a Operation,
    value: u64,
    /// What the operation itself had added to it.
    own: u64,
    linearizable: bool,
}

/// Checks all counters of a history.
pub fn check(history: &History) -> Report {
    let mut report = Report::new(NAME);
    for (object, operations) in history.by_object() {
        if matches!(object, Object::Counter(_)) {
            report.objects += 1;
            report.operations += operations.len() as u64;
            one(object, &operations, &mut report);
        }
    }
    report
}

fn one(object: Object<'_>, operations: &[&Operation], report: &mut Report) {
    let mut must = Vec::new();
    let mut can = Vec::new();
    let mut sights: Vec<Sight<'_>> = Vec::new();
    for operation in operations {
        match (&operation.call, &operation.outcome) {
            (Call::Increment { amount, .. }, outcome) => {
                if !matches!(outcome, Outcome::Failed(_)) {
                    can.push((operation.start_ns, i128::from(*amount)));
                }
                if let (Outcome::Ok(answer), Some(end)) = (outcome, operation.end_ns) {
                    must.push((end, i128::from(*amount)));
                    if let Answer::Incremented {
                        value: Some(value), ..
                    } = answer
                    {
                        sights.push(Sight {
                            operation,
                            value: *value,
                            own: *amount,
                            linearizable: true,
                        });
                    }
                }
            }
            (Call::CounterRead { consistency, .. }, Outcome::Ok(Answer::Count { value })) => sights
                .push(Sight {
                    operation,
                    value: *value,
                    own: 0,
                    linearizable: *consistency == Consistency::Linearizable,
                }),
            _ => {}
        }
    }
    let (must, can) = (Sums::new(must), Sums::new(can));
    for sight in &sights {
        bounds(object, sight, &must, &can, report);
    }
    backwards(object, &sights, report);
    twice(object, &mut sights, report);
}

fn bounds(object: Object<'_>, sight: &Sight<'_>, must: &Sums, can: &Sums, report: &mut Report) {
    let operation = sight.operation;
    let value = i128::from(sight.value);
    let least = if sight.linearizable {
        must.before(operation.start_ns) + i128::from(sight.own)
    } else {
        0
    };
    let most = can.until(operation.end_ns.unwrap_or(u64::MAX));
    if value < least {
        let why =
            format!("the counter was at {value}, and increments by {least} were acknowledged");
        report.violate("lost increment", object, why, &[operation]);
    } else if value > most {
        let why = format!(
            "the counter was at {value}, and all increments that can have counted come to {most}: one counted twice, or \
             although it failed"
        );
        report.violate("counted too often", object, why, &[operation]);
    }
}

/// What was seen once is seen by each later linearizable operation.
fn backwards(object: Object<'_>, sights: &[Sight<'_>], report: &mut Report) {
    let mut by_end: Vec<&Sight<'_>> = sights.iter().collect();
    by_end.sort_by_key(|sight| sight.operation.end_ns);
    let mut by_start: Vec<&Sight<'_>> = sights.iter().filter(|sight| sight.linearizable).collect();
    by_start.sort_by_key(|sight| sight.operation.start_ns);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<&Sight<'_>> = None;
    for sight in by_start {
        while let Some(earlier) =
            ended.next_if(|earlier| earlier.operation.end_ns < Some(sight.operation.start_ns))
        {
            if highest.is_none_or(|highest| highest.value < earlier.value) {
                highest = Some(earlier);
            }
        }
        if let Some(earlier) = highest
            && sight.value < earlier.value + sight.own
        {
            let why = format!(
                "the counter was at {} and later at {}{}",
                earlier.value,
                sight.value,
                if sight.own > 0 {
                    format!(", after another {}", sight.own)
                } else {
                    String::new()
                }
            );
            report.violate(
                "went backwards",
                object,
                why,
                &[earlier.operation, sight.operation],
            );
        }
    }
}

/// No two increments moved the counter through the same step.
fn twice(object: Object<'_>, sights: &mut Vec<Sight<'_>>, report: &mut Report) {
    sights.retain(|sight| sight.own > 0);
    sights.sort_by_key(|sight| sight.value);
    for pair in sights.windows(2) {
        let [low, high] = pair else { continue };
        if high.value.saturating_sub(high.own) < low.value {
            let why = format!(
                "one increment moved the counter from {} to {}, another from {} to {}",
                low.value.saturating_sub(low.own),
                low.value,
                high.value.saturating_sub(high.own),
                high.value
            );
            report.violate("lost update", object, why, &[low.operation, high.operation]);
        }
    }
}
