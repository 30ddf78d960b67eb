#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("wire"),
    |bytes: &[u8]| mareedb_fuzz::wire::run(bytes)
);
