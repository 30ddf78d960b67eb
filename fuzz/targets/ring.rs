#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("ring"),
    |bytes: &[u8]| mareedb_fuzz::ring::run(bytes)
);
