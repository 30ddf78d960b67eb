//! Messages between daemons: any bytes are a message or an error.
#![no_main]

use mareedb_ipc::wire::gateway::{FromConsensus, ToConsensus};
use mareedb_ipc::wire::peer::{PeerIn, PeerOut};
use mareedb_ipc::wire::read::{ReadCall, ReadReply};
use mareedb_ipc::wire::storage::{FromStorage, ToStorage};
use mareedb_ipc::wire::{decode, encode};
use std::fmt::Debug;

fn decodes<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        assert_eq!(decode::<T>(&encode(&message)).ok(), Some(message));
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    decodes::<ToStorage>(bytes);
    decodes::<FromStorage>(bytes);
    decodes::<ToConsensus>(bytes);
    decodes::<FromConsensus>(bytes);
    decodes::<PeerIn>(bytes);
    decodes::<PeerOut>(bytes);
    decodes::<ReadCall>(bytes);
    decodes::<ReadReply>(bytes);
});
