//! `maree-db-bench failover`: many kills under a constant load, and the figures.

use crate::cluster::{Addresses, Cluster, DAEMONS, Options, sibling_executable};
use crate::demo::table;
use crate::directory::claim;
use crate::failover::{Blow, Place, Round, stall_figures, strike, strike_node};
use crate::load::{Load, Plan, check};
use clap::builder::RangedU64ValueParser;
use std::path::PathBuf;
use std::time::Duration;

/// Options of the measurement.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rounds; each kills every daemon once on the leader and once on a follower.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Writes a second.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Clients, spread over the nodes; each needs a write in ten seconds.
    #[arg(long, default_value_t = 12, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub clients: usize,
    /// SIGSTOP instead of kill -9.
    #[arg(long)]
    pub stop: bool,
    /// Kills the leader's whole node in each round, instead of daemons.
    #[arg(long)]
    pub nodes: bool,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Directory for data and logs, made anew.
    #[arg(long, default_value = "target/failover")]
    pub dir: PathBuf,
    /// Writes all rounds as JSON to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Runs the rounds, prints the table and the figures.
///
/// # Errors
/// A daemon did not come back, or a write was lost, applied twice or failed.
#[allow(clippy::print_stdout, reason = "its output is its purpose")]
pub async fn run(args: &Args) -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    if u64::from(args.rate) * 10 < args.clients as u64 {
        return Err(format!(
            "--rate {} is less than a write in ten seconds for each of {} clients, and a round waits for writes of all",
            args.rate, args.clients
        ));
    }
    if args.build {
        crate::demo::build_executables()?;
    }
    let claim = claim(&args.dir)?;
    let addresses = Addresses::claim(3);
    let mut cluster = Cluster::prepare(&Options {
        server: sibling_executable("maree-db-server").map_err(told)?,
        dir: claim.dir().to_owned(),
        hosts: addresses.hosts.clone(),
        config: String::new(),
    })
    .map_err(told)?;
    cluster.start_all().map_err(told)?;
    cluster.await_healthy(Duration::from_secs(60)).await?;
    let load = Load::start(Plan {
        targets: cluster.nodes.iter().map(|node| node.rest()).collect(),
        clients: args.clients,
        rate: args.rate,
        value_bytes: 128,
        prefix: "failover-".into(),
    });
    let blow = if args.stop { Blow::Stop } else { Blow::Kill };
    let mut rounds: Vec<Round> = Vec::new();
    for _ in 0..args.rounds {
        if args.nodes {
            rounds.push(strike_node(&mut cluster, &load).await?);
            continue;
        }
        for daemon in DAEMONS {
            for place in [Place::Leader, Place::Follower] {
                let round = strike(&cluster, &load, daemon, place, blow).await?;
                rounds.push(round);
            }
        }
    }
    let plan = load.plan().clone();
    let summary = load.stop().await;
    let verdict = check(&plan, &summary, cluster.nodes[0].rest()).await?;
    table(&rounds);
    println!();
    for daemon in DAEMONS.into_iter().chain(["the node"]) {
        for place in [Place::Leader, Place::Follower] {
            let some: Vec<&Round> = rounds
                .iter()
                .filter(|round| round.daemon == daemon && round.place == place)
                .collect();
            if some.is_empty() {
                continue;
            }
            let (median, maximum) = stall_figures(&some);
            let unmoved = some.iter().filter(|round| round.unmoved()).count();
            println!(
                "{daemon:<11} {:<9} longest delay a client: median {median:.1} ms, maximum {maximum:.1} ms; \
                 term and leader unchanged {unmoved}/{}",
                format!("{place:?}").to_lowercase(),
                some.len()
            );
        }
    }
    println!(
        "all: {} acknowledged, {} read back, {} lost, {} applied twice, {} failed, {} repeats after a broken \
         connection; latency p50 {:.1} ms, p99 {:.1} ms",
        summary.acknowledged,
        verdict.found,
        verdict.lost.len(),
        verdict.twice.len(),
        summary.failures.len(),
        summary.retried,
        summary.latency_us.value_at_quantile(0.5) as f64 / 1000.0,
        summary.latency_us.value_at_quantile(0.99) as f64 / 1000.0,
    );
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rounds).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(told)?;
    }
    cluster.stop_all(Duration::from_secs(20)).map_err(told)?;
    if verdict.lost.is_empty() && verdict.twice.is_empty() && summary.failures.is_empty() {
        Ok(())
    } else {
        for failure in summary.failures.iter().take(10) {
            println!("failed: {failure}");
        }
        Err("writes were lost, applied twice, or failed".into())
    }
}
