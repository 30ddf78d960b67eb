//! Several endpoints: whichever does not answer is passed over, within `--timeout`, and only what may be sent again is.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod fake;

use fake::{Fake, KEYS, Mode, REVISION, cli, stopped};
use std::process::Output;
use std::time::{Duration, Instant};

/// What a loaded machine may add to `--timeout`.
const SLACK: Duration = Duration::from_secs(2);

fn run(endpoints: &[&str], arguments: &[&str]) -> (Output, Duration) {
    let began = Instant::now();
    let output = cli(endpoints, arguments).output().unwrap();
    (output, began.elapsed())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_node_that_never_answers_is_passed_over() {
    let (_open, silent) = stopped();
    let live = Fake::start(Mode::Answers);
    for (arguments, expected) in [
        (&["get", "k1"][..], "value"),
        (&["put", "k1", "v"], "OK revision 4711"),
        (&["scan"], "k4\tvalue"),
        (&["cluster", "elections"], "REASON"),
    ] {
        let endpoints = [silent.as_str(), &live.endpoint];
        let arguments = [&["--timeout", "3s"], arguments].concat();
        let (output, took) = run(&endpoints, &arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(expected), "{arguments:?}: {text}");
        assert!(took < Duration::from_secs(3), "{arguments:?}: {took:?}");
    }
}

#[test]
fn a_node_without_a_quorum_or_with_broken_connections_is_passed_over() {
    let live = Fake::start(Mode::Answers);
    for mode in [Mode::NoQuorum, Mode::Breaks, Mode::Hangs] {
        let lame = Fake::start(mode);
        let endpoints = [lame.endpoint.as_str(), &live.endpoint];
        let (output, _) = run(&endpoints, &["--timeout", "2s", "put", "k", "v"]);
        assert_eq!(output.status.code(), Some(0), "{mode:?}: {output:?}");
        // ONCE-1: both were asked for one and the same write.
        let (first, second) = (
            &lame.puts.lock().unwrap()[0],
            live.puts.lock().unwrap().pop(),
        );
        let second = second.unwrap();
        assert_eq!(first.idempotency_key, second.idempotency_key);
        assert!(first.timeout_ms < 1_000, "its share: {first:?}");
    }
}

#[test]
fn a_read_without_an_answer_ends_with_2_and_within_its_time() {
    let (_open, one) = stopped();
    let (_other, two) = stopped();
    let endpoints = [one.as_str(), &two];
    for arguments in [&["get", "k"][..], &["scan"], &["cluster", "status"]] {
        let arguments = [&["--timeout", "1s"], arguments].concat();
        let (output, took) = run(&endpoints, &arguments);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(!text.contains("OUTCOME_UNKNOWN"), "{text}");
        assert!(text.contains(&one) && text.contains(&two), "{text}");
        assert!(took < Duration::from_secs(1) + SLACK, "{took:?}");
    }
}

#[test]
fn a_monitor_goes_on_without_an_answer() {
    // Nobody listens on port 1.
    let monitor = ["cluster", "monitor", "--interval", "1ms", "--count", "3"];
    for (format, of_output, of_error) in [("table", 3, 0), ("json", 0, 3)] {
        let arguments = [&monitor[..], &["-o", format]].concat();
        let (output, _) = run(&["127.0.0.1:1"], &arguments);
        assert_eq!(output.status.code(), Some(2), "{format}: {output:?}");
        let count = |text: &[u8]| {
            let text = String::from_utf8_lossy(text);
            text.matches("error: no node answers\n").count()
        };
        assert_eq!(count(&output.stdout), of_output, "{format}: {output:?}");
        assert_eq!(count(&output.stderr), of_error, "{format}: {output:?}");
    }
}

#[test]
fn a_write_of_unknown_outcome_says_the_key_to_send_it_again_with() {
    let hangs = Fake::start(Mode::Hangs);
    let (output, _) = run(&[&hangs.endpoint], &["--timeout", "1s", "put", "k", "v"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("OUTCOME_UNKNOWN"), "{text}");
    let sent = hangs.puts.lock().unwrap()[0].idempotency_key.clone();
    assert!(sent.starts_with("cli-"), "{sent}");
    let option = format!("--idempotency-key {sent}\n");
    assert!(text.contains(&option), "{text}");

    // What the error says can be done, and a key that was given is said, too.
    let live = Fake::start(Mode::Answers);
    let again = ["put", "k", "v", "--idempotency-key", &sent];
    let (output, _) = run(&[&live.endpoint], &again);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(live.puts.lock().unwrap()[0].idempotency_key, sent);
    for write in [
        &["del", "k"][..],
        &[
            "txn",
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake/txn.json"),
        ],
    ] {
        let given = ["--timeout", "500ms", "--idempotency-key", "order-17"];
        let (output, _) = run(&[&hangs.endpoint], &[write, &given].concat());
        let text = said(&output);
        assert!(text.contains("--idempotency-key order-17\n"), "{text}");
    }
}

#[test]
fn what_a_later_node_lacks_is_not_the_outcome_of_an_earlier_try() {
    let hangs = Fake::start(Mode::Hangs);
    let lacks = Fake::start(Mode::NoQuorum);
    let endpoints = [hangs.endpoint.as_str(), &lacks.endpoint];
    let (output, _) = run(&endpoints, &["--timeout", "1s", "put", "k", "v"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("OUTCOME_UNKNOWN"), "{text}");
    assert!(text.contains("NO_QUORUM: two are down"), "{text}");
}

#[test]
fn a_transfer_of_leadership_that_may_have_been_taken_is_not_sent_again() {
    let live = Fake::start(Mode::Answers);
    for mode in [Mode::Breaks, Mode::Hangs] {
        let lame = Fake::start(mode);
        let endpoints = [lame.endpoint.as_str(), &live.endpoint];
        let transfer = ["--timeout", "1s", "cluster", "transfer-leadership"];
        let (output, _) = run(&endpoints, &transfer);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{mode:?}: {text}");
        assert!(text.contains("OUTCOME_UNKNOWN"), "{mode:?}: {text}");
        assert!(!text.contains("idempotency"), "{mode:?}: {text}");
        assert_eq!(lame.transfers.lock().unwrap().len(), 1, "{mode:?}");
        assert_eq!(live.transfers.lock().unwrap().len(), 0, "{mode:?}");
    }
    // Nothing was sent where nobody listens.
    let endpoints = ["127.0.0.1:1", live.endpoint.as_str()];
    let (output, _) = run(&endpoints, &["cluster", "transfer-leadership"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(live.transfers.lock().unwrap().len(), 1);
}

#[test]
fn a_scan_whose_pages_stop_goes_on_at_the_next_node_where_it_was() {
    let hangs = Fake::start(Mode::Hangs);
    let live = Fake::start(Mode::Answers);
    let endpoints = [hangs.endpoint.as_str(), &live.endpoint];
    let scan = ["--timeout", "1s", "scan", "k", "--keys-only"];
    let (output, took) = run(&endpoints, &scan);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().collect::<Vec<_>>(), KEYS);
    let asked = &live.ranges.lock().unwrap()[0];
    assert_eq!(&asked.start[..], b"k2\0");
    assert_eq!(&asked.end[..], b"l");
    assert_eq!(asked.revision, REVISION, "one moment");
    assert!(took < Duration::from_secs(2) + SLACK, "{took:?}");
}
