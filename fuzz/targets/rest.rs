//! Query strings and transaction bodies of any bytes are requests or errors with a code.
#![no_main]

use mareedb_api::rest::{Encoding, TxnBody};
use mareedb_gatewayd::rest::query::Params;

libfuzzer_sys::fuzz_target!(|input: (&str, &[u8])| {
    let (query, body) = input;
    if let Ok(params) = Params::parse(query) {
        let _ = (params.bytes("prefix"), params.text("to"));
        let _ = (params.number("limit"), params.flag("keys_only"));
        let _ = (params.timeout_ms(), params.revision());
        let _ = (params.encoding(), params.consistency());
        let _ = params.finish();
    }
    if let Ok(txn) = serde_json::from_slice::<TxnBody>(body) {
        for encoding in [Encoding::Base64, Encoding::Utf8] {
            let _ = txn.to_proto(encoding);
        }
    }
});
