//! The REST API on axum.

mod body;
mod kv;
mod pages;
pub mod query;
mod reply;
pub mod token;

use crate::core::Core;
use crate::status::{self, Boards};
use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use mareedb_api::rest::{ClusterStatus, Elections, NodeStatus, TransferAnswer};
use mareedb_api::{ApiError, ErrorCode};
use query::Params;
use reply::{Failure, json};
use std::sync::Arc;

/// What handlers share.
#[derive(Clone)]
pub struct App {
    /// Requests.
    pub core: Arc<Core>,
    /// Status.
    pub boards: Arc<Boards>,
}

/// Path of all keys; one key's goes on with a slash and the key.
pub(crate) const KEYS: &str = "/v1/kv";
/// Path of transactions.
pub(crate) const TXN: &str = "/v1/txn";
/// Path of transfers of leadership.
pub(crate) const TRANSFER: &str = "/v1/cluster/transfer-leadership";

/// All routes.
pub fn router(app: App) -> Router {
    Router::new()
        .route(KEYS, get(kv::list))
        .route(&format!("{KEYS}/"), get(kv::list))
        .route(
            &format!("{KEYS}/{{*key}}"),
            get(kv::get).put(kv::put).delete(kv::delete),
        )
        .route(TXN, post(kv::txn))
        .route("/v1/cluster", get(cluster))
        .route("/v1/cluster/elections", get(elections))
        .route(TRANSFER, post(transfer))
        .route("/v1/node", get(node))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(async || pages::openapi()))
        .route("/cluster", get(async || Html(pages::DASHBOARD)))
        .fallback(nothing)
        .method_not_allowed_fallback(no_method)
        .with_state(app)
}

async fn nothing(uri: Uri) -> Failure {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is nothing at {}", uri.path()),
    )
    .with_remedy("See /openapi.json for what there is.")
    .into()
}

async fn no_method(method: Method, uri: Uri) -> Failure {
    Failure::with_status(
        StatusCode::METHOD_NOT_ALLOWED,
        ApiError::bad_request(format!("{} does not take {method}", uri.path()))
            .with_remedy("See /openapi.json for what it takes."),
    )
}

async fn cluster(State(app): State<App>, params: Params) -> Result<Response, Failure> {
    params.finish()?;
    let status = status::cluster(&app.core);
    let document = ClusterStatus::from_proto(&status, params.encoding())
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(json(&document))
}

async fn elections(State(app): State<App>, params: Params) -> Result<Response, Failure> {
    params.finish()?;
    let deadline = app.core.deadline(params.timeout_ms())?;
    let answer = crate::elections::elections(&app.core, deadline).await?;
    Ok(json(&Elections::from(&answer)))
}

async fn transfer(State(app): State<App>, params: Params) -> Result<Response, Failure> {
    let to = params.text("to");
    let deadline = app.core.deadline(params.timeout_ms())?;
    params.finish()?;
    let leader = app
        .core
        .transfer_to(to.as_deref().unwrap_or_default(), deadline)
        .await?;
    Ok(json(&TransferAnswer { leader }))
}

async fn node(State(app): State<App>, params: Params) -> Result<Response, Failure> {
    params.finish()?;
    let status = status::node(&app.core, &app.boards)?;
    Ok(json(&NodeStatus::from(&status)))
}

async fn ready(State(app): State<App>) -> Response {
    if app.core.view().is_some_and(|view| view.ready) {
        "ready\n".into_response()
    } else {
        failure(app.core.not_ready())
    }
}

async fn metrics(State(app): State<App>) -> String {
    crate::metrics::text(&app.core, &app.boards)
}

/// An error as an answer.
pub(crate) fn failure(error: ApiError) -> Response {
    Failure::from(error).into_response()
}
