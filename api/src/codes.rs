//! The error codes, with what they are over HTTP and over gRPC.

use std::fmt;
use std::str::FromStr;

/// Every error code that a client can get. The text is the code; the numbers are a transport's coarser view of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// The request is malformed, or asks for what cannot be.
    BadRequest,
    /// The key is longer than the limit.
    KeyTooLarge,
    /// The value, or the request as a whole, is larger than the limit.
    ValueTooLarge,
    /// The key, or the path, does not exist.
    NotFound,
    /// The condition of a conditional write did not hold; nothing was written.
    PreconditionFailed,
    /// The revision asked for lies before what is kept.
    RevisionCompacted,
    /// The idempotency key was used for another request; nothing was written.
    IdempotencyKeyReused,
    /// The node has too much to do; nothing was done.
    Overloaded,
    /// The space quota is reached; nothing was written. Deletes still go through.
    QuotaExceeded,
    /// This version does not do that.
    Unsupported,
    /// No quorum of the replicas answers; nothing was done.
    NoQuorum,
    /// The node does not serve yet.
    NotReady,
    /// The time ran out before the outcome was known: a write may have taken effect, or may still do so.
    OutcomeUnknown,
}

impl ErrorCode {
    /// All codes, in the order of the contract.
    pub const ALL: [ErrorCode; 13] = [
        ErrorCode::BadRequest,
        ErrorCode::KeyTooLarge,
        ErrorCode::ValueTooLarge,
        ErrorCode::NotFound,
        ErrorCode::PreconditionFailed,
        ErrorCode::RevisionCompacted,
        ErrorCode::IdempotencyKeyReused,
        ErrorCode::Overloaded,
        ErrorCode::QuotaExceeded,
        ErrorCode::Unsupported,
        ErrorCode::NoQuorum,
        ErrorCode::NotReady,
        ErrorCode::OutcomeUnknown,
    ];

    /// The code's text.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "BAD_REQUEST",
            ErrorCode::KeyTooLarge => "KEY_TOO_LARGE",
            ErrorCode::ValueTooLarge => "VALUE_TOO_LARGE",
            ErrorCode::NotFound => "NOT_FOUND",
            ErrorCode::PreconditionFailed => "PRECONDITION_FAILED",
            ErrorCode::RevisionCompacted => "REVISION_COMPACTED",
            ErrorCode::IdempotencyKeyReused => "IDEMPOTENCY_KEY_REUSED",
            ErrorCode::Overloaded => "OVERLOADED",
            ErrorCode::QuotaExceeded => "QUOTA_EXCEEDED",
            ErrorCode::Unsupported => "UNSUPPORTED",
            ErrorCode::NoQuorum => "NO_QUORUM",
            ErrorCode::NotReady => "NOT_READY",
            ErrorCode::OutcomeUnknown => "OUTCOME_UNKNOWN",
        }
    }

    /// The HTTP status.
    pub const fn http_status(self) -> u16 {
        match self {
            ErrorCode::BadRequest | ErrorCode::KeyTooLarge => 400,
            ErrorCode::ValueTooLarge => 413,
            ErrorCode::NotFound => 404,
            ErrorCode::PreconditionFailed => 412,
            ErrorCode::RevisionCompacted => 410,
            ErrorCode::IdempotencyKeyReused => 422,
            ErrorCode::Overloaded => 429,
            ErrorCode::QuotaExceeded => 507,
            ErrorCode::Unsupported => 501,
            ErrorCode::NoQuorum | ErrorCode::NotReady => 503,
            ErrorCode::OutcomeUnknown => 504,
        }
    }

    /// The gRPC code.
    pub const fn grpc_code(self) -> tonic::Code {
        match self {
            ErrorCode::BadRequest
            | ErrorCode::KeyTooLarge
            | ErrorCode::ValueTooLarge
            | ErrorCode::IdempotencyKeyReused => tonic::Code::InvalidArgument,
            ErrorCode::NotFound => tonic::Code::NotFound,
            ErrorCode::PreconditionFailed => tonic::Code::FailedPrecondition,
            ErrorCode::RevisionCompacted => tonic::Code::OutOfRange,
            ErrorCode::Overloaded | ErrorCode::QuotaExceeded => tonic::Code::ResourceExhausted,
            ErrorCode::Unsupported => tonic::Code::Unimplemented,
            ErrorCode::NoQuorum | ErrorCode::NotReady => tonic::Code::Unavailable,
            ErrorCode::OutcomeUnknown => tonic::Code::DeadlineExceeded,
        }
    }

    /// The gRPC code's number.
    pub const fn grpc_number(self) -> i32 {
        self.grpc_code() as i32
    }

    /// Whether the same request may succeed when it is simply sent again. Not so for [`ErrorCode::OutcomeUnknown`]:
    /// a write without an idempotency key could take effect twice.
    pub const fn retryable(self) -> bool {
        matches!(
            self,
            ErrorCode::Overloaded | ErrorCode::NoQuorum | ErrorCode::NotReady
        )
    }

    /// Seconds after which the same request may find room, where that is known.
    pub const fn retry_after_s(self) -> Option<u32> {
        match self {
            ErrorCode::Overloaded => Some(1),
            _ => None,
        }
    }

    /// What a person can do about it, when the place of the error has nothing better to say.
    pub const fn remedy(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "Correct the request; the message names the fault.",
            ErrorCode::KeyTooLarge => {
                "Use a shorter key, or raise limits.key_bytes_max on all nodes."
            }
            ErrorCode::ValueTooLarge => {
                "Split the value, or raise limits.value_bytes_max and limits.request_bytes_max on all nodes."
            }
            ErrorCode::NotFound => "Check the key or the path.",
            ErrorCode::PreconditionFailed => {
                "Read the key again and decide anew; nothing was written."
            }
            ErrorCode::RevisionCompacted => {
                "Read at a later revision; storage.history_ms says how long older ones are kept."
            }
            ErrorCode::IdempotencyKeyReused => "Use a new idempotency key for a new request.",
            ErrorCode::Overloaded => "Try again after a pause; nothing was done.",
            ErrorCode::QuotaExceeded => "Delete keys, or raise storage.quota_bytes.",
            ErrorCode::Unsupported => {
                "This version does not do that; README.md lists what is not there yet."
            }
            ErrorCode::NoQuorum => {
                "Start the members that are down (maree-db-cli cluster status names them), then try again."
            }
            ErrorCode::NotReady => {
                "Wait until the node serves (maree-db-cli cluster status says what is awaited), or ask another node."
            }
            ErrorCode::OutcomeUnknown => {
                "Send the same request again with the same idempotency key, or read the key to see what it holds."
            }
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no code of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an error code of this version")]
pub struct UnknownCode;

impl FromStr for ErrorCode {
    type Err = UnknownCode;
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        ErrorCode::ALL
            .into_iter()
            .find(|code| code.as_str() == text)
            .ok_or(UnknownCode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract's table, written out once more so that a slip above is noticed.
    const TABLE: [(&str, u16, i32); 13] = [
        ("BAD_REQUEST", 400, 3),
        ("KEY_TOO_LARGE", 400, 3),
        ("VALUE_TOO_LARGE", 413, 3),
        ("NOT_FOUND", 404, 5),
        ("PRECONDITION_FAILED", 412, 9),
        ("REVISION_COMPACTED", 410, 11),
        ("IDEMPOTENCY_KEY_REUSED", 422, 3),
        ("OVERLOADED", 429, 8),
        ("QUOTA_EXCEEDED", 507, 8),
        ("UNSUPPORTED", 501, 12),
        ("NO_QUORUM", 503, 14),
        ("NOT_READY", 503, 14),
        ("OUTCOME_UNKNOWN", 504, 4),
    ];

    #[test]
    fn codes_are_those_of_the_contract() {
        let got =
            ErrorCode::ALL.map(|code| (code.as_str(), code.http_status(), code.grpc_number()));
        assert_eq!(got, TABLE);
    }

    #[test]
    fn texts_parse_back() {
        for code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
        }
        assert_eq!("bad_request".parse::<ErrorCode>(), Err(UnknownCode));
        assert_eq!("".parse::<ErrorCode>(), Err(UnknownCode));
    }
}
