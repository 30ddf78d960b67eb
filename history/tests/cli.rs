//! `maree-db-history` as it is called: exit codes and forms of output.

mod support;

use mareedb_history::generate::{Fault, Generator, Kind, Plan};
use mareedb_history::{Operation, json};
use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_maree-db-history"))
        .args(arguments)
        .arg(file)
        .output()
        .expect("it runs")
}

fn write(file: &Path, operations: impl IntoIterator<Item = Operation>) {
    let mut bytes = Vec::new();
    for operation in operations {
        json::write(&mut bytes, &operation).expect("written");
    }
    std::fs::write(file, bytes).expect("written");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn exit_codes_tell_the_verdict() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("h.jsonl");
    write(&file, Generator::new(Plan::new(1, 2000)));
    for arguments in [
        &["check"][..],
        &["check", "--pieces", "3"],
        &["check", "--many-groups"],
    ] {
        let output = run(arguments, &file);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
        assert!(text(&output.stdout).ends_with("Everything was checked and holds.\n"));
    }
    let twice = Plan {
        kinds: vec![Kind::Counter],
        fault: Some(Fault::Twice),
        ..Plan::new(1, 2000)
    };
    write(&file, Generator::new(twice));
    let output = run(&["check", "-o", "json"], &file);
    assert_eq!(output.status.code(), Some(1));
    let judgement: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(judgement["verdict"], "violated");
    let counter = judgement["reports"]
        .as_array()
        .expect("reports")
        .iter()
        .find(|report| report["checker"] == "counter");
    let counter = counter.expect("a report of counters");
    assert!(counter["violations_total"].as_u64() > Some(0), "{counter}");
    assert_eq!(
        counter["violations"][0]["operations"][0]["node"]
            .as_str()
            .map(|node| &node[..5]),
        Some("node-")
    );
    let one = |process| {
        support::ok(
            process,
            0,
            9,
            support::put("k", "a"),
            support::written(process),
        )
    };
    write(&file, (0..12).map(one));
    let output = run(&["check", "--positions", "3"], &file);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("register k: undecided: "));
}

#[test]
fn what_cannot_be_read_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("h.jsonl");
    let output = run(&["check"], &file);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with(&format!("error: {}: ", file.display())));
    std::fs::write(&file, "\n{}\n").expect("written");
    for pieces in ["1", "2"] {
        let output = run(&["check", "--pieces", pieces], &file);
        assert_eq!(output.status.code(), Some(2));
        let told = text(&output.stderr);
        assert!(
            told.starts_with(&format!("error: {}:2: missing field", file.display())),
            "{told}"
        );
    }
    assert_eq!(
        run(&["check", "--pieces", "0"], &file).status.code(),
        Some(64)
    );
    assert_eq!(run(&["judge"], &file).status.code(), Some(64));
    assert_eq!(run(&["--help"], &file).status.code(), Some(0));
}

#[test]
fn edn_of_everything_and_of_one_object() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("h.jsonl");
    write(&file, Generator::new(Plan::new(1, 500)));
    let all = run(&["edn"], &file);
    assert_eq!(all.status.code(), Some(0));
    assert_eq!(text(&all.stdout).lines().count(), 1000);
    let lists = run(&["edn", "--of", "lists"], &file);
    let lines = text(&lists.stdout).lines();
    assert!(lines.clone().count() > 100);
    for line in lines {
        assert!(line.contains(":f :txn, :value [["), "{line}");
    }
    let register = run(&["edn", "--of", "register:key-0"], &file);
    assert!(text(&register.stdout).contains(":f :cas, :value ["));
    assert_eq!(
        run(&["edn", "--of", "nothing"], &file).status.code(),
        Some(2)
    );
}
