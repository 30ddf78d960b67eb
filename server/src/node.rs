//! The executable as an operator calls it.

use super::{logging, settings};
use clap::Parser;
use mareedb_config::Config;
use mareedb_ipc::ExitCode;
use mareedb_supervisor::{Options, Reload};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Maree-DB: a node. Runs in the foreground; systemd starts it as the service mareedb.
///
/// SIGTERM and SIGINT stop it gracefully, a second one at once; SIGHUP applies log.level of the file. Exit codes: docs/exit-codes.md.
#[derive(Parser)]
#[command(name = "maree-db-server", version)]
struct Arguments {
    /// The configuration file.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/mareedb/maree-db.toml"
    )]
    config: PathBuf,
    /// Only check the configuration file: exit code 0, or 78 with a list of what is wrong.
    #[arg(long)]
    check: bool,
}

/// Runs the node.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked = !error.use_stderr();
            // Help and version go to stdout; if that is closed nobody wants to read them.
            let _ = error.print();
            return if asked {
                ExitCode::Done
            } else {
                ExitCode::Usage
            };
        }
    };
    let config = match settings::load(&arguments.config) {
        Ok(config) => config,
        Err(faults) => {
            let _ = writeln!(std::io::stderr(), "{faults}");
            return ExitCode::Config;
        }
    };
    if arguments.check {
        let _ = writeln!(std::io::stdout(), "{}: ok", arguments.config.display());
        return ExitCode::Done;
    }
    let level = match logging::install("supervisor", &config.log, &config.log.level) {
        Ok(level) => level,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cannot log: {error}");
            return ExitCode::Failed;
        }
    };
    let options = Options {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        reload: Some(reload(arguments.config, config.clone(), level)),
        ..Options::default()
    };
    mareedb_supervisor::run(config, options)
}

/// What SIGHUP does: the whole file is checked, then its log level applies.
fn reload(path: PathBuf, started_with: Config, level: logging::Level) -> Reload {
    Box::new(move || {
        let new = settings::load(&path)?;
        level.set(&new.log.level)?;
        if differs_beyond_level(&started_with, &new) {
            tracing::warn!(
                "{} has other changes than log.level; they apply after a restart of the node",
                Path::display(&path)
            );
        }
        Ok(new.log.level)
    })
}

fn differs_beyond_level(old: &Config, new: &Config) -> bool {
    let mut aligned = new.clone();
    aligned.log.level.clone_from(&old.log.level);
    aligned != *old
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_level_can_change_while_it_runs() {
        let old = Config::default();
        let mut new = old.clone();
        new.log.level = "debug".to_owned();
        assert!(!differs_beyond_level(&old, &new));
        new.server.rest_port = 1;
        assert!(differs_beyond_level(&old, &new));
    }
}
