//! Who reads the output may go away at any moment: the command ends at once.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod fake;

use fake::{Fake, Mode, cli};
use std::io::{BufRead, BufReader};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// A generous bound: a loaded machine is slow, a loop is for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads one line, as `head -1` does, and waits for the end.
fn head(endpoint: &str, arguments: &[&str]) -> (String, ExitStatus) {
    let mut child = cli(&[endpoint], arguments).spawn().unwrap();
    let mut line = String::new();
    let mut output = BufReader::with_capacity(16, child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    drop(output);
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (line, status);
        }
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{arguments:?} goes on though nobody reads");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_scan_and_a_monitor_end_when_nobody_reads() {
    let node = Fake::start(Mode::Endless);
    let (line, status) = head(&node.endpoint, &["scan"]);
    assert_eq!((&*line, status.code()), ("k1\tvalue\n", Some(0)));
    // At the next look, or before it when that is far away.
    for interval in ["1ms", "60s"] {
        let monitor = ["cluster", "monitor", "--interval", interval];
        let (line, status) = head(&node.endpoint, &monitor);
        assert!(line.starts_with('┌'), "{line}");
        assert_eq!(status.code(), Some(0));
    }
}

#[test]
fn the_verdict_is_in_the_exit_code_whoever_reads() {
    let node = Fake::start(Mode::Answers);
    let mut child = cli(&[&node.endpoint], &["cluster", "status"])
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(10));
}
