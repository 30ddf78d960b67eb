#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("records"),
    |bytes: &[u8]| mareedb_fuzz::records::run(bytes)
);
