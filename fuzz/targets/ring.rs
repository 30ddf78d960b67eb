//! A ring with any words and bytes gives records or says that it is corrupt; a manifest of any text is one or an error.
#![no_main]

use mareedb_ipc::testing::{parse_inheritance, receive_from_image};

libfuzzer_sys::fuzz_target!(|input: (u64, u64, &[u8], &str)| {
    let (tail, head, data, text) = input;
    let _ = receive_from_image(tail, head, data);
    // Words near each other, as a torn ring has them.
    let _ = receive_from_image(head.wrapping_add(tail % 5000), head, data);
    let _ = parse_inheritance(text);
});
