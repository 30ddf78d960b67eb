//! Long histories of a model of a correct store pass, whatever was never answered; each planted fault is found.

mod support;

use mareedb_history::check::{self, Options};
use mareedb_history::generate::{Fault, Generator, Kind, Plan};
use mareedb_history::{History, Outcome, Verdict, json, pieces};

fn plan(seed: u64) -> Plan {
    Plan {
        unknown_per_mille: 60,
        ..Plan::new(seed, 4000)
    }
}

#[test]
fn a_correct_store_is_never_accused() {
    let mut unknown = 0;
    for seed in 0..60 {
        let history = support::history(Generator::new(plan(seed)).collect());
        assert_eq!(history.operations().len(), 4000);
        unknown += history
            .operations()
            .iter()
            .filter(|operation| matches!(operation.outcome, Outcome::Unknown(_)))
            .count();
        let reports = check::all(&history, &Options::default());
        assert_eq!(
            check::verdict(&reports),
            Verdict::Holds,
            "seed {seed}: {reports:#?}"
        );
        for report in &reports {
            assert!(
                report.operations > 50,
                "seed {seed}: {} saw too little",
                report.checker
            );
        }
    }
    assert!(
        unknown > 10_000,
        "unknown outcomes must be among them: {unknown}"
    );
}

#[test]
fn one_plan_makes_one_history() {
    let one: Vec<_> = Generator::new(plan(7)).collect();
    let other: Vec<_> = Generator::new(plan(7)).collect();
    assert!(one == other);
    let third: Vec<_> = Generator::new(plan(8)).collect();
    assert!(one != third);
}

#[test]
fn many_clients_on_few_objects() {
    for seed in 0..10 {
        let crowded = Plan {
            clients: 24,
            objects: 1,
            ..plan(seed)
        };
        let history = support::history(Generator::new(crowded).collect());
        let reports = check::all(&history, &Options::default());
        assert_eq!(
            check::verdict(&reports),
            Verdict::Holds,
            "seed {seed}: {reports:#?}"
        );
    }
}

/// In how many of 20 histories with a planted fault a checker says so; and no other checker than those named does.
fn caught(kind: Kind, fault: Fault, checkers: &[&str]) -> usize {
    (0..20)
        .filter(|seed| {
            let faulty = Plan {
                kinds: vec![kind],
                fault: Some(fault),
                ..plan(*seed)
            };
            let mut generator = Generator::new(faulty);
            let operations: Vec<_> = generator.by_ref().collect();
            assert!(generator.planted() > 0, "the fault never struck");
            let reports = check::all(&support::history(operations), &Options::default());
            let accusing: Vec<&str> = reports
                .iter()
                .filter(|report| report.verdict() == Verdict::Violated)
                .map(|report| report.checker)
                .collect();
            for checker in &accusing {
                assert!(
                    checkers.contains(checker),
                    "{checker} accuses a {fault:?}: {reports:#?}"
                );
            }
            accusing.contains(&checkers[0])
        })
        .count()
}

#[test]
fn each_planted_fault_is_caught() {
    let register = ["register", "revisions", "committed"];
    let revisions = ["revisions", "committed", "register"];
    let committed = ["committed", "revisions"];
    for (kind, fault, checkers) in [
        (Kind::Register, Fault::LostWrite, &register[..]),
        (Kind::Register, Fault::FailedWrite, &register),
        (Kind::Register, Fault::StaleRead, &register),
        (Kind::Register, Fault::BlindSwap, &register),
        (Kind::Register, Fault::Twice, &register),
        (Kind::Register, Fault::OldRevision, &revisions),
        (Kind::Register, Fault::Uncommitted, &committed),
        (Kind::Set, Fault::LostWrite, &["set"]),
        (Kind::Set, Fault::FailedWrite, &["set"]),
        (Kind::Set, Fault::StaleRead, &["set"]),
        (Kind::Lists, Fault::LostWrite, &["lists"]),
        (Kind::Lists, Fault::FailedWrite, &["lists"]),
        (Kind::Lists, Fault::StaleRead, &["lists"]),
        (Kind::Lists, Fault::LostUpdate, &["lists"]),
        (Kind::Lists, Fault::Twice, &["lists"]),
        (Kind::Counter, Fault::LostWrite, &["counter"]),
        (Kind::Counter, Fault::FailedWrite, &["counter"]),
        (Kind::Counter, Fault::StaleRead, &["counter"]),
        (Kind::Counter, Fault::Twice, &["counter"]),
        (Kind::Bank, Fault::LostWrite, &["bank"]),
        (Kind::Bank, Fault::FailedWrite, &["bank"]),
        (Kind::Bank, Fault::StaleRead, &["bank"]),
        (Kind::Bank, Fault::Twice, &["bank"]),
        (Kind::Bank, Fault::HalfTransfer, &["bank"]),
    ] {
        let times = caught(kind, fault, checkers);
        eprintln!("{kind:?} with {fault:?}: found in {times} of 20 histories");
        assert!(
            times >= 15,
            "{kind:?} with {fault:?}: found in {times} of 20 histories"
        );
    }
}

#[test]
fn pieces_say_what_the_whole_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("history.jsonl");
    for fault in [None, Some(Fault::OldRevision), Some(Fault::LostWrite)] {
        let operations: Vec<_> = Generator::new(Plan { fault, ..plan(3) }).collect();
        let mut bytes = Vec::new();
        for operation in &operations {
            json::write(&mut bytes, operation).expect("written");
        }
        std::fs::write(&path, &bytes).expect("written");
        let options = Options::default();
        let whole = check::all(&History::new(operations).expect("a history"), &options);
        let apart = pieces::check(&path, 5, &options).expect("a history");
        for (one, other) in whole.iter().zip(&apart) {
            assert_eq!(one.checker, other.checker);
            assert_eq!(one.objects, other.objects, "{}", one.checker);
            assert_eq!(one.operations, other.operations, "{}", one.checker);
            assert_eq!(
                one.violations_total, other.violations_total,
                "{}",
                one.checker
            );
        }
        assert_eq!(fault.is_some(), check::verdict(&apart) == Verdict::Violated);
    }
}
