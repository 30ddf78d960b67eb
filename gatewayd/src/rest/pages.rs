//! Pages that are served as they are.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// The dashboard: one page without anything from elsewhere.
pub(super) const DASHBOARD: &str = include_str!("../../assets/dashboard.html");
const OPENAPI: &str = include_str!("../../assets/openapi.json");

/// The description of the API.
pub(super) fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_json_and_names_every_route() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        for path in [
            "/v1/kv",
            "/v1/kv/{key}",
            "/v1/txn",
            "/v1/cluster",
            "/v1/cluster/elections",
            "/v1/cluster/transfer-leadership",
            "/v1/node",
            "/healthz",
            "/readyz",
            "/metrics",
        ] {
            assert!(document["paths"][path].is_object(), "{path}");
        }
    }
}
