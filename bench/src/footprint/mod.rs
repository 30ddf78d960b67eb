//! `maree-db-bench footprint`: what nodes cost when nothing happens, when they are filled, and how long it takes until a node is back.
//!
//! Each system gets a fresh cluster of three nodes, in turn. Its phases build on each other: idle, daemons killed while it is as good as
//! empty, filled, nodes and daemons ended with all the data there.

mod back;
mod fill;
mod idle;
mod report;

use crate::directory::{self, Claim};
use crate::failover::Round;
use crate::system::{Api, Servers};
use back::Back;
use clap::builder::RangedU64ValueParser;
use fill::Filled;
use idle::IdleNode;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Options of the measurement.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Systems and their APIs.
    #[arg(long, value_delimiter = ',', default_values = ["maree-grpc", "etcd"])]
    pub systems: Vec<Api>,
    /// Seconds that the nodes are left alone and watched.
    #[arg(long, default_value_t = 60)]
    pub idle_seconds: u64,
    /// Keys that are written; 0: the measurement ends before.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: u64,
    /// Bytes of a key and its value together; the key takes 16.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(16..))]
    pub pair_bytes: u64,
    /// Puts in a transaction.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=128))]
    pub txn_puts: u64,
    /// Clients that write at the same time.
    #[arg(long, default_value_t = 16, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub clients: usize,
    /// How often a node is stopped, and how often it is killed.
    #[arg(long, default_value_t = 3)]
    pub restarts: u32,
    /// How often each daemon of the leader is killed, empty and filled.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Lines for the configuration of each node of Maree-DB, for example `[limits]` and, below it, `requests_in_flight_max = 256`.
    #[arg(long, default_value = "")]
    pub config: String,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Directory for data and logs, made anew.
    #[arg(long, default_value = "target/footprint")]
    pub dir: PathBuf,
    /// Writes all figures as JSON to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// A system's figures.
#[derive(Debug, Serialize)]
struct Figures {
    system: Api,
    idle_ms: u64,
    idle: Vec<IdleNode>,
    /// Daemons of the leader killed while there is next to no data.
    kills_empty: Vec<Round>,
    filled: Option<Filled>,
    back: Vec<Back>,
    kills_filled: Vec<Round>,
}

/// Runs everything and prints the tables.
///
/// # Errors
/// A cluster does not start, or does not do what it has to, or a process dies that nobody has killed.
pub async fn run(args: &Args) -> Result<(), String> {
    if args.build {
        crate::demo::build_executables()?;
    }
    let claim = directory::claim(&args.dir)?;
    let all = systems(args, &claim).await?;
    report::print(args, &all);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn systems(args: &Args, claim: &Claim) -> Result<Vec<Figures>, String> {
    let mut all = Vec::new();
    for system in &args.systems {
        eprintln!("{system}: three nodes start");
        let mut servers = Servers::start_with(*system, claim, &args.config).await?;
        all.push(measure(args, &mut servers).await?);
        servers.stop().await?;
    }
    Ok(all)
}

async fn measure(args: &Args, servers: &mut Servers) -> Result<Figures, String> {
    let time = Duration::from_secs(args.idle_seconds);
    eprintln!("  idle for {time:?}");
    let mut figures = Figures {
        system: servers.api,
        idle_ms: args.idle_seconds * 1000,
        idle: idle::watch(servers, time).await?,
        kills_empty: Vec::new(),
        filled: None,
        back: Vec::new(),
        kills_filled: Vec::new(),
    };
    if args.keys == 0 {
        return Ok(figures);
    }
    eprintln!("  daemons of the leader are killed, {} rounds", args.rounds);
    figures.kills_empty = back::kill_daemons(servers, args.rounds, "empty-").await?;
    eprintln!("  {} keys are written", args.keys);
    figures.filled = Some(fill::fill(servers, args).await?);
    eprintln!("  nodes are ended and started, {} times", 2 * args.restarts);
    figures.back = back::end_nodes(servers, args.restarts).await?;
    eprintln!("  daemons of the leader are killed, {} rounds", args.rounds);
    figures.kills_filled = back::kill_daemons(servers, args.rounds, "filled-").await?;
    Ok(figures)
}
