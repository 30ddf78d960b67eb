//! gRPC messages of any bytes are messages or errors; what is decoded is encoded to something that decodes to the same; and
//! what a message asks for is bounded, lowered and refused by the gateway without a panic.

use mareedb_api::{ApiError, v1};
use mareedb_config::Config;
use mareedb_gatewayd::core::Core;
use mareedb_gatewayd::links::Calls;
use mareedb_gatewayd::peer::Peers;
use mareedb_gatewayd::session::Sessions;
use mareedb_ipc::testing::NodeInProcess;
use mareedb_ipc::wire::RandomId;
use mareedb_ipc::{Lane, Outbox, Role};
use prost::Message;
use std::sync::{Arc, OnceLock};

/// A gateway that has been told nothing yet, with a limit small enough to be met.
fn core() -> &'static (Arc<Core>, tokio::runtime::Runtime) {
    static CORE: OnceLock<(Arc<Core>, tokio::runtime::Runtime)> = OnceLock::new();
    CORE.get_or_init(|| {
        let node = NodeInProcess::small("{}");
        let mut own = node.attach(Role::Gateway);
        let outbox = |sender: &mareedb_ipc::Sender| Outbox::before(sender, || {});
        let client = outbox(&own.sender(Role::Consensus, Lane::Client));
        let peer = outbox(&own.sender(Role::Consensus, Lane::Peer));
        let bulk = outbox(&own.sender(Role::Consensus, Lane::Bulk));
        let reader = outbox(&own.sender(Role::Storage, Lane::Read(0)));
        let mut config = Config::default();
        config.limits.key_bytes_max = 64;
        config.limits.value_bytes_max = 128;
        config.limits.request_bytes_max = 256;
        config.limits.txn_operations_max = 8;
        let core = Core::new(
            Calls::new(client, vec![reader]),
            Peers::new(RandomId(1), peer, bulk),
            Sessions::new(),
            config,
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        (core, runtime)
    })
}

/// Asks, and waits for nobody: a request that passes all checks finds no group.
pub(crate) fn asked(ask: impl AsyncFnOnce(&Core) -> Result<(), ApiError>) {
    let (core, runtime) = core();
    runtime.block_on(async {
        let answer = ask(core.as_ref());
        tokio::pin!(answer);
        if let std::task::Poll::Ready(answer) = futures::poll!(answer.as_mut()) {
            let error = answer.expect_err("nobody could carry it out");
            assert!(!error.to_string().is_empty());
        }
    });
}

fn decoded<M: Message + Default + PartialEq>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    let again = M::decode(&message.encode_to_vec()[..]);
    assert!(again.is_ok_and(|again| again == message));
    Some(message)
}

/// The first byte says which message.
pub fn run(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 6 {
        0 => {
            if let Some(request) = decoded::<v1::PutRequest>(bytes) {
                asked(async |core| core.put(request).await.map(drop));
            }
        }
        1 => {
            if let Some(request) = decoded::<v1::GetRequest>(bytes) {
                asked(async |core| core.get(request).await.map(drop));
            }
        }
        2 => {
            if let Some(request) = decoded::<v1::DeleteRequest>(bytes) {
                asked(async |core| core.delete(request).await.map(drop));
            }
        }
        3 => {
            if let Some(request) = decoded::<v1::RangeRequest>(bytes) {
                asked(async |core| {
                    let limit = core.page_items(request.limit);
                    core.page(&request, limit).await.map(drop)
                });
            }
        }
        4 => {
            if let Some(request) = decoded::<v1::TxnRequest>(bytes) {
                asked(async |core| core.txn(request).await.map(drop));
            }
        }
        _ => drop(decoded::<v1::TransferLeadershipRequest>(bytes)),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    use mareedb_api::rest::{Encoding, TxnBody};
    let key = || bytes::Bytes::from_static(b"key");
    let put = v1::PutRequest {
        key: key(),
        value: key(),
        if_mod_revision: Some(3),
        idempotency_key: "k".into(),
        timeout_ms: 9,
        ..Default::default()
    };
    let absent = v1::PutRequest {
        key: key(),
        if_absent: true,
        ..Default::default()
    };
    let get = v1::GetRequest {
        key: key(),
        revision: 4,
        consistency: 1,
        timeout_ms: 5,
    };
    let delete = v1::DeleteRequest {
        key: key(),
        if_mod_revision: Some(1),
        ..Default::default()
    };
    let range = v1::RangeRequest {
        prefix: Some(key()),
        limit: 7,
        keys_only: true,
        revision: 2,
        ..Default::default()
    };
    let bounds = v1::RangeRequest {
        start: key(),
        end: key(),
        ..Default::default()
    };
    let transfer = v1::TransferLeadershipRequest {
        to: "node2".into(),
        timeout_ms: 1,
    };
    let mut seeds = vec![
        (0, put.encode_to_vec()),
        (0, absent.encode_to_vec()),
        (1, get.encode_to_vec()),
        (2, delete.encode_to_vec()),
        (3, range.encode_to_vec()),
        (3, bounds.encode_to_vec()),
        (5, transfer.encode_to_vec()),
    ];
    for seed in super::rest::seeds() {
        let body = seed.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
        if let Ok(txn) = serde_json::from_slice::<TxnBody>(body)
            && let Ok(request) = txn.to_proto(Encoding::Base64)
        {
            seeds.push((4, request.encode_to_vec()));
        }
    }
    let of = |(which, message)| [vec![which], message].concat();
    seeds.into_iter().map(of).collect()
}
