//! The smallest history of each anomaly, and beside it, where one is near, a history that is right.

mod support;

use mareedb_history::check::{
    Options, Within, bank, committed, counter, lists as list_checker, register, revisions, set,
};
use mareedb_history::{Answer, Call, Consistency, Operation, Outcome, Report, Verdict};
use std::collections::BTreeMap;
use support::{
    append, done, failed, finds, get, get_at, history, lists, ok, put, read, swap, unknown, value,
    written,
};

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

fn txns(operations: Vec<Operation>) -> Report {
    list_checker::check(&history(operations))
}

/// A list transaction that overlaps all others here, so that only what it saw orders it.
fn txn(
    process: u64,
    steps: Vec<mareedb_history::Micro>,
    results: Vec<Option<Vec<u64>>>,
) -> Operation {
    ok(process, 0, 100, Call::Lists(steps), lists(results))
}

/// A later look at both lists.
fn last(x: &[u64], y: &[u64]) -> Operation {
    let steps = vec![read("x"), read("y")];
    ok(
        99,
        200,
        210,
        Call::Lists(steps),
        lists(vec![Some(x.to_vec()), Some(y.to_vec())]),
    )
}

#[test]
fn lists_g0_writes_that_interleave() {
    let both = |process, element| {
        txn(
            process,
            vec![append("x", element), append("y", element)],
            vec![None, None],
        )
    };
    let with = |x: &[u64], y: &[u64]| txns(vec![both(1, 1), both(2, 2), last(x, y)]);
    holds(&with(&[1, 2], &[1, 2]));
    finds(&with(&[1, 2], &[2, 1]), "G0", 2);
}

#[test]
fn lists_g1a_and_g1b() {
    let append_twice = |outcome| {
        done(
            1,
            0,
            10,
            Call::Lists(vec![append("x", 1), append("x", 2)]),
            outcome,
        )
    };
    let seen = |elements: &[u64]| {
        ok(
            2,
            20,
            30,
            Call::Lists(vec![read("x")]),
            lists(vec![Some(elements.to_vec())]),
        )
    };
    holds(&txns(vec![append_twice(unknown()), seen(&[1, 2])]));
    holds(&txns(vec![append_twice(unknown()), seen(&[])]));
    finds(
        &txns(vec![append_twice(unknown()), seen(&[1])]),
        "intermediate read (G1b)",
        2,
    );
    let report = txns(vec![append_twice(failed()), seen(&[1, 2])]);
    assert_eq!(
        report.violations_total, 2,
        "one for each element: {report:#?}"
    );
    assert_eq!(report.violations[0].anomaly, "dirty read (G1a)");
    finds(&txns(vec![seen(&[7])]), "element from nowhere", 1);
    finds(
        &txns(vec![
            done(1, 0, 10, Call::Lists(vec![append("x", 1)]), unknown()),
            seen(&[1, 1]),
        ]),
        "duplicate",
        1,
    );
}

#[test]
fn lists_g1c_a_circle_of_information() {
    let one = txn(
        1,
        vec![append("x", 1), read("y")],
        vec![None, Some(vec![2])],
    );
    let other = |saw: Vec<u64>| txn(2, vec![append("y", 2), read("x")], vec![None, Some(saw)]);
    holds(&txns(vec![one.clone(), other(vec![])]));
    finds(&txns(vec![one, other(vec![1])]), "G1c", 2);
}

#[test]
fn lists_g_single_read_skew() {
    let writer = txn(1, vec![append("x", 1), append("y", 1)], vec![None, None]);
    let reader = |x: &[u64], y: &[u64]| {
        txn(
            2,
            vec![read("x"), read("y")],
            vec![Some(x.to_vec()), Some(y.to_vec())],
        )
    };
    holds(&txns(vec![writer.clone(), reader(&[1], &[1])]));
    holds(&txns(vec![
        writer.clone(),
        reader(&[], &[]),
        last(&[1], &[1]),
    ]));
    finds(
        &txns(vec![writer, reader(&[], &[1]), last(&[1], &[1])]),
        "G-single",
        2,
    );
}

#[test]
fn lists_g2_write_skew() {
    let one = txn(1, vec![read("x"), append("y", 1)], vec![Some(vec![]), None]);
    let other = |saw: Vec<u64>| txn(2, vec![read("y"), append("x", 2)], vec![Some(saw), None]);
    holds(&txns(vec![one.clone(), other(vec![1]), last(&[2], &[1])]));
    finds(&txns(vec![one, other(vec![]), last(&[2], &[1])]), "G2", 2);
}

#[test]
fn lists_lost_update_and_incompatible_orders() {
    let update = |process, element| {
        txn(
            process,
            vec![read("x"), append("x", element)],
            vec![Some(vec![]), None],
        )
    };
    let report = txns(vec![update(1, 1), update(2, 2), last(&[2], &[])]);
    let names: Vec<&str> = report
        .violations
        .iter()
        .map(|violation| violation.anomaly.as_str())
        .collect();
    assert_eq!(names[0], "lost update", "{report:#?}");
    let write = |process, element| txn(process, vec![append("x", element)], vec![None]);
    let look = |process, elements: Vec<u64>| txn(process, vec![read("x")], vec![Some(elements)]);
    let report = txns(vec![
        write(1, 1),
        write(2, 2),
        look(3, vec![1, 2]),
        look(4, vec![2]),
    ]);
    finds(&report, "incompatible order", 2);
}

#[test]
fn lists_internal_contradictions() {
    let report = txns(vec![txn(
        1,
        vec![append("x", 1), read("x")],
        vec![None, Some(vec![])],
    )]);
    finds(&report, "internal", 1);
    let report = txns(vec![
        txn(1, vec![append("x", 1)], vec![None]),
        txn(
            2,
            vec![read("x"), read("x")],
            vec![Some(vec![]), Some(vec![1])],
        ),
    ]);
    finds(&report, "internal", 1);
}

#[test]
fn lists_a_lost_append_needs_real_time() {
    let write = ok(
        1,
        0,
        10,
        Call::Lists(vec![append("x", 1)]),
        lists(vec![None]),
    );
    let look = |process, start| {
        ok(
            process,
            start,
            start + 10,
            Call::Lists(vec![read("x")]),
            lists(vec![Some(vec![])]),
        )
    };
    holds(&txns(vec![write.clone(), look(2, 5)]));
    finds(
        &txns(vec![write.clone(), look(2, 20)]),
        "G-single-realtime",
        2,
    );
    finds(&txns(vec![write, look(1, 20)]), "G-single-process", 2);
}

#[test]
fn lists_clients_that_repeat_an_element_leave_it_undecided() {
    let write = |process| txn(process, vec![append("x", 1)], vec![None]);
    assert_eq!(txns(vec![write(1), write(2)]).verdict(), Verdict::Undecided);
}

#[test]
fn committed_stale_reads() {
    let check = |operations| committed::check(&history(operations));
    let stale = || get_at("k", Consistency::Stale);
    let with = |outcome, shown: Option<&str>| {
        vec![
            ok(1, 0, 10, put("k", "a"), written(1)),
            done(1, 20, 30, put("k", "b"), outcome),
            ok(2, 40, 50, stale(), value(shown, None)),
        ]
    };
    for shown in [None, Some("a"), Some("b")] {
        holds(&check(with(unknown(), shown)));
    }
    finds(&check(with(failed(), Some("b"))), "dirty read", 2);
    finds(&check(with(failed(), Some("c"))), "value from nowhere", 1);
    finds(
        &check(vec![
            ok(2, 0, 10, stale(), value(Some("a"), Some(1))),
            ok(1, 20, 30, put("k", "a"), written(1)),
        ]),
        "dirty read",
        2,
    );
}

#[test]
fn committed_reads_of_the_past() {
    let check = |operations| committed::check(&history(operations));
    let past = |at, shown: Option<&str>, revision| {
        let delete = Call::Delete {
            key: "k".to_owned(),
        };
        let deleted = Answer::Deleted {
            deleted: true,
            revision: Some(30),
        };
        vec![
            ok(1, 0, 10, put("k", "a"), written(10)),
            ok(1, 20, 30, put("k", "b"), written(20)),
            ok(1, 40, 50, delete, deleted),
            ok(
                2,
                60,
                70,
                get_at("k", Consistency::At(at)),
                value(shown, revision),
            ),
        ]
    };
    holds(&check(past(5, None, None)));
    holds(&check(past(19, Some("a"), Some(10))));
    holds(&check(past(20, Some("b"), Some(20))));
    holds(&check(past(30, None, None)));
    finds(
        &check(past(19, Some("b"), Some(20))),
        "read of the future",
        1,
    );
    finds(&check(past(25, Some("a"), Some(10))), "missed write", 2);
    finds(&check(past(25, None, None)), "missed write", 2);
    finds(&check(past(35, Some("b"), Some(20))), "missed write", 2);
    finds(&check(past(35, Some("b"), Some(30))), "deleted value", 2);
}

/// LIN-3: what any read showed at a revision is there for every read of that moment, whoever wrote it.
#[test]
fn committed_reads_of_the_past_and_what_others_saw() {
    let check = |operations| committed::check(&history(operations));
    let delete = || Call::Delete {
        key: "k".to_owned(),
    };
    let past = |process, start, at, shown: Option<&str>, revision| {
        ok(
            process,
            start,
            start + 5,
            get_at("k", Consistency::At(at)),
            value(shown, revision),
        )
    };
    // Nobody was told the revision of the write of v; a read showed it.
    let seen = |then: Vec<Operation>| {
        let mut operations = vec![
            ok(1, 0, 5, put("k", "u"), written(3)),
            done(1, 10, 15, put("k", "v"), unknown()),
            ok(2, 20, 25, get("k"), value(Some("v"), Some(5))),
        ];
        operations.extend(then);
        check(operations)
    };
    holds(&seen(vec![past(3, 30, 5, Some("v"), Some(5))]));
    holds(&seen(vec![past(3, 30, 4, Some("u"), Some(3))]));
    holds(&seen(vec![past(3, 30, 9, Some("v"), Some(5))]));
    finds(
        &seen(vec![past(3, 30, 5, Some("u"), Some(3))]),
        "missed write",
        2,
    );
    finds(&seen(vec![past(3, 30, 5, None, None)]), "missed write", 2);
    finds(&seen(vec![past(3, 30, 9, None, None)]), "missed write", 2);
    // A deletion of unknown outcome may lie between, but not at the version itself, and not before it began.
    let deleted = |start, then: Vec<Operation>| {
        let mut operations = vec![done(4, start, start + 1, delete(), unknown())];
        operations.extend(then);
        seen(operations)
    };
    holds(&deleted(27, vec![past(3, 30, 9, None, None)]));
    finds(
        &deleted(27, vec![past(3, 30, 5, None, None)]),
        "missed write",
        2,
    );
    finds(
        &deleted(40, vec![past(3, 30, 9, None, None)]),
        "missed write",
        2,
    );
    // At 9 it was still there, so that it was not gone at 7.
    let later = |at| {
        deleted(
            27,
            vec![
                past(3, 30, 9, Some("v"), Some(5)),
                past(3, 40, at, None, None),
            ],
        )
    };
    holds(&later(10));
    finds(&later(7), "missed write", 2);
    finds(&later(9), "missed write", 2);
}

/// ONCE-1: a write of unknown outcome explains one revision.
#[test]
fn revisions_a_write_that_took_effect_twice() {
    let check = |operations| revisions::check(&history(operations), &Options::default());
    let reads = |writes: u64, revisions: &[u64]| {
        let mut operations: Vec<Operation> = (0..writes)
            .map(|process| done(process, 0, 10, put("k", "v"), unknown()))
            .collect();
        for (at, revision) in (0_u64..).zip(revisions) {
            let start = 20 + at * 20;
            operations.push(ok(
                9,
                start,
                start + 10,
                get("k"),
                value(Some("v"), Some(*revision)),
            ));
        }
        operations
    };
    finds(&check(reads(1, &[5, 9])), "written twice", 2);
    finds(&check(reads(2, &[5, 9, 12])), "written twice", 3);
    // Seen again at the same revision, or written by as many as there are revisions.
    holds(&check(reads(1, &[5, 5, 5])));
    holds(&check(reads(2, &[5, 9, 9])));
    // One that was told its revision explains that one alone, whichever is seen first.
    let mut told = reads(1, &[5, 9]);
    told.push(ok(5, 0, 60, put("k", "v"), written(9)));
    holds(&check(told.clone()));
    told.push(ok(
        8,
        70,
        80,
        get_at("k", Consistency::Stale),
        value(Some("v"), Some(7)),
    ));
    finds(&check(told), "written twice", 3);
}

#[test]
fn revisions_anomalies() {
    let check = |within, operations| {
        let options = Options {
            revisions_grow: within,
            ..Options::default()
        };
        revisions::check(&history(operations), &options)
    };
    let two = |key: &str, first, second| {
        vec![
            ok(1, 0, 10, put("k", "a"), written(first)),
            ok(2, 20, 30, put(key, "b"), written(second)),
        ]
    };
    holds(&check(Within::Group, two("k", 5, 6)));
    finds(
        &check(Within::Group, two("k", 6, 5)),
        "revision went back",
        0,
    );
    finds(&check(Within::Key, two("k", 6, 5)), "revision went back", 0);
    finds(
        &check(Within::Group, two("other", 6, 5)),
        "revision went back",
        0,
    );
    holds(&check(Within::Key, two("other", 6, 5)));
    let at_once = vec![
        ok(1, 0, 100, put("k", "a"), written(5)),
        ok(2, 0, 100, put("l", "b"), written(5)),
    ];
    finds(&check(Within::Group, at_once), "revision used twice", 0);
    let reads = |shown: &str, revision, second: Outcome| {
        vec![
            ok(1, 0, 10, put("k", "a"), written(5)),
            done(2, 20, 30, put("k", "b"), second),
            ok(3, 40, 50, get("k"), value(Some(shown), Some(revision))),
            ok(
                4,
                40,
                50,
                get_at("k", Consistency::Stale),
                value(Some("a"), Some(5)),
            ),
        ]
    };
    let told = || Outcome::Ok(written(8));
    holds(&check(Within::Group, reads("b", 8, told())));
    holds(&check(Within::Group, reads("b", 7, unknown())));
    finds(
        &check(Within::Group, reads("b", 7, told())),
        "revision of no write",
        1,
    );
    finds(
        &check(Within::Group, reads("b", 5, told())),
        "two values at one revision",
        2,
    );
    finds(
        &check(Within::Group, reads("a", 5, told())),
        "stale read",
        2,
    );
}
