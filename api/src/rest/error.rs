//! The document of an error.

use crate::codes::ErrorCode;
use crate::error::ApiError;
use serde::{Deserialize, Serialize};

/// Body of every answer with a status of 400 and above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One of [`ErrorCode`], as text; a later version may send another.
    pub code: String,
    /// What is wrong, where and why.
    pub message: String,
    /// The way out.
    pub remedy: String,
    /// Whether the same request may succeed when it is sent again.
    pub retryable: bool,
}

impl ErrorBody {
    /// The error, when its code is one of this version.
    pub fn to_error(&self) -> Option<ApiError> {
        let code: ErrorCode = self.code.parse().ok()?;
        Some(ApiError {
            code,
            message: self.message.clone(),
            remedy: self.remedy.clone(),
            retryable: self.retryable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_its_document() {
        let error = ApiError::new(ErrorCode::NoQuorum, "2 of 3 members are down");
        let json = serde_json::to_value(error.to_body()).unwrap();
        assert_eq!(json["code"], "NO_QUORUM");
        assert_eq!(json["retryable"], true);
        let body: ErrorBody = serde_json::from_value(json).unwrap();
        assert_eq!(body.to_error(), Some(error));
    }
}
