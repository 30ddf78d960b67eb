//! What peers say.

use super::{BATCH, Event, Host};
use crate::formation::{Action, Formation, Message};
use crate::frames::{Answer, Frame};
use crate::rt;
use crate::view::metrics;
use mareedb_ipc::RingError;
use mareedb_ipc::wire::peer::{DownReason, PeerHello, PeerIn, Way};
use mareedb_ipc::wire::storage::ToStorage;
use mareedb_ipc::wire::{decode, encode};
use openraft::ServerState;

impl Host {
    pub(super) fn take_peers(&mut self) -> Result<bool, RingError> {
        let mut quiet = true;
        for way in [Way::Peer, Way::Bulk] {
            let mut count = 0;
            loop {
                let lane = match way {
                    Way::Peer => &mut self.lanes.from_peer,
                    Way::Bulk => &mut self.lanes.from_bulk,
                };
                let Some((message, end)) = lane.try_recv::<PeerIn>()? else {
                    break;
                };
                lane.release(end);
                self.peer_in(message, way);
                count += 1;
                if count == BATCH {
                    quiet = false;
                    break;
                }
            }
        }
        Ok(quiet)
    }

    fn peer_in(&mut self, message: PeerIn, way: Way) {
        let now = self.now();
        match message {
            PeerIn::Up { addr, peer } => {
                if way == Way::Peer {
                    tracing::info!(addr, peer = peer.identity.name, "connected");
                    if let Some(formation) = &mut self.formation {
                        formation.connected(&addr, peer.identity.incarnation);
                    }
                    // Whoever else listens there now, the member is not back.
                    if self.is_member(&peer) || !self.is_formed() {
                        self.exchange.evidence().heard(&addr);
                    }
                    self.peers.up(&addr, *peer);
                    self.exchange.up(&addr);
                    self.resume_replication(&addr);
                    self.next.ping = 0;
                    self.next.formation = 0;
                }
            }
            PeerIn::Down { addr, why } => match way {
                Way::Peer => {
                    // A refusal is told again and again.
                    if self.peers.why_down(&addr) != Some(why) {
                        tracing::info!(addr, ?why, "not connected");
                    }
                    self.peers.down(&addr, why);
                    self.exchange.down(&addr);
                    if why == DownReason::Refused {
                        self.exchange.evidence().refused(&addr);
                        for replica in self.replicas.values() {
                            replica.suspect(&addr);
                        }
                    }
                }
                // The peer stream lives on.
                Way::Bulk => self.exchange.lost(&addr, way),
            },
            PeerIn::Unsent { addr } => self.exchange.lost(&addr, way),
            PeerIn::Frame { from, frame } => match decode::<Frame>(&frame) {
                Ok(frame) => self.frame(&from, frame, now),
                Err(error) => {
                    tracing::warn!(peer = from.identity.name, %error, "a frame is dropped");
                }
            },
        }
    }

    pub(super) fn frame(&mut self, from: &PeerHello, frame: Frame, now: u64) {
        let addr = from.identity.addr.as_str();
        let member = self.is_member(from);
        // Before there is a cluster everybody is a stranger, and shown as whoever he says he is.
        if member || !self.is_formed() {
            self.peers.heard(addr, from, now);
            self.exchange.evidence().heard(addr);
        }
        match frame {
            // What only members are believed.
            Frame::Ping { .. } | Frame::DiskStalled | Frame::Clock { .. } | Frame::Takes { .. }
                if !member => {}
            Frame::Ping {
                incarnation,
                report,
            } => {
                self.exchange.incarnation(addr, incarnation);
                if let Some(report) = report {
                    self.peers.reported(report.term, report.lags, now);
                }
            }
            Frame::DiskStalled => self.peers.stalls(addr, now),
            Frame::Clock {
                wall_ms,
                back,
                ahead,
            } => {
                self.wall.offsets.heard(addr, wall_ms, back, now);
                self.peers.set_clock_ahead(addr, ahead);
            }
            Frame::Takes {
                leadership,
                command_bytes,
            } => {
                self.peers.set_declines(addr, !leadership);
                let takes = self.exchange.takes();
                takes.told(addr, &from.identity.name, command_bytes);
            }
            Frame::Formation(bytes) => {
                let Ok(message) = decode::<Message>(&bytes) else {
                    tracing::warn!(addr, "a formation message is dropped");
                    return;
                };
                let Some(formation) = &mut self.formation else {
                    return;
                };
                let actions = formation.message(addr, from.identity.incarnation, message, now);
                self.act(actions);
            }
            Frame::Ask { route, call, ask } => {
                // FORM-2: the stream's hello counts as much as the frame.
                let foreign = from
                    .identity
                    .cluster
                    .is_some_and(|cluster| cluster != route.cluster);
                let replica = self.replicas.get(&route.group);
                match replica.filter(|_| member && !foreign) {
                    Some(replica) => replica.asked(addr, from.identity.id, route, call, ask),
                    None => self.exchange.tell(
                        addr,
                        &Frame::Answer {
                            route: route.back(),
                            call,
                            answer: Answer::Refused(if foreign {
                                "the frame is of another cluster than its sender".into()
                            } else if replica.is_some() {
                                "the sender is no member".into()
                            } else {
                                "the group is not ready".into()
                            }),
                        },
                    ),
                }
            }
            Frame::Answer {
                route,
                call,
                answer,
            } => self.exchange.answered(route, call, answer),
        }
    }

    fn is_formed(&self) -> bool {
        let formation = self.formation.as_ref();
        formation.and_then(Formation::formed).is_some()
    }

    /// Whether who says hello so is a member. Anybody can say that a member's address is his: a node whose data directory was wiped, or
    /// one with a copied configuration.
    fn is_member(&self, hello: &PeerHello) -> bool {
        let who = &hello.identity;
        let formed = self.formation.as_ref().and_then(Formation::formed);
        formed.is_some_and(|formed| {
            who.cluster == Some(formed.cluster)
                && formed
                    .members
                    .iter()
                    .any(|member| member.facts.addr == who.addr && who.id == Some(member.id))
        })
    }

    /// A peer is reachable again: replication to it need not wait for the end of its back-off.
    pub(super) fn resume_replication(&self, addr: &str) {
        for replica in self.replicas.values() {
            let metrics = metrics(replica);
            if metrics.state != ServerState::Leader {
                continue;
            }
            let there: Vec<u64> = metrics
                .membership_config
                .nodes()
                .filter(|(_, place)| place.addr == addr)
                .map(|(id, _)| *id)
                .collect();
            // An empty list would mean everybody, and a stranger's connection end the back-off of the dead.
            if there.is_empty() {
                continue;
            }
            let raft = replica.raft().clone();
            rt::spawn(async move {
                if let Err(error) = raft.trigger().reset_backoff(there).await {
                    tracing::debug!(%error, "back-off");
                }
            });
        }
    }

    pub(super) fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(addr, message) => self
                    .exchange
                    .tell(&addr, &Frame::Formation(encode(&message).into())),
                Action::Save(record) => {
                    let (link, report, wake) =
                        (self.link.clone(), self.report.clone(), self.wake.clone());
                    rt::spawn(async move {
                        let name = record.name.clone();
                        link.durable(&ToStorage::SaveNodeRecord { record }).await;
                        let _ = report.send(Event::Saved(name));
                        wake.notify_one();
                    });
                }
            }
        }
    }
}
