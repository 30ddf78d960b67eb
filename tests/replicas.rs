//! A node that was away for longer than the log reaches back gets a snapshot, and holds the same state as the others.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

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
        let end = Instant::now() + PATIENCE;
        loop {
            let digests = digests(&bed.cluster).await;
            // DET-1
            if digests.iter().all(|digest| *digest == digests[0]) {
                break;
            }
            assert!(
                Instant::now() < end,
                "{digests:?}\n{}",
                bed.cluster.nodes[away].log_end()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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
