//! A block of any bytes begins a unit, one of a later version, or nothing.
#![no_main]

use mareedb_storaged::log::unit::{Found, Unit};

libfuzzer_sys::fuzz_target!(|input: (u64, &[u8])| {
    let (key, bytes) = input;
    let _ = Unit::claim(bytes, key);
    if let Found::Unit(unit, _) = Unit::decode(bytes, key) {
        let encoded = unit.encode();
        assert!(matches!(Unit::decode(&encoded, key), Found::Unit(again, _) if again == unit));
    }
});
