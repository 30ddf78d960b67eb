#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("snapshot"),
    |bytes: &[u8]| mareedb_fuzz::snapshot::run(bytes)
);
