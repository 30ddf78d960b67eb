//! The smallest history of each anomaly, and beside it, where one is near, a history that is right.

mod lists;
mod past;
#[path = "../support/mod.rs"]
mod support;

use mareedb_history::check::{Options, bank, counter, register, set};
use mareedb_history::{Answer, Call, Consistency, Operation, Outcome, Report, Verdict};
use std::collections::BTreeMap;
use support::{done, failed, finds, get, history, ok, put, swap, unknown, value, written};

fn registers(operations: Vec<Operation>) -> Report {
    register::check(&history(operations), &Options::default())
}

fn holds(report: &Report) {
    assert_eq!(report.verdict(), Verdict::Holds, "{report:#?}");
    assert!(report.operations > 0, "it saw nothing");
}

#[test]
fn register_a_read_of_an_old_value() {
    let write = |until| {
        vec![
            ok(1, 0, 10, put("k", "a"), written(1)),
            ok(1, 20, until, put("k", "b"), written(2)),
            ok(2, 40, 50, get("k"), value(Some("a"), Some(1))),
        ]
    };
    finds(&registers(write(30)), "not linearizable", 3);
    // With the second write still open, the old value may be seen.
    holds(&registers(write(45)));
}

#[test]
fn register_two_reads_in_the_wrong_order() {
    let reads = |first: &str, second: &str| {
        vec![
            ok(1, 0, 10, put("k", "a"), written(1)),
            ok(1, 20, 90, put("k", "b"), written(2)),
            ok(2, 30, 40, get("k"), value(Some(first), None)),
            ok(3, 50, 60, get("k"), value(Some(second), None)),
        ]
    };
    finds(&registers(reads("b", "a")), "not linearizable", 4);
    holds(&registers(reads("a", "b")));
    holds(&registers(reads("b", "b")));
}

#[test]
fn register_a_write_of_unknown_outcome_happens_once_at_any_time() {
    let reads = |answers: &[Option<&str>]| {
        let mut operations = vec![
            done(1, 0, 10, put("k", "u"), unknown()),
            ok(2, 20, 30, put("k", "a"), written(2)),
        ];
        for (at, answer) in (0_u64..).zip(answers) {
            operations.push(ok(
                3,
                40 + at * 10,
                45 + at * 10,
                get("k"),
                value(*answer, None),
            ));
        }
        operations
    };
    holds(&registers(reads(&[
        Some("a"),
        Some("a"),
        Some("u"),
        Some("u"),
    ])));
    holds(&registers(reads(&[Some("u")])));
    finds(
        &registers(reads(&[Some("a"), Some("u"), Some("a")])),
        "not linearizable",
        5,
    );
    finds(&registers(reads(&[None])), "not linearizable", 2);
}

#[test]
fn register_a_deletion_and_what_it_says() {
    let delete = |deleted| {
        let call = Call::Delete {
            key: "k".to_owned(),
        };
        let answer = Answer::Deleted {
            deleted,
            revision: None,
        };
        vec![
            ok(1, 0, 10, put("k", "a"), written(1)),
            ok(1, 20, 30, call, answer),
            ok(1, 40, 50, get("k"), value(None, None)),
        ]
    };
    holds(&registers(delete(true)));
    finds(&registers(delete(false)), "not linearizable", 2);
}

#[test]
fn register_two_swaps_of_one_value() {
    let swaps = |second| {
        let answer = |succeeded| Answer::Swapped {
            succeeded,
            revision: None,
        };
        vec![
            ok(1, 0, 10, put("k", "a"), written(1)),
            ok(2, 20, 40, swap("k", Some("a"), "b"), answer(true)),
            ok(3, 20, 50, swap("k", Some("a"), "c"), answer(second)),
        ]
    };
    holds(&registers(swaps(false)));
    finds(&registers(swaps(true)), "not linearizable", 3);
    let absent = vec![
        ok(
            1,
            0,
            10,
            swap("k", None, "a"),
            Answer::Swapped {
                succeeded: true,
                revision: None,
            },
        ),
        ok(
            1,
            20,
            30,
            swap("k", None, "b"),
            Answer::Swapped {
                succeeded: true,
                revision: None,
            },
        ),
    ];
    finds(&registers(absent), "not linearizable", 2);
}

#[test]
fn register_values_that_cannot_be() {
    let report = registers(vec![ok(1, 0, 10, get("k"), value(Some("x"), None))]);
    finds(&report, "value from nowhere", 1);
    let report = registers(vec![
        done(1, 0, 10, put("k", "x"), failed()),
        ok(1, 20, 30, get("k"), value(Some("x"), None)),
    ]);
    finds(&report, "dirty read", 2);
}

#[test]
fn register_the_bound_of_the_search_is_told() {
    let mut operations: Vec<Operation> = (0..20)
        .map(|process| {
            ok(
                process,
                0,
                100,
                put("k", &format!("v{process}")),
                written(process),
            )
        })
        .collect();
    operations.push(ok(50, 200, 210, get("k"), value(Some("v0"), None)));
    operations.push(ok(50, 220, 230, get("k"), value(Some("v1"), None)));
    let options = Options {
        positions_max: 1000,
        ..Options::default()
    };
    let report = register::check(&history(operations), &options);
    assert_eq!(report.verdict(), Verdict::Undecided, "{report:#?}");
    assert_eq!(report.undecided[0].object, "register k");
}

fn add(element: u64) -> Call {
    Call::SetAdd {
        set: "s".to_owned(),
        element,
    }
}

fn members(consistency: Consistency) -> Call {
    Call::SetRead {
        set: "s".to_owned(),
        consistency,
    }
}

fn elements(elements: &[u64]) -> Answer {
    Answer::Set {
        elements: elements.to_vec(),
    }
}

#[test]
fn set_anomalies() {
    let fresh = || members(Consistency::Linearizable);
    let check = |operations| set::check(&history(operations));
    let lost = |shown: &[u64]| {
        vec![
            ok(1, 0, 10, add(1), written(1)),
            ok(1, 20, 30, add(2), written(2)),
            ok(2, 40, 50, fresh(), elements(shown)),
        ]
    };
    holds(&check(lost(&[2, 1])));
    finds(&check(lost(&[1])), "lost element", 2);
    finds(&check(lost(&[2])), "lost element", 2);
    finds(&check(lost(&[1, 2, 3])), "element from nowhere", 1);
    finds(&check(lost(&[1, 2, 2])), "duplicate", 1);
    finds(
        &check(vec![
            done(1, 0, 10, add(1), failed()),
            ok(2, 20, 30, fresh(), elements(&[1])),
        ]),
        "dirty read",
        2,
    );
    finds(
        &check(vec![
            ok(2, 0, 10, fresh(), elements(&[1])),
            ok(1, 20, 30, add(1), written(1)),
        ]),
        "read of the future",
        2,
    );
}

#[test]
fn set_reads_lie_on_one_line() {
    let check = |operations| set::check(&history(operations));
    let stale = || members(Consistency::Stale);
    let fresh = || members(Consistency::Linearizable);
    let open = vec![
        done(1, 0, 90, add(1), unknown()),
        done(2, 0, 90, add(2), unknown()),
        ok(3, 10, 20, stale(), elements(&[1])),
    ];
    let with = |call, shown: &[u64]| {
        let mut operations = open.clone();
        operations.push(ok(4, 30, 40, call, elements(shown)));
        operations
    };
    holds(&check(with(fresh(), &[1, 2])));
    holds(&check(with(stale(), &[])));
    finds(&check(with(fresh(), &[])), "vanished element", 2);
    finds(&check(with(stale(), &[2])), "fork", 2);
    // A stale read may be behind, but it has no gaps.
    finds(
        &check(vec![
            ok(1, 0, 10, add(1), written(1)),
            ok(1, 20, 30, add(2), written(2)),
            ok(2, 40, 50, stale(), elements(&[2])),
        ]),
        "lost element",
        3,
    );
}

fn add_to(amount: u64) -> Call {
    Call::Increment {
        counter: "c".to_owned(),
        amount,
    }
}

fn count(consistency: Consistency) -> Call {
    Call::CounterRead {
        counter: "c".to_owned(),
        consistency,
    }
}

fn incremented(value: Option<u64>) -> Answer {
    Answer::Incremented {
        value,
        revision: None,
    }
}

#[test]
fn counter_anomalies() {
    let check = |operations| counter::check(&history(operations));
    let reads = |shown: u64, consistency| {
        vec![
            ok(1, 0, 10, add_to(2), incremented(None)),
            done(2, 0, 10, add_to(3), unknown()),
            done(3, 0, 10, add_to(10), failed()),
            ok(
                1,
                20,
                30,
                count(consistency),
                Answer::Count { value: shown },
            ),
        ]
    };
    for right in [2, 5] {
        holds(&check(reads(right, Consistency::Linearizable)));
    }
    holds(&check(reads(0, Consistency::Stale)));
    finds(
        &check(reads(0, Consistency::Linearizable)),
        "lost increment",
        1,
    );
    finds(
        &check(reads(6, Consistency::Linearizable)),
        "counted too often",
        1,
    );
    finds(&check(reads(6, Consistency::Stale)), "counted too often", 1);
    finds(
        &check(vec![
            ok(1, 0, 90, add_to(1), incremented(None)),
            ok(
                2,
                10,
                20,
                count(Consistency::Linearizable),
                Answer::Count { value: 1 },
            ),
            ok(
                2,
                30,
                40,
                count(Consistency::Linearizable),
                Answer::Count { value: 0 },
            ),
        ]),
        "went backwards",
        2,
    );
    finds(
        &check(vec![
            ok(1, 0, 90, add_to(1), incremented(Some(1))),
            ok(2, 0, 90, add_to(1), incremented(Some(1))),
        ]),
        "lost update",
        2,
    );
}

fn balances(x: i64, y: i64) -> BTreeMap<String, i64> {
    BTreeMap::from([("x".to_owned(), x), ("y".to_owned(), y)])
}

fn bank_with(transfer: Outcome, consistency: Consistency, shown: BTreeMap<String, i64>) -> Report {
    let bank = || "b".to_owned();
    let open = Call::BankOpen {
        bank: bank(),
        accounts: balances(10, 10),
    };
    let pay = Call::Transfer {
        bank: bank(),
        from: "x".to_owned(),
        to: "y".to_owned(),
        amount: 5,
    };
    let look = Call::BankRead {
        bank: bank(),
        consistency,
    };
    bank::check(&history(vec![
        ok(1, 0, 10, open, written(1)),
        done(1, 20, 30, pay, transfer),
        ok(2, 40, 50, look, Answer::Accounts { balances: shown }),
    ]))
}

#[test]
fn bank_anomalies() {
    let paid = || Outcome::Ok(written(2));
    let fresh = Consistency::Linearizable;
    let stale = Consistency::Stale;
    holds(&bank_with(paid(), fresh, balances(5, 15)));
    holds(&bank_with(paid(), stale, balances(10, 10)));
    holds(&bank_with(unknown(), fresh, balances(10, 10)));
    holds(&bank_with(unknown(), fresh, balances(5, 15)));
    holds(&bank_with(paid(), stale, BTreeMap::new()));
    finds(&bank_with(paid(), fresh, balances(5, 10)), "wrong total", 2);
    finds(&bank_with(paid(), stale, balances(5, 10)), "wrong total", 2);
    finds(
        &bank_with(paid(), stale, balances(-5, 25)),
        "negative balance",
        1,
    );
    finds(
        &bank_with(paid(), fresh, BTreeMap::new()),
        "wrong accounts",
        2,
    );
    let report = bank_with(paid(), fresh, balances(10, 10));
    assert!(
        report
            .violations
            .iter()
            .all(|violation| violation.anomaly == "wrong balance"),
        "{report:#?}"
    );
    assert_eq!(
        report.violations_total, 2,
        "a transfer that was lost shows in both accounts"
    );
    assert_eq!(
        bank_with(paid(), fresh, balances(0, 20)).violations_total,
        2,
        "done twice"
    );
    assert_eq!(
        bank_with(failed(), fresh, balances(5, 15)).violations_total,
        2,
        "done although it failed"
    );
}

#[test]
fn bank_that_was_opened_in_vain() {
    let bank = || "b".to_owned();
    let with = |shown, attempted: bool| {
        let open = Call::BankOpen {
            bank: bank(),
            accounts: balances(10, 10),
        };
        let look = Call::BankRead {
            bank: bank(),
            consistency: Consistency::Linearizable,
        };
        let mut operations = vec![ok(2, 40, 50, look, Answer::Accounts { balances: shown })];
        if attempted {
            operations.push(done(1, 0, 10, open, failed()));
        }
        bank::check(&history(operations))
    };
    holds(&with(BTreeMap::new(), true));
    finds(&with(balances(10, 10), true), "dirty read", 2);
    assert_eq!(with(balances(10, 10), false).verdict(), Verdict::Undecided);
}
