//! Holds REST, gRPC and the command line to the public contract: names, shapes and codes, on a real node.

#[path = "contract_limits.rs"]
mod limits;
#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use bytes::Bytes;
use http::Method;
use mareedb_api::v1::kv_client::KvClient;
use mareedb_api::v1::{
    DeleteRequest, GetRequest, NodeStatusRequest, PutRequest, RangeRequest, node_client::NodeClient,
};
use mareedb_bench::cluster::Node;
use mareedb_bench::http::Answer;
use mareedb_gatewayd::peer::frame::{Call, Codec, Frame, MAGIC, Purpose, Reply};
use mareedb_ipc::wire::command::{Cause, Command, Rules, encode_command};
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::peer::{PEER_PROTOCOL, PeerHello};
use mareedb_ipc::wire::view::NodeIdentity;
use mareedb_ipc::wire::{FIRST_DATA_GROUP, NodeId, RandomId};
use serde_json::Value;
use std::time::Duration;
use support::{Bed, PATIENCE, bed, block_on, cli};

async fn one_node() -> Bed {
    let mut bed = bed(1, "");
    bed.cluster.start_all().unwrap();
    bed.cluster
        .await_healthy(PATIENCE)
        .await
        .unwrap_or_else(|why| panic!("{why}"));
    bed
}

async fn call(
    node: &Node,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    node.client()
        .request(
            method,
            path,
            headers,
            Bytes::copy_from_slice(body),
            Duration::from_secs(10),
        )
        .await
        .unwrap_or_else(|broken| panic!("{path}: {broken}"))
}

/// The object has exactly or at least these fields.
fn has_fields(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "no field {field} in {value}");
    }
}

fn is_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let body = answer.json();
    has_fields(&body, &["code", "message", "remedy", "retryable"]);
    assert_eq!(body["code"], code, "{body}");
    assert!(!body["message"].as_str().unwrap().is_empty());
}

#[test]
fn rest_answers_with_the_names_and_codes_of_the_contract() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];

        let put = call(node, Method::PUT, "/v1/kv/a%2Fb", &[], b"1").await;
        assert_eq!(put.status, 200, "{put:?}");
        let body = put.json();
        assert_eq!(
            body["key"], "YS9i",
            "keys are base64 of the decoded bytes: {body}"
        );
        assert!(
            body["revision"].is_string(),
            "revisions are decimal strings: {body}"
        );
        let revision = body["revision"].as_str().unwrap().to_owned();

        let get = call(node, Method::GET, "/v1/kv/a%2Fb", &[], b"").await;
        assert_eq!(&get.body[..], b"1");
        assert_eq!(get.headers["mareedb-revision"].to_str().unwrap(), revision);
        assert_eq!(
            get.headers["etag"].to_str().unwrap(),
            format!("\"{revision}\"")
        );
        let stale = call(
            node,
            Method::GET,
            "/v1/kv/a%2Fb?consistency=stale",
            &[],
            b"",
        )
        .await;
        assert_eq!(&stale.body[..], b"1");

        let list = call(node, Method::GET, "/v1/kv?prefix=a&encoding=utf8", &[], b"").await;
        let list = list.json();
        has_fields(
            &list["items"][0],
            &["key", "value", "create_revision", "mod_revision", "version"],
        );
        assert_eq!(list["items"][0]["version"], 1, "{list}");

        // If-Match in both forms, If-None-Match.
        let quoted = format!("\"{revision}\"");
        let matched = call(
            node,
            Method::PUT,
            "/v1/kv/a%2Fb",
            &[("if-match", &quoted)],
            b"2",
        )
        .await;
        assert_eq!(matched.status, 200, "{matched:?}");
        let failed = call(
            node,
            Method::PUT,
            "/v1/kv/a%2Fb",
            &[("if-match", &revision)],
            b"3",
        )
        .await;
        is_error(&failed, 412, "PRECONDITION_FAILED");
        let failed = call(
            node,
            Method::PUT,
            "/v1/kv/a%2Fb",
            &[("if-none-match", "*")],
            b"3",
        )
        .await;
        is_error(&failed, 412, "PRECONDITION_FAILED");

        let deleted = call(node, Method::DELETE, "/v1/kv/a%2Fb", &[], b"").await;
        assert_eq!(deleted.json()["deleted"], true);
        has_fields(&deleted.json(), &["revision"]);
        let deleted = call(node, Method::DELETE, "/v1/kv/a%2Fb", &[], b"").await;
        assert_eq!(deleted.json()["deleted"], false);
        is_error(
            &call(node, Method::GET, "/v1/kv/a%2Fb", &[], b"").await,
            404,
            "NOT_FOUND",
        );

        let key = [("idempotency-key", "k1")];
        let first = call(node, Method::PUT, "/v1/kv/i", &key, b"1").await;
        let again = call(node, Method::PUT, "/v1/kv/i", &key, b"1").await;
        assert_eq!(first.body, again.body);
        is_error(
            &call(node, Method::PUT, "/v1/kv/i", &key, b"2").await,
            422,
            "IDEMPOTENCY_KEY_REUSED",
        );

        let long = "k".repeat(4097);
        is_error(
            &call(node, Method::PUT, &format!("/v1/kv/{long}"), &[], b"").await,
            400,
            "KEY_TOO_LARGE",
        );
        let big = vec![0; 1536 * 1024 + 1];
        is_error(
            &call(node, Method::PUT, "/v1/kv/big", &[], &big).await,
            413,
            "VALUE_TOO_LARGE",
        );
        for path in [
            "/v1/kv/x?timeout_ms=soon",
            "/v1/kv/x?timeout_ms=60001",
            "/v1/kv/x?revision=-1",
            "/v1/kv/x?consistency=perhaps",
            "/v1/kv/%zz",
        ] {
            is_error(
                &call(node, Method::GET, path, &[], b"").await,
                400,
                "BAD_REQUEST",
            );
        }
        is_error(
            &call(node, Method::GET, "/v1/nothing", &[], b"").await,
            404,
            "NOT_FOUND",
        );
    });
}

#[test]
fn a_transaction_answers_with_the_shapes_of_the_contract() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let json = [("content-type", "application/json")];
        let body = br#"{"compare":[{"key":"x","target":"mod_revision","op":"==","value":0}],
            "success":[{"put":{"key":"x","value":"1"}},{"get":{"key":"x"}},{"delete":{"key":"y"}},{"range":{"start":"a","end":"z","limit":5}}],
            "failure":[{"get":{"key":"x"}}]}"#;
        let done = call(node, Method::POST, "/v1/txn?encoding=utf8", &json, body).await;
        assert_eq!(done.status, 200, "{done:?}");
        let done = done.json();
        has_fields(&done, &["succeeded", "revision", "results"]);
        assert_eq!(done["succeeded"], true);
        assert!(done["results"][0]["put"].is_object(), "{done}");
        assert_eq!(done["results"][1]["get"]["item"]["value"], "1", "{done}");
        assert_eq!(done["results"][2]["delete"]["deleted"], false, "{done}");
        assert_eq!(done["results"][3]["range"]["more"], false, "{done}");
        let done = call(node, Method::POST, "/v1/txn?encoding=utf8", &json, body)
            .await
            .json();
        assert_eq!(done["succeeded"], false, "{done}");
        assert_eq!(done["results"].as_array().unwrap().len(), 1);

        let twice = br#"{"compare":[],"success":[{"put":{"key":"x","value":"1"}},{"delete":{"key":"x"}}],"failure":[]}"#;
        is_error(
            &call(node, Method::POST, "/v1/txn?encoding=utf8", &json, twice).await,
            400,
            "BAD_REQUEST",
        );
        let op = r#"{"get":{"key":"x"}}"#;
        let many = format!(
            r#"{{"compare":[],"success":[{}],"failure":[]}}"#,
            [op; 129].join(",")
        );
        is_error(
            &call(
                node,
                Method::POST,
                "/v1/txn?encoding=utf8",
                &json,
                many.as_bytes(),
            )
            .await,
            400,
            "BAD_REQUEST",
        );
        for broken in ["", "{", r#"{"success":[{"paint":{}}]}"#, r#"{"sucess":[]}"#] {
            is_error(
                &call(
                    node,
                    Method::POST,
                    "/v1/txn?encoding=utf8",
                    &json,
                    broken.as_bytes(),
                )
                .await,
                400,
                "BAD_REQUEST",
            );
        }
    });
}

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

#[test]
fn grpc_tells_the_same_as_rest() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let mut client = KvClient::connect(format!("http://{}", node.grpc()))
            .await
            .unwrap();
        let key = Bytes::from_static(b"g");
        let put = client
            .put(PutRequest {
                key: key.clone(),
                value: Bytes::from_static(b"v"),
                if_absent: true,
                ..PutRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        let over_rest = call(node, Method::GET, "/v1/kv/g", &[], b"").await;
        assert_eq!(
            over_rest.headers["mareedb-revision"].to_str().unwrap(),
            put.revision.to_string()
        );
        let again = client
            .put(PutRequest {
                key: key.clone(),
                value: Bytes::from_static(b"v"),
                if_absent: true,
                ..PutRequest::default()
            })
            .await
            .unwrap_err();
        assert_eq!(again.code(), tonic::Code::FailedPrecondition, "{again:?}");
        let item = client
            .get(GetRequest {
                key: key.clone(),
                ..GetRequest::default()
            })
            .await
            .unwrap()
            .into_inner()
            .item
            .expect("an item");
        assert_eq!((&item.value[..], item.version), (&b"v"[..], 1));
        let mut pages = client
            .range(RangeRequest {
                prefix: Some(Bytes::new()),
                ..RangeRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        let page = pages.message().await.unwrap().expect("a page");
        assert_eq!(page.items, vec![item]);
        let deleted = client
            .delete(DeleteRequest {
                key: key.clone(),
                ..DeleteRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        assert!(deleted.deleted);
        let absent = client
            .get(GetRequest {
                key,
                ..GetRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(absent.item, None);
        let large = client
            .put(PutRequest {
                key: Bytes::from(vec![b'k'; 4097]),
                ..PutRequest::default()
            })
            .await
            .unwrap_err();
        assert_eq!(large.code(), tonic::Code::InvalidArgument, "{large:?}");
        assert!(
            String::from_utf8_lossy(large.details()).contains("KEY_TOO_LARGE"),
            "details carry the code: {large:?}"
        );
    });
}

#[test]
fn what_no_daemon_may_see_is_refused_at_the_door_and_the_daemons_live() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let pids = || ["consensusd", "storaged", "gatewayd"].map(|daemon| node.daemon_pid(daemon));
        let before = pids();
        // A transaction that is too large only as a whole.
        let value = "v".repeat(1400 << 10);
        let compare = format!(r#"{{"key":"x","target":"value","op":"==","value":"{value}"}}"#);
        let large = format!(
            r#"{{"compare":[{compare},{compare}],"success":[{{"get":{{"key":"x"}}}}],"failure":[]}}"#
        );
        let json = [("content-type", "application/json")];
        is_error(
            &call(
                node,
                Method::POST,
                "/v1/txn?encoding=utf8",
                &json,
                large.as_bytes(),
            )
            .await,
            413,
            "VALUE_TOO_LARGE",
        );
        // A stranger on the peers' port proposes what is no command, and one that only a leader may say.
        let view = node.ask("/v1/node").await.unwrap();
        assert!(view.is_object());
        let lead = Command::Lead {
            node: NodeId(1),
            cause: Cause::NoLeader,
            rules: Rules::default(),
        };
        for command in [Bytes::from_static(&[0xff]), encode_command(&lead)] {
            let reply = stranger(node, command).await;
            assert!(
                matches!(&reply, Reply::Proposed(Err(ConsensusError::Refused(_)))),
                "{reply:?}"
            );
        }
        let put = node.client().put("after", b"v").await.unwrap();
        assert_eq!(put.status, 200, "{put:?}");
        assert_eq!(pids(), before, "{}", node.log_end());
    });
}

/// Proposes as another node's gateway would.
async fn stranger(node: &Node, command: Bytes) -> Reply {
    use futures::{SinkExt, StreamExt};
    let mut stream = tokio::net::TcpStream::connect(node.grpc()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, MAGIC)
        .await
        .unwrap();
    let mut framed = tokio_util::codec::Framed::new(stream, Codec);
    let hello = PeerHello {
        protocol: PEER_PROTOCOL,
        start: RandomId(1),
        identity: NodeIdentity {
            name: "stranger".into(),
            id: None,
            incarnation: RandomId(1),
            cluster: None,
            addr: "127.0.0.1:1".into(),
            rest_addr: "127.0.0.1:2".into(),
            version: String::new(),
        },
        expected: None,
    };
    let open = Frame::Open(Box::new((Purpose::Client, hello)));
    framed.send(open).await.unwrap();
    let accepted = framed.next().await.unwrap().unwrap();
    assert!(matches!(accepted, Frame::Accept(_)), "{accepted:?}");
    let ask = Call::Propose {
        group: FIRST_DATA_GROUP,
        command,
    };
    framed
        .send(Frame::Call(1, 5_000, Box::new(ask)))
        .await
        .unwrap();
    match framed.next().await.unwrap().unwrap() {
        Frame::Reply(1, reply) => *reply,
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_large_answers_at_once_reach_everybody_and_no_daemon_dies() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let large = vec![b'v'; 1400 << 10];
        let put = node.client().put("large", &large).await.unwrap();
        assert_eq!(put.status, 200, "{put:?}");
        let before = node.daemon_pid("storaged");
        // Each answers 1.9 MB; together they are more than any ring carries in one message.
        let read = br#"{"compare":[],"success":[{"get":{"key":"bGFyZ2U="}},{"put":{"key":"eA==","value":"eA=="}}],"failure":[]}"#;
        let json = [("content-type", "application/json")];
        let reads = (0..24).map(|_| call(node, Method::POST, "/v1/txn", &json, read));
        for answer in futures::future::join_all(reads).await {
            assert_eq!(answer.status, 200, "{:?}", answer.headers);
            let item = &answer.json()["results"][0]["get"]["item"];
            assert!(item["value"].as_str().unwrap().len() > large.len());
        }
        assert_eq!(node.daemon_pid("storaged"), before, "{}", node.log_end());
    });
}

#[test]
fn the_command_line_ends_with_the_codes_of_the_contract() {
    block_on(async {
        let bed = one_node().await;
        let endpoint = bed.cluster.nodes[0].grpc();
        for (arguments, code) in [
            (&["cluster", "status"][..], 0),
            (&["put", "a", "b"], 0),
            (&["get", "a"], 0),
            (&["get", "absent"], 1),
            (&["node", "status"], 0),
            (&["cluster", "elections"], 0),
            (&["paint", "it"], 64),
            (&["put"], 64),
        ] {
            let output = cli(&endpoint, arguments);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{arguments:?}: {output:?}"
            );
        }
        let output = cli("127.0.0.1:1", &["get", "a"]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let output = cli(&endpoint, &["-o", "json", "cluster", "status"]);
        let over_cli: Value = serde_json::from_slice(&output.stdout).unwrap();
        let over_rest = bed.cluster.nodes[0].ask("/v1/cluster").await.unwrap();
        assert_eq!(over_cli["cluster_id"], over_rest["cluster_id"]);
        assert_eq!(over_cli["verdict"], "healthy");
    });
}
