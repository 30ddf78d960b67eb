//! gRPC messages of any bytes are messages or errors, and what is decoded is encoded to something that decodes to the same.
#![no_main]

use mareedb_api::v1;
use prost::Message;

fn decodes<M: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(&message.encode_to_vec()[..]);
        assert!(again.is_ok_and(|again| again == message));
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    decodes::<v1::PutRequest>(bytes);
    decodes::<v1::GetRequest>(bytes);
    decodes::<v1::DeleteRequest>(bytes);
    decodes::<v1::RangeRequest>(bytes);
    decodes::<v1::TxnRequest>(bytes);
    decodes::<v1::TransferLeadershipRequest>(bytes);
});
