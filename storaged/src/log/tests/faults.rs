//! Each checker bites: a fault that is planted in the log is found within the seeds of a short run.

use super::super::planted::{Fault, plant};
use super::crash::{SEEDS, run};
use super::world::Tally;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The first seed that finds the fault, and what it says.
fn found(fault: Fault) -> Option<(u64, String)> {
    for seed in 1..=SEEDS {
        plant(Some(fault));
        let ran = catch_unwind(AssertUnwindSafe(|| run(seed, &mut Tally::default())));
        plant(None);
        if let Err(payload) = ran {
            let said = payload.downcast_ref::<String>().cloned().or_else(|| {
                payload
                    .downcast_ref::<&str>()
                    .map(|said| (*said).to_owned())
            });
            return Some((seed, said.unwrap_or_default()));
        }
    }
    None
}

fn must_find(fault: Fault, rules: &[&str]) {
    let Some((seed, said)) = found(fault) else {
        panic!("{fault:?} is not found");
    };
    let head: String = said.chars().take(100).collect();
    eprintln!("{fault:?} is found by seed {seed}: {head}");
    assert!(
        rules.iter().any(|rule| said.contains(rule)),
        "{fault:?} is found, but not by {rules:?}: {said}"
    );
}

#[test]
fn a_checksum_that_nobody_looks_at_is_found() {
    must_find(Fault::Checksum, &["DUR-2", "LOG-3"]);
}

#[test]
fn old_units_of_a_recycled_segment_taken_for_new_ones_are_found() {
    must_find(Fault::Segment, &["DUR-2", "LOG-3"]);
}

/// LOG-1
#[test]
fn an_acknowledgement_beyond_the_contiguous_prefix_is_found() {
    must_find(Fault::Prefix, &["DUR-2", "LOG-3", "LOG-8"]);
}

#[test]
fn damage_that_a_later_unit_would_tell_of_is_found() {
    must_find(Fault::Confirmed, &["LOG-3"]);
}

/// LOG-4
#[test]
fn a_seal_without_its_flush_is_found() {
    must_find(Fault::Seal, &["DUR-2", "LOG-3"]);
}

/// LOG-7
#[test]
fn a_segment_that_is_used_again_too_early_is_found() {
    must_find(Fault::Unneeded, &["DUR-2", "LOG-3"]);
}

#[test]
fn a_segment_that_is_used_again_under_a_reader_is_found() {
    must_find(Fault::Pinned, &["LOG-7"]);
}

#[test]
fn an_entry_that_leaves_the_memory_too_early_is_found() {
    must_find(Fault::Evicted, &["LOG-8"]);
}
