//! Append lists.

use super::holds;
use super::support::{append, done, failed, finds, history, lists, ok, read, unknown};
use mareedb_history::check::lists as list_checker;
use mareedb_history::{Call, Operation, Report, Verdict};

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
