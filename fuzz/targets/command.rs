#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("command"),
    |bytes: &[u8]| mareedb_fuzz::command::run(bytes)
);
