//! Who has met whom, and when that suffices.

use super::Facts;
use super::{Action, Formation, Message, Seen};
use crate::peers::PEERS_MAX;
use mareedb_ipc::wire::RandomId;
use mareedb_ipc::wire::view::{Forming, Reason};
use std::collections::BTreeSet;

impl Formation {
    /// Whether the node that is meant by an address has been met; this node itself has.
    pub(super) fn is_met(&self, addr: &str) -> bool {
        let by_dialling = self.dialled.get(addr).is_some_and(|incarnation| {
            *incarnation == self.me.incarnation
                || self
                    .seen
                    .values()
                    .any(|seen| seen.facts.incarnation == *incarnation)
        });
        by_dialling || addr == self.me.addr || self.seen.contains_key(addr)
    }

    /// What is awaited; `None` once formed.
    pub fn forming(&self) -> Option<Forming> {
        if self.formed().is_some() {
            return None;
        }
        let awaited: Vec<String> = self
            .peers
            .iter()
            .filter(|peer| !self.is_met(peer))
            .cloned()
            .collect();
        let message = if let Some(accepted) = &self.accepted {
            let awaited: Vec<&str> = accepted
                .members
                .iter()
                .filter(|member| !self.acks.contains(&member.facts.incarnation))
                .map(|member| member.facts.name.as_str())
                .collect();
            format!(
                "cluster {} is accepted; waiting until all members have: {}",
                accepted.cluster,
                awaited.join(", ")
            )
        } else if !awaited.is_empty() {
            format!("waiting for {}", awaited.join(", "))
        } else if self.seen.len() + 1 < self.at_least as usize {
            format!(
                "{} nodes have met, replication_factor asks for {}",
                self.seen.len() + 1,
                self.at_least
            )
        } else {
            "waiting until all nodes have met each other".into()
        };
        Some(Forming { message, awaited })
    }

    pub(super) fn hello(&self) -> Message {
        let mut met: BTreeSet<RandomId> = self
            .seen
            .values()
            .map(|seen| seen.facts.incarnation)
            .collect();
        met.insert(self.me.incarnation);
        Message::Hello {
            facts: self.me.clone(),
            met,
            peers: self.peers.clone(),
            cluster: self.formed().map(|formed| formed.cluster),
            at_least: self.at_least,
        }
    }

    /// The members, by name, when all have met all.
    pub(super) fn agreed(&self) -> Option<Vec<Facts>> {
        let mut everybody: BTreeSet<RandomId> = self
            .seen
            .values()
            .map(|seen| seen.facts.incarnation)
            .collect();
        everybody.insert(self.me.incarnation);
        let at_least = self
            .seen
            .values()
            .map(|seen| seen.at_least)
            .max()
            .unwrap_or(0)
            .max(self.at_least);
        let wanted = self
            .seen
            .values()
            .flat_map(|seen| &seen.peers)
            .chain(&self.peers);
        let complete = everybody.len() >= at_least as usize
            && wanted.into_iter().all(|peer| self.is_met(peer))
            && self
                .seen
                .values()
                .all(|seen| seen.met == everybody && seen.cluster.is_none());
        if !complete {
            return None;
        }
        let mut members: Vec<Facts> = self.seen.values().map(|seen| seen.facts.clone()).collect();
        members.push(self.me.clone());
        members.sort();
        let names: BTreeSet<&str> = members.iter().map(|facts| facts.name.as_str()).collect();
        (names.len() == members.len()).then_some(members)
    }

    pub(super) fn heard(&mut self, seen: Seen, now: u64) -> Vec<Action> {
        let facts = seen.facts.clone();
        if facts.incarnation == self.me.incarnation {
            if facts.addr != self.me.addr {
                self.refused = Some((
                    Reason {
                        code: "DUPLICATE_INCARNATION".into(),
                        message: format!(
                            "the node at {} runs on a copy of this node's data directory: stop the one with the copy, and keep \
                             the original",
                            facts.addr
                        ),
                    },
                    now,
                ));
            }
            // Otherwise: this node itself, listed among its own peers.
            return Vec::new();
        }
        let refuse = |code: &str, message: String| {
            vec![Action::Send(
                facts.addr.clone(),
                Message::Refuse(Reason {
                    code: code.into(),
                    message,
                }),
            )]
        };
        if let Some(formed) = self.formed() {
            let known = formed
                .members
                .iter()
                .find(|member| member.facts.name == facts.name);
            return match (seen.cluster, known) {
                (Some(other), _) if other != formed.cluster => refuse(
                    "FOREIGN_CLUSTER",
                    format!(
                        "the data directory of '{}' belongs to cluster {other}, the node at {} to cluster {}: correct \
                         cluster.peers",
                        facts.name, self.me.addr, formed.cluster
                    ),
                ),
                (_, Some(member)) if member.facts.incarnation == facts.incarnation => {
                    if seen.cluster.is_none() {
                        vec![Action::Send(
                            facts.addr.clone(),
                            Message::Formed(formed.clone()),
                        )]
                    } else {
                        Vec::new()
                    }
                }
                (_, Some(_)) => refuse(
                    "EMPTY_DIRECTORY",
                    format!(
                        "'{}' is a member of cluster {} with another data directory: bring that very directory back, never an older copy of \
                         it; this version cannot replace a member, see docs/runbooks/lost-node.md",
                        facts.name, formed.cluster
                    ),
                ),
                (_, None) => refuse(
                    "WAITING_FOR_ADD_NODE",
                    format!(
                        "cluster {} exists without '{}', and this version adds no members: stop this node, or correct cluster.peers if it was \
                         to form a cluster of its own",
                        formed.cluster, facts.name
                    ),
                ),
            };
        }
        if facts.name == self.me.name
            || self.seen.values().any(|other| {
                other.facts.name == facts.name && other.facts.incarnation != facts.incarnation
            })
        {
            self.refused = Some((
                Reason {
                    code: "NAME_TAKEN".into(),
                    message: format!(
                        "two nodes are called '{}', one of them at {}: give each a cluster.node_id of its own",
                        facts.name, facts.addr
                    ),
                },
                now,
            ));
        }
        let few = seen.peers.len() <= PEERS_MAX && seen.met.len() <= PEERS_MAX + 1;
        if few && self.has_room(&facts) {
            self.seen.insert(facts.addr.clone(), seen);
        } else if !std::mem::replace(&mut self.crowded, true) {
            // Once: it may be said again and again, by whoever likes to.
            tracing::warn!(
                addr = facts.addr,
                "more nodes say hello, or are named by one, than a cluster has: not all are listened to"
            );
        }
        Vec::new()
    }

    /// Whether the configuration of this node names that one.
    pub(super) fn is_configured(&self, facts: &Facts) -> bool {
        self.peers
            .iter()
            .any(|peer| *peer == facts.addr || self.dialled.get(peer) == Some(&facts.incarnation))
    }

    /// Whether one more can be listened to. Who is configured takes the place of somebody who is not.
    fn has_room(&mut self, facts: &Facts) -> bool {
        if self.seen.len() < PEERS_MAX || self.seen.contains_key(&facts.addr) {
            return true;
        }
        let mut strangers = self.seen.values().map(|seen| &seen.facts);
        let stranger = strangers.find(|other| !self.is_configured(other));
        match stranger.map(|stranger| stranger.addr.clone()) {
            Some(addr) if self.is_configured(facts) => self.seen.remove(&addr).is_some(),
            _ => false,
        }
    }
}
