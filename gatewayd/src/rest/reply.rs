//! Answers as HTTP: documents, and errors with their code.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mareedb_api::ApiError;
use serde::Serialize;

/// A document with status 200.
pub(super) fn json<T: Serialize>(document: &T) -> Response {
    with_status(StatusCode::OK, document)
}

fn with_status<T: Serialize>(status: StatusCode, document: &T) -> Response {
    match serde_json::to_vec(document) {
        Ok(mut body) => {
            body.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// An error on its way out.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    error: ApiError,
}

impl Failure {
    /// An error with another status than its code's.
    pub(super) fn with_status(status: StatusCode, error: ApiError) -> Failure {
        Failure { status, error }
    }
    /// Its code.
    pub(super) fn code(&self) -> &'static str {
        self.error.code.as_str()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        let status = StatusCode::from_u16(error.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Failure { status, error }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = with_status(self.status, &self.error.to_body());
        if let Some(seconds) = self.error.code.retry_after_s() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
