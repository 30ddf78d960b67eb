//! Holds REST, gRPC and the command line to the public contract: names, shapes and codes, on a real node.

#[path = "contract_door.rs"]
mod door;
#[path = "contract_limits.rs"]
mod limits;
#[path = "contract_status.rs"]
mod status;
#[allow(dead_code, reason = "not every test program needs all of it")]
mod support;

use bytes::Bytes;
use http::Method;
use mareedb_api::v1::kv_client::KvClient;
use mareedb_api::v1::{DeleteRequest, GetRequest, PutRequest, RangeRequest};
use mareedb_bench::cluster::Node;
use mareedb_bench::http::Answer;
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

/// A transaction whose byte strings are text.
async fn txn(node: &Node, body: &str) -> Answer {
    let json = [("content-type", "application/json")];
    let path = "/v1/txn?encoding=utf8";
    call(node, Method::POST, path, &json, body.as_bytes()).await
}

/// The object has at least these fields.
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
        let absent = [("if-none-match", "*")];
        let misled = call(node, Method::DELETE, "/v1/kv/a%2Fb", &absent, b"").await;
        is_error(&misled, 400, "BAD_REQUEST");

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
        let body = r#"{"compare":[{"key":"x","target":"mod_revision","op":"==","value":0}],
            "success":[{"put":{"key":"x","value":"1"}},{"get":{"key":"x"}},{"delete":{"key":"y"}},{"range":{"start":"a","end":"z","limit":5}}],
            "failure":[{"get":{"key":"x"}}]}"#;
        let done = txn(node, body).await;
        assert_eq!(done.status, 200, "{done:?}");
        let done = done.json();
        has_fields(&done, &["succeeded", "revision", "results"]);
        assert_eq!(done["succeeded"], true);
        assert!(done["results"][0]["put"].is_object(), "{done}");
        assert_eq!(done["results"][1]["get"]["item"]["value"], "1", "{done}");
        assert_eq!(done["results"][2]["delete"]["deleted"], false, "{done}");
        assert_eq!(done["results"][3]["range"]["more"], false, "{done}");
        let done = txn(node, body).await.json();
        assert_eq!(done["succeeded"], false, "{done}");
        assert_eq!(done["results"].as_array().unwrap().len(), 1);

        let twice = r#"{"compare":[],"success":[{"put":{"key":"x","value":"1"}},{"delete":{"key":"x"}}],"failure":[]}"#;
        is_error(&txn(node, twice).await, 400, "BAD_REQUEST");
        let op = r#"{"get":{"key":"x"}}"#;
        let many = format!(
            r#"{{"compare":[],"success":[{}],"failure":[]}}"#,
            [op; 129].join(",")
        );
        is_error(&txn(node, &many).await, 400, "BAD_REQUEST");
        for broken in ["", "{", r#"{"success":[{"paint":{}}]}"#, r#"{"sucess":[]}"#] {
            is_error(&txn(node, broken).await, 400, "BAD_REQUEST");
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
