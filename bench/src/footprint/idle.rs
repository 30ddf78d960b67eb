//! What nodes cost that nobody asks for anything.

use crate::system::Servers;
use crate::usage::{self, Memory};
use serde::Serialize;
use std::time::{Duration, Instant};

/// A node's share.
#[derive(Debug, Serialize)]
pub struct IdleNode {
    /// Its processes.
    pub processes: Vec<IdleProcess>,
}

impl IdleNode {
    /// Of all its processes.
    pub fn memory(&self) -> Memory {
        let mut all = Memory::default();
        for process in &self.processes {
            all += process.memory;
        }
        all
    }

    /// Of all its processes.
    pub fn cpu_of_a_core(&self) -> f64 {
        self.processes.iter().map(IdleProcess::cpu_of_a_core).sum()
    }
}

/// A process.
#[derive(Debug, Serialize)]
pub struct IdleProcess {
    /// What it is.
    pub name: &'static str,
    /// At the end.
    #[serde(flatten)]
    pub memory: Memory,
    /// CPU time in the whole time.
    pub cpu_us: u64,
    /// That time.
    pub time_us: u64,
}

impl IdleProcess {
    /// Percent of a core.
    pub fn cpu_of_a_core(&self) -> f64 {
        self.cpu_us as f64 / self.time_us.max(1) as f64 * 100.0
    }
}

/// Leaves the nodes alone for `time`, and says what they have used.
///
/// # Errors
/// A process has died: it would count as one that costs nothing.
pub async fn watch(servers: &Servers, time: Duration) -> Result<Vec<IdleNode>, String> {
    let nodes = servers.all_processes();
    let used = |pid| usage::cpu(pid).unwrap_or_default();
    let before: Vec<Vec<Duration>> = nodes
        .iter()
        .map(|node| node.iter().map(|(_, pid)| used(*pid)).collect())
        .collect();
    let began = Instant::now();
    tokio::time::sleep(time).await;
    let time_us = us(began.elapsed());
    let idle = nodes
        .iter()
        .zip(before)
        .map(|(node, before)| IdleNode {
            processes: node
                .iter()
                .zip(before)
                .map(|((name, pid), before)| IdleProcess {
                    name,
                    memory: Memory::of(*pid).unwrap_or_default(),
                    cpu_us: us(used(*pid).saturating_sub(before)),
                    time_us,
                })
                .collect(),
        })
        .collect();
    servers.unchanged(&nodes)?;
    Ok(idle)
}

/// Whole microseconds.
pub fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
