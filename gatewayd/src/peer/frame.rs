//! The peer stream's frames (docs/formats/peer-stream.md): after the magic word, u32 length, u8 kind, payload.

use bytes::{Buf, Bytes, BytesMut};
use mareedb_config::{MESSAGE_EXTRA_BYTES, bounds};
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::peer::{PeerHello, Way};
use mareedb_ipc::wire::read::{ReadError, ReadRequest, ReadResponse};
use mareedb_ipc::wire::{GroupId, decode, encode};
use serde::{Deserialize, Serialize};
use std::io;
use tokio_util::codec::{Decoder, Encoder};

/// The first bytes of a connection that is a peer stream.
pub const MAGIC: &[u8; 8] = b"MAREEDB1";
/// The longest frame.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
// The largest request that a configuration allows is forwarded in one.
const _: () = assert!(
    bounds::REQUEST_BYTES_MAX as u64 + MESSAGE_EXTRA_BYTES <= FRAME_BYTES_MAX as u64,
    "a forwarded request fits a frame"
);
const HEAD_BYTES: usize = 5;

/// What a stream is for. Between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Purpose {
    /// consensusd's frames.
    Peer,
    /// consensusd's snapshots.
    Bulk,
    /// Calls that this node's clients make and the other node serves.
    Client,
}

impl Purpose {
    /// Which of consensusd's frames the stream carries; `None`: none.
    pub fn way(self) -> Option<Way> {
        match self {
            Purpose::Peer => Some(Way::Peer),
            Purpose::Bulk => Some(Way::Bulk),
            Purpose::Client => None,
        }
    }
}
impl From<Way> for Purpose {
    fn from(way: Way) -> Self {
        match way {
            Way::Peer => Purpose::Peer,
            Way::Bulk => Purpose::Bulk,
        }
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First, by who dials.
    Open(Box<(Purpose, PeerHello)>),
    /// The answer, when the stream may be used.
    Accept(Box<PeerHello>),
    /// The answer, when it may not, with the reason.
    Reject(String),
    /// A frame of consensusd.
    Peer(Bytes),
    /// A forwarded call: its number, how many milliseconds it may take, what is asked.
    Call(u64, u32, Box<Call>),
    /// Its answer.
    Reply(u64, Box<Reply>),
}

/// What one gateway asks another. Between nodes: variants are only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// Propose a command.
    Propose {
        /// To this group.
        group: GroupId,
        /// The encoded command.
        command: Bytes,
    },
    /// Read linearizably.
    Read(ReadRequest),
    /// Hand leaderships over.
    Transfer {
        /// To the node with this id.
        to: Option<u64>,
    },
}

/// The answer. Between nodes: variants are only added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Of a proposal: the encoded outcome.
    Proposed(Result<Bytes, ConsensusError>),
    /// Of a read.
    Read(Result<Result<ReadResponse, ReadError>, ConsensusError>),
    /// Of a transfer.
    Transferred(Result<String, ConsensusError>),
}

/// Encodes and decodes frames.
#[derive(Debug, Default)]
pub struct Codec;

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("peer stream: {what}"))
}

impl Encoder<Frame> for Codec {
    type Error = io::Error;
    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> io::Result<()> {
        let (kind, payload): (u8, Bytes) = match frame {
            Frame::Open(open) => (1, encode(&*open).into()),
            Frame::Accept(hello) => (2, encode(&*hello).into()),
            Frame::Reject(why) => (3, encode(&why).into()),
            Frame::Peer(bytes) => (4, bytes),
            Frame::Call(number, ms, call) => (5, encode(&(number, ms, *call)).into()),
            Frame::Reply(number, reply) => (6, encode(&(number, *reply)).into()),
        };
        let len = payload.len() + 1;
        if len > FRAME_BYTES_MAX {
            return Err(bad("a frame beyond the limit"));
        }
        let len = u32::try_from(len).map_err(|_| bad("a frame beyond the limit"))?;
        out.reserve(HEAD_BYTES + payload.len());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&[kind]);
        out.extend_from_slice(&payload);
        Ok(())
    }
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = io::Error;
    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(head) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*head) as usize;
        if len == 0 || len > FRAME_BYTES_MAX {
            return Err(bad("a length outside of the limits"));
        }
        if bytes.len() < 4 + len {
            bytes.reserve(4 + len - bytes.len());
            return Ok(None);
        }
        bytes.advance(4);
        let mut body = bytes.split_to(len).freeze();
        let kind = body.get_u8();
        let malformed = |_| bad("a malformed frame");
        Ok(Some(match kind {
            1 => Frame::Open(Box::new(decode(&body).map_err(malformed)?)),
            2 => Frame::Accept(Box::new(decode(&body).map_err(malformed)?)),
            3 => Frame::Reject(decode(&body).map_err(malformed)?),
            4 => Frame::Peer(body),
            5 => {
                let (number, ms, call) = decode(&body).map_err(malformed)?;
                Frame::Call(number, ms, Box::new(call))
            }
            6 => {
                let (number, reply) = decode(&body).map_err(malformed)?;
                Frame::Reply(number, Box::new(reply))
            }
            other => return Err(bad(&format!("frame kind {other}"))),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_come_back_in_any_pieces() {
        let frames = [
            Frame::Reject("no".into()),
            Frame::Peer(Bytes::from_static(b"abc")),
            Frame::Call(
                7,
                100,
                Box::new(Call::Propose {
                    group: GroupId(1),
                    command: Bytes::from_static(b"c"),
                }),
            ),
            Frame::Reply(7, Box::new(Reply::Proposed(Err(ConsensusError::NoQuorum)))),
        ];
        let mut wire = BytesMut::new();
        for frame in frames.clone() {
            Codec.encode(frame, &mut wire).unwrap();
        }
        let mut arrived = BytesMut::new();
        let mut decoded = Vec::new();
        for byte in wire {
            arrived.extend_from_slice(&[byte]);
            decoded.extend(Codec.decode(&mut arrived).unwrap());
        }
        assert_eq!(decoded, frames);
    }

    proptest! {
        #[test]
        fn hostile_streams_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Codec.decode(&mut bytes) {}
        }
    }
}
