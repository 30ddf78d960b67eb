#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("log_unit"),
    |bytes: &[u8]| mareedb_fuzz::log_unit::run(bytes)
);
