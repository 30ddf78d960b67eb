//! What this node says of itself: its identity, whom to dial, that it lives, and the view of the cluster.

use super::{Host, LOOK_MS, VIEW_MS};
use crate::formation::{Formation, Proposal};
use crate::frames::{Frame, LeaderReport};
use crate::view::{Sources, lags, metrics, view};
use mareedb_ipc::wire::gateway::{FromConsensus, Target};
use mareedb_ipc::wire::view::{ClusterView, NodeIdentity, Reason};
use mareedb_ipc::wire::{GroupId, META_GROUP, RandomId};
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

/// A group, this replica's part in it, its leader and term.
pub(super) type Glance = (GroupId, ServerState, Option<u64>, u64);

impl Host {
    /// The supervisor has put the advertised address into the configuration.
    pub(super) fn own_addr(&self, port: u16) -> String {
        let host = self
            .config
            .server
            .advertise_addr
            .as_deref()
            .unwrap_or(&self.config.server.listen_addr);
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    pub(super) fn identity(&self) -> NodeIdentity {
        let formation = self.formation.as_ref();
        NodeIdentity {
            name: self.name.clone(),
            id: formation.and_then(Formation::my_id),
            incarnation: formation.map_or(RandomId(0), Formation::incarnation),
            cluster: formation
                .and_then(Formation::formed)
                .map(|formed| formed.cluster),
            addr: self.own_addr(self.config.cluster.consensus_port),
            rest_addr: self.own_addr(self.config.server.rest_port),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    pub(super) fn ping(&mut self) {
        let now = self.now();
        let leads_meta = self
            .replicas
            .get(&META_GROUP)
            .map(metrics)
            .filter(|metrics| metrics.state == ServerState::Leader);
        let report = leads_meta.map(|metrics| LeaderReport {
            term: metrics.current_term,
            lags: lags(&self.replicas, &self.ages, now),
        });
        if let Some(report) = &report {
            self.peers.reported(report.term, report.lags.clone(), now);
        }
        let frame = Frame::Ping {
            incarnation: self.incarnation,
            report,
        };
        let takes = Frame::Takes {
            leadership: self.takes_leadership(),
            command_bytes: self.exchange.takes().own() as u64,
        };
        for addr in self.formation.iter().flat_map(Formation::targets) {
            self.exchange.tell(&addr, &frame);
            self.exchange.tell(&addr, &takes);
            if self.disk.stalled {
                self.exchange.tell(&addr, &Frame::DiskStalled);
            }
        }
    }

    /// Who leads, as far as this node's replicas know: what a gateway must know at once.
    fn glance(&self) -> Vec<Glance> {
        self.replicas
            .iter()
            .map(|(group, replica)| {
                let metrics = replica.raft().metrics();
                let metrics = metrics.borrow_watched();
                let (leader, term) = replica.leading(&metrics);
                (*group, metrics.state, leader, term)
            })
            .collect()
    }

    /// Tells gatewayd what changed. The view is made anew when it may have, not in every turn: a turn is some microseconds.
    pub(super) fn send_view(&mut self, now: u64) {
        let glance = self.glance();
        if self.sent_view.is_some() && glance == self.glanced && now < self.next.look {
            return;
        }
        self.glanced = glance;
        self.next.look = now + LOOK_MS;
        let rejected = self.peers.rejected_by();
        let turned_away = (!rejected.is_empty()).then(|| turned_away(&rejected));
        let lease_ms = self.config.cluster.election_timeout_max_ms;
        let view = view(&Sources {
            me: self.identity(),
            formation: self.formation.as_ref(),
            refused: self.refused.as_ref().or(turned_away.as_ref()),
            replicas: &self.replicas,
            peers: &self.peers,
            ages: &self.ages,
            ready: self.replicas.len() == Proposal::groups().len(),
            lease_ms,
            disk_stalled: self.disk.stalled,
            clock_ahead: self.wall.ahead_ms.is_some(),
            now,
        });
        let changed = self
            .sent_view
            .as_ref()
            .is_none_or(|sent| differs(sent, &view));
        if changed || now >= self.next.view {
            if changed {
                // A new leader tells at once how far the others are, so that all can show it.
                self.next.ping = 0;
            }
            self.next.view = now + VIEW_MS;
            self.client
                .tell(&FromConsensus::View(Box::new(view.clone())));
            self.sent_view = Some(view);
        }
    }

    pub(super) fn send_targets(&mut self) {
        let Some(formation) = &self.formation else {
            return;
        };
        let formed = formation.formed();
        let addrs = formation.targets();
        let targets: Vec<Target> = addrs
            .iter()
            .cloned()
            .map(|addr| Target {
                node: formed
                    .and_then(|formed| {
                        formed
                            .members
                            .iter()
                            .find(|member| member.facts.addr == addr)
                    })
                    .map(|member| member.id),
                addr,
            })
            .collect();
        let current = (self.identity(), targets);
        if self.sent_targets.as_ref() != Some(&current) {
            if formed.is_some() {
                self.peers.keep(&addrs);
                self.exchange.keep(&addrs);
            }
            self.client.tell(&FromConsensus::Targets {
                me: Box::new(current.0.clone()),
                targets: current.1.clone(),
            });
            self.sent_targets = Some(current);
        }
    }
}

/// Why nobody talks to this node.
fn turned_away(by: &[&str]) -> Reason {
    Reason {
        code: "FOREIGN_CLUSTER".into(),
        message: format!(
            "{} turned this node away, since it belongs to another cluster or speaks another peer protocol (their \
             logs say which): correct cluster.peers, or run the version that they run; keep the data directory",
            by.join(", ")
        ),
    }
}

/// Whether a view tells something new; ages alone don't.
fn differs(before: &ClusterView, after: &ClusterView) -> bool {
    let bare = |view: &ClusterView| {
        let mut view = view.clone();
        for member in &mut view.members {
            member.last_contact_ms = None;
            member.lag_ms = None;
        }
        for group in &mut view.groups {
            group.local = None;
        }
        view
    };
    bare(before) != bare(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with an empty directory cannot take a member's place.
    #[test]
    fn who_is_turned_away_keeps_its_data() {
        let Reason { code, message } = turned_away(&["10.0.0.2:7001", "10.0.0.3:7001"]);
        assert_eq!(code, "FOREIGN_CLUSTER");
        assert!(message.starts_with("10.0.0.2:7001, 10.0.0.3:7001 turned"));
        assert!(message.contains("keep the data directory"), "{message}");
        assert!(!message.contains("empty"), "{message}");
    }
}
