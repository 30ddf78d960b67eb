//! What consensusd of another node says: any bytes are a frame or an error; formation bears whatever is said to it.

use super::formation::{self, Step};
use super::stream;
use bytes::Bytes;
use mareedb_consensusd::formation::Message;
use mareedb_consensusd::frames::{Answer, Ask, Frame, LeaderReport, Route};
use mareedb_consensusd::raft::{C, from_wire_entry, log_id};
use mareedb_ipc::wire::storage::{EntryBody, LogEntry, SnapshotChunk, SnapshotMeta};
use mareedb_ipc::wire::{GroupId, LogPosition, NodeId, RandomId, ReplicaId, decode, encode};
use openraft::alias::VoteOf;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};

/// The first byte says what the others are.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 3 {
        0 => {
            if let Ok(frame) = decode::<Frame>(bytes) {
                let again = encode(&frame);
                let twice = decode::<Frame>(&again).expect("a frame that came can go");
                assert_eq!(encode(&twice), again);
                let _ = format!("{frame:?}");
            }
        }
        1 => {
            if let Ok(message) = decode::<Message>(bytes) {
                assert_eq!(decode::<Message>(&encode(&message)).ok(), Some(message));
            }
        }
        _ => {
            let mut formation = formation::begin(&[]).expect("a first start");
            formation::drive(&mut formation, bytes);
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let route = Route {
        cluster: RandomId(1),
        group: GroupId(1),
        from: ReplicaId(2),
        to: ReplicaId(3),
    };
    let at = LogPosition { term: 1, index: 2 };
    let vote = VoteOf::<C>::new_committed(3, 2);
    let entry = |body| {
        let position = at;
        from_wire_entry(LogEntry { position, body }).expect("an entry")
    };
    let append = AppendEntriesRequest::<C> {
        vote,
        prev_log_id: Some(log_id(at)),
        entries: vec![
            entry(EntryBody::Blank),
            entry(EntryBody::Normal(Bytes::from_static(b"command"))),
        ],
        leader_commit: Some(log_id(at)),
    };
    let ask = |ask| Frame::Ask {
        route,
        call: 9,
        ask,
    };
    let answer = |answer| Frame::Answer {
        route,
        call: 9,
        answer,
    };
    let chunk = SnapshotChunk {
        entries: vec![(Bytes::from_static(b"dk"), Bytes::from_static(b"v"))],
        next: None,
    };
    let meta = SnapshotMeta {
        last_applied: Some(at),
        membership: None,
    };
    let frames = [
        Frame::Ping {
            incarnation: 1,
            report: Some(LeaderReport {
                term: 1,
                lags: vec![(NodeId(1), 5)],
            }),
        },
        Frame::Formation(Bytes::from_static(b"\x02\x07")),
        ask(Ask::Append(append.clone())),
        ask(Ask::Stream {
            stream: 1,
            sequence: 0,
            request: append,
        }),
        ask(Ask::Vote(VoteRequest::new(vote, Some(log_id(at))))),
        ask(Ask::Transfer {
            from: vote,
            to: 3,
            last: Some(log_id(at)),
        }),
        ask(Ask::Snapshot {
            install: RandomId(1),
            number: 0,
            chunk,
            finish: Some((vote, meta)),
        }),
        ask(Ask::LeaderGone {
            leader: ReplicaId(1),
            term: 2,
        }),
        answer(Answer::Append(AppendEntriesResponse::Success)),
        answer(Answer::Vote(VoteResponse::new(
            vote,
            Some(log_id(at)),
            true,
        ))),
        answer(Answer::Stream(Ok(Some(log_id(at))))),
        answer(Answer::Refused("no".into())),
        answer(Answer::LeaderGone {
            confirmed: true,
            last: Some(log_id(at)),
            fit: true,
            name: "node2".into(),
        }),
    ];
    let mut seeds: Vec<_> = frames
        .iter()
        .map(|frame| [vec![0], encode(frame)].concat())
        .collect();
    for steps in [formation::steps(), formation::told()] {
        for step in &steps {
            if let Step::Message(_, message) = step {
                seeds.push([vec![1], encode(message)].concat());
            }
        }
        seeds.push([vec![2], stream(&steps)].concat());
    }
    seeds
}
