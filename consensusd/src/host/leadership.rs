//! Who leads: handing over, following the meta group, minding the disk.

use super::{
    CALM_MS, FOLLOW_MS, HAND_OVER_MS, HEIR_LAG_ENTRIES_MAX, HEIR_LAG_MS_MAX, Host, STORAGE_AWAY_MS,
};
use crate::formation::Formation;
use crate::replica::{Replica, Stands};
use crate::rt;
use crate::view::metrics;
use mareedb_ipc::Gauge;
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::{GroupId, META_GROUP, NodeId};
use openraft::ServerState;
use std::collections::{BTreeMap, BTreeSet};

/// Why leaderships are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Somebody wishes another leader: all groups or none, and to one node.
    Asked,
    /// This node had better not lead: whatever can go goes.
    GivingUp,
    /// It is about to stop.
    Leaving,
}

/// A replica that could take a group over, with what speaks for it. A clock that is right is worth more than some entries, and the one with
/// the longest log loses the least time.
#[derive(Clone, Debug)]
struct Heir {
    close: bool,
    right: bool,
    matched: Option<u64>,
    replica: u64,
    name: String,
}

/// Those of one group, by node.
type Heirs = BTreeMap<NodeId, Heir>;

/// The best node among those that could take over each of these groups.
fn one_for_all<'a>(groups: impl Iterator<Item = &'a Heirs> + Clone) -> Option<NodeId> {
    let first = groups.clone().next()?;
    let of = |node: &NodeId| -> Option<Vec<&Heir>> {
        groups.clone().map(|heirs| heirs.get(node)).collect()
    };
    let able = first.keys().filter_map(|node| {
        let heirs = of(node)?;
        let close = heirs.iter().all(|heir| heir.close);
        let right = heirs.iter().all(|heir| heir.right);
        let matched: u64 = heirs.iter().filter_map(|heir| heir.matched).sum();
        Some((close, right, matched, *node))
    });
    able.max().map(|(.., node)| node)
}

/// What is known of this node's disk, by the status board of its storaged.
pub(super) struct DiskWatch {
    /// Whether it stalls.
    pub(super) stalled: bool,
    /// When it was last seen to stall.
    stalled_at: Option<u64>,
    /// Whether storaged serves.
    serves: bool,
    /// When it last did.
    seen: Option<u64>,
}

impl Default for DiskWatch {
    fn default() -> Self {
        DiskWatch {
            stalled: false,
            stalled_at: None,
            serves: true,
            seen: None,
        }
    }
}

fn begin_transfer(replica: &Replica, to: u64) {
    let raft = replica.raft().clone();
    rt::spawn(async move {
        if let Err(error) = raft.trigger().transfer_leader(to).await {
            tracing::warn!(%error, "leadership transfer");
        }
    });
}

impl Host {
    /// From now on this node takes no leadership: it is about to stop.
    pub fn drain(&mut self) {
        self.draining = true;
        self.let_stand();
        // The others are told at once.
        self.next.ping = 0;
    }

    /// Whether replicas of this node stand for election.
    pub(super) fn stands(&self) -> Stands {
        if self.draining || self.disk.stalled {
            Stands::No
        } else if self.wall.barred {
            Stands::IfNobodyElse
        } else {
            Stands::Yes
        }
    }

    /// Tells the replicas.
    pub(super) fn let_stand(&self) {
        for replica in self.replicas.values() {
            replica.let_stand(self.stands());
        }
    }

    /// Whether leadership that is handed to this node is taken at once: a candidate has to write its vote. The clock is told apart.
    pub(super) fn takes_leadership(&self) -> bool {
        self.stands() != Stands::No && self.disk.serves
    }

    /// Hands all leaderships of this node to one other that can take over at once, and names it.
    ///
    /// # Errors
    /// This node leads nothing, or nobody can take over all of it.
    pub fn hand_over(&mut self, to: Option<NodeId>) -> Result<String, ConsensusError> {
        self.transfer(to, Manner::Asked)
    }

    /// Hands leaderships over since this node is about to stop: better anybody than nobody.
    ///
    /// # Errors
    /// This node leads nothing, or no other voter is online.
    pub fn leave(&mut self) -> Result<String, ConsensusError> {
        self.transfer(None, Manner::Leaving)
    }

    /// Whether who has `matched` entries of a group that this node leads could lead it at once. The log is asked for by both sides of a
    /// transfer, and a leader that has begun one that fails does nothing more.
    fn is_close(&self, group: GroupId, matched: Option<u64>, last: Option<u64>, now: u64) -> bool {
        matched.is_some()
            && (matched.map(|index| index + HEIR_LAG_ENTRIES_MAX) >= last
                || self
                    .ages
                    .known_lag(group, matched, now)
                    .is_some_and(|lag| lag < HEIR_LAG_MS_MAX))
    }

    /// Who can take over a group that this node leads.
    fn heirs(&self, replica: &Replica, to: Option<NodeId>, manner: Manner, now: u64) -> Heirs {
        let metrics = metrics(replica);
        let membership = &metrics.membership_config;
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let others = metrics.replication.iter().flatten();
        others
            .filter(|(id, _)| **id != metrics.id && voters.contains(id))
            .filter_map(|(id, matched)| {
                let place = membership.get_node(id)?;
                let wanted = to.is_none_or(|to| to == place.node);
                // A target must be reachable, or the transfer blocks.
                let sound = self.peers.takes_leadership(&place.addr, now);
                let right = !self.peers.clock_ahead(&place.addr);
                // From one clock that is ahead to another one nothing is won.
                let better = right || self.wall.ahead_ms.is_none();
                let matched = matched.as_ref().map(|id| id.index);
                let close = self.is_close(replica.group(), matched, metrics.last_log_index, now);
                let fit = wanted && sound && (manner == Manner::Leaving || (better && close));
                let heir = Heir {
                    close,
                    right,
                    matched,
                    replica: *id,
                    name: place.name.clone(),
                };
                fit.then_some((place.node, heir))
            })
            .collect()
    }

    /// Names who takes over; several only if this node gives up what it can.
    fn transfer(&mut self, to: Option<NodeId>, manner: Manner) -> Result<String, ConsensusError> {
        let now = self.now();
        let led: Vec<(&Replica, Heirs)> = self
            .replicas
            .values()
            .filter(|replica| metrics(replica).state == ServerState::Leader)
            .map(|replica| (replica, self.heirs(replica, to, manner, now)))
            .collect();
        if led.is_empty() {
            return Err(ConsensusError::NotLeader { leader: None });
        }
        let one = one_for_all(led.iter().map(|(_, heirs)| heirs));
        let mut names = BTreeSet::new();
        for (replica, heirs) in &led {
            let heir = match one {
                Some(node) => heirs.get(&node),
                None if manner == Manner::Asked => None,
                None => one_for_all(std::iter::once(heirs)).and_then(|node| heirs.get(&node)),
            };
            let Some(heir) = heir else { continue };
            names.insert(heir.name.clone());
            begin_transfer(replica, heir.replica);
        }
        if names.is_empty() {
            let what = "online, with a disk that writes, a clock that is right and nearly all of the log, to take over leadership";
            return Err(ConsensusError::Refused(match to {
                Some(_) => format!("the node that is to lead is no voter that is {what}"),
                None => format!("no other voter is {what}"),
            }));
        }
        Ok(names.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// Whether a replica of this node leads its group.
    pub fn leads(&self) -> bool {
        self.replicas
            .values()
            .any(|replica| metrics(replica).state == ServerState::Leader)
    }

    /// While there is one data group its leader is brought to the meta group's, once both were stable for 5 s.
    pub(super) fn follow_meta(&mut self, now: u64) {
        let leaders: Vec<(GroupId, Option<NodeId>, u64)> = self
            .replicas
            .iter()
            .map(|(group, replica)| (*group, replica.leader(), metrics(replica).current_term))
            .collect();
        if leaders != self.stable {
            self.stable = leaders;
            self.stable_since = now;
            return;
        }
        if now.saturating_sub(self.stable_since) < FOLLOW_MS {
            return;
        }
        let me = self.formation.as_ref().and_then(Formation::my_id);
        let Some((_, Some(meta), _)) = self.stable.iter().find(|(group, ..)| *group == META_GROUP)
        else {
            return;
        };
        let meta = *meta;
        if Some(meta) == me {
            return;
        }
        self.stable_since = now;
        for replica in self.replicas.values() {
            let metrics = metrics(replica);
            if replica.group() == META_GROUP || metrics.state != ServerState::Leader {
                continue;
            }
            let matched = |id: &u64| {
                let of = metrics.replication.as_ref()?.get(id)?;
                of.as_ref().map(|id| id.index)
            };
            let target = metrics
                .membership_config
                .nodes()
                .find(|(id, place)| {
                    place.node == meta
                        && self.peers.fit_to_lead(&place.addr, now)
                        && self.is_close(replica.group(), matched(id), metrics.last_log_index, now)
                })
                .map(|(id, _)| *id);
            if let Some(target) = target {
                tracing::info!(group = %replica.group(), %meta, "leadership follows the meta group's");
                begin_transfer(replica, target);
            }
        }
    }

    /// A leader whose disk stalls hands over, and stands for no election before a write has completed again.
    pub(super) fn mind_the_disk(&mut self, now: u64) {
        let ready = self.storage_board.get(Gauge::Ready) == 1;
        if ready {
            self.disk.seen = Some(now);
        }
        // Before it has served for the first time there is nothing to lead.
        let serves = ready || self.disk.seen.is_none();
        if serves != self.disk.serves {
            self.disk.serves = serves;
            // Whoever leads is told at once, so that it hands nothing over to a node that cannot write its vote.
            self.next.ping = 0;
        }
        // A storaged that starts over a disk that stands still cannot say so; and no leader can do without one for long.
        let away = self
            .disk
            .seen
            .is_some_and(|at| now.saturating_sub(at) > STORAGE_AWAY_MS);
        if (away && self.leads()) || self.storage_board.get(Gauge::DiskStalled) == 1 {
            self.disk.stalled_at = Some(now);
        }
        // One write that completes is no disk that works: leadership would go back and forth.
        let stalled = self
            .disk
            .stalled_at
            .is_some_and(|at| now.saturating_sub(at) < CALM_MS);
        if stalled != self.disk.stalled {
            self.disk.stalled = stalled;
            self.let_stand();
            // The others are told at once.
            self.next.ping = 0;
            if stalled {
                tracing::warn!(
                    "the disk stalls: leadership is handed over until a write completes"
                );
            } else {
                tracing::info!("the disk writes again");
            }
        }
        if stalled {
            self.give_up_leading("the disk stalls", now);
        }
    }

    /// Nobody may be there to take over, or the message may be lost, so that it is tried again.
    pub(super) fn give_up_leading(&mut self, why: &str, now: u64) {
        if now >= self.next.hand_over && self.leads() {
            self.next.hand_over = now + HAND_OVER_MS;
            match self.transfer(None, Manner::GivingUp) {
                Ok(to) => tracing::info!(to, "{why}: leadership is handed over"),
                Err(error) => tracing::warn!(%error, "{why}, and leadership stays"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::host;
    use mareedb_ipc::testing::NodeInProcess;

    fn heirs(of: &[(u64, bool, bool, u64)]) -> Heirs {
        of.iter()
            .map(|(node, close, right, matched)| {
                let heir = Heir {
                    close: *close,
                    right: *right,
                    matched: Some(*matched),
                    replica: *node,
                    name: format!("node{node}"),
                };
                (NodeId(*node), heir)
            })
            .collect()
    }

    #[tokio::test]
    async fn a_node_that_is_about_to_stop_says_so() {
        let node = NodeInProcess::small("{}");
        let mut host = host(&node, "node1");
        assert!(host.takes_leadership());
        host.next.ping = 1_000;
        host.drain();
        assert!(!host.takes_leadership());
        assert_eq!(host.next.ping, 0, "at once");
    }

    #[test]
    fn one_node_takes_all_groups_over_or_none_does() {
        let best = |groups: &[Heirs]| one_for_all(groups.iter());
        // Each is ahead in one group: the longer logs together decide, not each group by itself.
        let meta = heirs(&[(2, true, true, 10), (3, true, true, 9)]);
        let data = heirs(&[(2, true, true, 100), (3, true, true, 105)]);
        assert_eq!(best(&[meta.clone(), data]), Some(NodeId(3)));
        // Who cannot take all takes nothing.
        let data = heirs(&[(2, true, true, 100)]);
        assert_eq!(best(&[meta.clone(), data]), Some(NodeId(2)));
        assert_eq!(best(&[meta, heirs(&[])]), None);
        // A right clock is worth more than entries, being close more than both.
        let mixed = heirs(&[(1, true, false, 9), (2, true, true, 5), (3, false, true, 7)]);
        assert_eq!(best(&[mixed]), Some(NodeId(2)));
        assert_eq!(best(&[]), None);
    }
}
