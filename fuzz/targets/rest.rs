#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("rest"),
    |bytes: &[u8]| mareedb_fuzz::rest::run(bytes)
);
