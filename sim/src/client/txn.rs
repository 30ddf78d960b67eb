//! Calls of a history as transactions, and their results as its outcomes.

use super::ask::Went;
use bytes::Bytes;
use mareedb_history::{Answer, Call, Outcome as Came};
use mareedb_ipc::wire::command::{Compare, CompareOp, CompareTarget, Op, OpResult, Txn};

/// The transaction that does what is asked.
pub(super) fn txn_of(call: &Call) -> Txn {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    match call {
        Call::Put { key, value } => Txn {
            success: vec![Op::Put {
                key: bytes(key),
                value: bytes(value),
            }],
            ..Txn::default()
        },
        Call::Delete { key } => Txn {
            success: vec![Op::Delete { key: bytes(key) }],
            ..Txn::default()
        },
        Call::CompareAndSwap { key, expected, new } => Txn {
            compare: vec![Compare {
                key: bytes(key),
                target: match expected {
                    Some(value) => CompareTarget::Value(bytes(value)),
                    None => CompareTarget::Version(0),
                },
                op: CompareOp::Equal,
            }],
            success: vec![Op::Put {
                key: bytes(key),
                value: bytes(new),
            }],
            failure: Vec::new(),
        },
        other => unreachable!("{other:?} is no write of one key"),
    }
}

/// What the history says of it.
pub(super) fn came(call: &Call, went: Went) -> Came {
    let result = match went {
        Went::Done(result) => result,
        Went::Refused(why) => return Came::Failed(why),
        Went::Unknown(why) => return Came::Unknown(why),
    };
    let revision = Some(result.revision.0);
    Came::Ok(match call {
        Call::Delete { .. } => Answer::Deleted {
            deleted: matches!(result.results[..], [OpResult::Delete { deleted: true }]),
            revision,
        },
        Call::CompareAndSwap { .. } => Answer::Swapped {
            succeeded: result.succeeded,
            revision,
        },
        _ => Answer::Written { revision },
    })
}
