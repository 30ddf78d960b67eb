//! Wall clocks that jump, on real nodes.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use bytes::Bytes;
use http::Method;
use mareedb_bench::cluster::Node;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;
use support::{
    Bed, PATIENCE, bed_of, block_on, healthy, leads_nothing, put_file, says, server_with_faults,
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

/// Asks for the leaderships until this node has them.
async fn lead(bed: &Bed, at: usize) {
    let name = &bed.cluster.nodes[at].name;
    let path = format!("/v1/cluster/transfer-leadership?to={name}");
    let began = std::time::Instant::now();
    while bed.cluster.leader().await != Some(at) {
        assert!(began.elapsed() < PATIENCE, "{name} does not come to lead");
        let mut client = bed.cluster.nodes[at].client();
        // Refused, or under way: the leader says.
        let _ = client
            .request(
                Method::POST,
                &path,
                &[],
                Bytes::new(),
                Duration::from_secs(5),
            )
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until a node's metrics say whether its clock is ahead.
async fn shows(node: &Node, ahead: u8) {
    let line = format!("\nmareedb_clock_ahead {ahead}\n");
    let began = std::time::Instant::now();
    loop {
        let mut client = node.client();
        let answer = client
            .request(Method::GET, "/metrics", &[], Bytes::new(), PATIENCE)
            .await;
        let text = answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
        if text.is_ok_and(|text| text.contains(&line)) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{} never says it", node.name);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// LIN-3: who is known to be ahead leads when somebody wants it to, and puts nothing of its clock into revisions: neither after all of its
/// patience, nor when its consensusd has just started and had only its clock to go by.
#[test]
fn a_node_that_is_known_to_be_ahead_leads_by_the_others_time() {
    block_on(async {
        let bed = healthy(bed_of(server_with_faults(), 3, "")).await;
        let leader = bed.cluster.leader().await.expect("a healthy cluster");
        let victim = (leader + 1) % 3;
        let node = &bed.cluster.nodes[victim];
        let name = node.name.as_str();
        let first = put(node, "first").await;
        put_file(node, "clock", &DAY_MS.to_string());
        let ahead = |status: &Value| says(status, "CLOCK_AHEAD", name);
        for round in ["patience", "restart"] {
            if round == "restart" {
                node.signal_daemon("consensusd", Signal::SIGKILL);
            }
            bed.cluster
                .await_status(PATIENCE, ahead)
                .await
                .unwrap_or_else(|why| panic!("{why}"));
            // Nothing is to happen meanwhile, and there is no event to wait for: a jump that nobody judges would be followed by then.
            tokio::time::sleep(Duration::from_secs(11)).await;
            lead(&bed, victim).await;
            let revision = put(node, round).await;
            let hour = (DAY_MS / 24) << 18;
            assert!(revision < first + hour, "{round}: {first}, {revision}");
        }
    });
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
        shows(node, 1).await;
        assert_eq!(put(node, "before").await, first, "applied again");
        let later = put(node, "after").await;
        let hour = (DAY_MS / 24) << 18;
        assert!(later > first && later < first + hour, "{first}, {later}");
        put_file(node, "clock", "0");
        bed.cluster
            .await_healthy(PATIENCE)
            .await
            .unwrap_or_else(|why| panic!("{why}"));
        shows(node, 0).await;
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
