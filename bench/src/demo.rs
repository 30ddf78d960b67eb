//! `./demo`: three real nodes on this machine, used, hurt, and used again.

use crate::cluster::{Cluster, DAEMONS, GRPC_PORT, Options, REST_PORT, sibling_executable};
use crate::failover::{Blow, Place, Round, strike};
use crate::load::{Load, Plan, Verdict, check};
use crate::preflight;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The nodes listen on the three addresses that follow this one.
    #[arg(long, default_value = "127.0.0.0")]
    pub base: Ipv4Addr,
    /// End when everything was shown, instead of staying up until Ctrl-C.
    #[arg(long)]
    pub exit: bool,
    /// Directory for configurations, data and logs; made anew.
    #[arg(long, default_value = "target/demo")]
    pub dir: PathBuf,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Writes a second while daemons are killed.
    #[arg(long, default_value_t = 400)]
    pub rate: u32,
}

/// Runs the demo; prints to standard output.
///
/// # Errors
/// What went wrong, with the way out; every node that was started is stopped.
#[allow(clippy::print_stdout, reason = "its output is its purpose")]
pub async fn run(args: &Args) -> Result<(), String> {
    let hosts = hosts(args.base)?;
    if args.build {
        build_executables()?;
    }
    step("Looking at the machine");
    let faults = preflight::faults(&hosts, &[REST_PORT, GRPC_PORT]);
    if !faults.is_empty() {
        return Err(faults.join("\n       "));
    }
    println!("  ports free, io_uring works, memory may be locked");

    let server = sibling_executable("maree-db-server").map_err(|error| error.to_string())?;
    let cli = sibling_executable("maree-db-cli").map_err(|error| error.to_string())?;
    fresh_directory(&args.dir)?;
    let dir = std::path::absolute(&args.dir).map_err(|error| error.to_string())?;
    step("Starting three nodes");
    let began = Instant::now();
    let mut cluster = Cluster::prepare(&Options {
        server,
        dir,
        hosts,
        config: String::new(),
    })
    .map_err(|error| format!("cannot write the configurations: {error}"))?;
    cluster
        .start_all()
        .map_err(|error| format!("cannot start a node: {error}"))?;
    for node in &cluster.nodes {
        println!(
            "  {}  pid {}  http://{}  config {}",
            node.name,
            node.pid().unwrap_or(0),
            node.rest(),
            node.config.display()
        );
    }
    let shown = tokio::select! {
        shown = show(args, &cluster, &cli, began) => Some(shown),
        () = interrupted() => None,
    };
    let outcome = shown.unwrap_or_else(|| Err("interrupted".into()));
    if outcome.is_ok() && !args.exit {
        println!("\nThe cluster stays up. Ctrl-C stops it. Try:");
        println!("  curl http://{}/v1/cluster", cluster.nodes[0].rest());
        println!(
            "  {} --endpoint {} cluster status",
            cli.display(),
            cluster.nodes[0].grpc()
        );
        println!("  a browser: http://{}/cluster", cluster.nodes[0].rest());
        interrupted().await;
        println!();
    }
    step("Stopping");
    cluster
        .stop_all(Duration::from_secs(20))
        .map_err(|error| error.to_string())?;
    println!(
        "  all nodes stopped; logs and data are under {}",
        args.dir.display()
    );
    outcome
}

/// Ends at Ctrl-C or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let mut end = signal(SignalKind::terminate()).expect("signal handlers can be set");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = end.recv() => {}
    }
}

/// Builds what the nodes run, in the profile that this executable was built with.
///
/// # Errors
/// cargo is not there, or the build fails.
pub fn build_executables() -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--locked",
        "-p",
        "maree-db-server",
        "-p",
        "maree-db-cli",
    ]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command
        .status()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("the build failed".into())
    }
}

fn hosts(base: Ipv4Addr) -> Result<Vec<Ipv4Addr>, String> {
    let [a, b, c, last] = base.octets();
    if a != 127 || last > 251 {
        return Err(format!(
            "--base {base}: an address 127.x.y.0 to 127.x.y.251 is needed"
        ));
    }
    Ok((1..=3).map(|n| Ipv4Addr::new(a, b, c, last + n)).collect())
}

/// Makes `dir` anew, but never deletes what no demo has made.
fn fresh_directory(dir: &std::path::Path) -> Result<(), String> {
    let marker = dir.join("made-by-demo");
    let told = |error: std::io::Error| format!("{}: {error}", dir.display());
    if dir.exists() {
        let empty = std::fs::read_dir(dir).map_err(told)?.next().is_none();
        if !empty && !marker.exists() {
            return Err(format!(
                "{} holds files that no demo made: name another directory with --dir",
                dir.display()
            ));
        }
        std::fs::remove_dir_all(dir).map_err(told)?;
    }
    std::fs::create_dir_all(dir).map_err(told)?;
    std::fs::write(marker, "").map_err(told)
}

#[allow(clippy::print_stdout, reason = "its output is its purpose")]
fn step(title: &str) {
    println!("\n== {title}");
}

#[allow(clippy::print_stdout, reason = "its output is its purpose")]
async fn show(
    args: &Args,
    cluster: &Cluster,
    cli: &std::path::Path,
    began: Instant,
) -> Result<(), String> {
    cluster.await_healthy(Duration::from_secs(60)).await?;
    println!("  one cluster after {} ms", began.elapsed().as_millis());

    step("maree-db-cli cluster status");
    let status = Command::new(cli)
        .args(["--endpoint", &cluster.nodes[0].grpc(), "cluster", "status"])
        .output()
        .map_err(|error| format!("{}: {error}", cli.display()))?;
    for line in String::from_utf8_lossy(&status.stdout).lines() {
        println!("  {line}");
    }
    if !status.status.success() {
        return Err(format!(
            "cluster status ended with {}: {}",
            status.status,
            String::from_utf8_lossy(&status.stderr)
        ));
    }

    step("Writes and reads, through any node");
    for (at, (key, value)) in [("greeting", "hello"), ("ship", "maree"), ("port", "7001")]
        .into_iter()
        .enumerate()
    {
        let (writer, reader) = (&cluster.nodes[at], &cluster.nodes[(at + 1) % 3]);
        println!(
            "  curl -X PUT http://{}/v1/kv/{key} --data {value}",
            writer.rest()
        );
        let answer = writer
            .client()
            .put(key, value.as_bytes())
            .await
            .map_err(|error| error.to_string())?;
        println!(
            "    {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        if answer.status != 200 {
            return Err(format!("the write of {key} failed"));
        }
        println!("  curl http://{}/v1/kv/{key}", reader.rest());
        let answer = reader
            .client()
            .get(&format!("/v1/kv/{key}"))
            .await
            .map_err(|error| error.to_string())?;
        println!(
            "    {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        if answer.body != value.as_bytes() {
            return Err(format!("{key} reads back differently"));
        }
    }

    step(&format!(
        "kill -9 of each of the leader's daemons, under {} writes/s from clients of all nodes",
        args.rate
    ));
    let (rounds, verdict, acknowledged, failures) = kills(args, cluster).await?;
    table(&rounds);
    println!(
        "  {acknowledged} writes acknowledged, {} read back, {} lost, {} applied twice, {} failed",
        verdict.found,
        verdict.lost.len(),
        verdict.twice.len(),
        failures.len()
    );
    for failure in failures.iter().take(5) {
        println!("  failed: {failure}");
    }
    if verdict.lost.is_empty() && verdict.twice.is_empty() && failures.is_empty() {
        Ok(())
    } else {
        Err("writes were lost, applied twice, or failed".into())
    }
}

async fn kills(
    args: &Args,
    cluster: &Cluster,
) -> Result<(Vec<Round>, Verdict, u64, Vec<String>), String> {
    let load = Load::start(Plan {
        targets: cluster.nodes.iter().map(|node| node.rest()).collect(),
        clients: 6,
        rate: args.rate,
        value_bytes: 128,
        prefix: "demo-".into(),
    });
    let mut rounds = Vec::new();
    let mut problem = None;
    for daemon in DAEMONS {
        match strike(cluster, &load, daemon, Place::Leader, Blow::Kill).await {
            Ok(round) => rounds.push(round),
            Err(why) => {
                problem = Some(why);
                break;
            }
        }
    }
    let plan = load.plan().clone();
    let summary = load.stop().await;
    if let Some(problem) = problem {
        return Err(problem);
    }
    let verdict = check(&plan, &summary, cluster.nodes[0].rest()).await?;
    Ok((rounds, verdict, summary.acknowledged, summary.failures))
}

/// Prints rounds as a table.
#[allow(clippy::print_stdout, reason = "its output is its purpose")]
pub fn table(rounds: &[Round]) {
    println!(
        "  {:<12} {:<7} {:>9} {:>11} {:>7} {:>12} {:>17} {:>9}",
        "killed", "node", "back in", "stall max", "failed", "term", "leader", "restarts"
    );
    for round in rounds {
        println!(
            "  {:<12} {:<7} {:>6} ms {:>8.0} ms {:>7} {:>12} {:>17} {:>9}",
            round.daemon,
            round.node,
            round.restart_ms,
            round.stall().as_secs_f64() * 1000.0,
            round.failed,
            format!("{} -> {}", round.term.0, round.term.1),
            format!("{} -> {}", round.leader.0, round.leader.1),
            round.restarts,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_moves_the_nodes() {
        let moved = hosts(Ipv4Addr::new(127, 0, 77, 0)).unwrap();
        assert_eq!(moved[2], Ipv4Addr::new(127, 0, 77, 3));
        assert!(hosts(Ipv4Addr::new(10, 0, 0, 0)).is_err());
        assert!(hosts(Ipv4Addr::new(127, 0, 0, 253)).is_err());
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("precious"), "x").unwrap();
        assert!(fresh_directory(dir.path()).is_err());
        assert!(dir.path().join("precious").exists());
        let own = dir.path().join("own");
        fresh_directory(&own).unwrap();
        std::fs::write(own.join("left"), "x").unwrap();
        fresh_directory(&own).unwrap();
        assert!(!own.join("left").exists());
    }
}
