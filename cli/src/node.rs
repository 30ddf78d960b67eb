//! node status: one node, its daemons, links and groups.

use crate::client::Connection;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::table::{ago, aligned, size};
use crate::tries::Repeat;
use clap::Subcommand;
use mareedb_api::rest::NodeStatus;
use mareedb_api::v1;

/// Commands about a node.
#[derive(Subcommand)]
pub enum Command {
    /// Its daemons with restarts and last exits, its groups, its disk.
    Status,
}

impl Command {
    pub async fn run(self, connection: Connection, format: Format) -> Result<Exit, Failure> {
        let Command::Status = self;
        let status = connection
            .call(Repeat::Read, async |channel, _| {
                Connection::node(channel)
                    .status(v1::NodeStatusRequest {})
                    .await
            })
            .await?
            .into_inner();
        match format {
            Format::Table => output::bytes(screen(&status).as_bytes()),
            Format::Json => output::json(&NodeStatus::from(&status)),
        }
    }
}

fn screen(status: &v1::NodeStatusResponse) -> String {
    let none = || "-".to_owned();
    let mut out = format!(
        "Node: {} ({}), up {}, version {}\n",
        status.name,
        status.state,
        ago(status.uptime_ms),
        status.version
    );
    let cluster = status
        .cluster_id
        .clone()
        .unwrap_or_else(|| "none yet".into());
    out.push_str(&format!("Cluster: {cluster}\n\n"));
    let mut rows = vec![
        [
            "DAEMON",
            "STATE",
            "PID",
            "UP",
            "RESTARTS",
            "MEMORY",
            "LAST EXIT",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for daemon in &status.daemons {
        let exit = daemon.last_exit.as_ref().map(|exit| exit.reason.clone());
        rows.push(vec![
            daemon.name.clone(),
            daemon.state.clone(),
            daemon.pid.to_string(),
            ago(daemon.uptime_ms),
            daemon.restarts.to_string(),
            size(daemon.rss_bytes),
            exit.unwrap_or_else(none),
        ]);
    }
    out.push_str(&aligned(&rows));
    let mut rows = vec![
        [
            "GROUP",
            "ROLE",
            "TERM",
            "DURABLE",
            "COMMITTED",
            "APPLIED",
            "DIGEST",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let index = |index: Option<u64>| index.map_or_else(none, |index| index.to_string());
    for group in &status.groups {
        rows.push(vec![
            group.id.to_string(),
            group.role.clone(),
            group.term.to_string(),
            index(group.durable_index),
            index(group.commit_index),
            index(group.applied_index),
            group.digest.clone(),
        ]);
    }
    out.push('\n');
    out.push_str(&aligned(&rows));
    if let Some(disk) = &status.disk {
        out.push_str(&format!(
            "\nDisk: {} of data, {} free, log writes p50 {} us, p99 {} us\n",
            size(disk.data_bytes),
            size(disk.free_bytes),
            disk.fsync_us_p50,
            disk.fsync_us_p99
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_daemon_is_shown_with_its_last_exit() {
        let status = v1::NodeStatusResponse {
            name: "node1".into(),
            state: "serving".into(),
            uptime_ms: 61_000,
            version: "0.1.0".into(),
            daemons: vec![v1::Daemon {
                name: "storaged".into(),
                state: "running".into(),
                pid: 77,
                restarts: 2,
                rss_bytes: 5_000_000,
                last_exit: Some(v1::LastExit {
                    signal: Some(9),
                    reason: "signal 9 (SIGKILL)".into(),
                    ..v1::LastExit::default()
                }),
                ..v1::Daemon::default()
            }],
            ..v1::NodeStatusResponse::default()
        };
        let text = screen(&status);
        assert!(
            text.starts_with("Node: node1 (serving), up 1 min, version 0.1.0\n"),
            "{text}"
        );
        assert!(
            text.contains("storaged  running  77   0 ms  2         5.0 MB  signal 9 (SIGKILL)"),
            "{text}"
        );
    }
}
