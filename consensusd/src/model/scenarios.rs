//! What a cluster must survive beside the hazards.

use super::{Cluster, DEFAULT, PATIENCE, data};
use crate::frames::{Answer, Ask, Frame};
use mareedb_ipc::wire::FIRST_DATA_GROUP;
use mareedb_ipc::wire::gateway::{ConsensusError, FromConsensus};
use mareedb_ipc::wire::view::{ClusterView, NodeIdentity};
use std::collections::BTreeMap;
use std::time::Instant;

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

/// LIVE-4: what others write while a follower gets a snapshot is in the log when it has it, however little of the log is to be kept.
#[test]
fn a_follower_that_gets_a_snapshot_comes_back_while_others_write() {
    let mut cluster = Cluster::form_with(&DEFAULT, None, |config| {
        config.storage.log_retain_bytes = 1 << 20;
    });
    let leader = cluster.leader();
    let away = (leader + 1) % 3;
    cluster.kill_consensus(away);
    cluster.kill_storage(away);
    let applied = |cluster: &Cluster, node: usize| {
        cluster.disk(node).look(|content| {
            let applied = content.groups[&FIRST_DATA_GROUP].state.meta.last_applied;
            applied.map_or(0, |at| at.index)
        })
    };
    let seen = applied(&cluster, away);
    let value = "v".repeat(10 << 10);
    let mut keys = (0..100).cycle();
    let mut write = |cluster: &mut Cluster, count: usize| {
        for key in keys.by_ref().take(count) {
            cluster.write(&[leader], &format!("key {key}"), &value);
        }
    };
    write(&mut cluster, 150);
    cluster.disk(leader).wait("the log is bounded", |content| {
        let purged = content.groups[&FIRST_DATA_GROUP].purged;
        purged.filter(|at| at.index > seen + 1)
    });
    // Between two of its 50 parts more is written than a part has: in all several times what the log is to keep.
    cluster.network().slow(leader, |frame| {
        let Frame::Ask { ask, .. } = frame else {
            return false;
        };
        matches!(ask, Ask::Snapshot { .. })
    });
    cluster.start_storage(away);
    cluster.start_consensus(away);
    let began = Instant::now();
    loop {
        write(&mut cluster, 8);
        cluster.network().let_one_pass(leader);
        if applied(&cluster, away) + 10 >= applied(&cluster, leader) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it does not come back");
    }
    let installed = cluster.disk(away).look(|content| content.installed);
    assert!((1..=2).contains(&installed), "{installed} snapshots");
    cluster.network().heal();
    assert_eq!(cluster.settle(&[0, 1, 2]).len(), 100);
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// Who acknowledges more slowly than others write is waited for up to a bound: then the log goes, and it may get a snapshot.
#[test]
fn a_follower_that_stays_behind_does_not_keep_the_log() {
    let mut cluster = Cluster::form_with(&DEFAULT, None, |config| {
        // The log waits for members up to 2 MiB.
        config.storage.log_retain_bytes = 64 << 10;
    });
    let leader = cluster.leader();
    let slow = (leader + 1) % 3;
    let value = "v".repeat(10 << 10);
    let end = |cluster: &Cluster| {
        cluster.disk(leader).look(|content| {
            let log = &content.groups[&FIRST_DATA_GROUP].log;
            log.last_key_value().map_or(0, |(index, _)| *index)
        })
    };
    let purged = |cluster: &Cluster| {
        let purged = cluster
            .disk(leader)
            .look(|content| content.groups[&FIRST_DATA_GROUP].purged);
        purged.map_or(0, |at| at.index)
    };
    let began_at = end(&cluster);
    cluster.network().slow(slow, |frame| {
        let Frame::Answer { route, answer, .. } = frame else {
            return false;
        };
        route.group == FIRST_DATA_GROUP && matches!(answer, Answer::Stream(_))
    });
    let began = Instant::now();
    // Each answer that comes lets one request go, which has what was written since the one before: so as many as may be open are behind for
    // ever, and no answer is late enough to end the stream.
    while purged(&cluster) <= began_at {
        for key in 0..8 {
            cluster.write(&[leader], &format!("key {key}"), &value);
        }
        cluster.network().let_one_pass(slow);
        assert!(began.elapsed() < PATIENCE, "the log waits for it");
    }
    cluster.network().heal();
    assert_eq!(cluster.settle(&[0, 1, 2]).len(), 8);
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// Leadership moves on request, and writes go on.
#[test]
fn leadership_moves_on_request() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let old = cluster.leader();
    let new = (old + 1) % 3;
    cluster.write(&[old], "before", "1");
    assert_eq!(cluster.transfer(old, new), Ok(format!("node{}", new + 1)));
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
                    matches!(result, Err(ConsensusError::Overloaded)),
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
    use crate::frames::Route;
    use crate::raft::C;
    use mareedb_ipc::wire::{RandomId, ReplicaId};
    use openraft::alias::VoteOf;
    use openraft::raft::{AppendEntriesRequest, VoteRequest};

    let mut cluster = Cluster::form(&DEFAULT, None);
    let leader = cluster.leader();
    let term = cluster.term(leader);
    let (own, other, id, member) = cluster.network().wait("views", |views| {
        let view = views.get(&leader)?;
        let group = data(view)?;
        let other = group
            .replicas
            .iter()
            .find(|(_, node, _)| Some(*node) != view.me.id)?;
        let member = views.values().find(|view| view.me.id == Some(other.1))?;
        let own = group.local.clone()?.replica;
        Some((own, other.0, view.me.cluster?, member.me.clone()))
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
    // Somebody at a member's address who is not that member any more: its data directory was wiped.
    let wiped = NodeIdentity {
        id: None,
        cluster: None,
        ..member
    };
    let deposes = Frame::Ask {
        route: Route {
            cluster: id,
            group: FIRST_DATA_GROUP,
            from: other,
            to: own,
        },
        call: 1,
        ask: Ask::Append(AppendEntriesRequest {
            vote: VoteOf::<C>::new_committed(term + 100, other.0),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        }),
    };
    cluster.network().inject_of(leader, wiped, honest(&deposes));
    cluster.write(&[leader], "still", "1");
    assert_eq!(
        cluster.term(leader),
        term,
        "a stranger has changed the term"
    );
}

/// A node that answers to a member's address and is not that member does not make it look alive.
#[test]
fn a_stranger_at_a_members_address_is_not_the_member() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let leader = cluster.leader();
    let dead = (leader + 1) % 3;
    let who = cluster
        .network()
        .wait("views", |views| Some(views.get(&dead)?.me.clone()));
    let (id, incarnation) = (who.id, 7);
    cluster.kill_consensus(dead);
    let strangers = [
        // Its data directory was wiped.
        NodeIdentity {
            id: None,
            cluster: None,
            ..who.clone()
        },
        // Another member with a copied configuration.
        NodeIdentity {
            id: id.map(|id| mareedb_ipc::wire::NodeId(id.0 % 3 + 1)),
            ..who.clone()
        },
    ];
    let began = std::time::Instant::now();
    let seen = loop {
        for stranger in &strangers {
            let ping = Frame::Ping {
                incarnation,
                report: None,
            };
            let ping = mareedb_ipc::wire::encode(&ping);
            cluster.network().inject_of(leader, stranger.clone(), ping);
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        let online = cluster.network().wait("views", |views| {
            let view = views.get(&leader)?;
            let member = view.members.iter().find(|member| Some(member.id) == id)?;
            Some(member.online)
        });
        if !online || began.elapsed() > super::PATIENCE {
            break online;
        }
    };
    assert!(!seen, "a dead voter is shown online");
}

/// No leadership is handed to a node whose storage does not serve: it could not write its vote, and nobody would lead meanwhile.
#[test]
fn leadership_is_not_handed_to_a_node_without_storage() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let leader = cluster.leader();
    let away = (leader + 1) % 3;
    // The others hear of it with the next ping, within 300 ms. No view shows it, and a transfer that comes too early takes place.
    let pause = std::time::Duration::from_millis(500);
    cluster.storage_ready(away, true);
    std::thread::sleep(pause);
    cluster.storage_ready(away, false);
    std::thread::sleep(pause);
    let refused = cluster.transfer(leader, away);
    assert!(refused.is_err(), "{refused:?}");
    cluster.write(&[leader], "still", "1");
    cluster.storage_ready(away, true);
    let began = std::time::Instant::now();
    while let Err(why) = cluster.transfer(leader, away) {
        assert!(began.elapsed() < super::PATIENCE, "{why:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    cluster.write(&[away], "moved", "2");
}

/// No leadership is handed to a node that lacks much of the log: both sides of a transfer ask for that, and nobody leads meanwhile.
#[test]
fn leadership_is_not_handed_to_a_node_that_lacks_much() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let leader = cluster.leader_of_all();
    let away = (leader + 1) % 3;
    let to = cluster
        .network()
        .wait("an id", |views| views.get(&away).map(|view| view.me.id));
    let term = cluster.term(leader);
    cluster.pause_storage(away, true);
    for number in 0..1_200 {
        cluster.write(&[leader], &format!("{}", number % 10), "v");
    }
    // So many entries are many only if they are old, too.
    cluster.network().wait("the lag is known", |views| {
        let members = &views.get(&leader)?.members;
        let member = members.iter().find(|member| Some(member.id) == to)?;
        member.lag_ms.filter(|lag| *lag > 400).map(drop)
    });
    let refused = cluster.transfer(leader, away);
    assert!(
        matches!(refused, Err(ConsensusError::Refused(_))),
        "{refused:?}"
    );
    cluster.write(&[leader], "still", "1");
    assert_eq!(cluster.term(leader), term);
    cluster.pause_storage(away, false);
    cluster.settle(&[0, 1, 2]);
    let began = Instant::now();
    while let Err(why) = cluster.transfer(leader, away) {
        assert!(began.elapsed() < PATIENCE, "{why:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    cluster.write(&[away], "moved", "2");
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// A node whose disk stands still hears of its successor, and shows it before it can follow it: while a majority can.
#[test]
fn a_leader_that_is_only_heard_of_is_shown_while_others_can_follow_it() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let stalled = cluster.leader_of_all();
    cluster.write(&[stalled], "before", "1");
    cluster.pause_storage(stalled, true);
    cluster.disk_stalls(stalled, true);
    let shown = |views: &BTreeMap<usize, ClusterView>| data(views.get(&stalled)?)?.leader;
    let successor = cluster.network().wait("the successor is shown", |views| {
        let leader = shown(views)?;
        (0..3).find(|node| *node != stalled && views[node].me.id == Some(leader))
    });
    // It still sends what nobody acknowledges, so that it is heard.
    let third = 3 - stalled - successor;
    cluster.kill_consensus(third);
    cluster.kill_storage(third);
    cluster.network().wait("nobody can follow it", |views| {
        shown(views).is_none().then_some(())
    });
}

/// A command that one member's rings do not carry is refused, by name, and stops nothing; what they carry reaches it in requests that they
/// carry, too.
#[test]
fn a_command_that_one_member_cannot_receive_is_refused() {
    let small = 0;
    let rings = [1 << 18, 1 << 20, 1 << 20];
    let mut cluster = Cluster::form_over(&DEFAULT, None, |_| {}, rings);
    let mut leader = cluster.leader();
    if leader == small {
        cluster.transfer(leader, 1).unwrap();
        cluster.write(&[1], "moved", "1");
        leader = cluster.leader();
    }
    let large = "v".repeat(100 << 10);
    let refused = cluster.try_write(leader, "large", &large).unwrap_err();
    assert!(
        refused.contains("TooLarge") && refused.contains("'node1' takes at most"),
        "{refused}"
    );
    cluster.write(&[leader], "after", "2");
    cluster.kill_consensus(small);
    let value = "v".repeat(40 << 10);
    for key in 0..10 {
        cluster.write(&[leader], &format!("{key}"), &value);
    }
    cluster.start_consensus(small);
    cluster.settle(&[0, 1, 2]);
    assert_eq!(cluster.violations(), Vec::<String>::new());
}
