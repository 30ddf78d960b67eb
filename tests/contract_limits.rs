//! What a client must not do to a node, and what it is told when something is not as it should be.

use super::support::{healthy, healthy_three};
use super::*;
use mareedb_api::v1::GetResponse;
use mareedb_api::{ApiError, ErrorCode};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::{Channel, Endpoint};

async fn node_with(config: &str) -> Bed {
    healthy(bed(1, config)).await
}

fn message(answer: &Answer) -> String {
    answer.json()["message"].as_str().unwrap().to_owned()
}

/// A connection to the REST port that has said this.
async fn said(node: &Node, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(node.rest()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// What comes until the connection is closed or as much is there.
async fn heard(stream: &mut TcpStream, within: Duration) -> String {
    let mut bytes = vec![0; 4096];
    let count = tokio::time::timeout(within, stream.read(&mut bytes))
        .await
        .expect("nothing is heard")
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[test]
fn what_cannot_be_answered_is_not_done_and_what_was_done_is_not_denied() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let put = call(node, Method::PUT, "/v1/kv/%FF?encoding=utf8", &[], b"1").await;
        is_error(&put, 400, "BAD_REQUEST");
        let get = call(node, Method::GET, "/v1/kv/%FF", &[], b"").await;
        is_error(&get, 404, "NOT_FOUND");
        assert!(message(&get).contains(r"'\xff'"), "{get:?}");

        let put = call(node, Method::PUT, "/v1/kv/binary", &[], &[0xff]).await;
        assert_eq!(put.status, 200, "{put:?}");
        let only_read = br#"{"success":[{"get":{"key":"binary"}}]}"#;
        let writes = br#"{"success":[{"get":{"key":"binary"}},{"put":{"key":"x","value":"1"}}]}"#;
        let path = "/v1/txn?encoding=utf8";
        let read = call(node, Method::POST, path, &[], only_read).await;
        is_error(&read, 400, "BAD_REQUEST");
        let wrote = call(node, Method::POST, path, &[], writes).await;
        is_error(&wrote, 504, "OUTCOME_UNKNOWN");
        let get = call(node, Method::GET, "/v1/kv/x", &[], b"").await;
        let revision = get.headers["mareedb-revision"].to_str().unwrap();
        assert!(
            message(&wrote).contains(&format!("applied at revision {revision}")),
            "{wrote:?}"
        );
    });
}

#[test]
fn errors_name_the_place_in_the_request_and_the_key() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let (long, beyond) = ("k".repeat(4097), "k".repeat(32_002));
        let get = r#"{"get":{"key":"a"}}"#;
        for (body, code, place) in [
            (
                format!(r#"{{"success":[{get},{{"put":{{"key":"{long}","value":""}}}}]}}"#),
                "KEY_TOO_LARGE",
                "success[1].put.key",
            ),
            (
                format!(r#"{{"failure":[{get},{get},{{"range":{{"end":"{beyond}"}}}}]}}"#),
                "KEY_TOO_LARGE",
                "the end of failure[2].range",
            ),
            (
                r#"{"compare":[{"key":"","target":"version","op":"==","value":1}]}"#.to_owned(),
                "BAD_REQUEST",
                "compare[0].key is empty",
            ),
            (
                format!(
                    r#"{{"success":[{{"delete":{{"key":"a"}}}},{get},{{"delete":{{"key":"a"}}}}]}}"#
                ),
                "BAD_REQUEST",
                "success[0] and success[2] write the same key",
            ),
        ] {
            let path = "/v1/txn?encoding=utf8";
            let answer = call(node, Method::POST, path, &[], body.as_bytes()).await;
            is_error(&answer, 400, code);
            assert!(message(&answer).contains(place), "{}", message(&answer));
        }
        // Bounds may be those of longer keys than this node takes, as long as there can be such keys.
        let path = format!("/v1/kv?start={}", "k".repeat(32_001));
        let passed = call(node, Method::GET, &path, &[], b"").await;
        assert_eq!(passed.status, 200, "{passed:?}");
        let path = format!("/v1/kv?start={}", "k".repeat(32_100));
        let answer = call(node, Method::GET, &path, &[], b"").await;
        is_error(&answer, 400, "KEY_TOO_LARGE");
        assert!(
            message(&answer).contains("the start of the range"),
            "{}",
            message(&answer)
        );
        let unmet = call(
            node,
            Method::DELETE,
            "/v1/kv/a%0A",
            &[("if-match", "7")],
            b"",
        )
        .await;
        is_error(&unmet, 412, "PRECONDITION_FAILED");
        assert!(message(&unmet).contains(r"'a\n' is not 7"), "{unmet:?}");
    });
}

#[test]
fn every_request_takes_a_timeout_and_an_encoding() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let put = call(node, Method::PUT, "/v1/kv/a", &[], b"1").await;
        assert_eq!(put.status, 200, "{put:?}");
        for (method, path) in [
            (Method::GET, "/v1/kv/a"),
            (Method::GET, "/v1/kv"),
            (Method::GET, "/v1/cluster"),
            (Method::GET, "/v1/cluster/elections"),
            (Method::GET, "/v1/node"),
            (Method::DELETE, "/v1/kv/a"),
        ] {
            for query in [
                "timeout_ms=2000",
                "encoding=utf8",
                "timeout_ms=60000&encoding=base64",
            ] {
                let path = format!("{path}?{query}");
                let answer = call(node, method.clone(), &path, &[], b"").await;
                assert_eq!(answer.status, 200, "{path}: {answer:?}");
            }
            for query in ["timeout_ms=60001", "timeout_ms=0", "encoding=utf16"] {
                let path = format!("{path}?{query}");
                let answer = call(node, method.clone(), &path, &[], b"").await;
                is_error(&answer, 400, "BAD_REQUEST");
            }
        }
    });
}

#[test]
fn a_stale_read_of_a_revision_that_is_still_to_come_may_be_tried_again() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let path = format!("/v1/kv/a?revision={}&timeout_ms=200", u64::MAX);
        let fresh = call(node, Method::GET, &path, &[], b"").await;
        is_error(&fresh, 400, "BAD_REQUEST");
        let stale = call(
            node,
            Method::GET,
            &format!("{path}&consistency=stale"),
            &[],
            b"",
        )
        .await;
        is_error(&stale, 503, "NOT_READY");
        assert_eq!(stale.json()["retryable"], true);
        // And so is one that only takes too long; nobody else was asked.
        let index = node.signal_daemon("storaged", Signal::SIGSTOP);
        let path = "/v1/kv/a?consistency=stale&timeout_ms=100";
        let slow = call(node, Method::GET, path, &[], b"").await;
        assert!(
            index.is_some() && !message(&slow).contains("leader"),
            "{slow:?}"
        );
        is_error(&slow, 503, "NOT_READY");
    });
}

#[test]
fn a_scan_passes_the_longest_key_and_waits_for_who_reads_it() {
    block_on(async {
        let bed = node_with("[limits]\npage_items_max = 1\n").await;
        let node = &bed.cluster.nodes[0];
        let longest = "k".repeat(4096);
        let value = vec![b'v'; 1 << 20];
        let keys = ["a", &longest, "l", "m", "n", "o", "p", "q"];
        for key in keys {
            let put = node.client().put(key, &value).await.unwrap();
            assert_eq!(put.status, 200, "{put:?}");
        }
        let (mut seen, mut token) = (0, String::new());
        loop {
            let path = format!("/v1/kv?prefix=&keys_only=true&page_token={token}");
            let page = call(node, Method::GET, &path, &[], b"").await;
            assert_eq!(page.status, 200, "{page:?}");
            let page = page.json();
            seen += page["items"].as_array().unwrap().len();
            match page["next_page_token"].as_str() {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, keys.len());

        let before = scanned(node).await;
        let small_window = Endpoint::new(format!("http://{}", node.grpc()))
            .unwrap()
            .initial_stream_window_size(64 << 10)
            .connect()
            .await
            .unwrap();
        let mut client = KvClient::new(small_window);
        let mut pages = client
            .range(RangeRequest {
                prefix: Some(Bytes::new()),
                ..RangeRequest::default()
            })
            .await
            .unwrap()
            .into_inner();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let read = scanned(node).await - before;
        assert!(
            read <= 2,
            "{read} pages of a megabyte are read that nobody takes"
        );
        let mut scan = Vec::new();
        while let Some(page) = pages.message().await.unwrap() {
            scan.extend(page.items.into_iter().map(|item| item.key));
        }
        assert_eq!(scan, keys);
    });
}

/// Pages of scans that were read for clients.
async fn scanned(node: &Node) -> u64 {
    let metrics = call(node, Method::GET, "/metrics", &[], b"").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let name = r#"mareedb_requests_total{operation="range",code="OK"} "#;
    let mut counts = text.lines().filter_map(|line| line.strip_prefix(name));
    counts.next().map_or(0, |count| count.parse().unwrap())
}

#[test]
fn connections_that_say_nothing_keep_nobody_out_and_are_closed() {
    block_on(async {
        let bed = node_with("[limits]\nconnections_max = 3\n").await;
        let node = &bed.cluster.nodes[0];
        let mut silent = Vec::new();
        for words in [&b""[..], b"GET", b"PRI * HTTP/2.0", b"", b"P"] {
            silent.push(said(node, words).await);
        }
        // Its headers do not end.
        silent.push(said(node, b"GET /v1/cluster HTTP/1.1\r\nhost:").await);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let put = call(node, Method::PUT, "/v1/kv/a", &[], b"1").await;
        assert_eq!(put.status, 200, "{put:?}");
        let end = Instant::now() + Duration::from_secs(20);
        for stream in &mut silent {
            let left = end.saturating_duration_since(Instant::now());
            heard(stream, left).await;
        }
    });
}

#[test]
fn a_body_has_its_requests_time_and_no_more_room_than_there_is() {
    block_on(async {
        let small = "[limits]\nrequest_bytes_max = 131072\nvalue_bytes_max = 65536\n";
        let bed = node_with(small).await;
        let node = &bed.cluster.nodes[0];
        let head = |path: &str, length: usize| {
            format!("PUT {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n")
        };
        let began = Instant::now();
        let mut slow = said(node, head("/v1/kv/a?timeout_ms=200", 10).as_bytes()).await;
        slow.write_all(b"12345").await.unwrap();
        let told = heard(&mut slow, PATIENCE).await;
        assert!(
            told.starts_with("HTTP/1.1 400") && told.contains("timeout_ms"),
            "{told}"
        );
        assert!(began.elapsed() < Duration::from_secs(5));

        // Each has sent nearly all of the largest body; sixteen of those find room.
        let mut held = Vec::new();
        let most = vec![b'v'; 2 * 131_072];
        for number in 0..24 {
            let path = format!("/v1/kv/{number}?timeout_ms=30000");
            let mut stream = said(node, head(&path, most.len() + 1).as_bytes()).await;
            // It may have been refused in the middle.
            let _ = stream.write_all(&most).await;
            held.push(stream);
        }
        let refused = futures::future::join_all(held.iter_mut().map(|stream| async {
            let told = tokio::time::timeout(Duration::from_secs(1), async {
                let mut bytes = vec![0; 4096];
                let count = stream.read(&mut bytes).await.unwrap_or_default();
                String::from_utf8_lossy(&bytes[..count]).into_owned()
            });
            told.await
                .is_ok_and(|told| told.contains("HTTP/1.1 429") && told.contains("retry-after: 1"))
        }))
        .await;
        let refused = refused.into_iter().filter(|refused| *refused).count();
        assert!((1..=12).contains(&refused), "{refused} of 24 are refused");
        drop(held);
        let end = Instant::now() + PATIENCE;
        loop {
            let put = call(node, Method::PUT, "/v1/kv/a", &[], &[b'v'; 65_536]).await;
            if put.status == 200 {
                break;
            }
            is_error(&put, 429, "OVERLOADED");
            assert!(Instant::now() < end, "the room is not given back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn answers_that_nobody_reads_take_no_more_room_than_there_is_and_are_given_up() {
    block_on(async {
        // They make the room for answers 18 MiB, and what is not read is given up after five seconds.
        let small = "[limits]\nrequest_bytes_max = 270336\nvalue_bytes_max = 262144\ntimeout_ms_max = 5000\n";
        let bed = node_with(small).await;
        let node = &bed.cluster.nodes[0];
        for (key, bytes) in [("large", VALUE_BYTES), ("small", 1)] {
            let put = node.client().put(key, &vec![b'v'; bytes]).await.unwrap();
            assert_eq!(put.status, 200, "{put:?}");
        }
        let streams = async {
            let mut clients = vec![deaf(node).await; 256];
            let gets = clients.iter_mut().map(|client| get(client, b"large"));
            let told = tokio::time::timeout(PATIENCE, futures::future::join_all(gets)).await;
            let told = told.expect("streams that nobody reads stay");
            let refused = told.iter().filter(|told| {
                let told = told.as_ref().err().and_then(ApiError::from_status);
                told.is_some_and(|told| {
                    told.code == ErrorCode::Overloaded && told.message.contains("not read")
                })
            });
            let refused = refused.count();
            // A connection has a quarter of the room.
            assert!((224..=246).contains(&refused), "{refused} are refused");
            assert!(told.iter().all(Result::is_err), "no window was open");
        };
        // The stream has ended when its answer waits in the connection.
        let ended = async {
            let mut client = deaf(node).await;
            let told = tokio::time::timeout(PATIENCE, get(&mut client, b"small")).await;
            let told = told.expect("a connection that nobody reads stays");
            assert!(told.is_err(), "{told:?}");
        };
        let http1 = async {
            const ASKED: usize = 64;
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(node.rest()).await.unwrap();
            let asked = "GET /v1/kv/large HTTP/1.1\r\nhost: a\r\n\r\n".repeat(ASKED);
            stream.write_all(asked.as_bytes()).await.unwrap();
            closed_there(&stream).await;
            let mut heard = Vec::new();
            // It may end in the middle.
            let _ = stream.read_to_end(&mut heard).await;
            assert!(heard.len() < ASKED * VALUE_BYTES, "all is there");
        };
        tokio::join!(streams, ended, http1);
        let read = call(node, Method::GET, "/v1/kv/large", &[], b"").await;
        assert_eq!((read.status.as_u16(), read.body.len()), (200, VALUE_BYTES));
    });
}

const VALUE_BYTES: usize = 256 << 10;

/// A client over gRPC that lets nothing of an answer in.
async fn deaf(node: &Node) -> KvClient<Channel> {
    let endpoint = Endpoint::new(format!("http://{}", node.grpc())).unwrap();
    let endpoint = endpoint.initial_stream_window_size(0_u32);
    KvClient::new(endpoint.connect().await.unwrap())
}

async fn get(
    client: &mut KvClient<Channel>,
    key: &'static [u8],
) -> Result<tonic::Response<GetResponse>, tonic::Status> {
    let request = GetRequest {
        key: Bytes::from_static(key),
        ..GetRequest::default()
    };
    client.get(request).await
}

/// Waits until the other end has closed a connection, however much of what it has said before is still on its way.
async fn closed_there(stream: &TcpStream) {
    let shown = |addr: SocketAddr| match addr {
        SocketAddr::V4(addr) => {
            let ip = u32::from_ne_bytes(addr.ip().octets());
            format!("{ip:08X}:{:04X}", addr.port())
        }
        SocketAddr::V6(_) => panic!("{addr}"),
    };
    let (own, other) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let established = format!("{} {} 01", shown(other), shown(own));
    let end = Instant::now() + PATIENCE;
    while std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .contains(&established)
    {
        assert!(Instant::now() < end, "a connection that nobody reads stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn what_is_refused_before_it_is_read_carries_its_code_over_grpc_too() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let mut client = KvClient::connect(format!("http://{}", node.grpc()))
            .await
            .unwrap();
        for bytes in [(1536 << 10) + 1, 3 << 20, 6 << 20] {
            let large = client
                .put(PutRequest {
                    key: Bytes::from_static(b"k"),
                    value: Bytes::from(vec![0; bytes]),
                    ..PutRequest::default()
                })
                .await
                .unwrap_err();
            let told = ApiError::from_status(&large);
            let code = told.as_ref().map(|told| told.code);
            assert_eq!(code, Some(ErrorCode::ValueTooLarge), "{bytes}: {large:?}");
            assert_eq!(large.code(), tonic::Code::InvalidArgument, "{large:?}");
        }
    });
}

#[test]
fn leadership_that_is_handed_over_has_arrived_when_it_is_told() {
    block_on(async {
        let bed = healthy_three().await;
        let transfer = async |at: usize, query: &str| {
            let path = format!("/v1/cluster/transfer-leadership{query}");
            call(&bed.cluster.nodes[at], Method::POST, &path, &[], b"").await
        };
        let leads = async |at: usize| {
            let status = bed.cluster.nodes[at].ask("/v1/cluster").await.unwrap();
            let groups = status["groups"].as_array().unwrap().clone();
            let leaders: Vec<_> = groups.iter().map(|group| group["leader"].clone()).collect();
            (status["leader"].as_str().map(str::to_owned), leaders)
        };
        let mut moved = 0;
        let end = Instant::now() + PATIENCE;
        for at in [0, 1, 2] {
            let (before, _) = leads(at).await;
            let answer = transfer(at, "").await;
            if answer.status != 200 {
                // Nobody was fit at this moment.
                is_error(&answer, 503, "NOT_READY");
                continue;
            }
            let name = answer.json()["leader"].as_str().unwrap().to_owned();
            assert_eq!(leads(at).await.0.as_ref(), Some(&name), "{answer:?}");
            assert_ne!(Some(&name), before.as_ref());
            moved += 1;
        }
        assert!(moved > 0);
        // All groups of whoever led come to one node.
        for at in [0, 1, 2] {
            let name = bed.cluster.nodes[at].name.clone();
            loop {
                let answer = transfer(0, &format!("?to={name}")).await;
                if answer.status == 200 {
                    assert_eq!(answer.json()["leader"], name.as_str());
                    break;
                }
                assert!(Instant::now() < end, "{answer:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let (_, leaders) = leads(0).await;
            assert!(
                leaders.iter().all(|leader| *leader == name.as_str()),
                "{leaders:?}"
            );
            // It leads already.
            let again = transfer(0, &format!("?to={name}")).await;
            assert_eq!(again.status, 200, "{again:?}");
        }
        let nobody = transfer(0, "?to=nobody").await;
        is_error(&nobody, 404, "NOT_FOUND");
        // A leader that cannot answer is given up in time.
        let leader = bed.cluster.leader().await.unwrap();
        bed.cluster.nodes[leader].signal_daemon("consensusd", Signal::SIGSTOP);
        let began = Instant::now();
        let late = transfer((leader + 1) % 3, "?timeout_ms=300").await;
        assert!(began.elapsed() < Duration::from_secs(2), "{late:?}");
        is_error(&late, 504, "OUTCOME_UNKNOWN");
    });
}

#[test]
fn a_node_alone_has_nobody_to_hand_over_to() {
    block_on(async {
        let bed = one_node().await;
        let node = &bed.cluster.nodes[0];
        let path = "/v1/cluster/transfer-leadership";
        let alone = call(node, Method::POST, path, &[], b"").await;
        is_error(&alone, 412, "PRECONDITION_FAILED");
        let itself = call(
            node,
            Method::POST,
            &format!("{path}?to={}", node.name),
            &[],
            b"",
        )
        .await;
        assert_eq!(itself.status, 200, "{itself:?}");
    });
}
