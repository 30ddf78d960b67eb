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
    for exit in [
        ExitCode::Config,
        ExitCode::LogDamaged,
        ExitCode::StateDamaged,
        ExitCode::DiskFault,
    ] {
        let listed = unit["RestartPreventExitStatus"]
            .split(' ')
            .any(|code| code == exit.code().to_string());
        assert!(listed, "{exit:?} comes back at every restart");
    }
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
