//! What a cluster must survive beside the hazards.

use super::{Cluster, DEFAULT};
use mareedb_ipc::wire::FIRST_DATA_GROUP;
use mareedb_ipc::wire::gateway::{AdminRequest, FromConsensus, ToConsensus};

/// A follower that was away for longer than the log reaches back gets a snapshot, over the bulk lane, in parts.
#[test]
fn a_follower_that_was_away_gets_a_snapshot() {
    let mut cluster = Cluster::form_with(&DEFAULT, None, |config| {
        config.storage.log_retain_bytes = 1 << 20;
    });
    let leader = cluster.leader();
    let away = (leader + 1) % 3;
    cluster.kill_consensus(away);
    cluster.kill_storage(away);
    let seen = cluster.disk(away).look(|content| {
        let log = &content.groups[&FIRST_DATA_GROUP].log;
        log.last_key_value().map_or(0, |(index, _)| *index)
    });
    let value = "v".repeat(100 << 10);
    for round in 0..40 {
        cluster.write(&[leader], &format!("key {}", round % 7), &value);
    }
    cluster.disk(leader).wait("the log is bounded", |content| {
        let purged = content.groups[&FIRST_DATA_GROUP].purged;
        purged.filter(|at| at.index > seen + 1)
    });
    cluster.start_storage(away);
    cluster.start_consensus(away);
    let map = cluster.settle(&[0, 1, 2]);
    assert_eq!(map.len(), 7);
    assert!(cluster.disk(away).look(|content| content.installed) > 0);
    // It goes on from there.
    cluster.write(&[leader], "last", "1");
    cluster.settle(&[0, 1, 2]);
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// Leadership moves on request, and writes go on.
#[test]
fn leadership_moves_on_request() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let old = cluster.leader();
    let new = (old + 1) % 3;
    let to = cluster
        .network()
        .wait("an id", |views| views.get(&new).map(|view| view.me.id));
    cluster.write(&[old], "before", "1");
    let answers = cluster.network().call(old, |call| ToConsensus::Admin {
        call,
        request: AdminRequest::TransferLeadership { to },
    });
    let answer = answers.recv_timeout(super::PATIENCE).unwrap();
    let FromConsensus::Admin { result, .. } = &answer else {
        panic!("{answer:?}")
    };
    assert_eq!(result.as_deref(), Ok(format!("node{}", new + 1).as_str()));
    cluster.write(&[new], "after", "2");
    assert_eq!(cluster.leader(), new);
    assert_eq!(cluster.settle(&[0, 1, 2]).len(), 2);
}

/// Proposals that come in one wake-up, many of them, each get their own outcome, although storage tells few at a time.
#[test]
fn many_proposals_get_one_outcome_each() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let leader = cluster.leader();
    let open: Vec<_> = (0..200)
        .map(|number| cluster.propose(leader, &format!("{number}"), "v"))
        .collect();
    let mut revisions = std::collections::BTreeSet::new();
    for answers in open {
        match answers.recv_timeout(super::PATIENCE).unwrap() {
            FromConsensus::Proposed {
                result: Ok(outcome),
                ..
            } => {
                assert!(revisions.insert(outcome), "two writes of one revision");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(cluster.settle(&[0, 1, 2]).len(), 200);
}

/// A disk that takes nothing holds proposals back, without an end of the process; when it takes again all of them are there.
#[test]
fn proposals_are_held_back_while_the_disk_stands_still() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let leader = cluster.leader();
    for node in 0..3 {
        cluster.pause_storage(node, true);
    }
    let value = "v".repeat(50 << 10);
    let open: Vec<_> = (0..60)
        .map(|number| cluster.propose(leader, &format!("{number}"), &value))
        .collect();
    // The last ones are refused at once: the log and the queue before it are full.
    let mut refused = 0;
    let mut waiting = Vec::new();
    for answers in open.into_iter().rev() {
        // However slow the machine is, the very last one is refused.
        let patience = if refused == 0 {
            super::PATIENCE
        } else {
            std::time::Duration::from_millis(500)
        };
        match answers.recv_timeout(patience) {
            Ok(FromConsensus::Proposed { result, .. }) => {
                assert!(
                    matches!(
                        result,
                        Err(mareedb_ipc::wire::gateway::ConsensusError::Overloaded)
                    ),
                    "{result:?}"
                );
                refused += 1;
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => {
                waiting.push(answers);
                break;
            }
        }
    }
    assert!(
        refused > 0,
        "nothing was refused: 3 MB went into a log ring of 1 MB"
    );
    for node in 0..3 {
        cluster.pause_storage(node, false);
    }
    for answers in waiting {
        let answer = answers.recv_timeout(super::PATIENCE).unwrap();
        assert!(
            matches!(answer, FromConsensus::Proposed { .. }),
            "{answer:?}"
        );
    }
    let now = [leader, (leader + 1) % 3, (leader + 2) % 3];
    cluster.write(&now, "after", "1");
    cluster.settle(&[0, 1, 2]);
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// FORM-2 and RAFT-5: frames of another cluster, for another replica, or from another node never reach raft; bytes that are
/// no frame do nothing.
#[test]
fn strangers_do_not_reach_raft() {
    use crate::frames::{Answer, Ask, Frame, Route};
    use crate::raft::C;
    use mareedb_ipc::wire::{RandomId, ReplicaId};
    use openraft::alias::VoteOf;
    use openraft::raft::VoteRequest;

    let mut cluster = Cluster::form(&DEFAULT, None);
    let leader = cluster.leader();
    let term = cluster.term(leader);
    let (own, other, id) = cluster.network().wait("views", |views| {
        let view = views.get(&leader)?;
        let group = super::data(view)?;
        let other = group
            .replicas
            .iter()
            .find(|(_, node, _)| Some(*node) != view.me.id)?;
        Some((group.local.clone()?.replica, other.0, view.me.cluster?))
    });
    let ask = |cluster: RandomId, from: ReplicaId, to: ReplicaId| Frame::Ask {
        route: Route {
            cluster,
            group: FIRST_DATA_GROUP,
            from,
            to,
        },
        call: 1,
        // A vote of a far later term would depose the leader.
        ask: Ask::Vote(VoteRequest::new(VoteOf::<C>::new(term + 100, from.0), None)),
    };
    let honest = |frame: &Frame| mareedb_ipc::wire::encode(frame);
    for frame in [
        honest(&ask(RandomId(7), other, own)),
        honest(&ask(id, other, ReplicaId(own.0 + 999))),
        honest(&ask(id, own, own)),
        honest(&Frame::Answer {
            route: Route {
                cluster: id,
                group: FIRST_DATA_GROUP,
                from: other,
                to: own,
            },
            call: 1,
            answer: Answer::Taken,
        }),
        vec![0xff; 40],
        Vec::new(),
    ] {
        cluster.network().inject(leader, (leader + 1) % 3, frame);
    }
    cluster.write(&[leader], "still", "1");
    assert_eq!(
        cluster.term(leader),
        term,
        "a stranger has changed the term"
    );
}
