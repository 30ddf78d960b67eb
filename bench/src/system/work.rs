//! A load on running servers, and its figures.

use super::driver::Driver;
use super::servers::Servers;
use crate::load::histogram;
use bytes::Bytes;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// Items of one scan.
const SCAN_ITEMS: u32 = 100;
/// Clients that write the keys in the beginning.
const WRITERS: usize = 64;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Writes of a random key.
    Put,
    /// Linearizable reads of a random key.
    Get,
    /// Linearizable scans of 100 keys.
    Scan,
    /// A comparison and a write.
    Txn,
    /// Nine reads for one write.
    Mixed,
}
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Put => "put",
            Kind::Get => "get",
            Kind::Scan => "scan",
            Kind::Txn => "txn",
            Kind::Mixed => "mixed",
        })
    }
}

/// A load.
#[derive(Clone, Debug)]
pub struct Load {
    /// What.
    pub kind: Kind,
    /// By how many clients, spread over the nodes.
    pub clients: usize,
    /// Requests a second in all; 0: closed loop.
    pub rate: u32,
    /// How long it is measured.
    pub time: Duration,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Keys.
    pub keys: u64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Requests that were answered in a second.
    pub ops_per_s: f64,
    /// Median latency; of an open loop from the intended start on.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// Longest.
    pub max_ms: f64,
    /// CPU time of all processes of all three nodes a request.
    pub cpu_us_per_op: f64,
    /// Requests that failed, be it before or after the time that is measured.
    pub errors: u64,
}
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>8.0} ops/s, p50 {:.2} ms, p99 {:.2} ms, {:.0} us of server CPU an op, {} errors",
            self.ops_per_s, self.p50_ms, self.p99_ms, self.cpu_us_per_op, self.errors
        )
    }
}

/// Random numbers of one client (xorshift64*).
struct Random(u64);
impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound.max(1)
    }
}

fn key(number: u64) -> String {
    format!("key-{number:08}")
}

/// What one client saw.
struct Seen {
    /// Of what ended in the time that is measured, in microseconds.
    latencies: Histogram<u64>,
    errors: u64,
    last_error: Option<String>,
}

/// Runs a load and measures it.
///
/// # Errors
/// Clients cannot connect, nothing succeeds, or a process of the servers dies; of requests that fail the figures tell.
pub async fn measure(servers: &Servers, load: &Load) -> Result<Figures, String> {
    let mut drivers = Vec::new();
    for client in 0..load.clients {
        let addr = servers.addrs[client % servers.addrs.len()];
        drivers.push(Driver::connect(servers.api, addr).await?);
    }
    let start = Instant::now() + load.time / 5;
    let end = start + load.time;
    let tasks: Vec<_> = drivers
        .into_iter()
        .enumerate()
        .map(|(client, driver)| tokio::spawn(drive(driver, load.clone(), client, start, end)))
        .collect();
    let processes = servers.all_processes();
    tokio::time::sleep_until(start).await;
    let before = servers.cpu();
    tokio::time::sleep_until(end).await;
    let used = servers.cpu().saturating_sub(before);
    // The CPU time of one that has died is lost.
    servers.unchanged(&processes)?;
    let mut latencies = histogram();
    let mut errors = 0;
    let mut last_error = None;
    for task in tasks {
        let seen = task.await.map_err(|error| error.to_string())?;
        latencies
            .add(&seen.latencies)
            .map_err(|error| error.to_string())?;
        errors += seen.errors;
        last_error = seen.last_error.or(last_error);
    }
    if latencies.is_empty() {
        let why = last_error.unwrap_or_default();
        return Err(format!("no request succeeded: {why}"));
    }
    if let Some(why) = last_error {
        eprintln!("  {errors} requests failed, one with: {why}");
    }
    let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Figures {
        ops_per_s: latencies.len() as f64 / load.time.as_secs_f64(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        p999_ms: ms(0.999),
        max_ms: latencies.max() as f64 / 1000.0,
        cpu_us_per_op: used.as_micros() as f64 / latencies.len() as f64,
        errors,
    })
}

/// Writes every key once.
///
/// # Errors
/// A write fails.
pub async fn fill(servers: &Servers, keys: u64, value_bytes: usize) -> Result<(), String> {
    let mut tasks = Vec::new();
    for writer in 0..WRITERS {
        let addr = servers.addrs[writer % servers.addrs.len()];
        let mut driver = Driver::connect(servers.api, addr).await?;
        let value = Bytes::from(vec![b'v'; value_bytes]);
        tasks.push(tokio::spawn(async move {
            for number in (writer as u64..keys).step_by(WRITERS) {
                driver.put(key(number), value.clone()).await?;
            }
            Ok::<_, String>(())
        }));
    }
    for task in tasks {
        task.await.map_err(|error| error.to_string())??;
    }
    Ok(())
}

async fn drive(
    mut driver: Driver,
    load: Load,
    client: usize,
    start: Instant,
    end: Instant,
) -> Seen {
    let mut random = Random(client as u64 * 0x9E37_79B9 + 0x1234_5677);
    let value = Bytes::from(vec![b'v'; load.value_bytes]);
    let mut seen = Seen {
        latencies: histogram(),
        errors: 0,
        last_error: None,
    };
    // Clients of an open loop take turns.
    let pace = (load.rate > 0)
        .then(|| Duration::from_secs_f64(load.clients as f64 / f64::from(load.rate)));
    let mut due = Instant::now()
        + pace.map_or(Duration::ZERO, |pace| {
            pace.mul_f64(client as f64 / load.clients as f64)
        });
    loop {
        if pace.is_some() {
            tokio::time::sleep_until(due).await;
        }
        let began = if pace.is_some() { due } else { Instant::now() };
        if Instant::now() >= end {
            return seen;
        }
        let name = key(random.below(load.keys));
        let done = match load.kind {
            Kind::Put => driver.put(name, value.clone()).await,
            Kind::Get => driver.get(name).await,
            Kind::Scan => driver.scan(name, SCAN_ITEMS).await,
            Kind::Txn => driver.txn(name, value.clone()).await,
            Kind::Mixed if random.below(10) == 0 => driver.put(name, value.clone()).await,
            Kind::Mixed => driver.get(name).await,
        };
        let now = Instant::now();
        match done {
            Ok(()) if now >= start && now <= end => {
                let us = u64::try_from((now - began).as_micros()).unwrap_or(u64::MAX);
                seen.latencies.saturating_record(us.max(1));
            }
            Ok(()) => {}
            Err(why) => {
                seen.errors += 1;
                seen.last_error = Some(why);
            }
        }
        if let Some(pace) = pace {
            due += pace;
        }
    }
}
