//! `maree-db-cli`: the command line client. It speaks the public API only.

mod client;
mod cluster;
mod config;
mod failure;
mod kv;
mod monitor;
mod node;
mod output;
mod scan;
mod table;
mod tries;
mod txn;

use clap::{Parser, Subcommand};
use client::Connection;
use failure::{Exit, Failure};
use output::Format;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The command line client of Maree-DB.
#[derive(Parser)]
#[command(name = "maree-db-cli", version, about, max_term_width = 100)]
struct Cli {
    /// Node to talk to, HOST or HOST:PORT; repeatable, they are tried in turn until one answers. Without it: the node of
    /// the local configuration, else 127.0.0.1:7001.
    #[arg(
        long,
        global = true,
        value_name = "HOST[:7001]",
        env = "MAREEDB_ENDPOINT",
        value_delimiter = ','
    )]
    endpoint: Vec<String>,
    /// Form of the output: a table for people, JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How long a request may take over all endpoints, for example 500ms, 5s.
    #[arg(long, global = true, value_parser = duration, default_value = "5s")]
    timeout: Duration,
    /// Configuration file whose node is talked to when no endpoint is given; /etc/mareedb/maree-db.toml without it.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a key.
    Put(kv::Put),
    /// Reads a key.
    Get(kv::Get),
    /// Deletes a key.
    Del(kv::Del),
    /// Lists the keys with a prefix.
    Scan(scan::Scan),
    /// Runs a transaction from a JSON file, or from standard input (-).
    Txn(txn::Txn),
    /// The cluster: status, members, leadership.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// One node.
    #[command(subcommand)]
    Node(node::Command),
}

/// Parses `500ms`, `5s`, `2m`, or a bare number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("'{text}' is no duration: write 500ms, 5s or 2m"))?;
    let ms = match unit {
        "ms" => number,
        "" | "s" => number.saturating_mul(1_000),
        "m" => number.saturating_mul(60_000),
        _ => return Err(format!("'{text}' is no duration: write 500ms, 5s or 2m")),
    };
    match ms {
        1..=60_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("'{text}' is not between 1ms and 60s")),
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(
                error.kind(),
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
            );
            return if asked { Exit::Done } else { Exit::Usage }.into();
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Failed.into();
        }
    };
    match finish(runtime, run(cli)) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.print();
            failure.exit().into()
        }
    }
}

/// Runs to the end, and waits for nothing else: a name lookup that hangs sits on a thread of its own, has had its time,
/// and ends with the process. Whatever was written was flushed when it was written.
fn finish<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

async fn run(cli: Cli) -> Result<Exit, Failure> {
    let endpoints = config::endpoints(&cli.endpoint, cli.config.as_deref())?;
    let connection = Connection::new(endpoints, cli.timeout);
    let format = cli.output;
    match cli.command {
        Command::Put(put) => put.run(connection, format).await,
        Command::Get(get) => get.run(connection, format).await,
        Command::Del(del) => del.run(connection, format).await,
        Command::Scan(scan) => scan.run(connection, format).await,
        Command::Txn(txn) => txn.run(connection, format).await,
        Command::Cluster(command) => command.run(connection, format).await,
        Command::Node(command) => command.run(connection, format).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_hangs_on_a_thread_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (_open, never) = std::sync::mpsc::channel::<()>();
        let (tell, begun) = tokio::sync::oneshot::channel();
        let began = Instant::now();
        finish(runtime, async {
            tokio::task::spawn_blocking(move || {
                let _ = tell.send(());
                never.recv_timeout(Duration::from_secs(60))
            });
            begun.await.unwrap();
        });
        let took = began.elapsed();
        assert!(took < Duration::from_secs(30), "{took:?}");
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("1m"), Ok(Duration::from_secs(60)));
        for bad in ["", "s", "5h", "0s", "61s", "-1s", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
