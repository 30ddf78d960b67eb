//! Kills daemons under load, round by round, and says what the clients saw.

use crate::cluster::{Cluster, DaemonName};
use crate::load::{Load, Plan, micros, number};
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
    /// Longest delay of each client, in microseconds, from the kill to the end of the round; a write that still waits then counts with
    /// the time that it has waited.
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

/// Writes that each client gets acknowledged after a blow before its round is over: as many as are due in ten seconds, but two to eight.
fn writes_each(plan: &Plan) -> u64 {
    (10 * u64::from(plan.rate) / plan.clients.max(1) as u64).clamp(2, 8)
}

/// Waits until each client that is `counted` has some more writes acknowledged, so that no write of the blow's time waits any more.
/// A client that has ended with a failure is not waited for. Returns whether that was so before `end`.
async fn flows(load: &Load, end: Instant, counted: impl Fn(usize) -> bool) -> bool {
    let (before, more) = (load.by_client(), writes_each(load.plan()));
    while !advanced(&before, &load.by_client(), more, &counted) {
        if Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

fn advanced(
    before: &[Option<u64>],
    now: &[Option<u64>],
    more: u64,
    counted: impl Fn(usize) -> bool,
) -> bool {
    let mut clients = before.iter().zip(now).enumerate();
    clients.all(|(client, both)| match both {
        (Some(before), Some(now)) if counted(client) => *now >= before + more,
        _ => true,
    })
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
    // The round lasts at least 700 ms.
    if !flows(load, struck + limit, |_| true).await {
        return Err(format!(
            "writes of all clients do not flow {limit:?} after {daemon} of {} was struck\n{}",
            node.name,
            node.log_end()
        ));
    }
    tokio::time::sleep_until((struck + Duration::from_millis(700)).into()).await;
    let stalls_us = load.take_window().into_iter().map(micros).collect();
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
    // Clients are spread over the nodes in turn; those of the dead one have nobody to ask.
    let counted = |client: usize| client % count != at;
    if !flows(load, struck + limit, counted).await {
        return Err(format!(
            "writes of the others' clients do not flow {limit:?} after {} was killed",
            cluster.nodes[at].name
        ));
    }
    let stalls_us = load
        .take_window()
        .into_iter()
        .enumerate()
        .filter(|(client, _)| counted(*client))
        .map(|(_, stall)| micros(stall))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_to_advance_but_those_that_ended_or_have_nobody_to_ask() {
        let before = [Some(10), Some(20), None, Some(5)];
        let all = |_| true;
        let now = [Some(18), Some(100), None, Some(5)];
        assert!(!advanced(&before, &now, 8, all), "the last one waits");
        assert!(advanced(&before, &now, 8, |client| client != 3));
        let ended = [Some(18), Some(28), None, None];
        assert!(advanced(&before, &ended, 8, all));
        let one_less = [Some(17), Some(28), None, None];
        assert!(!advanced(&before, &one_less, 8, all));
    }

    #[test]
    fn a_slow_load_makes_no_round_longer_than_its_limit() {
        let plan = |clients, rate| Plan {
            targets: Vec::new(),
            clients,
            rate,
            value_bytes: 1,
            prefix: String::new(),
        };
        assert_eq!(writes_each(&plan(12, 400)), 8);
        assert_eq!(writes_each(&plan(6, 3)), 5);
        assert_eq!(writes_each(&plan(6, 1)), 2);
        assert_eq!(writes_each(&plan(0, 1)), 8);
    }
}
