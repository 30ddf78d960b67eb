//! All messages that daemons exchange over rings: the one source of their shapes.
//!
//! Every message is a serde type in postcard encoding (little-endian varints, no self-description). Both ends of a
//! link are always the same executable (ARCHITECTURE.md), so that the ring encoding needs no compatibility rules; what is
//! written to disk or sent to another node says so in its doc comment and carries a version of its own. Decoders never
//! panic: hostile bytes give a [`WireError`].
//!
//! | lane | direction | message |
//! |---|---|---|
//! | log (a shard) | consensusd -> storaged | [`storage::ToStorage`] |
//! | log (a shard) | storaged -> consensusd | [`storage::FromStorage`] |
//! | client | gatewayd -> consensusd | [`gateway::ToConsensus`] |
//! | client | consensusd -> gatewayd | [`gateway::FromConsensus`] |
//! | peer | both | [`peer::PeerIn`], [`peer::PeerOut`] |
//! | bulk | both | [`peer::PeerIn`], [`peer::PeerOut`] with snapshot frames |
//! | read (a reader) | gatewayd -> storaged | [`read::ReadCall`] |
//! | read (a reader) | storaged -> gatewayd | [`read::ReadReply`] |

pub mod command;
pub mod gateway;
pub mod ids;
pub mod peer;
pub mod read;
pub mod storage;
pub mod view;

pub use ids::*;

use serde::{Deserialize, Serialize};

/// A message that could not be decoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot decode {what}: {source}")]
pub struct WireError {
    /// The type that was expected.
    pub what: &'static str,
    /// What the decoder met.
    pub source: postcard::Error,
}

/// Encodes `message`, appending to `out`.
///
/// # Panics
/// Never for the types of this module: they hold no maps with unknown length and no borrowed custom serializers.
pub fn encode_into<T: Serialize>(message: &T, out: &mut Vec<u8>) {
    struct Appender<'a>(&'a mut Vec<u8>);
    impl Extend<u8> for Appender<'_> {
        fn extend<I: IntoIterator<Item = u8>>(&mut self, iter: I) {
            self.0.extend(iter);
        }
    }
    postcard::to_extend(message, Appender(out)).expect("wire types always encode");
}

/// Encodes `message` into a fresh buffer.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    encode_into(message, &mut out);
    out
}

/// Decodes one whole message; bytes left over are an error.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, WireError> {
    let what = std::any::type_name::<T>();
    let (message, rest) =
        postcard::take_from_bytes::<T>(bytes).map_err(|source| WireError { what, source })?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(WireError {
            what,
            source: postcard::Error::DeserializeBadEncoding,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_leftover_bytes_are_an_error() {
        let message = storage::ToStorage::Truncate {
            group: FIRST_DATA_GROUP,
            last: Some(LogPosition { term: 3, index: 9 }),
        };
        let mut bytes = encode(&message);
        assert_eq!(decode::<storage::ToStorage>(&bytes).unwrap(), message);
        bytes.push(0);
        assert!(decode::<storage::ToStorage>(&bytes).is_err());
        assert!(decode::<storage::ToStorage>(&bytes[..1]).is_err());
    }

    #[test]
    fn a_stamp_comes_off_again() {
        let command = command::Command::Tick;
        let stamp = command::Stamp {
            revision: Revision(7),
            elapsed_ms: 9,
        };
        let stamped = stamp.on(&command::encode_command(&command));
        assert_eq!(command::unstamp(&stamped).unwrap(), (stamp, command));
        for cut in 0..=command::STAMP_BYTES {
            assert!(command::unstamp(&stamped[..cut]).is_err());
        }
    }
}
