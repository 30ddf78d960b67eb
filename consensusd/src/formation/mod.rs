//! How nodes become one cluster: a state machine without input or output of its own.
//!
//! Nodes tell each other whom they have met. When all that a node knows of, by its own `peers` and by those of the others,
//! have met each other, and are at least `replication_factor`, the one with the smallest name proposes a cluster. Each
//! member persists one acceptance before it answers, and never a second one (FORM-1); with the acceptance of *all* the
//! cluster is formed, so that no two proposals that share a member can both succeed. Every step is repeated until it is
//! answered, and taken up again from the records after a crash.

mod meet;
mod records;

pub use records::{ACCEPTED, Facts, IDENTITY, Identity, Member, Proposal};

use crate::peers::PEERS_MAX;
use bytes::Bytes;
use mareedb_config::Config;
use mareedb_ipc::wire::storage::NodeRecord;
use mareedb_ipc::wire::view::Reason;
use mareedb_ipc::wire::{NodeId, RandomId, decode, encode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A peer that was silent for so long does not count as met.
const SILENCE_MS: u64 = 2_000;

/// What nodes say to each other. Between nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Who I am, and whom I have met.
    Hello {
        /// The sender.
        facts: Facts,
        /// Incarnations that it has heard from lately, itself included.
        met: BTreeSet<RandomId>,
        /// Addresses of its configuration.
        peers: Vec<String>,
        /// The cluster that it belongs to.
        cluster: Option<RandomId>,
        /// Smallest number of members that it accepts.
        at_least: u32,
    },
    /// Accept this.
    Propose(Proposal),
    /// The acceptance of this cluster is on my disk.
    Accepted(RandomId),
    /// All have accepted.
    Formed(Proposal),
    /// You can't take part.
    Refuse(Reason),
}

/// What is to be done. In order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a record durable, then call [`Formation::saved`] before anything else is done.
    Save(NodeRecord),
    /// Send to this address.
    Send(String, Message),
}

/// The state machine.
pub struct Formation {
    me: Facts,
    peers: Vec<String>,
    at_least: u32,
    /// By its configuration it is a cluster of its own: others are not listened to before it is formed.
    alone: bool,
    identity: Identity,
    accepted: Option<Proposal>,
    seen: BTreeMap<String, Seen>,
    /// Who was found at each address that was dialled: `peers` may name a node in another way than it does itself.
    dialled: BTreeMap<String, RandomId>,
    acks: BTreeSet<RandomId>,
    refused: Option<(Reason, u64)>,
    /// Whether it was said that not all are listened to.
    crowded: bool,
    pending: BTreeMap<String, Pending>,
    draw: Box<dyn FnMut() -> RandomId + Send>,
}

struct Seen {
    facts: Facts,
    met: BTreeSet<RandomId>,
    peers: Vec<String>,
    cluster: Option<RandomId>,
    at_least: u32,
    at: u64,
}

enum Pending {
    /// The first identity is to be written. Asked once: a second write's end would be taken for that of a later one.
    Unwritten,
    /// The first identity is being written.
    Identity,
    /// The identity with the cluster in it is being written.
    Formed,
    /// Somebody waits for the answer.
    Acceptance { answer_to: Option<String> },
}

impl Formation {
    /// From configuration and records.
    ///
    /// # Errors
    /// A record of another version, or a data directory that belongs to a node of another name.
    pub fn new(
        config: &Config,
        name: &str,
        addr: &str,
        rest_addr: &str,
        records: &[NodeRecord],
        mut draw: Box<dyn FnMut() -> RandomId + Send>,
    ) -> Result<Formation, Reason> {
        let record = |wanted: &str| records.iter().find(|record| record.name == wanted);
        let damaged = |what: &str| Reason {
            code: "RECORD_DAMAGED".into(),
            message: format!("the record '{what}' of the data directory cannot be read"),
        };
        let (identity, fresh) = match record(IDENTITY) {
            Some(record) => {
                let identity: Identity = decode(&record.value).map_err(|_| damaged(IDENTITY))?;
                if identity.name != name {
                    return Err(Reason {
                        code: "NAME_CHANGED".into(),
                        message: format!(
                            "the data directory belongs to node '{}', and this node is configured as '{name}': set \
                             cluster.node_id = \"{}\", or server.data_dir to the directory of '{name}'",
                            identity.name, identity.name
                        ),
                    });
                }
                (identity, false)
            }
            None => (
                Identity {
                    incarnation: draw(),
                    name: name.to_owned(),
                    formed: None,
                },
                true,
            ),
        };
        let accepted: Option<Proposal> = match record(ACCEPTED) {
            Some(record) => Some(decode(&record.value).map_err(|_| damaged(ACCEPTED))?),
            None => None,
        };
        // The first member founds the cluster; nobody proposes or accepts one without any.
        let empty = |proposal: &Proposal| proposal.members.is_empty();
        if identity.formed.as_ref().is_some_and(empty) {
            return Err(damaged(IDENTITY));
        }
        if accepted.as_ref().is_some_and(empty) {
            return Err(damaged(ACCEPTED));
        }
        let me = Facts {
            name: name.to_owned(),
            incarnation: identity.incarnation,
            addr: addr.to_owned(),
            rest_addr: rest_addr.to_owned(),
        };
        let alone = !config.cluster.enabled;
        let mut formation = Formation {
            peers: if alone {
                Vec::new()
            } else {
                config.cluster.peers.clone()
            },
            at_least: if alone {
                1
            } else {
                config.cluster.replication_factor
            },
            alone,
            me,
            identity,
            accepted,
            seen: BTreeMap::new(),
            dialled: BTreeMap::new(),
            acks: BTreeSet::new(),
            refused: None,
            crowded: false,
            pending: BTreeMap::new(),
            draw,
        };
        if fresh {
            formation
                .pending
                .insert(IDENTITY.into(), Pending::Unwritten);
        }
        Ok(formation)
    }

    /// UUID of the data directory.
    pub fn incarnation(&self) -> RandomId {
        self.me.incarnation
    }

    /// The cluster, once it is formed and on this node's disk.
    pub fn formed(&self) -> Option<&Proposal> {
        match self.pending.get(IDENTITY) {
            Some(_) => None,
            None => self.identity.formed.as_ref(),
        }
    }

    /// This node's id in it.
    pub fn my_id(&self) -> Option<NodeId> {
        self.formed()?
            .member(self.me.incarnation)
            .map(|member| member.id)
    }

    /// Whether this node proposed the cluster, and so initializes its groups.
    pub fn is_founder(&self) -> bool {
        self.formed()
            .is_some_and(|formed| formed.members[0].facts.incarnation == self.me.incarnation)
    }

    /// Addresses to keep connections with: the members', or, before there is a cluster, everybody's whom anybody knows, as long as that
    /// are not too many. Whom this node is configured with, and whom those know, comes first.
    pub fn targets(&self) -> BTreeSet<String> {
        if let Some(formed) = &self.identity.formed {
            let members = formed.members.iter().map(|member| &member.facts.addr);
            let others = members.filter(|addr| **addr != self.me.addr);
            return others.cloned().collect();
        }
        let (known, strangers): (Vec<&Seen>, Vec<&Seen>) = self
            .seen
            .values()
            .partition(|seen| self.is_configured(&seen.facts));
        let told = known.into_iter().chain(strangers);
        let told = told.flat_map(|seen| [&seen.facts.addr].into_iter().chain(&seen.peers));
        let mut once = BTreeSet::new();
        self.peers
            .iter()
            .chain(told)
            .filter(|addr| **addr != self.me.addr && once.insert(*addr))
            .take(PEERS_MAX)
            .cloned()
            .collect()
    }

    /// A node answered at an address that was dialled.
    pub fn connected(&mut self, addr: &str, incarnation: RandomId) {
        self.dialled.insert(addr.to_owned(), incarnation);
    }

    /// Why this node can't take part, if somebody said so lately.
    pub fn refused(&self) -> Option<&Reason> {
        self.refused.as_ref().map(|(reason, _)| reason)
    }

    fn save_identity(&self) -> Action {
        Action::Save(NodeRecord {
            name: IDENTITY.into(),
            value: Bytes::from(encode(&self.identity)),
        })
    }

    /// A record is durable.
    pub fn saved(&mut self, name: &str) -> Vec<Action> {
        match self.pending.remove(name) {
            Some(Pending::Acceptance {
                answer_to: Some(addr),
            }) => match &self.accepted {
                // FORM-1: only now.
                Some(accepted) => vec![Action::Send(addr, Message::Accepted(accepted.cluster))],
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Time passes: says hello, proposes, repeats what is unanswered. To be called every 100 ms or so.
    pub fn tick(&mut self, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if self
            .refused
            .as_ref()
            .is_some_and(|(_, at)| now.saturating_sub(*at) > 3 * SILENCE_MS)
        {
            self.refused = None;
        }
        match self.pending.get(IDENTITY) {
            Some(Pending::Unwritten) => {
                self.pending.insert(IDENTITY.into(), Pending::Identity);
                actions.push(self.save_identity());
                return actions;
            }
            // Who this node is, is told when it is certain to stay.
            Some(Pending::Identity) => return actions,
            _ => {}
        }
        self.seen
            .retain(|_, seen| now.saturating_sub(seen.at) <= SILENCE_MS);
        let targets = self.targets();
        self.dialled.retain(|addr, _| targets.contains(addr));
        let hello = self.hello();
        for addr in targets {
            actions.push(Action::Send(addr, hello.clone()));
        }
        if self.formed().is_some() {
            return actions;
        }
        if self.accepted.is_none()
            && let Some(members) = self.agreed()
            && members[0].incarnation == self.me.incarnation
        {
            let proposal = Proposal {
                cluster: (self.draw)(),
                members: members
                    .into_iter()
                    .zip(1..)
                    .map(|(facts, id)| Member {
                        id: NodeId(id),
                        facts,
                    })
                    .collect(),
            };
            actions.push(self.accept(proposal, None));
            return actions;
        }
        // Only the founder repeats the proposal, and only once its own acceptance is durable.
        if let Some(accepted) = self.accepted.clone()
            && !self.pending.contains_key(ACCEPTED)
            && accepted.members[0].facts.incarnation == self.me.incarnation
        {
            self.acks.insert(self.me.incarnation);
            if accepted
                .members
                .iter()
                .all(|member| self.acks.contains(&member.facts.incarnation))
            {
                actions.push(self.form(accepted));
            } else {
                for member in &accepted.members {
                    if member.facts.incarnation != self.me.incarnation {
                        actions.push(Action::Send(
                            member.facts.addr.clone(),
                            Message::Propose(accepted.clone()),
                        ));
                    }
                }
            }
        }
        actions
    }

    fn accept(&mut self, proposal: Proposal, answer_to: Option<String>) -> Action {
        assert!(self.accepted.is_none(), "FORM-1: a second acceptance");
        let record = NodeRecord {
            name: ACCEPTED.into(),
            value: Bytes::from(encode(&proposal)),
        };
        self.accepted = Some(proposal);
        self.pending
            .insert(ACCEPTED.into(), Pending::Acceptance { answer_to });
        Action::Save(record)
    }

    fn form(&mut self, proposal: Proposal) -> Action {
        self.identity.formed = Some(proposal);
        self.pending.insert(IDENTITY.into(), Pending::Formed);
        self.save_identity()
    }

    /// A message came from the node that calls itself `addr`.
    pub fn message(
        &mut self,
        addr: &str,
        incarnation: RandomId,
        message: Message,
        now: u64,
    ) -> Vec<Action> {
        if self.alone && self.formed().is_none() {
            return Vec::new();
        }
        match message {
            Message::Hello {
                facts,
                met,
                peers,
                cluster,
                at_least,
            } => self.heard(
                Seen {
                    facts,
                    met,
                    peers,
                    cluster,
                    at_least,
                    at: now,
                },
                now,
            ),
            Message::Propose(proposal) => self.proposed(addr, proposal),
            Message::Accepted(cluster) => {
                // Only a member's word counts, and is remembered.
                if self.accepted.as_ref().is_some_and(|accepted| {
                    accepted.cluster == cluster && accepted.member(incarnation).is_some()
                }) {
                    self.acks.insert(incarnation);
                }
                Vec::new()
            }
            Message::Formed(proposal) => {
                let mine = self.accepted.as_ref() == Some(&proposal)
                    && !self.pending.contains_key(ACCEPTED);
                if mine && self.identity.formed.is_none() && !self.pending.contains_key(IDENTITY) {
                    vec![self.form(proposal)]
                } else {
                    Vec::new()
                }
            }
            Message::Refuse(reason) => {
                if self.formed().is_none() {
                    self.refused = Some((reason, now));
                }
                Vec::new()
            }
        }
    }

    fn proposed(&mut self, addr: &str, proposal: Proposal) -> Vec<Action> {
        if proposal.member(self.me.incarnation).is_none() || self.pending.contains_key(IDENTITY) {
            return Vec::new();
        }
        match &self.accepted {
            None if self.identity.formed.is_none() => {
                vec![self.accept(proposal, Some(addr.to_owned()))]
            }
            // FORM-1: never a second one.
            Some(accepted)
                if accepted.cluster == proposal.cluster && !self.pending.contains_key(ACCEPTED) =>
            {
                vec![Action::Send(
                    addr.to_owned(),
                    Message::Accepted(proposal.cluster),
                )]
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
