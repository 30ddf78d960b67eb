//! How long it takes until what was ended serves again.

use super::idle::us;
use crate::cluster::DAEMONS;
use crate::failover::{Blow, Place, Round, strike};
use crate::load::{Load, Plan, check};
use crate::system::{Driver, End, Servers};
use serde::Serialize;
use std::time::{Duration, Instant};

/// A node has so long to come back.
const LIMIT: Duration = Duration::from_secs(60);
/// It is tried so often.
const TRY: Duration = Duration::from_millis(5);

/// A node's return.
#[derive(Debug, Serialize)]
pub struct Back {
    /// Which.
    pub node: usize,
    /// SIGTERM; otherwise kill -9 of all its processes.
    pub graceful: bool,
    /// How long it took to end.
    pub end_us: u64,
    /// From its start to the answer to a linearizable read.
    pub read_us: u64,
}

/// Ends each node in turn, gracefully and by force, `times` each, and starts it again.
///
/// # Errors
/// A node does not come back.
pub async fn end_nodes(servers: &mut Servers, times: u32) -> Result<Vec<Back>, String> {
    let mut all = Vec::new();
    for time in 0..times as usize {
        for how in [End::Graceful, End::Kill] {
            let node = time % servers.count();
            let began = Instant::now();
            servers.end(node, how).await?;
            let end_us = us(began.elapsed());
            // A cluster without it goes on, which a reader of the others shows; then it has a log to catch up with.
            serves(servers, (node + 1) % servers.count()).await?;
            let began = Instant::now();
            servers.begin(node)?;
            serves(servers, node).await?;
            let read_us = us(began.elapsed());
            eprintln!("  node {node}, {how:?}: back in {} ms", read_us / 1000);
            all.push(Back {
                node,
                graceful: how == End::Graceful,
                end_us,
                read_us,
            });
            if let Some(cluster) = servers.cluster() {
                cluster.await_healthy(LIMIT).await?;
            }
            for node in 0..servers.count() {
                serves(servers, node).await?;
            }
        }
    }
    Ok(all)
}

/// Waits until a node answers a linearizable read.
async fn serves(servers: &Servers, node: usize) -> Result<(), String> {
    let end = Instant::now() + LIMIT;
    loop {
        let read = async {
            let mut driver = Driver::connect(servers.api, servers.addrs[node]).await?;
            driver.get("first".into()).await
        };
        match read.await {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() > end => return Err(why),
            // A port that nobody listens on yet gives no event to wait for.
            Err(_) => tokio::time::sleep(TRY).await,
        }
    }
}

/// Kills each daemon of the leader's node in turn under a light load; nothing for a system without daemons.
///
/// # Errors
/// One does not come back, or a write is lost.
pub async fn kill_daemons(
    servers: &Servers,
    rounds: u32,
    prefix: &str,
) -> Result<Vec<Round>, String> {
    let Some(cluster) = servers.cluster() else {
        return Ok(Vec::new());
    };
    let load = Load::start(Plan {
        targets: cluster.nodes.iter().map(|node| node.rest()).collect(),
        clients: 6,
        rate: 100,
        value_bytes: 84,
        prefix: prefix.into(),
    });
    let mut all = Vec::new();
    for _ in 0..rounds {
        for daemon in DAEMONS {
            all.push(strike(cluster, &load, daemon, Place::Leader, Blow::Kill).await?);
        }
    }
    let plan = load.plan().clone();
    let summary = load.stop().await;
    let verdict = check(&plan, &summary, cluster.nodes[0].rest()).await?;
    if verdict.lost.is_empty() && verdict.twice.is_empty() && summary.failures.is_empty() {
        return Ok(all);
    }
    Err(format!(
        "{} writes were lost, {} applied twice, {} failed",
        verdict.lost.len(),
        verdict.twice.len(),
        summary.failures.len()
    ))
}
