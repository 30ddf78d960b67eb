//! Daemons die under load, and nobody loses a write.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use mareedb_bench::cluster::DAEMONS;
use mareedb_bench::failover::{Blow, Place, strike, strike_node};
use mareedb_bench::load::{Load, Plan};
use support::{Bed, PATIENCE, block_on, healthy_three, settle};

fn load(bed: &Bed, prefix: &str) -> Load {
    Load::start(Plan {
        targets: bed.cluster.nodes.iter().map(|node| node.rest()).collect(),
        clients: 6,
        rate: 200,
        value_bytes: 100,
        prefix: prefix.into(),
    })
}

#[test]
fn each_daemon_of_leader_and_follower_may_be_killed_under_load() {
    block_on(async {
        let bed = healthy_three().await;
        let load = load(&bed, "kill-");
        let mut moved = Vec::new();
        for daemon in DAEMONS {
            for place in [Place::Leader, Place::Follower] {
                let round = strike(&bed.cluster, &load, daemon, place, Blow::Kill)
                    .await
                    .unwrap_or_else(|why| panic!("{why}"));
                assert!(round.restarts >= 1, "{round:?}");
                if daemon != "gatewayd" && !round.unmoved() {
                    moved.push(round);
                }
            }
        }
        settle(&bed, load).await;
        // A loaded machine may lose one heartbeat race; two of four is the fault of the restore.
        assert!(moved.len() <= 1, "terms or leaders changed: {moved:#?}");
    });
}

#[test]
fn a_daemon_that_hangs_is_replaced() {
    block_on(async {
        let bed = healthy_three().await;
        let load = load(&bed, "hang-");
        for daemon in DAEMONS {
            strike(&bed.cluster, &load, daemon, Place::Leader, Blow::Stop)
                .await
                .unwrap_or_else(|why| panic!("{why}"));
        }
        settle(&bed, load).await;
    });
}

#[test]
fn all_nodes_killed_at_once_come_back_with_every_acknowledged_write() {
    block_on(async {
        let mut bed = healthy_three().await;
        let load = load(&bed, "all-");
        while load.acknowledged() < 300 {
            assert_eq!(load.failed(), 0);
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        for node in &mut bed.cluster.nodes {
            node.kill9().unwrap();
        }
        bed.cluster.start_all().unwrap();
        bed.cluster
            .await_healthy(PATIENCE)
            .await
            .unwrap_or_else(|why| panic!("{why}"));
        settle(&bed, load).await;
    });
}

#[test]
fn a_restarted_storage_serves_what_was_applied_without_a_further_write() {
    block_on(async {
        let bed = healthy_three().await;
        let leader = bed.cluster.leader().await.expect("a leader");
        let node = &bed.cluster.nodes[leader];
        for number in 0..50 {
            let written = node
                .client()
                .put(&format!("k{number}"), b"v")
                .await
                .unwrap();
            assert_eq!(written.status, 200, "{written:?}");
        }
        let pid = node
            .signal_daemon("storaged", nix::sys::signal::Signal::SIGKILL)
            .expect("it runs");
        // LIN-1
        let read = node.client().get("/v1/kv/k49").await.unwrap();
        assert_eq!(read.status, 200, "{read:?}");
        assert_eq!(&read.body[..], b"v");
        node.await_restart("storaged", pid, PATIENCE).await.unwrap();
    });
}

#[test]
fn the_leaders_whole_node_may_be_killed_under_load() {
    block_on(async {
        let mut bed = healthy_three().await;
        let load = load(&bed, "node-");
        for _ in 0..2 {
            let round = strike_node(&mut bed.cluster, &load)
                .await
                .unwrap_or_else(|why| panic!("{why}"));
            // RAFT-1: another leader is another term.
            assert!(
                round.term.1 > round.term.0 || round.leader.1 == "none",
                "{round:?}"
            );
        }
        settle(&bed, load).await;
    });
}
