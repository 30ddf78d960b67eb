//! `maree-db-bench stall`: the file system that holds the leader's data is frozen for a while. What do clients of the other nodes see?
//!
//! Each node's data is on a file system of its own, in an image that is mounted through a loop device; `fsfreeze` lets every write to it
//! wait, as a controller that has lost its disk for a moment does. Needs root.

use crate::load::histogram;
use crate::system::{Api, Driver, Servers};
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The other nodes' clients, and how often each writes.
const CLIENTS: usize = 8;
const EVERY: Duration = Duration::from_millis(20);
/// A file system for one node.
const IMAGE_MIB: &str = "512";
/// After a stall the node that had it catches up.
const CALM: Duration = Duration::from_secs(5);

/// Options of the measurement.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Systems, in the order in which they have their turns.
    #[arg(long, value_delimiter = ',', default_values_t = [Api::Etcd, Api::MareeGrpc], value_enum)]
    pub systems: Vec<Api>,
    /// Stalls of each system.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// How long the file system stands still.
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Directory for data and logs.
    #[arg(long, default_value = "target/stall")]
    pub dir: PathBuf,
    /// Writes all figures as JSON to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What a stall did.
#[derive(Debug, Serialize)]
struct Round {
    system: Api,
    /// Longest time without any acknowledged write, and when it began after the stall did.
    gap_ms: u64,
    gap_began_ms: u64,
    /// Until another node says that it leads; none: not during the stall.
    moved_ms: Option<u64>,
    /// Longest time without any acknowledged write once the file system goes on.
    gap_after_ms: u64,
    acknowledged: u64,
    failed: u64,
    p99_ms: f64,
}

/// Runs it and prints what happened.
///
/// # Errors
/// No root, a tool is missing, or a cluster does not start.
pub async fn run(args: &Args) -> Result<(), String> {
    if args.build {
        crate::demo::build_executables()?;
    }
    let mut rounds = Vec::new();
    for system in &args.systems {
        rounds.extend(measure(args, *system).await?);
    }
    print(&rounds);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rounds).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn measure(args: &Args, system: Api) -> Result<Vec<Round>, String> {
    let images = std::path::absolute(&args.dir)
        .map_err(|error| error.to_string())?
        .join("images");
    std::fs::create_dir_all(&images).map_err(|error| error.to_string())?;
    // Dropped after the servers.
    let mut mounts = Vec::new();
    let servers = Servers::start_on(system, &args.dir, "", &mut |data| {
        let image = images.join(format!("{system}-{}", mounts.len()));
        mounts.push(Mount::new(&image, data)?);
        Ok(())
    })
    .await?;
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        let leader = servers.leader().await.ok_or("no node leads")?;
        let load = Load::start(&servers, leader, number).await?;
        tokio::time::sleep(CALM).await;
        load.take();
        let began = Instant::now();
        mounts[leader].freeze()?;
        let mut moved_ms = None;
        while began.elapsed() < Duration::from_secs(args.seconds) {
            // Asked as an operator would; there is no event to wait for from outside.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = tokio::time::timeout(Duration::from_millis(500), servers.leader()).await;
            if moved_ms.is_none() && matches!(now, Ok(Some(now)) if now != leader) {
                moved_ms = Some(millis(began.elapsed()));
            }
        }
        let during = load.take();
        mounts[leader].thaw()?;
        tokio::time::sleep(CALM).await;
        let after = load.stop().await;
        let round = Round {
            system,
            gap_ms: millis(during.gap),
            gap_began_ms: millis(during.gap_began.saturating_duration_since(began)),
            moved_ms,
            gap_after_ms: millis(after.gap),
            acknowledged: during.acknowledged + after.acknowledged,
            failed: during.failed + after.failed,
            p99_ms: during.took_us.value_at_quantile(0.99) as f64 / 1000.0,
        };
        eprintln!("{round:?}");
        rounds.push(round);
    }
    servers.stop().await?;
    Ok(rounds)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What clients saw in some time.
struct Seen {
    last: Instant,
    gap: Duration,
    gap_began: Instant,
    acknowledged: u64,
    failed: u64,
    took_us: Histogram<u64>,
}

impl Seen {
    fn from(now: Instant) -> Seen {
        Seen {
            last: now,
            gap: Duration::ZERO,
            gap_began: now,
            acknowledged: 0,
            failed: 0,
            took_us: histogram(),
        }
    }

    /// The time up to `now` is one without an acknowledgement, whether one comes now or it is only looked at.
    fn reach(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.last);
        if gap > self.gap {
            (self.gap, self.gap_began) = (gap, self.last);
        }
    }
}

struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    /// Clients of all nodes but `spared`; none waits for another one.
    async fn start(servers: &Servers, spared: usize, round: usize) -> Result<Load, String> {
        let seen = Arc::new(Mutex::new(Seen::from(Instant::now())));
        let stop = Arc::new(AtomicBool::new(false));
        let number = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let others: Vec<_> = (0..servers.count())
            .filter(|node| *node != spared)
            .collect();
        for client in 0..CLIENTS {
            let addr = servers.addrs[others[client % others.len()]];
            let mut driver = Driver::connect(servers.api, addr).await?;
            let (seen, stop, number) = (seen.clone(), stop.clone(), number.clone());
            tasks.spawn(async move {
                let mut due = tokio::time::interval(EVERY);
                due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    due.tick().await;
                    let key = format!("stall-{round}-{}", number.fetch_add(1, Ordering::Relaxed));
                    let began = Instant::now();
                    let done = driver.put(key, Bytes::from_static(&[b'v'; 256])).await;
                    let now = Instant::now();
                    let mut seen = seen.lock().expect("not poisoned");
                    if done.is_ok() {
                        seen.reach(now);
                        seen.last = now;
                        seen.acknowledged += 1;
                        let us = u64::try_from((now - began).as_micros()).unwrap_or(u64::MAX);
                        seen.took_us.saturating_record(us);
                    } else {
                        seen.failed += 1;
                    }
                }
            });
        }
        Ok(Load { seen, stop, tasks })
    }

    /// What was seen since the last call; a gap that is still open counts as far as it has come.
    fn take(&self) -> Seen {
        let now = Instant::now();
        let mut seen = self.seen.lock().expect("not poisoned");
        seen.reach(now);
        let mut next = Seen::from(now);
        next.last = seen.last;
        std::mem::replace(&mut *seen, next)
    }

    async fn stop(mut self) -> Seen {
        let seen = self.take();
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        seen
    }
}

/// A file system of its own over a node's data directory. Thawed and unmounted when it is dropped.
struct Mount {
    image: PathBuf,
    at: PathBuf,
    frozen: bool,
}

impl Mount {
    fn new(image: &Path, at: &Path) -> Result<Mount, String> {
        tool(
            "truncate",
            &["-s".as_ref(), format!("{IMAGE_MIB}M").as_ref(), image],
        )?;
        tool("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image])?;
        tool("mount", &["-o".as_ref(), "loop".as_ref(), image, at])?;
        Ok(Mount {
            image: image.to_owned(),
            at: at.to_owned(),
            frozen: false,
        })
    }

    fn freeze(&mut self) -> Result<(), String> {
        tool("fsfreeze", &["--freeze".as_ref(), &self.at])?;
        self.frozen = true;
        Ok(())
    }

    fn thaw(&mut self) -> Result<(), String> {
        self.frozen = false;
        tool("fsfreeze", &["--unfreeze".as_ref(), &self.at])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.frozen {
            let _ = self.thaw();
        }
        // A process that is about to be gone may hold it for a moment: it goes once nobody does.
        if let Err(why) = tool("umount", &["--lazy".as_ref(), &self.at]) {
            eprintln!("error: {why}");
        }
        let _ = std::fs::remove_file(&self.image);
    }
}

fn tool(name: &str, arguments: &[&Path]) -> Result<(), String> {
    let done = Command::new(name)
        .args(arguments)
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!(
        "{name}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    ))
}

#[allow(clippy::print_stdout, reason = "its output is its purpose")]
fn print(rounds: &[Round]) {
    println!(
        "| system | no write acknowledged for, ms | of that from, ms | another node leads after, ms | longest gap afterwards, ms | acknowledged | failed |"
    );
    println!("|---|---|---|---|---|---|---|");
    for round in rounds {
        let moved = round.moved_ms.map_or("-".into(), |ms| ms.to_string());
        println!(
            "| {} | {} | {} | {moved} | {} | {} | {} |",
            round.system,
            round.gap_ms,
            round.gap_began_ms,
            round.gap_after_ms,
            round.acknowledged,
            round.failed
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_found_with_its_beginning_also_when_it_is_still_open() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut seen = Seen::from(began);
        for ms in [10, 20, 500, 510] {
            seen.reach(at(ms));
            seen.last = at(ms);
        }
        assert_eq!(
            (seen.gap, seen.gap_began),
            (Duration::from_millis(480), at(20))
        );
        seen.reach(at(2_000));
        assert_eq!(
            (seen.gap, seen.gap_began),
            (Duration::from_millis(1_490), at(510))
        );
    }
}
