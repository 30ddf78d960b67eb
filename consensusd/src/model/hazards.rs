//! The two hazards of restoring a leader, each with the code as it is and with the fault put in.

use super::{Cluster, DEFAULT, Timing};
use crate::planted::Fault;
use mareedb_ipc::wire::FIRST_DATA_GROUP;

/// A leader dies with an entry that its followers have and its own disk has not. Returns the leader and its term.
fn lose_an_entry(cluster: &mut Cluster, replace_link: bool) -> (usize, u64) {
    let leader = cluster.leader();
    cluster.write(&[leader], "before", "1");
    let term = cluster.term(leader);
    cluster.pause_storage(leader, true);
    let last = |cluster: &Cluster, node: usize| {
        cluster.disk(node).look(|content| {
            let log = &content.groups[&FIRST_DATA_GROUP].log;
            log.last_key_value().map_or(0, |(index, _)| *index)
        })
    };
    let before = last(cluster, leader);
    cluster.begin_write(leader, "unflushed", "x");
    for follower in (0..3).filter(|node| *node != leader) {
        cluster
            .disk(follower)
            .wait("the entry is replicated", |content| {
                let log = &content.groups[&FIRST_DATA_GROUP].log;
                log.last_key_value()
                    .filter(|(index, _)| **index > before)
                    .map(drop)
            });
    }
    cluster.kill_consensus(leader);
    cluster.kill_storage(leader);
    assert_eq!(last(cluster, leader), before, "its own disk has it not");
    if replace_link {
        cluster.renew_links(leader);
    }
    cluster.start_storage(leader);
    cluster.start_consensus(leader);
    (leader, term)
}

/// Hazard A: with a replaced link the leader is not restored, and nothing is lost (RAFT-2, RAFT-3).
#[test]
fn a_leader_that_lost_entries_with_its_link_is_elected_or_follows() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let (leader, term) = lose_an_entry(&mut cluster, true);
    cluster.write(&[leader, (leader + 1) % 3, (leader + 2) % 3], "after", "2");
    let map = cluster.settle(&[0, 1, 2]);
    assert_eq!(
        map.get("unflushed".as_bytes()).map(|v| &v[..]),
        Some(&b"x"[..])
    );
    assert!(cluster.term(leader) > term, "it led on without an election");
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// The same with the fence taken away: the replicas diverge, and the checker sees it. This keeps the test above honest.
#[test]
fn without_the_fence_replicas_diverge() {
    let planted = Some(Fault::RestoreAlways);
    let mut found = Vec::new();
    for _ in 0..4 {
        let mut cluster = Cluster::form(&DEFAULT, planted);
        let (leader, _) = lose_an_entry(&mut cluster, true);
        // It may not be acknowledged: openraft can meet its own contradiction.
        while cluster
            .try_write(leader, "after", "2")
            .is_err_and(|why| why.contains("NotReady"))
        {
            std::thread::yield_now();
        }
        found = cluster.violations();
        if !found.is_empty() {
            break;
        }
    }
    assert!(
        !found.is_empty(),
        "hazard A does not show: is the fence still what prevents it?"
    );
}

/// RAFT-6: with the link kept, what the disk lacked is in the ring, all that followers have: the leader goes on in its term.
#[test]
fn a_leader_whose_link_survives_goes_on_in_its_term() {
    let mut cluster = Cluster::form(&DEFAULT, None);
    let (leader, term) = lose_an_entry(&mut cluster, false);
    assert_eq!(cluster.write(&[leader], "after", "2"), leader);
    assert_eq!(cluster.term(leader), term);
    assert_eq!(
        cluster.read(leader, "unflushed").unwrap().as_deref(),
        Some("x")
    );
    // consensusd alone, storage alone.
    cluster.kill_consensus(leader);
    cluster.start_consensus(leader);
    assert_eq!(cluster.write(&[leader], "again", "3"), leader);
    cluster.kill_storage(leader);
    cluster.begin_write(leader, "meanwhile", "4");
    cluster.start_storage(leader);
    assert_eq!(cluster.write(&[leader], "at last", "5"), leader);
    assert_eq!(cluster.term(leader), term);
    let map = cluster.settle(&[0, 1, 2]);
    for key in [
        "before",
        "unflushed",
        "after",
        "again",
        "meanwhile",
        "at last",
    ] {
        assert!(map.contains_key(key.as_bytes()), "{key} is lost");
    }
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// Long leases, short patience: a new leader comes while the old one's lease runs.
const LONG_LEASE: Timing = Timing {
    heartbeat_ms: 50,
    min_ms: 200,
    max_ms: 1500,
};

/// A voter forgets its promise and elects another leader while the old one is cut off. Returns what the old leader answers
/// to a read that begins after the new one has acknowledged a write.
fn read_at_a_deposed_leader(cluster: &mut Cluster, round: u32) -> Result<Option<String>, String> {
    let old = cluster.leader();
    let (forgetful, rival) = ((old + 1) % 3, (old + 2) % 3);
    cluster.write(&[old], "key", &format!("old {round}"));
    cluster.settle(&[0, 1, 2]);
    // The rival hears nothing of the leader until it asks for votes, which the other refuses: its own lease runs.
    cluster.network().cut(old, rival);
    cluster
        .network()
        .wait("the rival misses its leader", |views| {
            let group = super::data(views.get(&rival)?)?;
            group.leader.is_none().then_some(())
        });
    let until = std::time::Instant::now() + std::time::Duration::from_millis(2 * LONG_LEASE.max_ms);
    while std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    cluster.network().cut(old, forgetful);
    cluster.kill_consensus(forgetful);
    cluster.start_consensus(forgetful);
    cluster.write(&[rival, forgetful], "key", &format!("new {round}"));
    let answer = cluster.read(old, "key");
    cluster.network().heal();
    answer
}

/// Hazard B: no read rests on a lease (LIN-1, RAFT-4).
#[test]
fn a_deposed_leader_answers_no_read() {
    let mut cluster = Cluster::form(&LONG_LEASE, None);
    let answer = read_at_a_deposed_leader(&mut cluster, 0);
    assert!(answer.is_err(), "a stale read: {answer:?}");
    assert_eq!(cluster.violations(), Vec::<String>::new());
}

/// The same with lease reads: one is stale. This keeps the test above honest.
#[test]
fn with_lease_reads_a_deposed_leader_answers_of_the_past() {
    let planted = Some(Fault::LeaseReads);
    let mut cluster = Cluster::form(&LONG_LEASE, planted);
    let mut answers = Vec::new();
    for round in 0..6 {
        let answer = read_at_a_deposed_leader(&mut cluster, round);
        let stale = answer == Ok(Some(format!("old {round}")));
        answers.push(answer);
        if stale {
            return;
        }
    }
    panic!("hazard B does not show: {answers:?}");
}
