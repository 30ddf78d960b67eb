//! The documents that tell how a node and its cluster are, and the page that shows them.

use super::*;
use mareedb_api::v1::NodeStatusRequest;
use mareedb_api::v1::node_client::NodeClient;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[test]
fn status_documents_have_every_field_of_the_contract() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let cluster = node.ask("/v1/cluster").await.unwrap();
        has_fields(
            &cluster,
            &[
                "schema_version",
                "cluster_id",
                "verdict",
                "reasons",
                "leader",
                "term",
                "members_total",
                "members_online",
                "quorum",
                "failures_tolerated",
                "replication_lag_ms_max",
                "bft_mode",
                "members",
                "groups",
                "observed_by",
            ],
        );
        has_fields(
            &cluster["members"][0],
            &[
                "name",
                "id",
                "addr",
                "rest_addr",
                "role",
                "status",
                "lag_ms",
                "last_contact_ms",
                "version",
            ],
        );
        let kinds: Vec<_> = cluster["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| &group["kind"])
            .collect();
        assert_eq!(kinds, ["meta", "data"]);
        has_fields(
            &cluster["groups"][1],
            &[
                "id",
                "kind",
                "start",
                "end",
                "epoch",
                "leader",
                "term",
                "commit_index",
                "replicas",
            ],
        );
        let status = node.ask("/v1/node").await.unwrap();
        has_fields(
            &status,
            &[
                "schema_version",
                "name",
                "id",
                "incarnation",
                "cluster_id",
                "version",
                "state",
                "uptime_ms",
                "daemons",
                "links",
                "groups",
                "disk",
            ],
        );
        let daemons = status["daemons"].as_array().unwrap();
        assert_eq!(daemons.len(), 3, "{status}");
        for daemon in daemons {
            has_fields(
                daemon,
                &[
                    "name",
                    "state",
                    "pid",
                    "epoch",
                    "uptime_ms",
                    "restarts",
                    "rss_bytes",
                    "heartbeat_age_ms",
                    "last_exit",
                ],
            );
            assert_eq!(daemon["state"], "running", "{status}");
            let name = daemon["name"].as_str().unwrap();
            assert_eq!(daemon["pid"].as_u64(), node.daemon_pid(name).map(u64::from));
        }
        has_fields(
            &status["links"][0],
            &["from", "to", "capacity_bytes", "used_bytes"],
        );
        has_fields(
            &status["groups"][0],
            &[
                "id",
                "role",
                "term",
                "durable_index",
                "commit_index",
                "applied_index",
                "digest",
            ],
        );
        has_fields(
            &status["disk"],
            &["data_bytes", "free_bytes", "fsync_us_p50", "fsync_us_p99"],
        );

        for path in [
            "/healthz",
            "/readyz",
            "/metrics",
            "/openapi.json",
            "/cluster",
        ] {
            let answer = call(node, Method::GET, path, &[], b"").await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
        }
        let mut client = NodeClient::connect(format!("http://{}", node.grpc()))
            .await
            .unwrap();
        let over_grpc = client
            .status(NodeStatusRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(over_grpc.name, status["name"].as_str().unwrap());
        assert_eq!(over_grpc.daemons.len(), 3);
    });
}

/// tests/dashboard.mjs runs the page's script, which is written against the documents of the API.
#[test]
fn the_dashboard_shows_what_the_node_tells() {
    block_on(async {
        let bed = one_node().await;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/dashboard.mjs");
        let base = format!("http://{}", bed.cluster.nodes[0].rest());
        match std::process::Command::new("node")
            .args([script, &base])
            .output()
        {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                eprintln!("SKIPPED the_dashboard_shows_what_the_node_tells: node: {error}");
            }
        }
    });
}

/// What a balancer is told of the whole server, and of the service that it may ask for.
async fn health(node: &Node) -> [ServingStatus; 2] {
    let endpoint = Endpoint::from_shared(format!("http://{}", node.grpc())).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let mut told = [ServingStatus::Unknown; 2];
    for (told, service) in told.iter_mut().zip(["", "mareedb.v1.Kv"]) {
        let service = service.to_owned();
        let answer = client.check(HealthCheckRequest { service }).await.unwrap();
        *told = answer.into_inner().status();
    }
    told
}

#[test]
fn balancers_are_told_when_a_node_can_serve() {
    block_on(async {
        let mut bed = bed(3, "");
        bed.cluster.nodes[0].start().unwrap();
        bed.cluster
            .await_status(PATIENCE, |status| status["verdict"] == "forming")
            .await
            .unwrap();
        let alone = health(&bed.cluster.nodes[0]).await;
        assert_eq!(alone, [ServingStatus::NotServing; 2]);
        let bed = support::healthy(bed).await;
        let whole = health(&bed.cluster.nodes[0]).await;
        assert_eq!(whole, [ServingStatus::Serving; 2]);
    });
}
