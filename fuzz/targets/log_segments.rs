#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("log_segments"),
    |bytes: &[u8]| mareedb_fuzz::log_segments::run(bytes)
);
