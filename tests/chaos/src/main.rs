//! `maree-db-chaos`: see the library.

use clap::Parser;
use mareedb_bench::cluster::sibling_executable;
use mareedb_bench::demo::interrupted;
use mareedb_chaos::bed::WITH_FAULTS;
use mareedb_chaos::campaign::{Args, campaign};
use mareedb_chaos::results;
use std::process::{Command, ExitCode};

#[derive(Parser)]
#[command(
    name = "maree-db-chaos",
    version,
    about = "Real nodes under seeded faults, and the judgement of what their clients saw"
)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    let Cli { args } = Cli::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout, reason = "its output is its purpose")]
fn run(args: &Args) -> Result<(), String> {
    if let Some(path) = &args.summary {
        print!("{}", results::summary(&results::read(path)?));
        return Ok(());
    }
    if args.build {
        build()?;
    }
    let server = sibling_executable(WITH_FAULTS).map_err(|error| error.to_string())?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?
        .block_on(async {
            tokio::select! {
                done = campaign(args, &server) => done,
                () = interrupted() => Err("interrupted".to_owned()),
            }
        })
}

/// Builds the node that can be asked for faults.
fn build() -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--locked", "-p", "maree-db-server"]);
    command.args(["--features", "maree-db-server/faults", "--bin", WITH_FAULTS]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the build failed".to_owned()),
        Err(error) => Err(format!("cannot run cargo: {error}")),
    }
}
