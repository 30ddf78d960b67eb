//! `maree-db-bench stall`: the file system that holds the leader's data is frozen for a while. What do clients of the other nodes see?
//!
//! Each node's data is on a file system of its own, in an image that is mounted through a loop device; `fsfreeze` lets every write to it
//! wait, as a controller that has lost its disk for a moment does. Needs root.
//!
//! Invariants: what stands still goes on before a node is ended, which else could not end; what a killed run left frozen or mounted is
//! undone by the next one in the same directory.

use crate::directory::{self, Claim};
use crate::load::histogram;
use crate::system::{Api, Driver, Servers};
use bytes::Bytes;
use clap::builder::RangedU64ValueParser;
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
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub rounds: usize,
    /// How long the file system stands still.
    #[arg(long, default_value_t = 8)]
    pub seconds: u64,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Directory for data and logs, made anew.
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
    let claim = directory::hold(&args.dir)?;
    let images = claim.dir().join("images");
    undo_left_behind(&images)?;
    claim.empty()?;
    std::fs::create_dir(&images).map_err(|error| format!("{}: {error}", images.display()))?;
    let mut rounds = Vec::new();
    for system in &args.systems {
        rounds.extend(measure(args, &claim, &images, *system).await?);
    }
    print(&rounds);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rounds).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn measure(
    args: &Args,
    claim: &Claim,
    images: &Path,
    system: Api,
) -> Result<Vec<Round>, String> {
    // Dropped after the servers.
    let mut mounts = Vec::new();
    let servers = Servers::start_on(system, claim, "", &mut |data| {
        let image = images.join(format!("{system}-{}", mounts.len()));
        mounts.push(Mount::new(&image, data)?);
        Ok(())
    })
    .await?;
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        let leader = servers.leader(None).await.ok_or("no node leads")?;
        let time = Duration::from_secs(args.seconds);
        let round = round(&servers, leader, &mounts[leader], number, time).await?;
        eprintln!("{round:?}");
        rounds.push(round);
    }
    servers.stop().await?;
    Ok(rounds)
}

/// One stall of the leader's file system.
async fn round(
    servers: &Servers,
    leader: usize,
    mount: &Mount,
    number: usize,
    time: Duration,
) -> Result<Round, String> {
    let load = Load::start(servers, leader, number).await?;
    tokio::time::sleep(CALM).await;
    load.take();
    let began = Instant::now();
    let frozen = mount.freeze()?;
    let mut moved_ms = None;
    while began.elapsed() < time {
        // Asked as an operator would; there is no event to wait for from outside.
        tokio::time::sleep(Duration::from_millis(50)).await;
        // One that stands still may go on saying that it leads, or say nothing.
        let other = servers.leader(Some(leader));
        let other = tokio::time::timeout(Duration::from_millis(500), other).await;
        if moved_ms.is_none() && matches!(other, Ok(Some(_))) {
            moved_ms = Some(millis(began.elapsed()));
        }
    }
    let during = load.take();
    frozen.thaw()?;
    tokio::time::sleep(CALM).await;
    let after = load.stop().await;
    Ok(Round {
        system: servers.api,
        gap_ms: millis(during.gap),
        gap_began_ms: millis(during.gap_began.saturating_duration_since(began)),
        moved_ms,
        gap_after_ms: millis(after.gap),
        acknowledged: during.acknowledged + after.acknowledged,
        failed: during.failed + after.failed,
        p99_ms: during.took_us.value_at_quantile(0.99) as f64 / 1000.0,
    })
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
        let mut seen = self.take();
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        // What still waited counts, too; the gap while no more is sent is none.
        let rest = self.take();
        seen.acknowledged += rest.acknowledged;
        seen.failed += rest.failed;
        seen
    }
}

/// A file system of its own over a node's data directory. Unmounted when it is dropped.
struct Mount {
    image: PathBuf,
    at: PathBuf,
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
        })
    }

    fn freeze(&self) -> Result<Frozen<'_>, String> {
        // There before the tool is: one that ends badly may have done it.
        let frozen = Frozen {
            at: &self.at,
            thawed: false,
        };
        tool("fsfreeze", &["--freeze".as_ref(), &self.at])?;
        Ok(frozen)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A process that is about to be gone may hold it for a moment: it goes once nobody does.
        if let Err(why) = tool("umount", &["--lazy".as_ref(), &self.at]) {
            eprintln!("error: {why}");
        }
        let _ = std::fs::remove_file(&self.image);
    }
}

/// A file system that stands still until this is dropped.
struct Frozen<'a> {
    at: &'a Path,
    thawed: bool,
}

impl Frozen<'_> {
    fn thaw(mut self) -> Result<(), String> {
        self.go_on()
    }

    fn go_on(&mut self) -> Result<(), String> {
        tool("fsfreeze", &["--unfreeze".as_ref(), self.at])?;
        // Not before: what has failed is tried again.
        self.thawed = true;
        Ok(())
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.thawed
            && let Err(why) = self.go_on()
        {
            eprintln!("error: {} may stand still: {why}", self.at.display());
        }
    }
}

/// Thaws and unmounts what an earlier run that was killed has left of the images in this directory. Other mounts are not ours, wherever
/// they are.
fn undo_left_behind(images: &Path) -> Result<(), String> {
    // No directory: no run has made one.
    let Ok(images) = images.canonicalize() else {
        return Ok(());
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for at in mounted_from(&mounts, &images, backing_file) {
        // It is an error that it is not frozen.
        let _ = tool("fsfreeze", &["--unfreeze".as_ref(), &at]);
        tool("umount", &["--lazy".as_ref(), &at])?;
    }
    Ok(())
}

/// Where devices whose backing file is below `images` are mounted.
fn mounted_from(
    mounts: &str,
    images: &Path,
    backing_file: impl Fn(&str) -> Option<PathBuf>,
) -> Vec<PathBuf> {
    let places = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, at) = (fields.next()?, fields.next()?);
        let ours = backing_file(device)?.starts_with(images);
        ours.then(|| unescaped(at).into())
    });
    places.collect()
}

/// The file behind a loop device.
fn backing_file(device: &str) -> Option<PathBuf> {
    let name = device.strip_prefix("/dev/")?;
    let file = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(file.trim_end_matches('\n').into())
}

/// A path as the table of mounts writes it.
fn unescaped(path: &str) -> String {
    let spaces = path.replace("\\040", " ").replace("\\011", "\t");
    spaces.replace("\\012", "\n").replace("\\134", "\\")
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

    #[test]
    fn only_mounts_of_our_images_are_left_behind() {
        let mounts = "/dev/vda1 / ext4 rw 0 0\n\
                      /dev/loop0 /a/my\\040dir/etcd/e1 ext4 rw 0 0\n\
                      /dev/loop1 /a/my\\040dir/other ext4 rw 0 0\n\
                      proc /proc proc rw 0 0\n";
        let backing_file = |device: &str| -> Option<PathBuf> {
            match device {
                "/dev/loop0" => Some("/a/my dir/images/etcd-0 (deleted)".into()),
                "/dev/loop1" => Some("/a/my dir/images-of-others/x".into()),
                _ => None,
            }
        };
        let left = mounted_from(mounts, Path::new("/a/my dir/images"), backing_file);
        assert_eq!(left, [PathBuf::from("/a/my dir/etcd/e1")]);
    }
}
