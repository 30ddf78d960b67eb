//! Stale reads, reads of the past, and revisions.

use super::holds;
use super::support::{done, failed, finds, get, get_at, history, ok, put, unknown, value, written};
use mareedb_history::check::{Options, Within, committed, revisions};
use mareedb_history::{Answer, Call, Consistency, Operation, Outcome};

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
