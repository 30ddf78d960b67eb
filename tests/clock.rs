//! Wall clocks that jump, on real nodes.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use bytes::Bytes;
use http::Method;
use mareedb_bench::cluster::Node;
use serde_json::Value;
use std::time::Duration;
use support::{
    PATIENCE, bed_of, block_on, healthy, leads_nothing, put_file, says, server_with_faults,
};

const DAY_MS: u64 = 86_400_000;

/// Puts a key with an idempotency key; gives the revision.
async fn put(node: &Node, key: &str) -> u64 {
    let answer = node
        .client()
        .request(
            Method::PUT,
            &format!("/v1/kv/{key}"),
            &[("idempotency-key", key)],
            Bytes::from_static(b"value"),
            Duration::from_secs(10),
        )
        .await
        .unwrap_or_else(|broken| panic!("{key}: {broken}"));
    let body: Value = answer.json();
    let revision = body["revision"].as_str().and_then(|text| text.parse().ok());
    revision.unwrap_or_else(|| panic!("{key}: {} {body}", answer.status))
}

/// ONCE-1, LIN-3: a leader whose clock is a day ahead leads no longer; neither revisions nor expiry follow its clock.
#[test]
fn a_leader_whose_clock_jumps_ahead_hands_over_and_nothing_expires() {
    block_on(async {
        let config = "[limits]\nidempotency_ttl_ms = 600000\n";
        let bed = healthy(bed_of(server_with_faults(), 3, config)).await;
        let leader = bed.cluster.leader().await.expect("a healthy cluster");
        let node = &bed.cluster.nodes[leader];
        let name = node.name.as_str();
        let first = put(node, "before").await;
        put_file(node, "clock", &DAY_MS.to_string());
        // While it still leads as well as afterwards.
        assert_eq!(put(node, "before").await, first);
        bed.cluster
            .await_status(PATIENCE, |status| {
                says(status, "CLOCK_AHEAD", name) && leads_nothing(status, name)
            })
            .await
            .unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(put(node, "before").await, first, "applied again");
        let later = put(node, "after").await;
        let hour = (DAY_MS / 24) << 18;
        assert!(later > first && later < first + hour, "{first}, {later}");
        put_file(node, "clock", "0");
        bed.cluster
            .await_healthy(PATIENCE)
            .await
            .unwrap_or_else(|why| panic!("{why}"));
        // All clocks may be wrong: nobody is ahead of a majority then, and revisions follow.
        for node in &bed.cluster.nodes {
            put_file(node, "clock", &DAY_MS.to_string());
        }
        let mut number = 0;
        let began = std::time::Instant::now();
        while put(node, &format!("all-{number}")).await < first + hour {
            number += 1;
            assert!(began.elapsed() < PATIENCE, "revisions do not follow");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(put(node, "before").await, first, "applied again");
    });
}
