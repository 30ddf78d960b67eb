//! The executable as an operator meets it.

use mareedb_ipc::ExitCode;
use std::path::Path;
use std::process::{Command, Output};

fn server(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_maree-db-server"))
        .args(arguments)
        .output()
        .expect("it starts")
}

fn check(text: &str) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("maree-db.toml");
    std::fs::write(&path, text).unwrap();
    let output = server(&["--config", path.to_str().unwrap(), "--check"]);
    (output, dir)
}

fn code(exit: ExitCode) -> Option<i32> {
    Some(exit.code().into())
}

#[test]
fn version_and_help_go_to_stdout() {
    let version = server(&["--version"]);
    assert_eq!(version.status.code(), code(ExitCode::Done));
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(
        text.trim(),
        format!("maree-db-server {}", env!("CARGO_PKG_VERSION"))
    );
    let help = server(&["--help"]);
    assert_eq!(help.status.code(), code(ExitCode::Done));
    assert!(String::from_utf8_lossy(&help.stdout).contains("/etc/mareedb/maree-db.toml"));
}

#[test]
fn wrong_arguments_have_their_own_code() {
    let output = server(&["--confg", "x"]);
    assert_eq!(output.status.code(), code(ExitCode::Usage));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--confg"));
}

#[test]
fn a_good_file_is_ok() {
    let (output, _dir) = check("[cluster]\nenabled = false\n");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), code(ExitCode::Done), "{output:?}");
    assert!(text.contains("ok"), "{text}");
}

#[test]
fn the_example_of_the_package_is_ok() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/maree-db.toml");
    let output = server(&["--config", path.to_str().unwrap(), "--check"]);
    assert_eq!(output.status.code(), code(ExitCode::Done), "{output:?}");
}

#[test]
fn a_wrong_file_names_the_fault() {
    let (output, _dir) = check("[server]\nrest_prt = 1\n");
    assert_eq!(output.status.code(), code(ExitCode::Config));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("rest_prt"), "{text}");
    let (output, _dir) = check("[log]\nlevel = \"loud=very\"\n");
    assert_eq!(output.status.code(), code(ExitCode::Config));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("loud=very"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let output = server(&["--config", "/nonexistent/maree-db.toml", "--check"]);
    assert_eq!(output.status.code(), code(ExitCode::Config));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("/nonexistent/maree-db.toml"), "{text}");
}

/// A refused start says what, where, why and the way out, in each format and even without a log.
#[test]
fn a_refused_start_explains_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    std::fs::write(&file, b"in the way").unwrap();
    for log in ["format = \"text\"", "format = \"json\"", "level = \"off\""] {
        let path = dir.path().join("maree-db.toml");
        let text =
            format!("[server]\ndata_dir = {file:?}\nlisten_addr = \"127.0.0.1\"\n[log]\n{log}\n");
        std::fs::write(&path, text).unwrap();
        let output = server(&["--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), code(ExitCode::CannotCreate));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        for part in [file.to_str().unwrap(), "not a directory", "What to do:"] {
            assert!(text.contains(part), "{log}: {part}: {text}");
        }
        if log.contains("json") {
            let last = text.lines().last().unwrap();
            let object: serde_json::Value = serde_json::from_str(last).expect("a JSON object");
            assert_eq!(object["daemon"], "supervisor");
            assert!(object["pid"].is_u64());
        }
    }
}

/// An inheritance that is not from a supervisor does not make a daemon.
#[test]
fn a_forged_inheritance_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_maree-db-server"))
        .env(mareedb_ipc::ENV, "00ff")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), code(ExitCode::Internal));
}
