//! What is shipped beside the executable holds together with it.

use mareedb_config::Config;
use mareedb_ipc::ExitCode;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `Key=Value` of the unit, the last of each key.
fn unit() -> BTreeMap<String, String> {
    read("packaging/mareedb.service")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn the_unit_says_what_the_supervisor_relies_on() {
    let unit = unit();
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("KillMode", "mixed"),
        ("Restart", "on-failure"),
        ("LimitMEMLOCK", "64M"),
        (
            "ExecStart",
            "/usr/local/bin/maree-db-server --config /etc/mareedb/maree-db.toml",
        ),
    ] {
        assert_eq!(unit.get(key).map(String::as_str), Some(value), "{key}");
    }
    let seconds = |key: &str| -> u64 { unit[key].trim_end_matches('s').parse().unwrap() };
    let stop_limit_ms = Config::default().server.stop_limit_ms;
    assert!(
        seconds("TimeoutStopSec") * 1000 > stop_limit_ms,
        "systemd must not cut a graceful stop short"
    );
    assert!(seconds("WatchdogSec") >= 5);
    let files: u64 = unit["LimitNOFILE"].parse().unwrap();
    assert!(files >= Config::default().limits.connections_max * 2 + 1024);
}

/// Neither systemd nor the page knows other codes than the supervisor does.
#[test]
fn what_no_restart_cures_is_not_started_again() {
    let verdicts: Vec<ExitCode> = ExitCode::ALL
        .into_iter()
        .filter(|exit| exit.is_verdict())
        .collect();
    let numbers: Vec<String> = verdicts
        .iter()
        .map(|exit| exit.code().to_string())
        .collect();
    assert_eq!(unit()["RestartPreventExitStatus"], numbers.join(" "));
    let page = read("docs/exit-codes.md");
    let (last, others) = numbers.split_last().unwrap();
    let listed = format!("{} and {last}", others.join(", "));
    assert!(page.contains(&listed), "the page does not list {listed}");
    // A disk's fault, the last of them, has a row of its own.
    let (disk, twice) = verdicts.split_last().unwrap();
    assert_eq!(*disk, ExitCode::DiskFault);
    let names: Vec<String> = twice.iter().map(|exit| format!("{exit:?}")).collect();
    let row = format!("| {} ({}) |", names.join(", "), others.join(", "));
    assert!(page.contains(&row), "the page does not list {row}");
}

/// A limit of starts would count an operator's restarts, and give up on a node that comes before its address (exit 69) or before its
/// predecessor has let go (exit 75), both of which a later start cures.
#[test]
fn systemd_never_gives_up_by_counting_starts() {
    let unit = unit();
    assert_eq!(unit["StartLimitIntervalSec"], "0");
    assert!(!unit.contains_key("StartLimitBurst"));
    for exit in [ExitCode::Unavailable, ExitCode::Locked] {
        assert!(!exit.is_verdict(), "{exit:?}");
    }
    let pause_s: u64 = unit["RestartSec"].trim_end_matches('s').parse().unwrap();
    assert!(
        (1..=5).contains(&pause_s),
        "neither a busy loop nor a long way down"
    );
}

#[test]
fn systemd_accepts_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    // systemd-analyze wants the executable to exist, which it does only once installed.
    let here = read("packaging/mareedb.service").replace(
        "/usr/local/bin/maree-db-server",
        env!("CARGO_BIN_EXE_maree-db-server"),
    );
    let path = dir.path().join("mareedb.service");
    std::fs::write(&path, here).unwrap();
    let output = match Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED systemd_accepts_the_unit: systemd-analyze: {error}");
            return;
        }
    };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("mareedb.service"), "{text}");
}

/// docs/exit-codes.md lists exactly the codes that there are, with their meaning and way out.
#[test]
fn the_exit_codes_are_documented() {
    let page = read("docs/exit-codes.md");
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| {
            line.strip_prefix("| ")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect();
    let expected: Vec<String> = ExitCode::ALL
        .into_iter()
        .map(|exit| {
            format!(
                "| {} | {exit:?} | {} | {} |",
                exit.code(),
                exit.meaning(),
                exit.remedy()
            )
        })
        .collect();
    assert_eq!(rows, expected);
}
