//! The protos are those of the contract, and their descriptors are whole.

use mareedb_api::FILE_DESCRIPTOR_SET;
use mareedb_api::v1;
use prost::Message;

/// What the test reads of `google.protobuf.FileDescriptorSet`.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}
#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
}
#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
}
#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "6")]
    server_streaming: bool,
}

#[test]
fn services_are_those_of_the_contract() {
    let files = Files::decode(FILE_DESCRIPTOR_SET).unwrap();
    let mut methods: Vec<String> = files
        .file
        .iter()
        .inspect(|file| assert_eq!(file.package, "mareedb.v1", "{}", file.name))
        .flat_map(|file| &file.service)
        .flat_map(|service| {
            service.method.iter().map(|method| {
                let stream = if method.server_streaming {
                    " stream"
                } else {
                    ""
                };
                format!("{}.{}{stream}", service.name, method.name)
            })
        })
        .collect();
    methods.sort();
    assert_eq!(
        methods,
        [
            "Cluster.Elections",
            "Cluster.Status",
            "Cluster.TransferLeadership",
            "Kv.Delete",
            "Kv.Get",
            "Kv.Put",
            "Kv.Range stream",
            "Kv.Txn",
            "Node.Status",
        ]
    );
}

/// Field numbers are for ever: a message encoded by hand decodes into the right fields.
#[test]
fn field_numbers_do_not_move() {
    let encoded = [
        0x0a, 1, b'k', // key = 1
        0x12, 1, b'v', // value = 2
        0x18, 7, // if_mod_revision = 3
        0x20, 1, // if_absent = 4
        0x2a, 1, b'i', // idempotency_key = 5
        0x30, 9, // timeout_ms = 6
    ];
    let put = v1::PutRequest::decode(&encoded[..]).unwrap();
    assert_eq!(
        put,
        v1::PutRequest {
            key: "k".into(),
            value: "v".into(),
            if_mod_revision: Some(7),
            if_absent: true,
            idempotency_key: "i".into(),
            timeout_ms: 9,
        }
    );
}
