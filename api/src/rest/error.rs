//! The document of an error.

use serde::{Deserialize, Serialize};

/// Body of every answer with a status of 400 and above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One of [`crate::ErrorCode`], as text; a later version may send another.
    pub code: String,
    /// What is wrong, where and why.
    pub message: String,
    /// The way out.
    pub remedy: String,
    /// Whether the same request may succeed when it is sent again.
    pub retryable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::ErrorCode;
    use crate::error::ApiError;

    #[test]
    fn an_error_survives_its_document() {
        let error = ApiError::new(ErrorCode::NoQuorum, "2 of 3 members are down");
        let json = serde_json::to_value(error.to_body()).unwrap();
        assert_eq!(json["code"], "NO_QUORUM");
        assert_eq!(json["retryable"], true);
        let body: ErrorBody = serde_json::from_value(json).unwrap();
        let again = ApiError {
            code: body.code.parse().unwrap(),
            message: body.message,
            remedy: body.remedy,
            retryable: body.retryable,
        };
        assert_eq!(again, error);
    }
}
