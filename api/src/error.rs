//! An error as clients get it, and its forms over REST and gRPC.
//!
//! Over gRPC the code travels in the status details as a `google.rpc.ErrorInfo` (reason = the code, domain =
//! `mareedb`, metadata `remedy` and `retryable`), which the gRPC libraries of all languages can read. OVERLOADED says when to come again
//! in the same words over both: a header `retry-after` over REST, metadata of that name over gRPC, in seconds.

use crate::codes::ErrorCode;
use crate::rest::ErrorBody;
use prost::Message;
use std::collections::HashMap;

/// An error of the public interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The code.
    pub code: ErrorCode,
    /// What is wrong, where and why.
    pub message: String,
    /// The way out.
    pub remedy: String,
    /// Whether the same request may succeed when it is sent again.
    pub retryable: bool,
}

impl ApiError {
    /// An error with the code's own remedy.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ApiError {
            code,
            message: message.into(),
            remedy: code.remedy().to_owned(),
            retryable: code.retryable(),
        }
    }

    /// BAD_REQUEST.
    pub fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(ErrorCode::BadRequest, message)
    }

    /// With a better remedy.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// The JSON document of the REST API.
    pub fn to_body(&self) -> ErrorBody {
        ErrorBody {
            code: self.code.as_str().to_owned(),
            message: self.message.clone(),
            remedy: self.remedy.clone(),
            retryable: self.retryable,
        }
    }

    /// The gRPC status.
    pub fn to_status(&self) -> tonic::Status {
        let info = ErrorInfo {
            reason: self.code.as_str().to_owned(),
            domain: ERROR_DOMAIN.to_owned(),
            metadata: HashMap::from([
                ("remedy".to_owned(), self.remedy.clone()),
                ("retryable".to_owned(), self.retryable.to_string()),
            ]),
        };
        let details = RpcStatus {
            code: self.code.grpc_number(),
            message: self.message.clone(),
            details: vec![Any {
                type_url: ERROR_INFO_URL.to_owned(),
                value: info.encode_to_vec(),
            }],
        };
        let mut metadata = tonic::metadata::MetadataMap::new();
        if let Some(seconds) = self.code.retry_after_s() {
            metadata.insert(RETRY_AFTER, seconds.into());
        }
        tonic::Status::with_details_and_metadata(
            self.code.grpc_code(),
            self.message.clone(),
            details.encode_to_vec().into(),
            metadata,
        )
    }

    /// Reads what [`ApiError::to_status`] made. `None` when the status did not come from Maree-DB, or carries a code
    /// that this version does not know.
    pub fn from_status(status: &tonic::Status) -> Option<Self> {
        let details = RpcStatus::decode(status.details()).ok()?;
        let info = details
            .details
            .iter()
            .filter(|any| any.type_url == ERROR_INFO_URL)
            .filter_map(|any| ErrorInfo::decode(any.value.as_slice()).ok())
            .find(|info| info.domain == ERROR_DOMAIN)?;
        let code: ErrorCode = info.reason.parse().ok()?;
        Some(ApiError {
            code,
            message: status.message().to_owned(),
            remedy: info.metadata.get("remedy").cloned().unwrap_or_default(),
            retryable: info.metadata.get("retryable").is_some_and(|v| v == "true"),
        })
    }
}

impl From<ApiError> for tonic::Status {
    fn from(error: ApiError) -> Self {
        error.to_status()
    }
}

/// Metadata that says when to come again, in seconds; HTTP's header of the same name.
pub const RETRY_AFTER: &str = "retry-after";
/// Domain of our `ErrorInfo`s.
pub const ERROR_DOMAIN: &str = "mareedb";
const ERROR_INFO_URL: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_code_survives_grpc() {
        for code in ErrorCode::ALL {
            let error = ApiError::new(code, "what went wrong").with_remedy("do this");
            let status = error.to_status();
            assert_eq!(status.code(), code.grpc_code());
            assert_eq!(status.message(), "what went wrong");
            assert_eq!(ApiError::from_status(&status), Some(error));
        }
    }

    #[test]
    fn who_is_refused_for_overload_is_told_when_to_come_again() {
        for code in ErrorCode::ALL {
            let status = ApiError::new(code, "what went wrong").to_status();
            let told = status.metadata().get(RETRY_AFTER);
            let told = told.and_then(|value| value.to_str().ok());
            let expected = (code == ErrorCode::Overloaded).then_some("1");
            assert_eq!(told, expected, "{code}");
        }
    }

    #[test]
    fn a_foreign_status_is_no_error_of_ours() {
        let plain = tonic::Status::unavailable("connection refused");
        assert_eq!(ApiError::from_status(&plain), None);
        let foreign = RpcStatus {
            code: 14,
            message: String::new(),
            details: vec![Any {
                type_url: ERROR_INFO_URL.to_owned(),
                value: ErrorInfo {
                    reason: "NO_QUORUM".to_owned(),
                    domain: "example.com".to_owned(),
                    metadata: HashMap::new(),
                }
                .encode_to_vec(),
            }],
        };
        let status = tonic::Status::with_details(
            tonic::Code::Unavailable,
            "",
            foreign.encode_to_vec().into(),
        );
        assert_eq!(ApiError::from_status(&status), None);
    }

    proptest! {
        #[test]
        fn hostile_details_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let status = tonic::Status::with_details(tonic::Code::Unknown, "x", bytes.into());
            let _ = ApiError::from_status(&status);
        }
    }
}
