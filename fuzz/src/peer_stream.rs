//! A stream of any bytes, in any pieces, is frames or an error.
//!
//! Input: how large the pieces are, then parts: a kind and its bytes make a frame with the right length, or raw bytes.

use super::{next, stream, wire};
use bytes::{Bytes, BytesMut};
use mareedb_gatewayd::peer::frame::{Call, Codec, Frame, Purpose, Reply};
use mareedb_ipc::wire::FIRST_DATA_GROUP;
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::read::{Query, ReadRequest};
use tokio_util::codec::{Decoder, Encoder};

pub fn run(mut bytes: &[u8]) {
    let Some(piece) = next::<u8>(&mut bytes) else {
        return;
    };
    let mut whole = Vec::new();
    while let Some((kind, part)) = next::<(u8, Vec<u8>)>(&mut bytes) {
        if kind < 0x80 {
            let len = u32::try_from(part.len() + 1).expect("inputs are small");
            whole.extend_from_slice(&len.to_le_bytes());
            whole.push(kind);
        }
        whole.extend_from_slice(&part);
    }
    whole.extend_from_slice(bytes);
    let mut codec = Codec;
    let mut arrived = BytesMut::new();
    for piece in whole.chunks(usize::from(piece).max(1)) {
        arrived.extend_from_slice(piece);
        loop {
            match codec.decode(&mut arrived) {
                Ok(Some(frame)) => {
                    let mut out = BytesMut::new();
                    codec
                        .encode(frame.clone(), &mut out)
                        .expect("a frame that came can go");
                    assert_eq!(codec.decode(&mut out).expect("it is one"), Some(frame));
                    assert!(out.is_empty());
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let read = ReadRequest {
        group: FIRST_DATA_GROUP,
        epoch: 1,
        min_index: 0,
        query: Query::Get {
            key: Bytes::from_static(b"key"),
            revision: None,
        },
    };
    let propose = Call::Propose {
        group: FIRST_DATA_GROUP,
        command: Bytes::from_static(b"command"),
    };
    let frames = [
        Frame::Open(Box::new((Purpose::Client, wire::hello()))),
        Frame::Accept(Box::new(wire::hello())),
        Frame::Reject("another cluster".into()),
        Frame::Peer(Bytes::from_static(b"frame")),
        Frame::Call(1, 1000, Box::new(Call::Read(read))),
        Frame::Call(2, 1000, Box::new(propose)),
        Frame::Call(3, 1000, Box::new(Call::Transfer { to: Some(2) })),
        Frame::Reply(1, Box::new(Reply::Read(Ok(Ok(wire::read_response()))))),
        Frame::Reply(2, Box::new(Reply::Proposed(Err(ConsensusError::NoQuorum)))),
        Frame::Reply(3, Box::new(Reply::Transferred(Ok("node2".into())))),
    ];
    let parts = frames.map(|frame| {
        let mut out = BytesMut::new();
        Codec.encode(frame, &mut out).expect("a frame");
        (out[4], out[5..].to_vec())
    });
    let of = |piece: u8, parts: &[(u8, Vec<u8>)]| [vec![piece], stream(parts)].concat();
    let mut seeds: Vec<_> = parts.chunks(1).map(|part| of(200, part)).collect();
    seeds.push(of(7, &parts));
    seeds
}
