//! A configuration file of any bytes is a configuration or faults with lines.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(faults) = mareedb_config::parse(text, "maree-db.toml") {
        assert!(!faults.to_string().is_empty());
    }
});
