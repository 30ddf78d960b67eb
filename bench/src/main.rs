//! `maree-db-bench`: the demo and the measurements.

use clap::{Parser, Subcommand};
use mareedb_bench::demo::interrupted;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "maree-db-bench",
    version,
    about = "The demo and the measurements of Maree-DB"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Three nodes on this machine: used, hurt, and used again.
    Demo(mareedb_bench::demo::Args),
    /// Daemons killed under a constant load: stalls, terms, losses.
    Failover(mareedb_bench::rounds::Args),
    /// Throughput, latency and what they cost, side by side with etcd.
    System(mareedb_bench::system::Args),
    /// Memory, idle CPU, disk, and how fast a node is back, side by side with etcd.
    Footprint(mareedb_bench::footprint::Args),
    /// Many times more requests than can be served: what is refused, and what becomes of the rest.
    Overload(mareedb_bench::overload::Args),
    /// The leader's file system stands still for a while, side by side with etcd. Needs root.
    Stall(mareedb_bench::stall::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The demo stops its nodes gracefully by itself. What others have started ends with their future. Theirs is polled first: the build
    // that they begin with does not wait for signals, so these end the process until then.
    let stops_itself = matches!(cli.command, Command::Demo(_));
    let outcome = runtime.block_on(async {
        tokio::select! {
            biased;
            done = run(&cli.command) => done,
            () = interrupted(), if !stops_itself => Err("interrupted".to_owned()),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &Command) -> Result<(), String> {
    match command {
        Command::Demo(args) => mareedb_bench::demo::run(args).await,
        Command::Failover(args) => mareedb_bench::rounds::run(args).await,
        Command::System(args) => mareedb_bench::system::run(args).await,
        Command::Footprint(args) => mareedb_bench::footprint::run(args).await,
        Command::Overload(args) => mareedb_bench::overload::run(args).await,
        Command::Stall(args) => mareedb_bench::stall::run(args).await,
    }
}
