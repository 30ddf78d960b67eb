//! A put goes through all four processes of three nodes, and what the guide shows is what a user sees.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use bytes::Bytes;
use http::Method;
use mareedb_bench::load::number;
use std::time::Duration;
use support::{block_on, cli, healthy_three};

const SECONDS_10: Duration = Duration::from_secs(10);

#[test]
fn what_is_written_through_one_node_is_read_through_every_other() {
    block_on(async {
        let bed = healthy_three().await;
        let nodes = &bed.cluster.nodes;
        for (at, node) in nodes.iter().enumerate() {
            let key = format!("k{at}");
            let written = node.client().put(&key, b"value").await.unwrap();
            assert_eq!(written.status, 200, "{written:?}");
            let revision = number(&written.json()["revision"]).expect("a revision");
            for reader in nodes {
                // LIN-1: no wait between the acknowledgement and the read, whatever the node.
                let read = reader.client().get(&format!("/v1/kv/{key}")).await.unwrap();
                assert_eq!(read.status, 200, "{read:?}");
                assert_eq!(&read.body[..], b"value");
                assert_eq!(
                    read.headers["mareedb-revision"].to_str().unwrap(),
                    revision.to_string()
                );
            }
        }
        let absent = nodes[0].client().get("/v1/kv/absent").await.unwrap();
        assert_eq!(absent.status, 404);
        assert_eq!(absent.json()["code"], "NOT_FOUND");
    });
}

#[test]
fn a_repeat_with_the_same_key_gets_the_first_answer_through_any_node() {
    block_on(async {
        let bed = healthy_three().await;
        let nodes = &bed.cluster.nodes;
        let mut revisions = Vec::new();
        for node in nodes {
            // ONCE-1
            let answer = node
                .client()
                .request(
                    Method::PUT,
                    "/v1/kv/once",
                    &[("idempotency-key", "order-17")],
                    Bytes::from_static(b"v"),
                    SECONDS_10,
                )
                .await
                .unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            revisions.push(number(&answer.json()["revision"]).unwrap());
        }
        assert_eq!(revisions[0], revisions[1]);
        assert_eq!(revisions[0], revisions[2]);
        let other = nodes[1]
            .client()
            .request(
                Method::PUT,
                "/v1/kv/once",
                &[("idempotency-key", "order-17")],
                Bytes::from_static(b"something else"),
                SECONDS_10,
            )
            .await
            .unwrap();
        assert_eq!(other.status, 422, "{other:?}");
        assert_eq!(other.json()["code"], "IDEMPOTENCY_KEY_REUSED");
    });
}

#[test]
fn preconditions_transactions_and_scans_hold_through_followers() {
    block_on(async {
        let bed = healthy_three().await;
        let nodes = &bed.cluster.nodes;
        let first = nodes[1].client().put("a", b"1").await.unwrap();
        let revision = first.json()["revision"].as_str().unwrap().to_owned();
        let stale = nodes[2]
            .client()
            .request(
                Method::PUT,
                "/v1/kv/a",
                &[("if-none-match", "*")],
                Bytes::from_static(b"2"),
                SECONDS_10,
            )
            .await
            .unwrap();
        assert_eq!(stale.status, 412, "{stale:?}");
        let matched = nodes[2]
            .client()
            .request(
                Method::PUT,
                "/v1/kv/a",
                &[("if-match", &revision)],
                Bytes::from_static(b"2"),
                SECONDS_10,
            )
            .await
            .unwrap();
        assert_eq!(matched.status, 200, "{matched:?}");
        let txn = br#"{"compare":[{"key":"a","target":"version","op":"==","value":"2"}],
            "success":[{"put":{"key":"b","value":"3"}},{"range":{"prefix":"","limit":10}}],"failure":[]}"#;
        let done = nodes[0]
            .client()
            .request(
                Method::POST,
                "/v1/txn?encoding=utf8",
                &[("content-type", "application/json")],
                Bytes::from_static(txn),
                SECONDS_10,
            )
            .await
            .unwrap();
        assert_eq!(done.status, 200, "{done:?}");
        let done = done.json();
        assert_eq!(done["succeeded"], true, "{done}");
        assert_eq!(
            done["results"][1]["range"]["items"]
                .as_array()
                .unwrap()
                .len(),
            2,
            "a later operation sees the earlier one: {done}"
        );
        let page = nodes[2]
            .client()
            .get("/v1/kv?prefix=&limit=1&encoding=utf8")
            .await
            .unwrap();
        let page = page.json();
        assert_eq!(page["items"][0]["key"], "a", "{page}");
        assert!(page["next_page_token"].is_string(), "{page}");
        let deleted = nodes[1]
            .client()
            .request(Method::DELETE, "/v1/kv/a", &[], Bytes::new(), SECONDS_10)
            .await
            .unwrap();
        assert_eq!(deleted.json()["deleted"], true, "{deleted:?}");
        let then = nodes[0]
            .client()
            .get(&format!("/v1/kv/a?revision={revision}"))
            .await
            .unwrap();
        assert_eq!(&then.body[..], b"1", "the past is kept: {then:?}");
    });
}

#[test]
fn the_command_line_shows_the_guides_screen() {
    block_on(async {
        let bed = healthy_three().await;
        let node = &bed.cluster.nodes[0];
        // The leader has told how far the others are.
        bed.cluster
            .await_status(support::PATIENCE, |status| {
                status["replication_lag_ms_max"].is_u64()
            })
            .await
            .unwrap_or_else(|why| panic!("{why}"));
        let output = cli(&node.grpc(), &["cluster", "status"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let leader = &bed.cluster.nodes[bed.cluster.leader().await.unwrap()];
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Cluster: HEALTHY", "{text}");
        assert_eq!(
            lines[1],
            format!("Leader: {} ({})", leader.name, leader.host),
            "{text}"
        );
        assert_eq!(lines[2], "Members: 3/3 online", "{text}");
        assert!(text.contains(&format!("★ {}", leader.name)), "{text}");
        assert!(text.contains("Replication lag: max "), "{text}");
        assert!(text.contains("Cluster operational. Quorum: 2/3."), "{text}");
        assert!(text.contains("Can still lose: 1 node."), "{text}");

        for (arguments, expected) in [
            (&["put", "color", "blue"][..], ""),
            (&["get", "color"][..], "blue"),
            (&["scan", "co"][..], "color"),
            (&["del", "color"][..], ""),
        ] {
            let output = cli(&node.grpc(), arguments);
            assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(expected), "{arguments:?}: {text}");
        }
        assert_eq!(cli(&node.grpc(), &["get", "color"]).status.code(), Some(1));
    });
}

#[test]
fn one_stream_of_appends_outlives_many_heartbeats() {
    block_on(async {
        let bed = healthy_three().await;
        let cluster = &bed.cluster;
        let leader = cluster.leader().await.unwrap();
        let began = || -> usize {
            let logs = cluster.nodes.iter().map(|node| {
                let log = std::fs::read_to_string(&node.log).unwrap();
                log.matches("a stream of appends begins").count()
            });
            logs.sum()
        };
        // The first write opens what is not open yet.
        let mut client = cluster.nodes[leader].client();
        client.put("k", b"first").await.unwrap();
        let before = began();
        // Heartbeats come every 100 ms, and in between is something to replicate.
        let mut ticks = tokio::time::interval(Duration::from_millis(30));
        for _ in 0..70 {
            ticks.tick().await;
            let written = client.put("k", b"again").await.unwrap();
            assert_eq!(written.status, 200, "{written:?}");
        }
        assert_eq!(began(), before, "{}", cluster.nodes[leader].log_end());
    });
}

#[test]
fn a_node_alone_is_a_cluster_of_one() {
    block_on(async {
        let mut bed = support::bed(1, "");
        bed.cluster.start_all().unwrap();
        bed.cluster.await_healthy(support::PATIENCE).await.unwrap();
        let node = &bed.cluster.nodes[0];
        let written = node.client().put("k", b"v").await.unwrap();
        assert_eq!(written.status, 200, "{written:?}");
        let read = node.client().get("/v1/kv/k").await.unwrap();
        assert_eq!(&read.body[..], b"v");
        bed.cluster.stop_all(support::PATIENCE).unwrap();
        bed.cluster.start_all().unwrap();
        bed.cluster.await_healthy(support::PATIENCE).await.unwrap();
        let read = bed.cluster.nodes[0].client().get("/v1/kv/k").await.unwrap();
        assert_eq!(&read.body[..], b"v", "it survives a graceful stop");
    });
}
