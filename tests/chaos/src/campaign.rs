//! Rounds one after the other, for as long as it is asked, with results; and what is kept of a failure.

use crate::bed::{Attendants, Bed, Setup, copy_all};
use crate::disk::Disk;
use crate::fault::named;
use crate::judge::{Finding, LogMarks};
use crate::results::{append, read};
use crate::round::{Plan, Round, look_again, run};
use crate::trees::Left;
use crate::workload::Plant;
use mareedb_bench::net::Network;
use mareedb_history::json;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A log beyond this is emptied after a round that has passed.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// What a round has left behind is read again after so many others.
const LOOK_AFTER: u64 = 10;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The seed of the first round; each further round has the next one.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long to go on.
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// How many rounds at most.
    #[arg(long)]
    pub rounds: Option<u64>,
    /// Nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub nodes: u8,
    /// Faults: all, none, or a list of names and families, for example kill,net-oneway.
    #[arg(long, default_value = "all")]
    pub faults: String,
    /// Seconds of load in a round.
    #[arg(long, default_value_t = 10)]
    pub load_s: u64,
    /// Operations a second at most.
    #[arg(long, default_value_t = 1200)]
    pub rate: u32,
    /// Clients of a node. More of them than four have more objects, too.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
    pub clients: u8,
    /// Directory for data and logs.
    #[arg(long, default_value = "target/chaos")]
    pub dir: PathBuf,
    /// Appends a JSON line a round to this file.
    #[arg(long)]
    pub results: Option<PathBuf>,
    /// Begins after the last seed in the file of results.
    #[arg(long, requires = "results")]
    pub resume: bool,
    /// Goes on after a violation, with a new cluster.
    #[arg(long)]
    pub keep_going: bool,
    /// Keeps schedule and history of every round, not only of one with a violation.
    #[arg(long)]
    pub keep: bool,
    /// Nodes on loopback addresses, without faults of the network. So it is also without root.
    #[arg(long)]
    pub loopback: bool,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Loses an acknowledged write on the way to the judges, who must find it.
    #[arg(long, hide = true)]
    pub plant: bool,
    /// Prints the table that a file of results comes to, and does nothing else.
    #[arg(long, value_name = "FILE")]
    pub summary: Option<PathBuf>,
}

/// A cluster that is in use.
struct Running {
    bed: Arc<Bed>,
    marks: LogMarks,
    /// What an earlier round has left behind, and how many rounds there were since.
    left: Option<(Left, u64)>,
    _attendants: Attendants,
}

/// Runs rounds until the time is over.
///
/// # Errors
/// A promise was broken, or nothing can be run; the message says how to repeat it.
#[allow(clippy::print_stdout, reason = "its output is its purpose")]
pub async fn campaign(args: &Args, server: &Path) -> Result<(), String> {
    let faults = named(&args.faults)?;
    let network = !args.loopback && Network::possible();
    if !network && !args.loopback {
        println!("without root's rights, ip, nsenter and /dev/net/tun: no faults of the network");
    }
    let told = |error: std::io::Error| error.to_string();
    let dir = std::path::absolute(&args.dir).map_err(told)?;
    let disks = Disk::possible(&dir);
    if !disks {
        println!("without root's rights, mkfs.ext4, mount and fsfreeze: no faults of the disk");
    }
    let setup = Setup {
        server: server.to_owned(),
        dir: dir.join("running"),
        nodes: args.nodes,
        network,
        disks,
    };
    let mut seed = args.seed;
    if let (true, Some(path)) = (args.resume, &args.results)
        && path.exists()
    {
        let last = read(path)?.iter().map(|line| line.seed).max();
        seed = last.map_or(seed, |last| last + 1);
    }
    let end = Instant::now() + Duration::from_secs_f64(args.minutes * 60.0);
    let mut running: Option<Running> = None;
    let mut broken = Vec::new();
    for _ in 0..args.rounds.unwrap_or(u64::MAX) {
        if Instant::now() >= end {
            break;
        }
        let mut cluster = match running.take() {
            Some(cluster) => cluster,
            None => {
                let (bed, attendants) = Bed::start(&setup).await?;
                Running {
                    bed,
                    marks: LogMarks::default(),
                    left: None,
                    _attendants: attendants,
                }
            }
        };
        let plan = Plan {
            seed,
            load: Duration::from_secs(args.load_s),
            rate: args.rate,
            clients: args.clients,
            faults: faults.clone(),
            plant: if args.plant {
                Plant::LostWrite
            } else {
                Plant::Nothing
            },
            leave: cluster.left.is_none(),
        };
        let mut round = run(&cluster.bed, &plan, &mut cluster.marks).await?;
        if let Some((left, rounds)) = &mut cluster.left {
            *rounds += 1;
            if *rounds >= LOOK_AFTER && round.findings.is_empty() {
                round.also(look_again(&cluster.bed, left).await.err());
                cluster.left = None;
            }
        }
        if let Some(left) = round.left.take() {
            cluster.left = Some((left, 0));
        }
        if let Some(path) = &args.results {
            append(path, &round.line).map_err(told)?;
        }
        println!("{}", brief(&round));
        if args.keep {
            keep(&round, &dir.join(format!("kept-{seed}"))).map_err(told)?;
        }
        if round.findings.is_empty() {
            cluster.marks.empty_large(&cluster.bed, LOG_BYTES_MAX);
            running = Some(cluster);
        } else {
            let kept = dir.join(format!("failed-{seed}-{}", std::process::id()));
            cluster.bed.stop().unwrap_or_else(|why| println!("{why}"));
            keep(&round, &kept).map_err(told)?;
            copy_all(&cluster.bed.dir, &kept.join("nodes")).map_err(told)?;
            let text = failure(&round, args, &kept);
            println!("{text}");
            broken.push(seed);
            if !args.keep_going {
                return Err(format!("a promise was broken with seed {seed}"));
            }
        }
        seed += 1;
    }
    if let Some(cluster) = running {
        cluster.bed.stop()?;
    }
    if broken.is_empty() {
        Ok(())
    } else {
        Err(format!("promises were broken with the seeds {broken:?}"))
    }
}

/// A round in a line.
fn brief(round: &Round) -> String {
    let line = &round.line;
    let faults: u64 = line.faults.values().sum();
    let worst = line.gaps_ms.values().flatten().max();
    format!(
        "seed {}: {} {faults} faults, {:?}, worst gap {} ms, healed in {} ms, undecided {}: {}",
        line.seed,
        line.manner,
        line.ops,
        worst.map_or("-".to_owned(), u64::to_string),
        line.heal_ms,
        line.undecided,
        if line.violations.is_empty() {
            "holds".to_owned()
        } else {
            format!("BROKEN: {}", line.violations.join(", "))
        }
    )
}

/// Keeps what was done, seen and found in a round.
fn keep(round: &Round, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    let schedule = serde_json::to_string_pretty(&round.schedule)?;
    std::fs::write(to.join("schedule.json"), schedule)?;
    let findings: Vec<String> = round
        .findings
        .iter()
        .map(|finding| format!("{}: {}\n", finding.promise, finding.evidence))
        .collect();
    std::fs::write(to.join("findings.txt"), findings.concat())?;
    let mut file = BufWriter::new(File::create(to.join("history.jsonl"))?);
    for operation in round.history.operations() {
        json::write(&mut file, operation)?;
    }
    std::io::Write::flush(&mut file)
}

fn failure(round: &Round, args: &Args, kept: &Path) -> String {
    let first: Vec<String> = round
        .findings
        .iter()
        .take(5)
        .map(|Finding { promise, evidence }| {
            let evidence: String = evidence.chars().take(600).collect();
            format!("  {promise}: {evidence}")
        })
        .collect();
    let schedule = serde_json::to_string(&round.schedule).unwrap_or_else(|error| error.to_string());
    format!(
        "BROKEN with seed {seed}:\n{}\nschedule: {schedule}\nkept in {}\nrepeat it: cargo chaos --seed {seed} --rounds 1 --nodes {} --faults {} --load-s {} --rate {} --clients {}",
        first.join("\n"),
        kept.display(),
        args.nodes,
        args.faults,
        args.load_s,
        args.rate,
        args.clients,
        seed = round.line.seed,
    )
}
