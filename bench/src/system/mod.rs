//! `maree-db-bench system`: the same loads on Maree-DB and on etcd, in turn, on the same machine and disk.
//!
//! Each repetition starts a fresh cluster of three nodes, runs all loads on it, and stops it, one system after the other, in each
//! repetition another one first; what is compared are medians of repetitions of one run. Servers and clients share the machine, as the
//! figures say.

mod driver;
mod etcd;
mod servers;
mod work;

pub use driver::{Api, Driver};
pub use servers::{End, Process, Servers};
pub use work::{Figures, Kind, Load as Work, fill, measure};

use crate::directory::{self, Claim};
use clap::builder::RangedU64ValueParser;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use work::Load;

/// Options of the measurement.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Systems and their APIs.
    #[arg(long, value_delimiter = ',', default_values = ["maree-grpc", "etcd"])]
    pub systems: Vec<Api>,
    /// Loads.
    #[arg(long, value_delimiter = ',', default_values = ["put", "get", "scan", "txn", "mixed"])]
    pub loads: Vec<Kind>,
    /// Numbers of clients, each with one request at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256])]
    pub clients: Vec<usize>,
    /// Requests a second in all, at fixed moments whatever comes back (open loop); 0: as fast as answers come.
    #[arg(long, default_value_t = 0)]
    pub rate: u32,
    /// Seconds that a load is measured, after a fifth of that to warm up.
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
    /// Keys that are read and written.
    #[arg(long, default_value_t = 20_000)]
    pub keys: u64,
    /// Repetitions of everything.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub repeat: usize,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Directory for data and logs, made anew.
    #[arg(long, default_value = "target/system")]
    pub dir: PathBuf,
    /// Writes all figures as JSON to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// One load on one system, once.
#[derive(Clone, Debug, Serialize)]
struct Row {
    system: Api,
    load: Kind,
    clients: usize,
    #[serde(flatten)]
    figures: Figures,
}

/// Runs everything and prints a table of medians.
///
/// # Errors
/// A cluster does not start, a process dies, or a request fails: then the table says of which load.
pub async fn run(args: &Args) -> Result<(), String> {
    if args.build {
        crate::demo::build_executables()?;
    }
    let claim = directory::claim(&args.dir)?;
    let rows = repetitions(args, &claim).await?;
    print_table(args, &rows);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| error.to_string())?;
    }
    match rows.iter().map(|row| row.figures.errors).sum::<u64>() {
        0 => Ok(()),
        errors => Err(format!("{errors} requests failed")),
    }
}

async fn repetitions(args: &Args, claim: &Claim) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for repetition in 0..args.repeat {
        for system in in_turn(&args.systems, repetition) {
            eprintln!("repetition {} of {}: {system}", repetition + 1, args.repeat);
            let servers = Servers::start(system, claim).await?;
            work::fill(&servers, args.keys, args.value_bytes).await?;
            eprintln!("  {} keys are there", args.keys);
            rows.extend(loads(args, &servers).await?);
            eprintln!("  {}", servers.footprint());
            servers.stop().await?;
        }
    }
    Ok(rows)
}

/// The systems, each first as often as the others: what is measured later meets a disk and a processor that have worked longer.
fn in_turn(systems: &[Api], repetition: usize) -> Vec<Api> {
    let mut systems = systems.to_vec();
    let first = repetition % systems.len().max(1);
    systems.rotate_left(first);
    systems
}

/// All loads on one cluster.
async fn loads(args: &Args, servers: &Servers) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for load in &args.loads {
        for clients in &args.clients {
            let load = Load {
                kind: *load,
                clients: *clients,
                rate: args.rate,
                time: Duration::from_secs(args.seconds),
                value_bytes: args.value_bytes,
                keys: args.keys,
            };
            let figures = work::measure(servers, &load).await?;
            eprintln!("  {:<6} {:>4} clients: {figures}", load.kind, load.clients);
            rows.push(Row {
                system: servers.api,
                load: load.kind,
                clients: load.clients,
                figures,
            });
        }
    }
    Ok(rows)
}

#[allow(clippy::print_stdout, reason = "its output is its purpose")]
fn print_table(args: &Args, rows: &[Row]) {
    println!(
        "{:<6} {:>7}  {:<11} {:>9} {:>8} {:>8} {:>8} {:>9} {:>7}  {:>6}",
        "load",
        "clients",
        "system",
        "ops/s",
        "spread",
        "p50 ms",
        "p99 ms",
        "CPU us/op",
        "errors",
        "ratio"
    );
    for load in &args.loads {
        for clients in &args.clients {
            let mut base: BTreeMap<&str, f64> = BTreeMap::new();
            for system in args.systems.iter().rev() {
                let some: Vec<&Figures> = rows
                    .iter()
                    .filter(|row| {
                        row.system == *system && row.load == *load && row.clients == *clients
                    })
                    .map(|row| &row.figures)
                    .collect();
                let of = |get: fn(&Figures) -> f64| median(some.iter().map(|row| get(row)));
                let rate = of(|row| row.ops_per_s);
                let (low, high) = some.iter().fold((f64::MAX, 0.0_f64), |(low, high), row| {
                    (low.min(row.ops_per_s), high.max(row.ops_per_s))
                });
                let ratio = match base.get("rate") {
                    Some(base) if *base > 0.0 => format!("{:.2}", rate / base),
                    _ => {
                        base.insert("rate", rate);
                        "1".into()
                    }
                };
                println!(
                    "{load:<6} {clients:>7}  {system:<11} {rate:>9.0} {:>7.0}% {:>8.2} {:>8.2} {:>9.0} {:>7}  {ratio:>6}",
                    (high - low) / rate.max(1.0) * 100.0,
                    of(|row| row.p50_ms),
                    of(|row| row.p99_ms),
                    of(|row| row.cpu_us_per_op),
                    some.iter().map(|row| row.errors).sum::<u64>(),
                );
            }
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_system_is_first_in_its_turn() {
        let both = [Api::MareeGrpc, Api::Etcd];
        assert_eq!(in_turn(&both, 0), both);
        assert_eq!(in_turn(&both, 1), [Api::Etcd, Api::MareeGrpc]);
        assert_eq!(in_turn(&both, 2), both);
        assert!(in_turn(&[], 1).is_empty());
    }
}
