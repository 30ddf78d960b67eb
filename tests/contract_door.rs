//! What strangers say and what is too much: refused or borne, and no daemon ends by it.

use super::*;
use futures::{SinkExt, StreamExt};
use mareedb_gatewayd::peer::frame::{Call, Codec, Frame, MAGIC, Purpose, Reply};
use mareedb_ipc::wire::command::{Cause, Command, Rules, encode_command};
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::peer::{PEER_PROTOCOL, PeerHello};
use mareedb_ipc::wire::view::NodeIdentity;
use mareedb_ipc::wire::{FIRST_DATA_GROUP, NodeId, RandomId};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::codec::Framed;

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
        is_error(&txn(node, &large).await, 413, "VALUE_TOO_LARGE");
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
    let mut stream = TcpStream::connect(node.grpc()).await.unwrap();
    stream.write_all(MAGIC).await.unwrap();
    let mut framed = Framed::new(stream, Codec);
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
