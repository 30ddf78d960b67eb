//! Kills daemons under load, round by round, and says what the clients saw.

use crate::cluster::{Cluster, DaemonName};
use crate::load::{Load, number};
use nix::sys::signal::Signal;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Where the killed daemon was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On the leader's node.
    Leader,
    /// On a follower's.
    Follower,
}

/// What one kill did.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// The daemon.
    pub daemon: DaemonName,
    /// Where.
    pub place: Place,
    /// The node's name.
    pub node: String,
    /// Longest delay of each client, in microseconds, from the kill to the end of the round.
    pub stalls_us: Vec<u64>,
    /// Failed requests in the round.
    pub failed: usize,
    /// Term of the meta group before and after.
    pub term: (u64, u64),
    /// Leader before and after.
    pub leader: (String, String),
    /// Restarts of that daemon that the node counts afterwards.
    pub restarts: u64,
    /// Milliseconds from the signal to a successor that beats.
    pub restart_ms: u64,
}

impl Round {
    /// The longest delay of any client.
    pub fn stall(&self) -> Duration {
        Duration::from_micros(self.stalls_us.iter().copied().max().unwrap_or(0))
    }
    /// Whether neither term nor leader changed.
    pub fn unmoved(&self) -> bool {
        self.term.0 == self.term.1 && self.leader.0 == self.leader.1
    }
}

/// How a daemon is brought down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// kill -9.
    Kill,
    /// SIGSTOP: the supervisor must see that it hangs.
    Stop,
}

/// Waits until one node leads all groups, so that a blow meets all of them or none, and until the clients have caught up with
/// what a blow before has held up: their delay is not the next one's.
async fn settled(cluster: &Cluster, load: &Load, limit: Duration) -> Result<(), String> {
    let together = |status: &serde_json::Value| {
        let groups = status["groups"].as_array();
        groups.is_some_and(|groups| {
            groups
                .iter()
                .all(|group| group["leader"] == status["leader"])
        })
    };
    cluster.await_status(limit, together).await?;
    let caught_up = Duration::from_millis(200);
    let began = Instant::now();
    loop {
        load.take_window();
        tokio::time::sleep(Duration::from_millis(300)).await;
        if load
            .take_window()
            .into_iter()
            .all(|delay| delay < caught_up)
        {
            return Ok(());
        }
        if began.elapsed() > limit {
            return Err(format!("clients do not catch up within {limit:?}"));
        }
    }
}

/// Brings down one daemon while `load` runs, and waits until it is back and the load flows.
///
/// # Errors
/// The daemon did not come back, or the cluster did not become healthy again, in 30 s.
pub async fn strike(
    cluster: &Cluster,
    load: &Load,
    daemon: DaemonName,
    place: Place,
    blow: Blow,
) -> Result<Round, String> {
    let limit = Duration::from_secs(30);
    cluster.await_healthy(limit).await?;
    settled(cluster, load, limit).await?;
    let leader = cluster.leader().await.ok_or("nobody knows a leader")?;
    let at = match place {
        Place::Leader => leader,
        Place::Follower => (leader + 1) % cluster.nodes.len(),
    };
    let node = &cluster.nodes[at];
    let watcher = &cluster.nodes[(at + 1) % cluster.nodes.len()];
    let before = watcher.ask("/v1/cluster").await?;
    let failed_before = load.failed();
    load.take_window();
    let signal = match blow {
        Blow::Kill => Signal::SIGKILL,
        Blow::Stop => Signal::SIGSTOP,
    };
    let struck = Instant::now();
    let pid = node
        .signal_daemon(daemon, signal)
        .ok_or_else(|| format!("{}: {daemon} does not run", node.name))?;
    node.await_restart(daemon, pid, limit).await?;
    let restart_ms = u64::try_from(struck.elapsed().as_millis()).unwrap_or(u64::MAX);
    // The round lasts until each client has had some more writes acknowledged, and at least 700 ms.
    let target = load.acknowledged() + 8 * load.plan().clients as u64;
    while load.acknowledged() < target && load.failed() == failed_before {
        if struck.elapsed() > limit {
            return Err(format!(
                "writes do not flow {limit:?} after {daemon} of {} was struck\n{}",
                node.name,
                node.log_end()
            ));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep_until((struck + Duration::from_millis(700)).into()).await;
    let stalls_us = load
        .take_window()
        .into_iter()
        .map(|stall| u64::try_from(stall.as_micros()).unwrap_or(u64::MAX))
        .collect();
    cluster.await_healthy(limit).await?;
    let after = watcher.ask("/v1/cluster").await?;
    let status = node.ask("/v1/node").await?;
    let restarts = status["daemons"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["name"] == daemon)
        .and_then(|entry| number(&entry["restarts"]))
        .ok_or_else(|| format!("{}: no {daemon} in /v1/node: {status}", node.name))?;
    let name = |status: &serde_json::Value| status["leader"].as_str().unwrap_or("none").to_owned();
    Ok(Round {
        daemon,
        place,
        node: node.name.clone(),
        stalls_us,
        failed: load.failed() - failed_before,
        term: (
            number(&before["term"]).unwrap_or(0),
            number(&after["term"]).unwrap_or(0),
        ),
        leader: (name(&before), name(&after)),
        restarts,
        restart_ms,
    })
}

/// Kills the leader's whole node, waits until writes flow through the others, and starts it again.
///
/// # Errors
/// No new leader, or no healthy cluster, in 30 s.
pub async fn strike_node(cluster: &mut Cluster, load: &Load) -> Result<Round, String> {
    let limit = Duration::from_secs(30);
    cluster.await_healthy(limit).await?;
    settled(cluster, load, limit).await?;
    let at = cluster.leader().await.ok_or("nobody knows a leader")?;
    let count = cluster.nodes.len();
    let watcher = (at + 1) % count;
    let before = cluster.nodes[watcher].ask("/v1/cluster").await?;
    let failed_before = load.failed();
    load.take_window();
    let struck = Instant::now();
    cluster.nodes[at]
        .kill9()
        .map_err(|error| error.to_string())?;
    let target = load.acknowledged() + 8 * load.plan().clients as u64;
    while load.acknowledged() < target && load.failed() == failed_before {
        if struck.elapsed() > limit {
            return Err(format!(
                "writes do not flow {limit:?} after {} was killed",
                cluster.nodes[at].name
            ));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Clients are spread over the nodes in turn; those of the dead one have nobody to ask.
    let stalls_us = load
        .take_window()
        .into_iter()
        .enumerate()
        .filter(|(client, _)| client % count != at)
        .map(|(_, stall)| u64::try_from(stall.as_micros()).unwrap_or(u64::MAX))
        .collect();
    let after = cluster.nodes[watcher].ask("/v1/cluster").await?;
    cluster.nodes[at]
        .start()
        .map_err(|error| error.to_string())?;
    cluster.await_healthy(limit).await?;
    let restart_ms = u64::try_from(struck.elapsed().as_millis()).unwrap_or(u64::MAX);
    let name = |status: &serde_json::Value| status["leader"].as_str().unwrap_or("none").to_owned();
    let term = |status: &serde_json::Value| number(&status["term"]).unwrap_or(0);
    Ok(Round {
        daemon: "the node",
        place: Place::Leader,
        node: cluster.nodes[at].name.clone(),
        stalls_us,
        failed: load.failed() - failed_before,
        term: (term(&before), term(&after)),
        leader: (name(&before), name(&after)),
        restarts: 0,
        restart_ms,
    })
}

/// Median and maximum of the longest delay per client over several rounds, in milliseconds.
pub fn stall_figures(rounds: &[&Round]) -> (f64, f64) {
    let mut all: Vec<u64> = rounds
        .iter()
        .flat_map(|round| round.stalls_us.iter().copied())
        .collect();
    all.sort_unstable();
    let ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1000.0);
    (ms(all.get(all.len() / 2)), ms(all.last()))
}
