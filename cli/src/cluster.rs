//! cluster: status, elections, monitor, leadership, members.

use crate::client::Connection;
use crate::failure::{Exit, Failure};
use crate::monitor;
use crate::output::{self, Format};
use crate::tries::Repeat;
use clap::Subcommand;
use mareedb_api::rest::{ClusterStatus, Elections, Encoding, TransferAnswer};
use mareedb_api::v1;
use mareedb_api::values::Verdict;
use mareedb_api::{ApiError, ErrorCode};
use std::time::{Duration, SystemTime};

/// Commands about the cluster.
#[derive(Subcommand)]
pub enum Command {
    /// Verdict, leader, members, lag; exit code 0 healthy, 10 degraded, 11 no quorum or forming.
    Status,
    /// The last elections.
    Elections,
    /// The members, refreshed until Ctrl-C, also while no node answers.
    Monitor {
        /// Time between two looks.
        #[arg(long, default_value = "2s", value_parser = crate::duration)]
        interval: Duration,
        /// Looks so many times, then ends; 0: for ever.
        #[arg(long, default_value_t = 0)]
        count: u64,
    },
    /// Moves leadership to another node.
    TransferLeadership {
        /// Name of the node; without it the one with the longest log.
        #[arg(long)]
        to: Option<String>,
    },
    /// Adds a node to the cluster.
    AddNode {
        /// `HOST:7001` of the node.
        addr: String,
    },
    /// Removes a node from the cluster.
    RemoveNode {
        /// Its name.
        name: String,
        /// Also when it does not answer.
        #[arg(long)]
        force: bool,
    },
    /// Moves leadership away from a node before it is stopped.
    Drain {
        /// Its name.
        name: String,
    },
}

/// Asks a node for the status of the cluster.
pub async fn ask(connection: &Connection) -> Result<v1::ClusterStatusResponse, Failure> {
    let status = connection
        .call(Repeat::Read, async |channel, _| {
            Connection::cluster(channel)
                .status(v1::ClusterStatusRequest {})
                .await
        })
        .await?;
    Ok(status.into_inner())
}

/// A status as the REST API has it.
pub fn document(status: &v1::ClusterStatusResponse) -> Result<ClusterStatus, Failure> {
    ClusterStatus::from_proto(status, Encoding::Base64)
        .map_err(|error| Failure::Local(error.to_string()))
}

impl Command {
    pub async fn run(self, connection: Connection, format: Format) -> Result<Exit, Failure> {
        match self {
            Command::Status => status(&connection, format).await,
            Command::Elections => elections(&connection, format).await,
            Command::Monitor { interval, count } => {
                monitor::run(&connection, interval, count, format).await
            }
            Command::TransferLeadership { to } => transfer(&connection, to, format).await,
            Command::AddNode { addr } => unsupported(&format!("add-node {addr}"), MEMBERS_STAY),
            Command::RemoveNode { name, force } => {
                let force = if force { " --force" } else { "" };
                unsupported(&format!("remove-node {name}{force}"), MEMBERS_STAY)
            }
            Command::Drain { name } => unsupported(&format!("drain {name}"), STOP_HANDS_OVER),
        }
    }
}

/// What can be done instead of changing the members.
const MEMBERS_STAY: &str =
    "The members are those that formed it. For a node that is lost see docs/runbooks/lost-node.md.";
/// What can be done instead of draining.
const STOP_HANDS_OVER: &str = "A node that is stopped (systemctl stop mareedb) hands its leaderships over first; \
     maree-db-cli cluster transfer-leadership moves them at any time.";

fn unsupported(what: &str, instead: &str) -> Result<Exit, Failure> {
    Err(ApiError::new(
        ErrorCode::Unsupported,
        format!("{what}: this version does not change the members of a running cluster"),
    )
    .with_remedy(instead)
    .into())
}

async fn status(connection: &Connection, format: Format) -> Result<Exit, Failure> {
    let status = ask(connection).await?;
    let shown = match format {
        Format::Table => output::bytes(screen(&status).as_bytes()),
        Format::Json => output::json(&document(&status)?),
    };
    // The verdict is in the exit code, whoever reads the rest.
    match shown {
        Ok(_) | Err(Failure::Closed) => {}
        Err(failure) => return Err(failure),
    }
    Ok(match status.verdict.parse::<Verdict>() {
        Ok(Verdict::Healthy) => Exit::Done,
        Ok(Verdict::Degraded) => Exit::Degraded,
        _ => Exit::NoQuorum,
    })
}

/// The host of `ip:port`.
fn host(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host)
}

/// The screen of `cluster status`.
fn screen(status: &v1::ClusterStatusResponse) -> String {
    let mut out = format!(
        "Cluster: {}\n",
        status.verdict.to_uppercase().replace('_', " ")
    );
    let leader = status
        .members
        .iter()
        .find(|member| Some(&member.name) == status.leader.as_ref());
    match leader {
        Some(leader) => out.push_str(&format!(
            "Leader: {} ({})\n",
            leader.name,
            host(&leader.addr)
        )),
        None => out.push_str("Leader: none\n"),
    }
    if status.members_total > 0 {
        out.push_str(&format!(
            "Members: {}/{} online\n",
            status.members_online, status.members_total
        ));
    }
    for member in &status.members {
        let star = if Some(&member.name) == status.leader.as_ref() {
            "★ "
        } else {
            ""
        };
        out.push_str(&format!(
            "{star}{} {} {} {}\n",
            member.name, member.addr, member.role, member.status
        ));
    }
    if let Some(lag) = status.replication_lag_ms_max {
        out.push_str(&format!("Replication lag: max {lag}ms\n"));
    }
    match status.verdict.parse::<Verdict>() {
        Ok(Verdict::Healthy | Verdict::Degraded) => {
            out.push_str(&format!(
                "Cluster operational. Quorum: {}/{}.\n",
                status.quorum,
                status.members.len()
            ));
        }
        Ok(Verdict::Forming) => out.push_str("Cluster is forming.\n"),
        _ => out.push_str(&format!(
            "Cluster not operational: writes and linearizable reads wait. Quorum: {}/{}.\n",
            status.quorum,
            status.members.len()
        )),
    }
    for reason in &status.reasons {
        out.push_str(&format!("{}: {}\n", reason.code, reason.message));
    }
    if status.members_total > 0 {
        let count = status.failures_tolerated;
        out.push_str(&format!(
            "Can still lose: {count} node{}.\n",
            if count == 1 { "" } else { "s" }
        ));
    }
    out
}

async fn elections(connection: &Connection, format: Format) -> Result<Exit, Failure> {
    let answer = connection
        .call(Repeat::Read, async |channel, _| {
            Connection::cluster(channel)
                .elections(v1::ElectionsRequest {})
                .await
        })
        .await?
        .into_inner();
    if format == Format::Json {
        return output::json(&Elections::from(&answer));
    }
    output::bytes(election_table(&answer).as_bytes())
}

fn election_table(answer: &v1::ElectionsResponse) -> String {
    let widest = |names: &mut dyn Iterator<Item = usize>| names.max().unwrap_or(0);
    let leader = widest(&mut answer.items.iter().map(|election| election.leader.len())).max(6);
    let mut out = format!(
        "{:<20}  {:>5}  {:>6}  {:<leader$}  REASON\n",
        "TIME", "GROUP", "TERM", "LEADER"
    );
    for election in &answer.items {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(election.at_unix_ms);
        out.push_str(&format!(
            "{:<20}  {:>5}  {:>6}  {:<leader$}  {}\n",
            humantime::format_rfc3339_seconds(at),
            election.group,
            election.term,
            election.leader,
            election.reason
        ));
    }
    out
}

async fn transfer(
    connection: &Connection,
    to: Option<String>,
    format: Format,
) -> Result<Exit, Failure> {
    let before = ask(connection).await?;
    let request = v1::TransferLeadershipRequest {
        to: to.unwrap_or_default(),
        timeout_ms: 0,
    };
    // Sent again, it might move the leadership once more.
    let done = connection
        .call(Repeat::Never, |channel, timeout_ms| {
            let mut request = request.clone();
            request.timeout_ms = timeout_ms;
            async move {
                Connection::cluster(channel)
                    .transfer_leadership(request)
                    .await
            }
        })
        .await?
        .into_inner();
    if format == Format::Json {
        return output::json(&TransferAnswer::from(&done));
    }
    let mut text = format!("Leader transferred to {}.", done.leader);
    if let Some(old) = before.leader.filter(|old| *old != done.leader) {
        text.push_str(&format!(" {old} is now follower."));
    }
    output::line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, addr: &str, role: &str, status: &str) -> v1::Member {
        v1::Member {
            name: name.into(),
            addr: addr.into(),
            role: role.into(),
            status: status.into(),
            ..v1::Member::default()
        }
    }

    fn healthy() -> v1::ClusterStatusResponse {
        v1::ClusterStatusResponse {
            schema_version: 1,
            verdict: "healthy".into(),
            leader: Some("node1".into()),
            members_total: 3,
            members_online: 3,
            quorum: 2,
            failures_tolerated: 1,
            replication_lag_ms_max: Some(2),
            members: vec![
                member("node1", "192.168.1.10:7001", "leader", "ok"),
                member("node2", "192.168.1.11:7001", "follower", "ok"),
                member("node3", "192.168.1.12:7001", "follower", "ok"),
            ],
            ..v1::ClusterStatusResponse::default()
        }
    }

    #[test]
    fn a_healthy_cluster_shows_the_guides_lines() {
        assert_eq!(
            screen(&healthy()),
            "Cluster: HEALTHY\n\
             Leader: node1 (192.168.1.10)\n\
             Members: 3/3 online\n\
             ★ node1 192.168.1.10:7001 leader ok\n\
             node2 192.168.1.11:7001 follower ok\n\
             node3 192.168.1.12:7001 follower ok\n\
             Replication lag: max 2ms\n\
             Cluster operational. Quorum: 2/3.\n\
             Can still lose: 1 node.\n"
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut status = healthy();
        status.verdict = "degraded".into();
        status.members_online = 2;
        status.failures_tolerated = 0;
        status.members[2].status = "down".into();
        status.reasons.push(v1::Reason {
            code: "MEMBER_DOWN".into(),
            message: "node3 is down".into(),
        });
        let text = screen(&status);
        assert!(text.starts_with("Cluster: DEGRADED\n"), "{text}");
        assert!(text.contains("Members: 2/3 online\n"), "{text}");
        assert!(
            text.contains("node3 192.168.1.12:7001 follower down\n"),
            "{text}"
        );
        assert!(text.contains("MEMBER_DOWN: node3 is down\n"), "{text}");
        assert!(text.ends_with("Can still lose: 0 nodes.\n"), "{text}");

        let mut status = healthy();
        status.verdict = "no_quorum".into();
        status.leader = None;
        let text = screen(&status);
        assert!(
            text.starts_with("Cluster: NO QUORUM\nLeader: none\n"),
            "{text}"
        );

        let forming = v1::ClusterStatusResponse {
            verdict: "forming".into(),
            reasons: vec![v1::Reason {
                code: "FORMING".into(),
                message: "waiting for 192.168.1.12:7001".into(),
            }],
            ..v1::ClusterStatusResponse::default()
        };
        assert_eq!(
            screen(&forming),
            "Cluster: FORMING\nLeader: none\nCluster is forming.\nFORMING: waiting for 192.168.1.12:7001\n"
        );
    }
}
