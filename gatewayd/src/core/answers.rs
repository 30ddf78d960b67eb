//! What answers of other parts mean for a request: whether it is tried again, and what its client is told.

use super::Attempt;
use mareedb_api::{ApiError, ErrorCode};
use mareedb_ipc::wire::command::Outcome;
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::read::ReadError;
use mareedb_ipc::wire::view::{ClusterView, GroupView};

/// Why a group has no leader.
pub(super) fn no_leader(view: &ClusterView, group: &GroupView) -> String {
    let down: Vec<&str> = view
        .members
        .iter()
        .filter(|member| !member.online)
        .map(|member| member.name.as_str())
        .collect();
    if down.is_empty() {
        format!("{} has no leader at this moment", group.id)
    } else {
        format!("{} has no leader; down: {}", group.id, down.join(", "))
    }
}

pub(super) fn consensus_error(error: ConsensusError) -> Attempt {
    match error {
        ConsensusError::Uncertain => Attempt::Uncertain,
        ConsensusError::NotLeader { .. } => {
            Attempt::Unproposed(ErrorCode::NoQuorum, "leadership is moving".into())
        }
        ConsensusError::NoQuorum => Attempt::Unproposed(ErrorCode::NoQuorum, error.to_string()),
        ConsensusError::NotReady => Attempt::Unproposed(ErrorCode::NotReady, error.to_string()),
        // The disk or a reader is behind; a moment later there is room.
        ConsensusError::Overloaded => Attempt::Unproposed(
            ErrorCode::Overloaded,
            "more is asked of the node than its log and its readers take at this moment".into(),
        ),
        ConsensusError::Refused(why) => Attempt::Final(ApiError::new(ErrorCode::Unsupported, why)),
        ConsensusError::TooLarge(why) => {
            Attempt::Final(ApiError::new(ErrorCode::ValueTooLarge, why))
        }
    }
}

/// `stale`: this node's replica was asked, however far it is.
pub(super) fn read_error(error: ReadError, stale: bool) -> Attempt {
    let message = error.to_string();
    match error {
        ReadError::NoReplica(_) | ReadError::NotApplied | ReadError::WrongEpoch { .. } => {
            Attempt::Unproposed(ErrorCode::NotReady, message)
        }
        ReadError::Compacted { .. } => {
            Attempt::Final(ApiError::new(ErrorCode::RevisionCompacted, message))
        }
        // Another node may have given the revision, and this one will have it in a moment.
        ReadError::FutureRevision { newest } if stale => Attempt::Unproposed(
            ErrorCode::NotReady,
            format!(
                "this node has not applied the revision that is asked for; its newest is {newest}"
            ),
        ),
        ReadError::FutureRevision { .. } => Attempt::Final(ApiError::bad_request(message)),
        ReadError::Storage(_) => Attempt::Unproposed(ErrorCode::NotReady, message),
        ReadError::KeyTooLarge { .. } => {
            Attempt::Final(ApiError::new(ErrorCode::KeyTooLarge, message))
        }
    }
}

pub(super) fn refusal(outcome: Outcome) -> ApiError {
    match outcome {
        Outcome::IdempotencyKeyReused => ApiError::new(
            ErrorCode::IdempotencyKeyReused,
            "the idempotency key was used for another request",
        ),
        Outcome::IdempotencyKeysExhausted => ApiError::new(
            ErrorCode::Overloaded,
            "too many live idempotency keys (limits.idempotency_keys_max)",
        ),
        Outcome::QuotaExceeded => ApiError::new(
            ErrorCode::QuotaExceeded,
            "the data would grow beyond storage.quota_bytes",
        ),
        Outcome::Invalid { message } => ApiError::bad_request(message),
        Outcome::Unsupported => {
            ApiError::new(ErrorCode::Unsupported, "the command is not supported")
        }
        // A copy of this request was applied, and its result forgotten: only possible after its deadline.
        Outcome::BelowLowWater => {
            ApiError::new(ErrorCode::OutcomeUnknown, "the request was given up")
        }
        other => ApiError::new(
            ErrorCode::OutcomeUnknown,
            format!("unexpected outcome {other:?}"),
        ),
    }
}
