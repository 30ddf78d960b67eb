//! Which node is talked to.

use crate::failure::Failure;
use crate::output;
use std::io::{Error, ErrorKind};
use std::path::Path;

const DEFAULT: &str = "127.0.0.1:7001";
/// The configuration of this machine's node.
const FILE: &str = "/etc/mareedb/maree-db.toml";

/// The endpoints that were asked for, else the configuration's: that of `config`, or of this machine, or the default if it
/// has none.
///
/// # Errors
/// An endpoint that is none, or a configuration that does not say which node it is of.
pub fn endpoints(asked: &[String], config: Option<&Path>) -> Result<Vec<String>, Failure> {
    if asked.is_empty() {
        let node = configured(config.unwrap_or(Path::new(FILE)), config.is_some())?;
        return Ok(vec![node]);
    }
    asked.iter().map(|text| endpoint(text)).collect()
}

/// Completes `HOST` or `HOST:PORT`.
fn endpoint(text: &str) -> Result<String, Failure> {
    let bad = || {
        Failure::Usage(format!(
            "'{text}' is no endpoint: write HOST or HOST:PORT, for example 192.168.1.10:7001"
        ))
    };
    let text = text.strip_prefix("http://").unwrap_or(text);
    if text.is_empty() || text.contains(['/', ' ', '@']) {
        return Err(bad());
    }
    // [::1]:7001, [::1], ::1, host:7001, host
    let with_port = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((_, "")) => format!("{text}:{}", mareedb_api::GRPC_PORT),
            Some((_, port)) if port.starts_with(':') => text.to_owned(),
            _ => return Err(bad()),
        },
        None => match text.matches(':').count() {
            0 => format!("{text}:{}", mareedb_api::GRPC_PORT),
            1 => text.to_owned(),
            _ => format!("[{text}]:{}", mareedb_api::GRPC_PORT),
        },
    };
    let port = with_port
        .rsplit_once(':')
        .map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => Ok(with_port),
        _ => Err(bad()),
    }
}

/// The node of a configuration; `named`: the file was asked for, and nothing else will do.
fn configured(path: &Path, named: bool) -> Result<String, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => local(&text, path),
        Err(error) => {
            if let Some(note) = unread(path, named, &error)? {
                output::aside(&note);
            }
            Ok(DEFAULT.to_owned())
        }
    }
}

/// What the user is told when the default is taken because a file was not read.
///
/// # Errors
/// The default must not be taken. What was not read might name another node.
fn unread(path: &Path, named: bool, error: &Error) -> Result<Option<String>, Failure> {
    let why = format!("{}: cannot be read: {error}", path.display());
    match error.kind() {
        // A machine without a node.
        ErrorKind::NotFound if !named => Ok(None),
        // It may be for the node's user alone, and most nodes listen there.
        ErrorKind::PermissionDenied if !named => Ok(Some(format!(
            "note: {why}; {DEFAULT} is asked. --endpoint HOST:7001 or MAREEDB_ENDPOINT names a node.\n"
        ))),
        _ => Err(unusable(&why)),
    }
}

fn unusable(why: &str) -> Failure {
    Failure::Usage(format!(
        "{}\n       Without a configuration that can be read, name a node with --endpoint HOST:7001 or MAREEDB_ENDPOINT.",
        why.replace('\n', "\n       ")
    ))
}

/// The node of a configuration's text.
fn local(text: &str, path: &Path) -> Result<String, Failure> {
    let config = mareedb_config::parse(text, &path.display().to_string())
        .map_err(|faults| unusable(&faults.to_string()))?;
    let host = match (
        &config.server.advertise_addr,
        config.server.listen_addr.as_str(),
    ) {
        (Some(addr), _) => addr.clone(),
        (None, "0.0.0.0") => "127.0.0.1".to_owned(),
        (None, "::") => "::1".to_owned(),
        (None, addr) => addr.to_owned(),
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    Ok(format!("{host}:{}", config.cluster.consensus_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_completed_and_nonsense_is_refused() {
        let ok = |text: &str| endpoint(text).unwrap();
        assert_eq!(ok("db1"), "db1:7001");
        assert_eq!(ok("10.0.0.1:9000"), "10.0.0.1:9000");
        assert_eq!(ok("::1"), "[::1]:7001");
        assert_eq!(ok("[::1]:9000"), "[::1]:9000");
        assert_eq!(ok("http://db1:7001"), "db1:7001");
        for bad in [
            "",
            "a b",
            "host:",
            "host:0",
            "host:70000",
            "[::1",
            "host/path",
            "a@b",
        ] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_an_endpoint_the_local_configuration_tells() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maree-db.toml");
        assert_eq!(configured(&path, false).unwrap(), DEFAULT);
        std::fs::write(&path, "[server]\nlisten_addr = \"127.0.9.9\"\n").unwrap();
        assert_eq!(configured(&path, false).unwrap(), "127.0.9.9:7001");
        assert_eq!(endpoints(&[], Some(&path)).unwrap(), ["127.0.9.9:7001"]);
    }

    /// The wrong usage that it is, in words.
    fn refused(result: Result<impl std::fmt::Debug, Failure>) -> String {
        match result {
            Err(Failure::Usage(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broken_configuration_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maree-db.toml");
        let missing = refused(endpoints(&[], Some(&path)));
        assert!(
            missing.contains("maree-db.toml: cannot be read"),
            "{missing}"
        );
        std::fs::write(&path, "[server]\nlisten_adr = \"127.0.9.9\"\n[clutser]\n").unwrap();
        for named in [false, true] {
            let why = refused(configured(&path, named));
            for part in [":2: server.listen_adr", ":3: clutser", "--endpoint"] {
                assert!(why.contains(part), "{why}");
            }
        }
        // Nobody asks it when the node is named.
        let asked = endpoints(&["db1".to_owned()], Some(&path)).unwrap();
        assert_eq!(asked, ["db1:7001"]);
        std::fs::write(&path, b"\xff").unwrap();
        refused(configured(&path, false));
    }

    #[test]
    fn the_default_is_taken_without_a_file_and_aloud_without_the_right_to_read_it() {
        let unread = |kind: ErrorKind, named| unread(Path::new(FILE), named, &kind.into());
        assert_eq!(unread(ErrorKind::NotFound, false).unwrap(), None);
        let note = unread(ErrorKind::PermissionDenied, false).unwrap().unwrap();
        assert!(note.contains(FILE) && note.contains(DEFAULT), "{note}");
        refused(unread(ErrorKind::IsADirectory, false));
        for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied] {
            refused(unread(kind, true));
        }
    }
}
