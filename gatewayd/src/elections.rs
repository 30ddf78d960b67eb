//! The elections that this node's groups remember, in the words of the contract.

use crate::core::Core;
use mareedb_api::ApiError;
use mareedb_api::v1;
use mareedb_ipc::wire::NodeId;
use mareedb_ipc::wire::command::{Cause, Election};
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::wire::view::ClusterView;
use std::time::Duration;
use tokio::time::Instant;

/// Elections that are told at most.
const TOLD_MAX: usize = 1_000;
/// How long a reader may take, whatever time the request has.
const WITHIN: Duration = Duration::from_secs(2);

/// The last elections of all groups as this node knows them, newest first.
///
/// # Errors
/// `NOT_READY`: the cluster is forming, or the node's replicas are starting.
pub async fn elections(core: &Core, deadline: Instant) -> Result<v1::ElectionsResponse, ApiError> {
    let deadline = deadline.min(Instant::now() + WITHIN);
    let view = core.view().filter(|view| !view.groups.is_empty());
    let view = view.ok_or_else(|| core.not_ready())?;
    let mut items = Vec::new();
    for group in &view.groups {
        let answer = core
            .read_local(group.id, Query::Elections, deadline)
            .await?;
        items.extend(
            answer
                .elections
                .into_iter()
                .map(|(at, election)| v1::Election {
                    at_unix_ms: at.unix_ms(),
                    group: group.id.0.into(),
                    term: election.term,
                    leader: name(&view, election.node),
                    reason: reason(&view, &election),
                }),
        );
    }
    items.sort_by_key(|election| std::cmp::Reverse((election.at_unix_ms, election.group)));
    items.truncate(TOLD_MAX);
    Ok(v1::ElectionsResponse { items })
}

fn name(view: &ClusterView, node: NodeId) -> String {
    match view.member(node) {
        Some(member) => member.name.clone(),
        None => format!("node {node}, not a member any more"),
    }
}

fn reason(view: &ClusterView, election: &Election) -> String {
    match election.cause {
        Cause::NoLeader => "no leader was known".into(),
        // Nobody else was heard of in between: its own leadership had lapsed.
        Cause::Silence(node) if node == election.node => "its leadership had lapsed".into(),
        Cause::Silence(node) => format!("nothing was heard of {}", name(view, node)),
        Cause::Refused(node) => format!("{} refused connections", name(view, node)),
        Cause::HandOver(node) => format!("{} handed over", name(view, node)),
    }
}
