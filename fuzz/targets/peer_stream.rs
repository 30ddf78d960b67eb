//! A stream of any bytes, in any pieces, is frames or an error.
#![no_main]

use bytes::BytesMut;
use mareedb_gatewayd::peer::frame::Codec;
use tokio_util::codec::{Decoder, Encoder};

libfuzzer_sys::fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut codec = Codec;
    let mut stream = BytesMut::new();
    for piece in pieces {
        stream.extend_from_slice(&piece);
        loop {
            match codec.decode(&mut stream) {
                Ok(Some(frame)) => {
                    let mut out = BytesMut::new();
                    codec
                        .encode(frame.clone(), &mut out)
                        .expect("a frame that came can go");
                    assert_eq!(codec.decode(&mut out).expect("it is one"), Some(frame));
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
