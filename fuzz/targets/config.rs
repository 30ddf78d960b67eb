#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("config"),
    |bytes: &[u8]| mareedb_fuzz::config::run(bytes)
);
