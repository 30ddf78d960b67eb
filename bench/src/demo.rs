//! `./demo`: three real nodes on this machine, used, hurt, and used again.

use crate::cluster::{Cluster, DAEMONS, GRPC_PORT, Options, REST_PORT, sibling_executable};
use crate::directory::claim;
use crate::failover::{Blow, Place, Round, strike};
use crate::load::{Load, Plan, Verdict, check};
use crate::preflight;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// Where the nodes are unless something else is asked for.
const BASE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 0);

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The nodes listen on the three addresses that follow this one.
    #[arg(long, default_value_t = BASE)]
    pub base: Ipv4Addr,
    /// End when everything was shown, instead of staying up until Ctrl-C.
    #[arg(long)]
    pub exit: bool,
    /// Directory for configurations, data and logs, made anew; target/demo, or with another base target/demo-BASE.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Writes a second while daemons are killed.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
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
    // After the look at the ports: nodes that still run there may have their data there, too.
    let claim = claim(&directory(args))?;
    step("Starting three nodes");
    let began = Instant::now();
    let mut cluster = Cluster::prepare(&Options {
        server,
        dir: claim.dir().to_owned(),
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
    let mut interruption = std::pin::pin!(interrupted());
    let outcome = tokio::select! {
        shown = show(args, &cluster, &cli, began) => shown,
        () = &mut interruption => Err("interrupted".into()),
    };
    if outcome.is_ok() && !args.exit {
        println!("\nThe cluster stays up. Ctrl-C stops it. Try:");
        println!("  curl http://{}/v1/cluster", cluster.nodes[0].rest());
        println!(
            "  {} --endpoint {} cluster status",
            cli.display(),
            cluster.nodes[0].grpc()
        );
        println!("  a browser: http://{}/cluster", cluster.nodes[0].rest());
        interruption.await;
    }
    say("\n== Stopping");
    cluster
        .stop_all(Duration::from_secs(20))
        .map_err(|error| error.to_string())?;
    say(&format!(
        "  all nodes stopped; logs and data are under {}",
        claim.dir().display()
    ));
    outcome
}

/// Ends at Ctrl-C, SIGTERM, and when the terminal is closed. From its first poll on these signals end nothing else in this process.
///
/// # Panics
/// Handlers cannot be set.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let handle = |kind| signal(kind).expect("signal handlers can be set");
    let mut interrupt = handle(SignalKind::interrupt());
    let mut terminate = handle(SignalKind::terminate());
    let mut hangup = (!ignores_hangup()).then(|| handle(SignalKind::hangup()));
    let hung_up = async {
        match &mut hangup {
            Some(hangup) => {
                hangup.recv().await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = hung_up => {}
    }
}

/// Whether who started this process had it go on without its terminal, as nohup does.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1, which is SIGHUP.
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

/// Prints a line, also to a terminal that is gone: nodes have to be stopped all the same.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
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

/// Two demos at once have different bases, so that they have different directories, too.
fn directory(args: &Args) -> PathBuf {
    match &args.dir {
        Some(dir) => dir.clone(),
        None if args.base == BASE => PathBuf::from("target/demo"),
        None => PathBuf::from(format!("target/demo-{}", args.base)),
    }
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
    fn a_demo_that_is_moved_has_another_directory() {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let of = |options: &[&str]| {
            let cli: Cli = clap::Parser::parse_from([&["demo"], options].concat());
            directory(&cli.args)
        };
        assert_eq!(of(&[]), PathBuf::from("target/demo"));
        assert_eq!(of(&["--base", "127.0.0.0"]), PathBuf::from("target/demo"));
        let moved = of(&["--base", "127.0.77.0"]);
        assert_eq!(moved, PathBuf::from("target/demo-127.0.77.0"));
        let named = of(&["--base", "127.0.77.0", "--dir", "x"]);
        assert_eq!(named, PathBuf::from("x"));
        let none = <Cli as clap::Parser>::try_parse_from(["demo", "--rate", "0"]);
        assert!(none.is_err());
    }
}
