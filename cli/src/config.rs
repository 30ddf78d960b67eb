//! Which node is talked to.

use crate::failure::Failure;
use std::path::Path;

const DEFAULT: &str = "127.0.0.1:7001";

/// The endpoints that were asked for, else the local configuration's, else the default.
///
/// # Errors
/// An endpoint that is none.
pub fn endpoints(asked: &[String], config: &Path) -> Result<Vec<String>, Failure> {
    if asked.is_empty() {
        return Ok(vec![local(config).unwrap_or_else(|| DEFAULT.to_owned())]);
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

/// The node of the local configuration; `None` when there is none that can be read.
fn local(config: &Path) -> Option<String> {
    let config = mareedb_config::load(config).ok()?;
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
    Some(format!("{host}:{}", config.cluster.consensus_port))
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
        assert_eq!(endpoints(&[], &path).unwrap(), [DEFAULT]);
        std::fs::write(&path, "[server]\nlisten_addr = \"127.0.9.9\"\n").unwrap();
        assert_eq!(endpoints(&[], &path).unwrap(), ["127.0.9.9:7001"]);
    }
}
