//! Who leads: handing over, following the meta group, minding the disk.

use super::{CALM_MS, CLOSE, CLOSE_MS, FOLLOW_MS, HAND_OVER_MS, Host, STORAGE_AWAY_MS};
use crate::formation::Formation;
use crate::replica::Stands;
use crate::rt;
use crate::view::metrics;
use mareedb_ipc::Gauge;
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::{GroupId, META_GROUP, NodeId};
use openraft::ServerState;
use std::collections::BTreeSet;

impl Host {
    /// From now on this node takes no leadership: it is about to stop.
    pub fn drain(&mut self) {
        self.draining = true;
        self.let_elect();
    }

    /// Whether replicas of this node stand for election.
    pub(super) fn standing(&self) -> Stands {
        if self.draining || self.stalled {
            Stands::No
        } else if self.barred {
            Stands::IfNobodyElse
        } else {
            Stands::Yes
        }
    }

    pub(super) fn let_elect(&self) {
        for (replica, _) in self.replicas.values() {
            replica.let_stand(self.standing());
        }
    }

    /// Hands the leaderships of this node to another one that can take over at once.
    ///
    /// # Errors
    /// This node leads nothing, or nobody can take over.
    pub fn hand_over(&mut self, to: Option<NodeId>) -> Result<String, ConsensusError> {
        self.transfer(to, false)
    }

    /// The same for a node that is about to stop: better anybody than nobody.
    ///
    /// # Errors
    /// This node leads nothing, or no other voter is online.
    pub fn leave(&mut self) -> Result<String, ConsensusError> {
        self.transfer(None, true)
    }

    /// Whether who has `matched` entries of a group that this node leads could lead it at once. The log is asked for by both sides of a
    /// transfer, and a leader that has begun one that fails does nothing more.
    fn is_close(&self, group: GroupId, matched: Option<u64>, last: Option<u64>, now: u64) -> bool {
        matched.is_some()
            && (matched.map(|index| index + CLOSE) >= last
                || self
                    .ages
                    .known_lag(group, matched, now)
                    .is_some_and(|lag| lag < CLOSE_MS))
    }

    fn transfer(&mut self, to: Option<NodeId>, leaving: bool) -> Result<String, ConsensusError> {
        let now = self.now();
        let (mut names, mut nobody) = (BTreeSet::new(), false);
        for (replica, _) in self.replicas.values() {
            let metrics = metrics(replica);
            if metrics.state != ServerState::Leader {
                continue;
            }
            let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
            // A target must be reachable, or the transfer blocks. A clock that is right is worth more than some entries, and
            // the one with the longest log loses the least time.
            let target = metrics
                .replication
                .iter()
                .flatten()
                .filter(|(id, _)| **id != metrics.id && voters.contains(id))
                .filter_map(|(id, matched)| {
                    let place = metrics.membership_config.get_node(id)?;
                    let wanted = to.is_none_or(|to| to == place.node);
                    let sound = self.peers.online(&place.addr, now)
                        && !self.peers.stalled(&place.addr, now);
                    let right = !self.peers.clock_ahead(&place.addr);
                    // From one clock that is ahead to another one nothing is won.
                    let better = right || self.clock_ahead_ms.is_none();
                    let matched = matched.as_ref().map(|id| id.index);
                    let close =
                        self.is_close(replica.group(), matched, metrics.last_log_index, now);
                    (wanted && sound && (leaving || (better && close)))
                        .then(|| (close, right, matched, *id, place.name.clone()))
                })
                .max();
            let Some((.., target, name)) = target else {
                nobody = true;
                continue;
            };
            names.insert(name);
            let raft = replica.raft().clone();
            rt::spawn(async move {
                if let Err(error) = raft.trigger().transfer_leader(target).await {
                    tracing::warn!(%error, "leadership transfer");
                }
            });
        }
        if nobody && names.is_empty() {
            return Err(ConsensusError::Refused(
                "no other voter is online, with a disk that writes, a clock that is right and nearly all of the log, to take over leadership".into(),
            ));
        }
        if names.is_empty() {
            return Err(ConsensusError::NotLeader { leader: None });
        }
        Ok(names.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// Whether a replica of this node leads its group.
    pub fn leads(&self) -> bool {
        self.replicas
            .values()
            .any(|(replica, _)| metrics(replica).state == ServerState::Leader)
    }

    /// While there is one data group its leader is brought to the meta group's, once both were stable for 5 s.
    pub(super) fn follow_meta(&mut self, now: u64) {
        let leaders: Vec<(GroupId, Option<NodeId>, u64)> = self
            .replicas
            .iter()
            .map(|(group, (replica, _))| (*group, replica.leader(), metrics(replica).current_term))
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
        for (replica, _) in self.replicas.values() {
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
                let raft = replica.raft().clone();
                rt::spawn(async move {
                    if let Err(error) = raft.trigger().transfer_leader(target).await {
                        tracing::warn!(%error, "leadership transfer");
                    }
                });
            }
        }
    }

    /// A leader whose disk stalls hands over, and stands for no election before a write has completed again.
    pub(super) fn mind_the_disk(&mut self, now: u64) {
        if self.storage_board.get(Gauge::Ready) == 1 {
            self.storage_seen = Some(now);
        }
        // A storaged that starts over a disk that stands still cannot say so; and no leader can do without one for long.
        let away = self
            .storage_seen
            .is_some_and(|at| now.saturating_sub(at) > STORAGE_AWAY_MS);
        if (away && self.leads()) || self.storage_board.get(Gauge::DiskStalled) == 1 {
            self.stalled_at = Some(now);
        }
        // One write that completes is no disk that works: leadership would go back and forth.
        let stalled = self
            .stalled_at
            .is_some_and(|at| now.saturating_sub(at) < CALM_MS);
        if stalled != self.stalled {
            self.stalled = stalled;
            self.let_elect();
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
            match self.hand_over(None) {
                Ok(to) => tracing::info!(to, "{why}: leadership is handed over"),
                Err(error) => tracing::warn!(%error, "{why}, and leadership stays"),
            }
        }
    }
}
