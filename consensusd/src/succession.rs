//! Elections shorter by evidence: when the leader's whole node is gone, its followers need not wait for its lease to end.
//!
//! A supervisor keeps the node's ports open over every death of its daemons, so that a *refused* connection is strong
//! evidence that the node itself is gone. A follower whose connection to the leader's node is refused polls the other
//! voters, which changes no term. Each confirms only if that replica is still its leader in that term, and it was refused,
//! too, since it last heard of the node. With a quorum, the confirmer with the longest log, then the smallest name, alone
//! campaigns, and asks for votes that look past the lease; a receiver without evidence does not look past it.
//!
//! No safety rule rests on any of this: votes are counted as ever (RAFT-1), and reads never rest on a lease (RAFT-4). If
//! evidence is wrong, the worst is an election that was not needed.

use crate::frames::{Answer, Ask, Route};
use crate::peers::PEERS_MAX;
use crate::raft::C;
use crate::replica::{Replica, Stands};
use crate::rt;
use crate::view::metrics;
use mareedb_ipc::wire::command::Cause;
use mareedb_ipc::wire::peer::Way;
use mareedb_ipc::wire::{GroupId, ReplicaId};
use openraft::ServerState;
use openraft::alias::LogIdOf;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a poll waits for a voter.
const POLL_LIMIT: Duration = Duration::from_millis(200);
/// Between two polls: the other followers find out some milliseconds sooner or later.
const POLL_PAUSE: Duration = Duration::from_millis(15);
/// Polls, after which the ordinary timeouts decide.
const POLLS_MAX: usize = 20;
/// How long votes that a campaign asks for may look past the lease.
const CAMPAIGN: Duration = Duration::from_millis(300);

/// What this node has seen itself.
#[derive(Default)]
pub struct Evidence {
    refused: Mutex<BTreeSet<String>>,
    campaigns: Mutex<BTreeMap<GroupId, Instant>>,
}

impl Evidence {
    /// A connection to the node at `addr` was refused. Told again and again: frames that the node had sent before it died may come
    /// later than the first refusal, and take it back.
    pub fn refused(&self, addr: &str) {
        let mut refused = self.refused.lock();
        if refused.len() < PEERS_MAX {
            refused.insert(addr.to_owned());
        }
    }
    /// Only of the members anything is remembered.
    pub fn keep(&self, members: &BTreeSet<String>) {
        self.refused.lock().retain(|addr| members.contains(addr));
    }
    /// The node at `addr` was heard of.
    pub fn heard(&self, addr: &str) {
        self.refused.lock().remove(addr);
    }
    /// Whether the node at `addr` refused since it was last heard of.
    pub fn is_gone(&self, addr: &str) -> bool {
        self.refused.lock().contains(addr)
    }
    fn campaign(&self, group: GroupId) {
        self.campaigns.lock().insert(group, rt::now() + CAMPAIGN);
    }
    /// Whether this node campaigns for a group by evidence.
    pub fn campaigns(&self, group: GroupId) -> bool {
        self.campaigns
            .lock()
            .get(&group)
            .is_some_and(|until| rt::now() < *until)
    }
}

/// Lets one search for a successor run at a time: refusals are told again and again.
#[derive(Default)]
pub(crate) struct Succession(Arc<AtomicBool>);

/// The search that runs.
pub(crate) struct Searching(Arc<AtomicBool>);

impl Succession {
    /// `None`: one runs.
    fn begin(&self) -> Option<Searching> {
        let idle = !self.0.swap(true, Ordering::Relaxed);
        idle.then(|| Searching(self.0.clone()))
    }
}
impl Drop for Searching {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What a voter has to say for itself: the longest log wins, then who is fit, then the smallest name.
type Claim = (Option<LogIdOf<C>>, bool, Reverse<String>);

impl Replica {
    /// Whether this replica's leader in `term` is `leader`, and its node is gone as far as this node has seen.
    pub(crate) fn confirms_gone(&self, leader: ReplicaId, term: u64) -> bool {
        let metrics = metrics(self);
        let place = metrics.membership_config.get_node(&leader.0);
        metrics.current_term == term
            && metrics.current_leader == Some(leader.0)
            && place.is_some_and(|place| self.exchange().evidence().is_gone(&place.addr))
    }

    /// What this replica claims in a succession.
    pub(crate) fn claim(&self) -> (Option<LogIdOf<C>>, String) {
        let metrics = metrics(self);
        let name = metrics
            .membership_config
            .get_node(&metrics.id)
            .map(|place| place.name.clone());
        (self.log().last(), name.unwrap_or_default())
    }

    /// The node at `addr` refused a connection: if it leads this group, finds a successor without waiting for the lease.
    pub fn suspect(&self, addr: &str) {
        let metrics = metrics(self);
        let leads = metrics
            .current_leader
            .filter(|leader| *leader != metrics.id)
            .and_then(|leader| Some((leader, metrics.membership_config.get_node(&leader)?)))
            .filter(|(_, place)| place.addr == addr);
        let Some((leader, _)) = leads else { return };
        let Some(only) = self.succession().begin() else {
            return;
        };
        let (replica, term) = (self.clone(), metrics.current_term);
        rt::spawn(async move {
            replica.succeed(ReplicaId(leader), term).await;
            drop(only);
        });
    }

    async fn succeed(&self, leader: ReplicaId, term: u64) {
        for _ in 0..POLLS_MAX {
            let metrics = metrics(self);
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            if metrics.state != ServerState::Follower
                || self.stands() == Stands::No
                || !voters.contains(&metrics.id)
                || !self.confirms_gone(leader, term)
            {
                return;
            }
            let quorum = voters.len() / 2 + 1;
            let (last, name) = self.claim();
            let own: Claim = (last, self.stands() == Stands::Yes, Reverse(name));
            let others = self.poll(&voters, leader, term).await;
            if others.len() + 1 >= quorum && self.confirms_gone(leader, term) {
                // Everybody who polls sees the same claims, so that one campaigns; should two, or none, the ordinary
                // timeouts decide.
                if others.iter().all(|claim| *claim < own) {
                    tracing::info!(group = %self.group(), %leader, term, "the leader's node is gone: campaigning");
                    if let Some(place) = metrics.membership_config.get_node(&leader.0) {
                        self.rise().campaigns(Cause::Refused(place.node));
                    }
                    self.exchange().evidence().campaign(self.group());
                    if let Err(error) = self.raft().trigger().elect(false).await {
                        tracing::warn!(%error, "campaign");
                    }
                    return;
                }
            }
            rt::sleep(POLL_PAUSE).await;
        }
    }

    async fn poll(&self, voters: &BTreeSet<u64>, leader: ReplicaId, term: u64) -> Vec<Claim> {
        let metrics = metrics(self);
        let asked = voters
            .iter()
            .filter(|voter| **voter != leader.0 && **voter != metrics.id)
            .filter_map(|voter| {
                Some((
                    *voter,
                    metrics.membership_config.get_node(voter)?.addr.clone(),
                ))
            })
            .map(|(voter, addr)| async move {
                let route = Route {
                    from: self.id(),
                    to: ReplicaId(voter),
                    ..self.route()
                };
                let ask = Ask::LeaderGone { leader, term };
                let asked = self.exchange().ask(Way::Peer, &addr, route, ask);
                match rt::timeout(POLL_LIMIT, asked).await {
                    Ok(Ok(Answer::LeaderGone {
                        confirmed: true,
                        last,
                        fit,
                        name,
                    })) => Some((last, fit, Reverse(name))),
                    _ => None,
                }
            });
        futures::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Follower};

    #[test]
    fn evidence_ends_with_the_next_word_of_the_node() {
        let evidence = Evidence::default();
        evidence.refused("a");
        assert!(evidence.is_gone("a") && !evidence.is_gone("b"));
        evidence.heard("a");
        assert!(!evidence.is_gone("a"));
        evidence.refused("a");
        assert!(evidence.is_gone("a"), "the word was a late one");
        evidence.keep(&BTreeSet::from(["b".to_owned()]));
        assert!(!evidence.is_gone("a"), "it is no member");
    }

    #[tokio::test]
    async fn who_does_not_stand_looks_for_no_successor() {
        let mut follower = Follower::start().await;
        follower.follows().await;
        let leader = testing::formed().members.remove(0).facts.addr;
        follower.replica.exchange().evidence().refused(&leader);
        follower.replica.let_stand(Stands::No);
        follower.replica.suspect(&leader);
        assert!(follower.asked().await.is_empty());
        follower.replica.let_stand(Stands::Yes);
        follower.replica.suspect(&leader);
        let asked = follower.asked().await;
        assert!(matches!(asked[..], [Ask::LeaderGone { .. }]), "{asked:?}");
    }

    #[test]
    fn one_search_for_a_successor_runs_at_a_time() {
        let succession = Succession::default();
        let first = succession.begin();
        assert!(first.is_some() && succession.begin().is_none());
        drop(first);
        assert!(succession.begin().is_some());
    }

    #[test]
    fn the_longest_log_wins_then_who_is_fit_then_the_smallest_name() {
        let id = |term, index| Some(LogIdOf::<C>::new_term_index(term, index));
        let claim = |last, name: &str| -> Claim { (last, true, Reverse(name.to_owned())) };
        let unfit = |last, name: &str| -> Claim { (last, false, Reverse(name.to_owned())) };
        assert!(claim(id(2, 5), "b") > claim(id(1, 9), "a"));
        assert!(claim(id(2, 5), "b") > claim(id(2, 4), "a"));
        assert!(claim(id(2, 5), "a") > claim(id(2, 5), "b"));
        assert!(claim(id(1, 0), "b") > claim(None, "a"));
        assert!(claim(id(2, 5), "b") > unfit(id(2, 5), "a"));
        assert!(unfit(id(2, 6), "b") > claim(id(2, 5), "a"));
    }
}
