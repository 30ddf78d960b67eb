//! Bodies of requests, collected.

use crate::core::Core;
use axum::body::{Body, Bytes, to_bytes};
use http_body_util::LengthLimitError;
use mareedb_api::ApiError;
use std::error::Error;
use tokio::time::{Instant, timeout_at};

/// A request's body, whole by `deadline`; and the milliseconds that are left of the request's time then.
pub(super) async fn collect(
    core: &Core,
    body: Body,
    deadline: Instant,
) -> Result<(Bytes, u64), ApiError> {
    let Ok(collected) = timeout_at(deadline, to_bytes(body, core.body_bytes_max())).await else {
        return Err(ApiError::bad_request(
            "the body was not whole within timeout_ms; nothing was done",
        )
        .with_remedy("Send the body sooner, or allow more time with timeout_ms."));
    };
    let body = collected.map_err(|error| refusal(core, &error))?;
    let left = deadline.saturating_duration_since(Instant::now());
    Ok((
        body,
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1),
    ))
}

/// Why a body could not be collected: it is too large, what the gate says, or the connection broke.
fn refusal(core: &Core, error: &(dyn Error + 'static)) -> ApiError {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return core.too_large("body");
        }
        if let Some(told) = error
            .downcast_ref::<tonic::Status>()
            .and_then(ApiError::from_status)
        {
            return told;
        }
        cause = error.source();
    }
    ApiError::bad_request(format!("the body: {error}"))
}
