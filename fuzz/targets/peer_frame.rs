//! What consensusd of another node says: any bytes are a frame or an error.
#![no_main]

use mareedb_consensusd::formation::Message;
use mareedb_consensusd::frames::Frame;
use mareedb_ipc::wire::{decode, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = decode::<Frame>(bytes) {
        let _ = encode(&frame);
        if let Frame::Formation(message) = frame {
            let _ = decode::<Message>(&message);
        }
    }
    if let Ok(message) = decode::<Message>(bytes) {
        assert_eq!(decode::<Message>(&encode(&message)).ok(), Some(message));
    }
});
