//! Query strings, page tokens and transaction bodies of any bytes are requests or errors with a code, as far as the gateway looks
//! at them by itself.

use super::grpc;
use mareedb_api::rest::{Encoding, TxnBody, decode_key, encode_key};
use mareedb_gatewayd::rest::query::Params;
use mareedb_gatewayd::rest::token;

/// A query string, and after the first newline a body.
pub fn run(bytes: &[u8]) {
    let split = bytes.iter().position(|byte| *byte == b'\n');
    let (query, body) = match split {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[][..]),
    };
    if let Ok(query) = std::str::from_utf8(query) {
        if let Ok(params) = Params::parse(query) {
            let _ = (params.bytes("prefix"), params.text("to"));
            let _ = (params.number("limit"), params.flag("keys_only"));
            let _ = (params.timeout_ms(), params.revision());
            let _ = (params.encoding(), params.consistency());
            let _ = params.finish();
        }
        if let Ok(key) = decode_key(query) {
            assert_eq!(decode_key(&encode_key(&key)).ok(), Some(key));
        }
        if let Ok((revision, next)) = token::read(query) {
            assert_eq!(token::write(revision, &next), query);
        }
    }
    // No input has the checksum of a token by chance.
    if let Some((revision, next)) = body.split_first_chunk::<8>()
        && !next.is_empty()
    {
        let revision = u64::from_le_bytes(*revision);
        let told = token::read(&token::write(revision, next)).expect("a token");
        assert_eq!((told.0, &told.1[..]), (revision, next));
    }
    if let Ok(txn) = serde_json::from_slice::<TxnBody>(body) {
        let json = serde_json::to_string(&txn).expect("what came can go");
        assert_eq!(
            serde_json::from_str::<TxnBody>(&json).ok(),
            Some(txn.clone())
        );
        for encoding in [Encoding::Base64, Encoding::Utf8] {
            if let Ok(request) = txn.to_proto(encoding) {
                grpc::asked(async |core| core.txn(request).await.map(drop));
            }
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let all = r#"{"compare":[{"key":"YQ==","target":"value","op":"==","value":"YQ=="},{"key":"YQ==","target":"mod_revision","op":">","value":"7"},{"key":"YQ==","target":"version","op":"<","value":1}],"success":[{"put":{"key":"YQ==","value":""}},{"delete":{"key":"Yg=="}}],"failure":[{"get":{"key":"YQ=="}},{"range":{"prefix":"YQ==","limit":"3"}},{"range":{"start":"YQ==","end":"Yg=="}}]}"#;
    [
        "prefix=a%2Fb&limit=5&keys_only=true&timeout_ms=9&revision=3",
        "to=node2&encoding=utf8&consistency=stale&keys_only",
        "encoding=base64&consistency=linearizable&a=%zz",
        "a+b=%00%ff&x",
        &format!("\n{all}"),
        &token::write(7, b"a"),
        "\n12345678a key",
        "limit=1\n{\"success\":[{\"put\":{\"key\":\"a\",\"value\":\"\\u00e9\"}}]}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
