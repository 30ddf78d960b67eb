//! Messages between daemons: any bytes are a message or an error, and a message comes back as it went.

use super::stream;
use bytes::Bytes;
use mareedb_ipc::wire::command::{
    Cause, Command, Election, Item, OpResult, Outcome, Rules, TxnResult,
};
use mareedb_ipc::wire::gateway::{
    AdminRequest, ConsensusError, FromConsensus, Target, ToConsensus,
};
use mareedb_ipc::wire::peer::{DownReason, PEER_PROTOCOL, PeerHello, PeerIn, PeerOut};
use mareedb_ipc::wire::read::{Query, ReadCall, ReadError, ReadReply, ReadRequest, ReadResponse};
use mareedb_ipc::wire::storage::{
    EntryBody, FromStorage, KeyRange, LogEntry, NodeRecord, ReplicaState, SnapshotChunk,
    SnapshotMeta, StorageAnswer, StorageRequest, ToStorage,
};
use mareedb_ipc::wire::view::{
    ClusterView, Forming, GroupView, LocalReplica, MemberView, NodeIdentity, Reason,
};
use mareedb_ipc::wire::{
    FIRST_DATA_GROUP, LogPosition, NodeId, OperationId, RandomId, ReplicaId, Revision, Vote,
    decode, encode,
};
use std::fmt::Debug;

fn decodes<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        assert_eq!(decode::<T>(&encode(&message)).ok(), Some(message));
    }
}

/// The first byte says which message.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 10 {
        0 => decodes::<ToStorage>(bytes),
        1 => decodes::<FromStorage>(bytes),
        2 => decodes::<ToConsensus>(bytes),
        3 => decodes::<FromConsensus>(bytes),
        4 => decodes::<PeerIn>(bytes),
        5 => decodes::<PeerOut>(bytes),
        6 => decodes::<ReadCall>(bytes),
        7 => decodes::<ReadReply>(bytes),
        8 => decodes::<Command>(bytes),
        _ => decodes::<Outcome>(bytes),
    }
}

pub(crate) fn identity(name: &str) -> NodeIdentity {
    NodeIdentity {
        name: name.into(),
        id: Some(NodeId(1)),
        incarnation: RandomId(7),
        cluster: Some(RandomId(9)),
        addr: "10.0.0.1:7001".into(),
        rest_addr: "10.0.0.1:8080".into(),
        version: "0.1.0".into(),
    }
}

pub(crate) fn hello() -> PeerHello {
    PeerHello {
        protocol: PEER_PROTOCOL,
        start: RandomId(3),
        identity: identity("node1"),
        expected: Some(NodeId(2)),
    }
}

fn item() -> Item {
    Item {
        key: Bytes::from_static(b"a"),
        value: Bytes::from_static(b"value"),
        create_revision: Revision(1),
        mod_revision: Revision(2),
        version: 2,
    }
}

pub(crate) fn read_response() -> ReadResponse {
    let election = Election {
        term: 2,
        node: NodeId(1),
        cause: Cause::Refused(NodeId(2)),
    };
    ReadResponse {
        items: vec![item()],
        elections: vec![(Revision(9), election)],
        more: true,
        revision: Revision(9),
        applied_index: 4,
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let group = FIRST_DATA_GROUP;
    let at = LogPosition { term: 1, index: 2 };
    let meta = SnapshotMeta {
        last_applied: Some(at),
        membership: Some((at, Bytes::from_static(b"m"))),
    };
    let replica = ReplicaId(1);
    let range = KeyRange::whole();
    let vote = Vote {
        term: 1,
        voted_for: Some(replica),
        committed: true,
    };
    let entries = vec![
        LogEntry {
            position: at,
            body: EntryBody::Normal(Bytes::from_static(b"command")),
        },
        LogEntry {
            position: at,
            body: EntryBody::Blank,
        },
    ];
    let chunk = SnapshotChunk {
        entries: vec![(Bytes::from_static(b"dk"), Bytes::from_static(b"v"))],
        next: Some(Bytes::from_static(b"dl")),
    };
    let query = Query::Range {
        start: Bytes::from_static(b"a"),
        end: Bytes::from_static(b"b"),
        limit: 10,
        max_bytes: 1000,
        revision: Some(Revision(5)),
        keys_only: true,
    };
    let read = ReadRequest {
        group,
        epoch: 1,
        min_index: 3,
        query,
    };
    let request = |body| ToStorage::Request { request: 1, body };
    let install = RandomId(5);
    let to_storage = [
        ToStorage::Hello {
            epoch: 1,
            number: 2,
        },
        ToStorage::CreateReplica {
            group,
            replica,
            range: range.clone(),
        },
        ToStorage::SaveVote { group, vote },
        ToStorage::Append {
            group,
            entries: entries.clone(),
        },
        ToStorage::Truncate {
            group,
            last: Some(at),
        },
        ToStorage::SaveNodeRecord {
            record: NodeRecord {
                name: "identity".into(),
                value: Bytes::from_static(b"v"),
            },
        },
        request(StorageRequest::Apply {
            group,
            results_from: 1,
            upto: at,
        }),
        request(StorageRequest::InstallChunk {
            install,
            number: 0,
            chunk: chunk.clone(),
        }),
        request(StorageRequest::FinishInstall {
            group,
            install,
            meta: meta.clone(),
        }),
    ];
    let state = ReplicaState {
        group,
        replica,
        range: range.clone(),
        vote: Some((
            vote,
            OperationId {
                generation: install,
                position: 64,
            },
        )),
        purged: None,
        last: Some(at),
        committed: Some(at),
        applied: meta.clone(),
        persisted: meta.clone(),
    };
    let answer = |body| FromStorage::Answer { request: 1, body };
    let from_storage = [
        FromStorage::Bootstrapped {
            epoch: 1,
            number: 1,
            generation: install,
            replicas: vec![state],
            records: Vec::new(),
        },
        answer(StorageAnswer::Log { entries }),
        answer(StorageAnswer::Applied {
            applied: at,
            outcomes: vec![(2, Bytes::from_static(b"\0"))],
        }),
        answer(StorageAnswer::Chunk(chunk)),
        answer(StorageAnswer::Opened {
            snapshot: install,
            meta,
        }),
    ];
    let to_consensus = [
        ToConsensus::Propose {
            call: 1,
            group,
            command: Bytes::from_static(b"c"),
        },
        ToConsensus::Admin {
            call: 2,
            request: AdminRequest::TransferLeadership {
                to: Some(NodeId(2)),
            },
        },
    ];
    let view = ClusterView {
        me: identity("node1"),
        ready: true,
        forming: Some(Forming {
            message: "m".into(),
            awaited: vec!["n2".into()],
        }),
        refused: Some(Reason {
            code: "CODE".into(),
            message: "why".into(),
        }),
        members: vec![MemberView {
            id: NodeId(1),
            name: "n1".into(),
            addr: "a:1".into(),
            rest_addr: "a:2".into(),
            version: "0".into(),
            voter: true,
            online: true,
            disk_stalled: false,
            clock_ahead: false,
            last_contact_ms: Some(1),
            lag_ms: None,
        }],
        groups: vec![GroupView {
            id: group,
            range,
            replicas: vec![(replica, NodeId(1), true)],
            leader: Some(NodeId(1)),
            quorum_ok: true,
            term: 3,
            local: Some(LocalReplica {
                replica,
                role: "leader".into(),
                durable: Some(at),
                committed: None,
                applied: Some(at),
            }),
        }],
    };
    let from_consensus = [
        FromConsensus::View(Box::new(view)),
        FromConsensus::Proposed {
            call: 1,
            result: Err(ConsensusError::NotLeader {
                leader: Some(NodeId(2)),
            }),
        },
        FromConsensus::Targets {
            me: Box::new(identity("node1")),
            targets: vec![Target {
                addr: "a:1".into(),
                node: Some(NodeId(2)),
            }],
        },
    ];
    let peer_in = [
        PeerIn::Frame {
            from: Box::new(hello()),
            frame: Bytes::from_static(b"f"),
        },
        PeerIn::Down {
            addr: "a:1".into(),
            why: DownReason::Refused,
        },
    ];
    let peer_out = [PeerOut::Frame {
        addr: "a:1".into(),
        frame: Bytes::from_static(b"f"),
    }];
    let read_call = [ReadCall {
        call: 1,
        wait_ms: 10,
        read,
    }];
    let read_reply = [
        ReadReply::Reply {
            call: 1,
            result: Ok(read_response()),
        },
        ReadReply::Reply {
            call: 1,
            result: Err(ReadError::Storage("disk".into())),
        },
    ];
    let commands = [Command::Lead {
        node: NodeId(1),
        cause: Cause::Silence(NodeId(2)),
        rules: Rules::default(),
    }];
    let outcomes = [Outcome::Done(TxnResult {
        succeeded: true,
        revision: Revision(4),
        results: vec![
            OpResult::Put,
            OpResult::Get { item: Some(item()) },
            OpResult::Range {
                items: vec![item()],
                more: true,
            },
        ],
    })];
    fn each<T: serde::Serialize>(which: u8, messages: &[T]) -> Vec<Vec<u8>> {
        let sealed = |message| [vec![which], stream(std::slice::from_ref(message))].concat();
        messages.iter().map(sealed).collect()
    }
    [
        each(0, &to_storage),
        each(1, &from_storage),
        each(2, &to_consensus),
        each(3, &from_consensus),
        each(4, &peer_in),
        each(5, &peer_out),
        each(6, &read_call),
        each(7, &read_reply),
        each(8, &commands),
        each(9, &outcomes),
    ]
    .concat()
}
