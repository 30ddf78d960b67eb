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
/// Most bytes of items in a reply: the largest item, which a request has brought, is among what fits.
const ITEMS_BYTES_MAX: usize = bounds::REQUEST_BYTES_MAX + ITEM_EXTRA_BYTES;
/// What an item takes beside its key and value, at most.
const ITEM_EXTRA_BYTES: usize = 64;
const _: () = assert!(
    ITEMS_BYTES_MAX + 1024 <= FRAME_BYTES_MAX,
    "items, and what is around them, fit a frame"
);

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

impl Reply {
    /// Cuts what a read has given to what a frame carries, but for its first item: who asked goes on from where it ends.
    pub(super) fn fitting(mut self) -> Reply {
        if let Reply::Read(Ok(Ok(response))) = &mut self {
            let mut bytes = 0;
            let fits = response
                .items
                .iter()
                .take_while(|item| {
                    bytes += item.key.len() + item.value.len() + ITEM_EXTRA_BYTES;
                    bytes <= ITEMS_BYTES_MAX
                })
                .count()
                .max(1);
            if fits < response.items.len() {
                response.items.truncate(fits);
                response.more = true;
            }
        }
        self
    }

    /// What goes in the place of one that no frame carries: only this call has failed.
    fn too_large(&self, bytes: usize) -> Reply {
        match self {
            // It may have been carried out.
            Reply::Proposed(_) => Reply::Proposed(Err(ConsensusError::Uncertain)),
            Reply::Transferred(_) => Reply::Transferred(Err(ConsensusError::Uncertain)),
            Reply::Read(_) => Reply::Read(Err(ConsensusError::TooLarge(format!(
                "an answer of {bytes} bytes does not fit a frame between nodes"
            )))),
        }
    }
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
            Frame::Reply(number, reply) => {
                let mut payload = encode(&(number, &*reply));
                if payload.len() >= FRAME_BYTES_MAX {
                    payload = encode(&(number, reply.too_large(payload.len())));
                }
                (6, payload.into())
            }
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
    use mareedb_ipc::wire::Revision;
    use mareedb_ipc::wire::command::Item;
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

    /// A read of so many items, each with a value of so many bytes.
    fn read_of(items: usize, value_bytes: usize) -> Reply {
        let revision = Revision(u64::MAX);
        let item = Item {
            key: Bytes::from_static(b"k"),
            value: Bytes::from(vec![0; value_bytes]),
            create_revision: revision,
            mod_revision: revision,
            version: u64::MAX,
        };
        Reply::Read(Ok(Ok(ReadResponse {
            items: vec![item; items],
            elections: Vec::new(),
            more: false,
            revision,
            applied_index: u64::MAX,
        })))
    }

    /// What arrives of a reply, and of what is sent after it.
    fn arrived(reply: Reply) -> Reply {
        let mut wire = BytesMut::new();
        let next = Frame::Peer(Bytes::from_static(b"next"));
        for frame in [Frame::Reply(7, Box::new(reply)), next.clone()] {
            Codec.encode(frame, &mut wire).unwrap();
        }
        let first = Codec.decode(&mut wire).unwrap();
        assert_eq!(Codec.decode(&mut wire).unwrap(), Some(next));
        match first {
            Some(Frame::Reply(7, reply)) => *reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_beyond_a_frame_is_cut_and_the_next_page_goes_on() {
        for (reply, fits) in [
            (read_of(400_000, 1), 100_000..200_000),
            (read_of(10, 1 << 20), 6..7),
            (read_of(1, bounds::REQUEST_BYTES_MAX - 1), 1..2),
        ] {
            let Reply::Read(Ok(Ok(all))) = &reply else {
                unreachable!("it was made a read");
            };
            let all = all.items.len();
            let Reply::Read(Ok(Ok(page))) = arrived(reply.fitting()) else {
                panic!("{all} items did not arrive");
            };
            assert!(fits.contains(&page.items.len()), "{}", page.items.len());
            assert_eq!(page.more, page.items.len() < all);
        }
    }

    #[test]
    fn a_reply_that_no_frame_carries_fails_its_call_and_not_the_stream() {
        let read = arrived(read_of(1, FRAME_BYTES_MAX));
        assert!(
            matches!(&read, Reply::Read(Err(ConsensusError::TooLarge(_)))),
            "{read:?}"
        );
        let outcome = Bytes::from(vec![0; FRAME_BYTES_MAX]);
        let proposed = arrived(Reply::Proposed(Ok(outcome)));
        assert_eq!(proposed, Reply::Proposed(Err(ConsensusError::Uncertain)));
    }

    proptest! {
        #[test]
        fn hostile_streams_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Codec.decode(&mut bytes) {}
        }
    }
}
