//! Questions of peers: what reaches raft, and what is refused.

use super::{Replica, Stands};
use crate::frames::{Answer, Ask, Frame, Route};
use crate::incoming::Incoming;
use crate::raft::state_machine::{SnapshotHandle, from_wire_meta};
use crate::raft::{C, leader_node, position, to_wire_vote};
use crate::rt;
use crate::view::metrics;
use mareedb_ipc::wire::command::Cause;
use mareedb_ipc::wire::storage::{SnapshotChunk, SnapshotMeta, StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{LogPosition, NodeId, RandomId, ReplicaId};
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest};

/// Why no leader of this vote has a snapshot up to `last` for a replica that has committed so much: openraft ends where it meets one.
fn contradiction(
    vote: &VoteOf<C>,
    last: Option<LogPosition>,
    committed: Option<LogPosition>,
) -> Option<&'static str> {
    let vote = to_wire_vote(vote);
    if !vote.committed {
        return Some("its vote is no leader's");
    }
    let last = last?;
    if last.term > vote.term {
        return Some("it is of a later term than its leader");
    }
    let committed = committed.filter(|committed| last > *committed)?;
    (last.index <= committed.index).then_some("another entry is committed at its end")
}

impl Replica {
    /// A question of a peer, which runs on `node`. Answers go to `addr`, on the stream that this node has dialled.
    pub fn asked(&self, addr: &str, node: Option<NodeId>, route: Route, call: u64, ask: Ask) {
        if let Some(why) = self.stranger(node, route) {
            tracing::warn!(addr, ?route, why, "a question is refused");
            self.answer(addr, route, call, Answer::Refused(why));
            return;
        }
        if let Ask::Append(request) | Ask::Stream { request, .. } = &ask {
            let term = to_wire_vote(&request.vote).term;
            self.0.heard.lock().hear(term, route.from);
        }
        let addr = addr.to_owned();
        match ask {
            Ask::Stream {
                stream,
                sequence,
                request,
            } => self.streamed(&addr, route, stream, sequence, request),
            other => {
                let replica = self.clone();
                rt::spawn(async move {
                    let answer = replica.put(other).await.unwrap_or_else(Answer::Refused);
                    replica.answer(&addr, route, call, answer);
                });
            }
        }
    }

    /// Why a question must not reach raft.
    fn stranger(&self, node: Option<NodeId>, route: Route) -> Option<String> {
        let own = self.0.route;
        if route.cluster != own.cluster {
            // FORM-2
            return Some(format!("this is cluster {}", own.cluster));
        }
        if route.to != own.to {
            // RAFT-5
            return Some(format!("replica {} is not here", route.to));
        }
        if route.from == own.to {
            return Some(format!("replica {} is here", route.from));
        }
        let metrics = self.0.raft.metrics();
        let lives = metrics
            .borrow_watched()
            .membership_config
            .get_node(&route.from.0)
            .map(|place| place.node);
        match (lives, node) {
            // A replica that a later membership adds is not known yet.
            (Some(lives), Some(node)) if lives != node => Some(format!(
                "replica {} lives on {lives}, not on {node}",
                route.from
            )),
            _ => None,
        }
    }

    fn answer(&self, addr: &str, route: Route, call: u64, answer: Answer) {
        let route = route.back();
        self.0.exchange.tell(
            addr,
            &Frame::Answer {
                route,
                call,
                answer,
            },
        );
    }

    async fn put(&self, ask: Ask) -> Result<Answer, String> {
        let raft = &self.0.raft;
        let told = |error: &dyn std::fmt::Display| error.to_string();
        match ask {
            Ask::Append(request) => raft
                .append_entries(request)
                .await
                .map(Answer::Append)
                .map_err(|error| told(&error)),
            Ask::Vote(request) => raft
                .vote(request)
                .await
                .map(Answer::Vote)
                .map_err(|error| told(&error)),
            Ask::Succession(mut request) => {
                // Without evidence of its own a receiver keeps to the lease.
                let leader = metrics(self).current_leader;
                request.leadership_transfer = leader.is_some_and(|leader| {
                    self.confirms_gone(ReplicaId(leader), metrics(self).current_term)
                });
                raft.vote(request)
                    .await
                    .map(Answer::Vote)
                    .map_err(|error| told(&error))
            }
            Ask::LeaderGone { leader, term } => {
                let (last, name) = self.claim();
                Ok(Answer::LeaderGone {
                    confirmed: self.confirms_gone(leader, term),
                    // Nobody waits for one that does not stand.
                    last: last.filter(|_| self.stands() != Stands::No),
                    fit: self.stands() == Stands::Yes,
                    name,
                })
            }
            Ask::PreVote(request) => raft
                .pre_vote(request)
                .await
                .map(Answer::Vote)
                .map_err(|error| told(&error)),
            Ask::Transfer { from, to, last } => {
                if let Some(node) = leader_node(raft).filter(|_| to == self.id().0) {
                    self.rise().campaigns(Cause::HandOver(node));
                }
                raft.handle_transfer_leader(TransferLeaderRequest::new(from, to, last))
                    .await
                    .map(Answer::Transfer)
                    .map_err(|error| told(&error))
            }
            Ask::Snapshot {
                install,
                number,
                chunk,
                finish,
            } => self.take_snapshot(install, number, chunk, finish).await,
            Ask::Stream { .. } => Err("a stream is no single question".into()),
        }
    }

    async fn take_snapshot(
        &self,
        install: RandomId,
        number: u64,
        chunk: SnapshotChunk,
        finish: Option<(VoteOf<C>, SnapshotMeta)>,
    ) -> Result<Answer, String> {
        // A snapshot that begins takes the place of what has come of another one. openraft is told to install a whole one, and ends if that
        // is gone by then.
        let _one = if number == 0 || finish.is_some() {
            Some(self.0.installing.lock().await)
        } else {
            None
        };
        if let Some((vote, meta)) = &finish {
            let committed = metrics(self).local_committed.as_ref().map(position);
            if let Some(why) = contradiction(vote, meta.last_applied, committed) {
                return Err(format!("a snapshot that cannot be: {why}"));
            }
        }
        let group = self.0.route.group;
        if number == 0 {
            self.storage(StorageRequest::BeginInstall { group, install })
                .await?;
        }
        self.storage(StorageRequest::InstallChunk {
            install,
            number,
            chunk,
        })
        .await?;
        let Some((vote, meta)) = finish else {
            return Ok(Answer::Taken);
        };
        let snapshot = SnapshotOf::<C, SnapshotHandle> {
            meta: from_wire_meta(&meta).map_err(|error| error.to_string())?,
            snapshot: SnapshotHandle::Received(install),
        };
        let response = self
            .0
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Answer::Installed(response.vote))
    }

    async fn storage(&self, request: StorageRequest) -> Result<(), String> {
        match self.0.tenure.request(request).await {
            StorageAnswer::Done => Ok(()),
            StorageAnswer::Failed { message } => Err(message),
            other => Err(format!("storaged answered something else: {other:?}")),
        }
    }

    fn streamed(
        &self,
        addr: &str,
        route: Route,
        stream: u64,
        sequence: u64,
        request: AppendEntriesRequest<C>,
    ) {
        let mut streams = self.0.streams.lock();
        let known = streams.get(&route.from).map(Incoming::stream);
        if sequence == 0 && known != Some(stream) {
            tracing::info!(group = %self.group(), from = %route.from, "a stream of appends begins");
            let replica = self.clone();
            let addr = addr.to_owned();
            let answer = move |answer| replica.answer(&addr, route, stream, answer);
            let incoming = Incoming::open(stream, &self.0.raft, &self.0.link, answer);
            streams.insert(route.from, incoming);
        }
        let taken = streams
            .get_mut(&route.from)
            .filter(|open| open.stream() == stream)
            .is_some_and(|open| open.take(sequence, request));
        if !taken {
            // A gap, a repetition, or a stream of a predecessor of this process: it ends, and with it what it had begun.
            if known == Some(stream) {
                streams.remove(&route.from);
            }
            drop(streams);
            let broken = Answer::Refused("the stream is broken".into());
            self.answer(addr, route, stream, broken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formation::Proposal;
    use crate::testing::{self, END, Follower, LEADER};
    use mareedb_ipc::wire::FIRST_DATA_GROUP;

    fn is_last_chunk(request: &StorageRequest) -> bool {
        matches!(request, StorageRequest::InstallChunk { number: 1, .. })
    }

    /// A part of a snapshot, without a key.
    fn part(install: u64, number: u64, finish: Option<(VoteOf<C>, SnapshotMeta)>) -> Ask {
        Ask::Snapshot {
            install: RandomId(install.into()),
            number,
            chunk: SnapshotChunk {
                entries: Vec::new(),
                next: None,
            },
            finish,
        }
    }

    #[tokio::test]
    async fn who_does_not_stand_claims_no_succession() {
        let follower = Follower::start().await;
        let replica = &follower.replica;
        for (stands, last, fits) in [
            (Stands::Yes, Some(END), true),
            (Stands::IfNobodyElse, Some(END), false),
            (Stands::No, None, false),
        ] {
            replica.let_stand(stands);
            let (leader, term) = (ReplicaId(1), END.term);
            let answer = replica.put(Ask::LeaderGone { leader, term }).await;
            let Ok(Answer::LeaderGone {
                last: claim, fit, ..
            }) = answer
            else {
                panic!("{answer:?}")
            };
            let claim = claim.as_ref().map(position);
            assert_eq!((claim, fit), (last, fits), "{stands:?}");
        }
    }

    #[test]
    fn no_snapshot_is_later_than_its_leader_or_contradicts_what_is_committed() {
        let at = |term, index| Some(LogPosition { term, index });
        let leader = VoteOf::<C>::new_committed(3, 1);
        for (last, committed, sound) in [
            (at(3, 9), at(2, 5), true),
            (at(2, 5), at(2, 5), true),
            // It is older than what is there, which openraft says itself.
            (at(2, 4), at(2, 5), true),
            (None, at(2, 5), true),
            (at(3, 9), None, true),
            (at(4, 9), at(2, 5), false),
            (at(4, 9), None, false),
            (at(3, 5), at(2, 5), false),
            (at(3, 4), at(2, 5), false),
        ] {
            let found = contradiction(&leader, last, committed);
            assert_eq!(found.is_none(), sound, "{last:?} {committed:?} {found:?}");
        }
        let candidate = VoteOf::<C>::new(3, 1);
        assert!(contradiction(&candidate, at(3, 9), None).is_some());
    }

    #[tokio::test]
    async fn a_snapshot_that_no_leader_can_have_is_refused() {
        let follower = Follower::start().await;
        follower.follows().await;
        let meta = SnapshotMeta {
            last_applied: Some(LogPosition {
                term: END.term + 1,
                index: END.index + 1,
            }),
            membership: None,
        };
        let ReplicaId(leader) = Proposal::replica(FIRST_DATA_GROUP, LEADER);
        let vote = VoteOf::<C>::new_committed(END.term, leader);
        let whole = part(7, 0, Some((vote, meta)));
        let why = follower.replica.put(whole).await.unwrap_err();
        assert!(why.contains("of a later term than its leader"), "{why}");
        assert!(metrics(&follower.replica).running_state.is_ok());
    }

    /// LIVE-4: a sender that has no answer to its last part in time begins another snapshot, while the first is still being written.
    #[tokio::test]
    async fn a_snapshot_that_begins_waits_for_a_whole_one() {
        let follower = Follower::start().await;
        follower.follows().await;
        let (replica, storaged) = (&follower.replica, &follower.storaged);
        let ReplicaId(leader) = Proposal::replica(FIRST_DATA_GROUP, LEADER);
        let vote = VoteOf::<C>::new_committed(END.term, leader);
        let meta = SnapshotMeta {
            last_applied: Some(LogPosition {
                index: END.index + 1,
                ..END
            }),
            ..testing::state(FIRST_DATA_GROUP).applied
        };
        let taken = replica.put(part(1, 0, None)).await;
        assert!(matches!(taken, Ok(Answer::Taken)), "{taken:?}");
        storaged.lock().holds = Some(is_last_chunk);
        let written = async {
            while !storaged.lock().asked.iter().any(is_last_chunk) {
                tokio::task::yield_now().await;
            }
            storaged.lock().holds = None;
        };
        let whole = replica.put(part(1, 1, Some((vote, meta))));
        let another = replica.put(part(2, 0, None));
        let (whole, another, ()) = futures::future::join3(whole, another, written).await;
        assert!(matches!(whole, Ok(Answer::Installed(_))), "{whole:?}");
        assert!(matches!(another, Ok(Answer::Taken)), "{another:?}");
        assert!(metrics(replica).running_state.is_ok());
        let asked = storaged.lock().asked.clone();
        let finished = asked
            .iter()
            .rposition(|request| matches!(request, StorageRequest::FinishInstall { .. }));
        let begun = asked
            .iter()
            .rposition(|request| matches!(request, StorageRequest::BeginInstall { .. }));
        assert!(finished.is_some() && finished < begun, "{asked:?}");
    }
}
