#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("peer_stream"),
    |bytes: &[u8]| mareedb_fuzz::peer_stream::run(bytes)
);
