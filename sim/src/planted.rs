//! What shows that a planted fault was found: the promise that it breaks, or daemons that end by saying so. Anything else that goes wrong
//! while it is planted would go wrong without anybody who watches over that promise.

use crate::checks::Violation;
use mareedb_ipc::world::Fault;

/// Ids of the promises that a fault breaks, and what a daemon says that ends by it; the table of docs/simulation.md has them, too.
pub fn signs(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::RestoreAlways | Fault::AppendNotAwaited => &["RAFT-2", "RAFT-7"],
        Fault::TruncationIgnored => &["RAFT-2"],
        // What reads show is held to revisions, too.
        Fault::LeaseReads | Fault::RestoredReads | Fault::ReadsUnapplied => &["LIN-1", "LIN-3"],
        // Two that lead one term write two entries to one place.
        Fault::VoteNotAwaited => &["RAFT-1", "RAFT-2"],
        Fault::HeadBeforeDurable => &["RAFT-2", "RAFT-7", "was acknowledged"],
        Fault::RedeliveryTaken => &["LOG-6", "RAFT-2"],
        Fault::ApplyBeyondCommit => &["LIN-2", "DET-1", "RAFT-7"],
        // A write that takes effect twice has two revisions, of which no answer tells one.
        Fault::RepeatsApplied => &["ONCE-1", "LIN-3"],
        Fault::EpochIgnored => &["EPOCH"],
        Fault::ClockInApply => &["DET-1"],
        Fault::SnapshotWithoutSessions => &["ONCE-1", "DET-1"],
        Fault::ExpiryByWallClock => &["ONCE-1"],
        Fault::StartedUnapplied | Fault::StartedShown => &["LIVE"],
    }
}

/// Whether it is this fault that a violation shows.
pub fn shows(fault: Fault, violation: &Violation) -> bool {
    let mut signs = signs(fault).iter();
    match violation.id {
        "PANIC" | "ENDS" => signs.any(|sign| violation.what.contains(sign)),
        id => signs.any(|sign| *sign == id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation(id: &'static str, what: &str) -> Violation {
        Violation {
            id,
            what: what.to_owned(),
        }
    }

    #[test]
    fn the_page_says_what_shows_each_fault() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/simulation.md");
        let page = std::fs::read_to_string(page).expect("the page");
        for fault in Fault::ALL {
            let name = format!("| `{fault:?}` |");
            let row = page.lines().find(|line| line.starts_with(&name));
            let shown = row.and_then(|row| row.split(" | ").nth(2));
            assert_eq!(shown, Some(signs(fault).join(", ").as_str()), "{fault:?}");
        }
    }

    #[test]
    fn a_breach_of_something_else_is_no_sign() {
        let fault = Fault::TruncationIgnored;
        for (id, what, sign) in [
            ("RAFT-2", "g1: two entries at 6@2", true),
            ("LIVE", "replicas are not equal, says RAFT-2", false),
            ("DET-1", "g1: node1 and another differ", false),
            ("PANIC", "consensusd of node1: index out of bounds", false),
            ("PANIC", "consensusd of node1: RAFT-2: g1 has a hole", true),
            (
                "ENDS",
                "storaged of node1: RAFT-2: g1: entry 18 where 20 is due",
                true,
            ),
            ("ENDS", "storaged of node1: the log is damaged", false),
        ] {
            assert_eq!(shows(fault, &violation(id, what)), sign, "{id}: {what}");
        }
    }
}
