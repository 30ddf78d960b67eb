#![no_main]

libfuzzer_sys::fuzz_target!(
    init: mareedb_fuzz::start("grpc"),
    |bytes: &[u8]| mareedb_fuzz::grpc::run(bytes)
);
