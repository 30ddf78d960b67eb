//! Nodes become one cluster, whatever the order in which they start and die, and a node that must not join says why.

#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;
use support::{Bed, PATIENCE, bed, block_on, healthy_three};

async fn one_cluster(bed: &Bed) -> String {
    bed.cluster
        .await_healthy(PATIENCE)
        .await
        .unwrap_or_else(|why| panic!("{why}"));
    let mut ids = Vec::new();
    for node in &bed.cluster.nodes {
        let status = node.ask("/v1/cluster").await.unwrap();
        ids.push(status["cluster_id"].as_str().expect("an id").to_owned());
    }
    // FORM-1
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    ids.swap_remove(0)
}

fn says(status: &Value, code: &str) -> bool {
    status["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|reason| reason["code"] == code)
}

#[test]
fn nodes_started_one_after_the_other_form_one_cluster() {
    block_on(async {
        let mut bed = bed(3, "");
        for at in [2, 0] {
            bed.cluster.nodes[at].start().unwrap();
            bed.cluster
                .await_status(PATIENCE, |status| status["verdict"] == "forming")
                .await
                .unwrap();
        }
        bed.cluster.nodes[1].start().unwrap();
        one_cluster(&bed).await;
    });
}

#[test]
fn nodes_killed_in_the_middle_of_formation_form_one_cluster() {
    block_on(async {
        let mut bed = bed(3, "");
        for round in 0..4u64 {
            bed.cluster.start_all().unwrap();
            tokio::time::sleep(Duration::from_millis(120 + 90 * round)).await;
            let victim = usize::try_from(round % 3).unwrap();
            bed.cluster.nodes[victim].kill9().unwrap();
        }
        bed.cluster.start_all().unwrap();
        let id = one_cluster(&bed).await;
        for node in &mut bed.cluster.nodes {
            node.kill9().unwrap();
        }
        bed.cluster.start_all().unwrap();
        assert_eq!(
            one_cluster(&bed).await,
            id,
            "the same cluster after a restart of all"
        );
    });
}

#[test]
fn an_empty_directory_under_a_known_name_is_refused_with_the_way_out() {
    block_on(async {
        let mut bed = healthy_three().await;
        bed.cluster.nodes[2].kill9().unwrap();
        std::fs::remove_dir_all(&bed.cluster.nodes[2].data).unwrap();
        bed.cluster.nodes[2].start().unwrap();
        let end = std::time::Instant::now() + PATIENCE;
        let status = loop {
            if let Ok(status) = bed.cluster.nodes[2].ask("/v1/cluster").await
                && says(&status, "EMPTY_DIRECTORY")
            {
                break status;
            }
            assert!(
                std::time::Instant::now() < end,
                "{}",
                bed.cluster.nodes[2].log_end()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let text = status.to_string();
        assert!(
            text.contains("bring that very directory back") && text.contains("lost-node.md"),
            "{text}"
        );
        let written = bed.cluster.nodes[0].client().put("k", b"v").await.unwrap();
        assert_eq!(written.status, 200, "the other two serve: {written:?}");
    });
}

#[test]
fn a_node_of_a_foreign_cluster_is_refused() {
    block_on(async {
        let mut home = healthy_three().await;
        let mut foreign = bed(1, "");
        foreign.cluster.start_all().unwrap();
        foreign.cluster.await_healthy(PATIENCE).await.unwrap();
        foreign.cluster.stop_all(PATIENCE).unwrap();
        // The foreign node's data directory under node3's configuration.
        home.cluster.nodes[2].signal(Signal::SIGTERM);
        home.cluster.nodes[2].await_exit(PATIENCE).unwrap();
        std::fs::remove_dir_all(&home.cluster.nodes[2].data).unwrap();
        std::fs::rename(&foreign.cluster.nodes[0].data, &home.cluster.nodes[2].data).unwrap();
        home.cluster.nodes[2].start().unwrap();
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            // FORM-2: it says that it belongs elsewhere, or does not start at all and says so in its log.
            let told = match home.cluster.nodes[2].ask("/v1/cluster").await {
                Ok(status) => says(&status, "FOREIGN_CLUSTER") || says(&status, "NAME_CHANGED"),
                Err(_) => false,
            };
            if told {
                break;
            }
            assert!(
                std::time::Instant::now() < end,
                "{}",
                home.cluster.nodes[2].log_end()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let written = home.cluster.nodes[0].client().put("k", b"v").await.unwrap();
        assert_eq!(written.status, 200, "{written:?}");
    });
}

#[test]
fn two_nodes_with_one_name_are_told_apart_and_told_so() {
    block_on(async {
        let mut bed = bed(3, "");
        let twin = &bed.cluster.nodes[1].config;
        let text = std::fs::read_to_string(twin).unwrap();
        std::fs::write(
            twin,
            text.replace("node_id = \"node2\"", "node_id = \"node1\""),
        )
        .unwrap();
        bed.cluster.start_all().unwrap();
        bed.cluster
            .await_status(PATIENCE, |status| {
                status["verdict"] == "forming" && status.to_string().contains("node1")
            })
            .await
            .unwrap();
        let end = std::time::Instant::now() + PATIENCE;
        while !says(
            &bed.cluster.nodes[0].ask("/v1/cluster").await.unwrap(),
            "NAME_TAKEN",
        ) {
            assert!(
                std::time::Instant::now() < end,
                "{}",
                bed.cluster.nodes[0].log_end()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}
