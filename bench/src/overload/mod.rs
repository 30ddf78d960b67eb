//! `maree-db-bench overload`: many times more requests than can be served. Nothing may die or grow without bound, leaders stay, what is
//! accepted is served in good time, what is not is refused with OVERLOADED, and afterwards all is as before at once.

mod answer;
mod offer;
mod watch;
mod wire;

use crate::cluster::DAEMONS;
use crate::directory;
use crate::load::histogram;
use crate::system::{Api, Driver, Kind, Servers, Work, fill, measure};
use bytes::Bytes;
use clap::builder::RangedU64ValueParser;
use offer::{Counts, Offer};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use watch::{Moment, Watch};

/// Clients of the light load.
const LIGHT: usize = 8;
/// The light load's p99 is taken over so long afterwards.
const WINDOW: Duration = Duration::from_millis(250);
/// Recovery is waited for so long.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);

/// Options of the measurement.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many times the capacity is offered.
    #[arg(long, default_value_t = 10.0)]
    pub factor: f64,
    /// For how many seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// Seconds that the unloaded latency, and the capacity, are measured.
    #[arg(long, default_value_t = 6)]
    pub base_seconds: u64,
    /// Clients of the closed loop that the capacity is measured with.
    #[arg(long, default_value_t = 256)]
    pub clients: usize,
    /// Connections of the open loop, spread over the nodes.
    #[arg(long, default_value_t = 12, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub connections: usize,
    /// Requests that the generator has outstanding at most; what is due beyond is counted as not sent.
    #[arg(long, default_value_t = 2048, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub outstanding: usize,
    /// `timeout_ms` of every request.
    #[arg(long, default_value_t = 2000)]
    pub timeout_ms: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
    /// Keys that are written.
    #[arg(long, default_value_t = 20_000)]
    pub keys: u64,
    /// Lines for the configuration of each node of Maree-DB, for example `[limits]` and, below it, `requests_in_flight_max = 256`.
    #[arg(long, default_value = "")]
    pub config: String,
    /// Build the executables of the nodes first.
    #[arg(long, hide = true)]
    pub build: bool,
    /// Directory for data and logs, made anew.
    #[arg(long, default_value = "target/overload")]
    pub dir: PathBuf,
    /// Writes all figures as JSON to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// A second of overload.
#[derive(Debug, Serialize)]
struct Second {
    us: u64,
    sent: u64,
    unsent: u64,
    outstanding: usize,
    accepted: u64,
    overloaded: u64,
    without_retry_after: u64,
    others: BTreeMap<String, u64>,
    accepted_p50_us: u64,
    accepted_p99_us: u64,
    refused_p99_us: u64,
    #[serde(flatten)]
    nodes: Moment,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Report {
    unloaded_p99_us: u64,
    capacity_per_s: f64,
    capacity_p99_us: u64,
    offered_per_s: f64,
    before: Moment,
    seconds: Vec<Second>,
    /// From the last second to the answer of the last request: what was outstanding then.
    drained: Second,
    accepted_p99_us: u64,
    recovered_us: Option<u64>,
    after: Moment,
}

/// Runs it and prints what happened.
///
/// # Errors
/// The cluster does not start, or something died or went wrong under the load; a missed goal of latency is no error.
pub async fn run(args: &Args) -> Result<(), String> {
    if args.build {
        crate::demo::build_executables()?;
    }
    let claim = directory::claim(&args.dir)?;
    let servers = Servers::start_with(Api::MareeGrpc, &claim, &args.config).await?;
    let watch = Watch::new(&servers);
    fill(&servers, args.keys, args.value_bytes).await?;
    let base = |clients| Work {
        kind: Kind::Put,
        clients,
        rate: 0,
        time: Duration::from_secs(args.base_seconds),
        value_bytes: args.value_bytes,
        keys: args.keys,
    };
    let unloaded = measure(&servers, &base(LIGHT)).await?;
    eprintln!("unloaded:{unloaded}");
    let capacity = measure(&servers, &base(args.clients)).await?;
    eprintln!("capacity:{capacity}");
    let rate = capacity.ops_per_s * args.factor;
    let before = watch.look(&servers).await;
    let offered = offer(args, &servers, &watch, rate).await?;
    let recovered_us = recovery(&servers, args, unloaded.p99_ms * 2.0).await?;
    let report = Report {
        unloaded_p99_us: us(unloaded.p99_ms),
        capacity_per_s: capacity.ops_per_s,
        capacity_p99_us: us(capacity.p99_ms),
        offered_per_s: rate,
        before,
        seconds: offered.seconds,
        drained: offered.drained,
        accepted_p99_us: offered.all.accepted_us.value_at_quantile(0.99),
        recovered_us,
        after: watch.look(&servers).await,
    };
    let sound = print(args, &report, &offered.all);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| error.to_string())?;
    }
    servers.stop().await?;
    sound
}

/// What became of all that was offered.
struct Offered {
    seconds: Vec<Second>,
    drained: Second,
    /// All answers, also those that came when no more was sent.
    all: Counts,
}

/// Offers `rate` requests a second for `args.seconds`, then waits for the answers that are missing.
async fn offer(
    args: &Args,
    servers: &Servers,
    watch: &Watch,
    rate: f64,
) -> Result<Offered, String> {
    let mut offer = Offer::start(args, &servers.addrs, rate).await?;
    let mut all = Counts::default();
    let mut seconds = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.tick().await;
    all.add(&offer.take());
    let mut since = Instant::now();
    for _ in 0..args.seconds {
        tick.tick().await;
        let counts = offer.take();
        let elapsed = since.elapsed();
        since = Instant::now();
        all.add(&counts);
        let nodes = watch.look(servers).await;
        let second = second(counts, elapsed, offer.outstanding(), nodes);
        eprintln!("{}", line(&second));
        seconds.push(second);
    }
    offer.stop().await?;
    let counts = offer.take();
    let elapsed = since.elapsed();
    all.add(&counts);
    let nodes = watch.look(servers).await;
    let drained = second(counts, elapsed, offer.outstanding(), nodes);
    Ok(Offered {
        seconds,
        drained,
        all,
    })
}

fn us(ms: f64) -> u64 {
    let time = Duration::from_secs_f64(ms / 1000.0);
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn second(counts: Counts, time: Duration, outstanding: usize, nodes: Moment) -> Second {
    Second {
        us: u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
        sent: counts.sent,
        unsent: counts.unsent,
        outstanding,
        accepted: counts.accepted,
        overloaded: counts.overloaded,
        without_retry_after: counts.without_retry_after,
        others: counts.others,
        accepted_p50_us: counts.accepted_us.value_at_quantile(0.5),
        accepted_p99_us: counts.accepted_us.value_at_quantile(0.99),
        refused_p99_us: counts.refused_us.value_at_quantile(0.99),
        nodes,
    }
}

fn line(second: &Second) -> String {
    format!(
        "sent {:>6}, not sent {:>6}; accepted {:>5} (p50 {:>6.1} ms, p99 {:>6.1}), OVERLOADED {:>6} (p99 {:>6.1}), others {:?}; \
         largest node {:>4} MiB; leader {:?}{}",
        second.sent,
        second.unsent,
        second.accepted,
        second.accepted_p50_us as f64 / 1000.0,
        second.accepted_p99_us as f64 / 1000.0,
        second.overloaded,
        second.refused_p99_us as f64 / 1000.0,
        second.others,
        second.nodes.largest_node_kib() / 1024,
        second.nodes.leader,
        if second.nodes.replaced.is_empty() {
            String::new()
        } else {
            format!("; REPLACED {:?}", second.nodes.replaced)
        },
    )
}

/// How long it takes until the light load is as quick as `p99_ms` again.
async fn recovery(servers: &Servers, args: &Args, p99_ms: f64) -> Result<Option<u64>, String> {
    let began = Instant::now();
    let latencies = std::sync::Arc::new(std::sync::Mutex::new(histogram()));
    let value = Bytes::from(vec![b'v'; args.value_bytes]);
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..LIGHT {
        let addr = servers.addrs[client % servers.addrs.len()];
        let mut driver = Driver::connect(servers.api, addr).await?;
        let (latencies, value) = (latencies.clone(), value.clone());
        clients.spawn(async move {
            loop {
                let start = Instant::now();
                // One that is still refused has not been served: it must not look quick.
                let done = driver.put(format!("light-{client}"), value.clone()).await;
                let took = if done.is_ok() {
                    start.elapsed()
                } else {
                    Duration::from_secs(60)
                };
                let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                latencies
                    .lock()
                    .expect("not poisoned")
                    .saturating_record(us);
            }
        });
    }
    while began.elapsed() < RECOVERY_LIMIT {
        tokio::time::sleep(WINDOW).await;
        let window = std::mem::replace(&mut *latencies.lock().expect("not poisoned"), histogram());
        if !window.is_empty() && window.value_at_quantile(0.99) as f64 / 1000.0 <= p99_ms {
            return Ok(Some(
                u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            ));
        }
    }
    Ok(None)
}

/// Prints the report. An error: something that must not happen did.
#[allow(clippy::print_stdout, reason = "its output is its purpose")]
fn print(args: &Args, report: &Report, all: &Counts) -> Result<(), String> {
    let ms = |us: u64| us as f64 / 1000.0;
    let sum = |get: fn(&Second) -> u64| report.seconds.iter().map(get).sum::<u64>();
    let time = sum(|second| second.us).max(1) as f64 / 1e6;
    let rate = |get: fn(&Second) -> u64| sum(get) as f64 / time;
    println!(
        "unloaded p99 {:.1} ms; capacity {:.0}/s with {} clients (p99 {:.1} ms)",
        ms(report.unloaded_p99_us),
        report.capacity_per_s,
        args.clients,
        ms(report.capacity_p99_us)
    );
    println!(
        "due {:.0}/s, sent {:.0}/s, not sent since {} were outstanding {:.0}/s",
        report.offered_per_s,
        rate(|second| second.sent),
        args.outstanding,
        rate(|second| second.unsent)
    );
    println!(
        "accepted {:.0}/s, p50 {:.1} ms, p99 {:.1} ms: {:.1} times the unloaded one (goal: 5)",
        rate(|second| second.accepted),
        ms(all.accepted_us.value_at_quantile(0.5)),
        ms(report.accepted_p99_us),
        report.accepted_p99_us as f64 / report.unloaded_p99_us.max(1) as f64
    );
    println!(
        "OVERLOADED {:.0}/s, p99 {:.1} ms, {} without retry-after; others: {:?}",
        rate(|second| second.overloaded),
        ms(all.refused_us.value_at_quantile(0.99)),
        all.without_retry_after,
        all.others
    );
    let largest = |get: &dyn Fn(&Moment) -> u64| {
        let seconds = report.seconds.iter().map(|second| get(&second.nodes));
        seconds.max().unwrap_or(0) / 1024
    };
    print!(
        "largest node {} MiB (before {}, after {})",
        largest(&Moment::largest_node_kib),
        report.before.largest_node_kib() / 1024,
        report.after.largest_node_kib() / 1024
    );
    for name in DAEMONS {
        print!(", {name} {}", largest(&|moment| moment.largest_kib(name)));
    }
    println!();
    let leaders: std::collections::BTreeSet<_> = [&report.before, &report.after]
        .into_iter()
        .chain(report.seconds.iter().map(|second| &second.nodes))
        .chain([&report.drained.nodes])
        .filter_map(|moment| moment.leader.clone())
        .collect();
    println!("leaders and terms: {leaders:?}");
    match report.recovered_us {
        Some(us) => println!("p99 of the light load is back after {:.0} ms", ms(us)),
        None => println!("p99 of the light load is not back after {RECOVERY_LIMIT:?}"),
    }
    let mut faults = Vec::new();
    if !report.after.replaced.is_empty() {
        faults.push(format!("died: {:?}", report.after.replaced));
    }
    if leaders.len() > 1 {
        faults.push("leadership moved".into());
    }
    if !all.others.is_empty() {
        faults.push(format!("neither accepted nor OVERLOADED: {:?}", all.others));
    }
    if all.without_retry_after > 0 {
        faults.push("OVERLOADED without retry-after".into());
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults.join("; "))
    }
}
