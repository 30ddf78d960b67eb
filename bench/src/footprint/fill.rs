//! Many small keys, and what they cost in memory and on disk.

use super::Args;
use super::idle::us;
use crate::system::{Driver, Servers};
use crate::usage::{Memory, disk_bytes};
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Memory is looked at so often.
const LOOK: Duration = Duration::from_millis(500);
/// Sizes that have not changed for so long will not.
const SETTLED: Duration = Duration::from_secs(4);
/// They are waited for so long.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// A transaction is tried so often: under the load of its filling a cluster may refuse one.
const TRIES: u32 = 10;

/// What filling did.
#[derive(Debug, Serialize)]
pub struct Filled {
    /// Keys.
    pub keys: u64,
    /// How long writing took.
    pub time_us: u64,
    /// Transactions that were tried again.
    pub tried_again: u64,
    /// How long it took until no size changed any more; `None`: they still did.
    pub settled_us: Option<u64>,
    /// Each node.
    pub nodes: Vec<FilledNode>,
}

/// A node's share.
#[derive(Debug, Serialize)]
pub struct FilledNode {
    /// The largest sum over its processes while writing.
    pub largest: Memory,
    /// Afterwards.
    pub after: Memory,
    /// Afterwards, each process.
    pub processes: Vec<(&'static str, Memory)>,
    /// Files of the data.
    pub data_bytes: u64,
    /// Files of the log.
    pub log_bytes: u64,
}

/// Writes `args.keys` keys, then waits until nothing changes any more.
///
/// # Errors
/// A write fails, or a process has died, whose memory would be missing.
pub async fn fill(servers: &Servers, args: &Args) -> Result<Filled, String> {
    let processes = servers.all_processes();
    let memory = |node: usize| Memory::sum(processes[node].iter().map(|(_, pid)| *pid));
    let mut largest = vec![Memory::default(); processes.len()];
    let began = Instant::now();
    let tried_again = Arc::new(AtomicU64::new(0));
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..args.clients {
        let addr = servers.addrs[client % servers.addrs.len()];
        let driver = Driver::connect(servers.api, addr).await?;
        let (next, tried_again) = (next.clone(), tried_again.clone());
        clients.spawn(write(driver, Sizes::of(args), next, tried_again));
    }
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            ended = clients.join_next() => match ended {
                Some(ended) => ended.map_err(|error| error.to_string())??,
                None => break,
            },
            _ = look.tick() => {
                for (node, largest) in largest.iter_mut().enumerate() {
                    let now = memory(node);
                    if now.pss_kib > largest.pss_kib {
                        *largest = now;
                    }
                }
            }
        }
    }
    let time_us = us(began.elapsed());
    eprintln!(
        "  written in {:?}; waiting until sizes settle",
        began.elapsed()
    );
    let settled_us = settle(servers).await;
    let nodes = (0..servers.count())
        .map(|node| {
            let (data, log) = servers.places(node);
            FilledNode {
                largest: largest[node],
                after: memory(node),
                processes: processes[node]
                    .iter()
                    .filter_map(|(name, pid)| Some((*name, Memory::of(*pid)?)))
                    .collect(),
                data_bytes: disk_bytes(&data),
                log_bytes: disk_bytes(&log),
            }
        })
        .collect();
    servers.unchanged(&processes)?;
    Ok(Filled {
        keys: args.keys,
        time_us,
        tried_again: tried_again.load(Ordering::Relaxed),
        settled_us,
        nodes,
    })
}

#[derive(Clone, Copy)]
struct Sizes {
    keys: u64,
    txn_puts: u64,
    value_bytes: usize,
}

impl Sizes {
    fn of(args: &Args) -> Sizes {
        Sizes {
            keys: args.keys,
            txn_puts: args.txn_puts,
            value_bytes: usize::try_from(args.pair_bytes - 16).unwrap_or(0),
        }
    }
}

async fn write(
    mut driver: Driver,
    sizes: Sizes,
    next: Arc<AtomicU64>,
    tried_again: Arc<AtomicU64>,
) -> Result<(), String> {
    loop {
        let from = next.fetch_add(sizes.txn_puts, Ordering::Relaxed);
        if from >= sizes.keys {
            return Ok(());
        }
        let to = (from + sizes.txn_puts).min(sizes.keys);
        let pairs: Vec<_> = (from..to)
            .map(|number| pair(number, sizes.value_bytes))
            .collect();
        let mut tries = 0;
        while let Err(why) = driver.put_all(pairs.clone()).await {
            tries += 1;
            if tries == TRIES {
                return Err(why);
            }
            tried_again.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A key of 16 bytes and its value. Neither order nor content helps an engine: both look random.
fn pair(number: u64, value_bytes: usize) -> (String, Bytes) {
    let mut state = mix(number);
    let key = format!("{state:016x}");
    let mut value = Vec::with_capacity(value_bytes + 8);
    while value.len() < value_bytes {
        state = mix(state);
        value.extend_from_slice(&state.to_le_bytes());
    }
    value.truncate(value_bytes);
    (key, value.into())
}

/// A bijection whose results look random (splitmix64).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Waits until flushing and merging are over, which shows in sizes that no longer change. How long that took.
async fn settle(servers: &Servers) -> Option<u64> {
    let sizes = || -> Vec<u64> {
        (0..servers.count())
            .map(|node| disk_bytes(&servers.places(node).0))
            .collect()
    };
    let began = Instant::now();
    let mut last = sizes();
    let mut since = Instant::now();
    while began.elapsed() < SETTLE_LIMIT {
        tokio::time::sleep(LOOK).await;
        let now = sizes();
        if now != last {
            last = now;
            since = Instant::now();
        } else if since.elapsed() >= SETTLED {
            return Some(us(since - began));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_the_asked_size_and_differ() {
        let (key, value) = pair(7, 84);
        assert_eq!(key.len() + value.len(), 100);
        assert_ne!(pair(7, 84), pair(8, 84));
        let keys: std::collections::BTreeSet<_> = (0..10_000).map(|n| pair(n, 0).0).collect();
        assert_eq!(keys.len(), 10_000);
    }
}
