#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("peer_frame"),
    |bytes: &[u8]| mareedb_fuzz::peer_frame::run(bytes)
);
