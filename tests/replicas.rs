//! Replicas hold the same state, whatever became of one of them and whatever its settings say.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use http::Method;
use mareedb_bench::cluster::Cluster;
use mareedb_bench::load::number;
use std::time::{Duration, Instant};
use support::{PATIENCE, bed, block_on};

/// A log that reaches back two segments.
const SMALL: &str = "[storage]\nsegment_bytes = 8388608\nlog_retain_bytes = 16777216\n";

/// Applied index and digest of the data group, of each node.
async fn digests(cluster: &Cluster) -> Vec<(u64, String)> {
    let mut digests = Vec::new();
    for node in &cluster.nodes {
        let status = node.ask("/v1/node").await.unwrap();
        let group = &status["groups"][1];
        digests.push((
            number(&group["applied_index"]).unwrap_or(0),
            group["digest"].as_str().unwrap_or_default().to_owned(),
        ));
    }
    digests
}

/// DET-1: waits until all nodes have applied as much, and holds them to the same state.
async fn agree(cluster: &Cluster) {
    let end = Instant::now() + PATIENCE;
    loop {
        let digests = digests(cluster).await;
        if digests.iter().all(|digest| *digest == digests[0]) {
            return;
        }
        let index = digests[0].0;
        assert!(
            Instant::now() < end,
            "DET-1 at {index}: {digests:?}\n{}",
            cluster.nodes[0].log_end()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The elections that all nodes remember, once all know that `leader` leads both groups.
async fn elections(cluster: &Cluster, leader: &str) -> serde_json::Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut told = Vec::new();
        for node in &cluster.nodes {
            told.push(node.ask("/v1/cluster/elections").await.unwrap());
        }
        let newest = |group: &str| {
            let items = told[0]["items"].as_array().unwrap();
            items.iter().find(|item| item["group"] == group).cloned()
        };
        let known = ["0", "1"]
            .iter()
            .all(|group| newest(group).is_some_and(|item| item["leader"] == leader));
        if known && told.iter().all(|other| *other == told[0]) {
            return told.swap_remove(0);
        }
        assert!(Instant::now() < end, "{told:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Has a node lead all groups.
async fn lead(cluster: &Cluster, name: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = cluster.nodes[0]
            .client()
            .request(
                Method::POST,
                &format!("/v1/cluster/transfer-leadership?to={name}"),
                &[],
                bytes::Bytes::new(),
                PATIENCE,
            )
            .await
            .unwrap();
        let status = cluster.nodes[0].ask("/v1/cluster").await.unwrap();
        let groups = status["groups"].as_array().unwrap();
        if groups.iter().all(|group| group["leader"] == name) {
            return;
        }
        assert!(Instant::now() < end, "{name} does not lead: {answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn the_leaders_rules_are_in_force_on_all_nodes_until_another_leads() {
    block_on(async {
        let mut bed = bed(3, "");
        // Nodes that are configured differently: the second one allows little data.
        let config = &bed.cluster.nodes[1].config;
        let text = std::fs::read_to_string(config).unwrap() + "[storage]\nquota_bytes = 1000\n";
        std::fs::write(config, text).unwrap();
        bed.cluster.start_all().unwrap();
        bed.cluster.await_healthy(PATIENCE).await.unwrap();
        let large = vec![b'v'; 2000];
        for (leader, status) in [("node1", 200), ("node2", 507), ("node3", 200)] {
            lead(&bed.cluster, leader).await;
            for (at, node) in bed.cluster.nodes.iter().enumerate() {
                let key = format!("{leader}-{at}");
                let written = node.client().put(&key, &large).await.unwrap();
                assert_eq!(written.status, status, "{leader} leads: {written:?}");
            }
            agree(&bed.cluster).await;
        }
        // What each node remembers of that is the same.
        let told = elections(&bed.cluster, "node3").await;
        let items = told["items"].as_array().unwrap();
        for group in ["0", "1"] {
            let of: Vec<_> = items.iter().filter(|item| item["group"] == group).collect();
            assert_eq!(of[0]["leader"], "node3", "{told:#}");
            assert_eq!(of[0]["reason"], "node2 handed over", "{told:#}");
            assert_eq!(of[1]["leader"], "node2", "{told:#}");
            let first = of.last().unwrap();
            assert_eq!(first["reason"], "no leader was known", "{told:#}");
        }
        // A consensusd that is restored as leader is no election.
        let leader = &bed.cluster.nodes[2];
        let before = leader
            .signal_daemon("consensusd", nix::sys::signal::Signal::SIGKILL)
            .unwrap();
        leader
            .await_restart("consensusd", before, PATIENCE)
            .await
            .unwrap();
        let written = leader.client().put("after", b"v").await.unwrap();
        assert_eq!(written.status, 200, "{written:?}");
        assert_eq!(elections(&bed.cluster, "node3").await, told);
    });
}

#[test]
fn a_state_without_its_log_is_damage_and_no_new_node() {
    block_on(async {
        let mut bed = bed(1, "");
        bed.cluster.start_all().unwrap();
        bed.cluster.await_healthy(PATIENCE).await.unwrap();
        let written = bed.cluster.nodes[0].client().put("k", b"v").await.unwrap();
        assert_eq!(written.status, 200, "{written:?}");
        // What is applied is in files when the node stops.
        bed.cluster.stop_all(PATIENCE).unwrap();
        let node = &mut bed.cluster.nodes[0];
        std::fs::remove_dir_all(node.data.join("log")).unwrap();
        node.start().unwrap();
        // DUR-2
        let code = node.await_exit(PATIENCE).unwrap();
        let end = node.log_end();
        assert_eq!(code, Some(81), "{end}");
        assert!(end.contains("no log knows of it"), "{end}");
        // A node with an empty directory cannot take a member's place: nothing that is said may lead there.
        assert!(!end.contains("empty"), "{end}");
    });
}

#[test]
fn a_node_that_was_away_too_long_is_brought_up_by_a_snapshot() {
    block_on(async {
        let mut bed = bed(3, SMALL);
        bed.cluster.start_all().unwrap();
        bed.cluster.await_healthy(PATIENCE).await.unwrap();
        let leader = bed.cluster.leader().await.unwrap();
        let (away, writer) = ((leader + 1) % 3, &bed.cluster.nodes[leader]);
        let addr = writer.rest();
        bed.cluster.nodes[away].kill9().unwrap();
        let mut client = mareedb_bench::http::Client::new(addr);
        let value = vec![b'v'; 512 << 10];
        for round in 0..120u32 {
            // Ten keys, written again and again: the log grows, the state does not.
            let written = client
                .put(&format!("large-{}", round % 10), &value)
                .await
                .unwrap();
            assert_eq!(written.status, 200, "{written:?}");
        }
        bed.cluster.nodes[away].start().unwrap();
        bed.cluster
            .await_healthy(PATIENCE)
            .await
            .unwrap_or_else(|why| panic!("{why}"));
        agree(&bed.cluster).await;
        let log = std::fs::read_to_string(&bed.cluster.nodes[away].log).unwrap();
        assert!(
            log.contains("snapshot installed"),
            "it came by the log:\n{}",
            bed.cluster.nodes[away].log_end()
        );
        let read = bed.cluster.nodes[away]
            .client()
            .get("/v1/kv/large-9?consistency=stale")
            .await
            .unwrap();
        assert_eq!(read.body.len(), value.len());
    });
}
