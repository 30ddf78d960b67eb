//! Keys over REST.

use super::App;
use super::body::collect;
use super::query::Params;
use super::reply::{Failure, json};
use crate::core::Core;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use mareedb_api::rest::{
    Decimal, DeleteAnswer, PutAnswer, RangeAnswer, TextError, TxnAnswer, TxnBody, decode_key,
};
use mareedb_api::{ApiError, ErrorCode, IDEMPOTENCY_HEADER, REVISION_HEADER, v1};
use std::future::Future;
use std::time::Instant;

pub(super) fn bad(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}

fn not_text(error: TextError) -> ApiError {
    bad(error.to_string()).with_remedy("Leave out encoding=utf8 to get base64.")
}

/// Counts a request with its code and its duration.
async fn counted(
    core: &Core,
    what: &'static str,
    answer: impl Future<Output = Result<Response, Failure>>,
) -> Result<Response, Failure> {
    let began = Instant::now();
    let answer = answer.await;
    let code = match &answer {
        Ok(_) => "OK",
        Err(failure) => failure.code(),
    };
    core.metrics.count(what, code, began.elapsed());
    answer
}

/// The key is taken from the raw path: percent-encoded bytes, in which an encoded slash is part of the key.
fn key_of(uri: &Uri) -> Result<bytes::Bytes, ApiError> {
    let raw = uri.path().strip_prefix(super::KEYS).unwrap_or_default();
    let raw = raw.strip_prefix('/').unwrap_or_default();
    decode_key(raw).map_err(|error| bad(format!("the key in the path: {error}")))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad(format!("header {name} stands there twice")));
    }
    value
        .to_str()
        .map(Some)
        .map_err(|_| bad(format!("header {name} has bytes that are no ASCII text")))
}

fn idempotency_key(headers: &HeaderMap) -> Result<String, ApiError> {
    match header_text(headers, IDEMPOTENCY_HEADER)? {
        Some("") => Err(bad("the Idempotency-Key is empty")),
        given => Ok(given.unwrap_or_default().to_owned()),
    }
}

/// `If-Match: REV`, quoted or not.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(text) = header_text(headers, "if-match")? else {
        return Ok(None);
    };
    let bare = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(text);
    bare.parse()
        .map(Some)
        .map_err(|_| bad(format!("If-Match is '{text}', a revision is wanted")))
}

/// `If-None-Match: *`
fn if_none_match(headers: &HeaderMap) -> Result<bool, ApiError> {
    match header_text(headers, "if-none-match")? {
        None => Ok(false),
        Some("*") => Ok(true),
        Some(other) => Err(bad(format!("If-None-Match is '{other}', only * is taken"))),
    }
}

pub(super) async fn put(
    State(app): State<App>,
    uri: Uri,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let answer = async {
        let deadline = app.core.deadline(params.timeout_ms())?;
        params.finish()?;
        let mut request = v1::PutRequest {
            key: key_of(&uri)?,
            if_mod_revision: if_match(&headers)?,
            if_absent: if_none_match(&headers)?,
            idempotency_key: idempotency_key(&headers)?,
            ..v1::PutRequest::default()
        };
        // Before the write: what cannot be answered is not done.
        let key = params.encoding().write(&request.key).map_err(not_text)?;
        (request.value, request.timeout_ms) = collect(&app.core, body, deadline).await?;
        let done = app.core.put(request).await?;
        Ok(json(&PutAnswer {
            key,
            revision: Decimal(done.revision),
        }))
    };
    counted(&app.core, "put", answer).await
}

pub(super) async fn get(
    State(app): State<App>,
    uri: Uri,
    params: Params,
) -> Result<Response, Failure> {
    let answer = async {
        let key = key_of(&uri)?;
        let request = v1::GetRequest {
            key: key.clone(),
            revision: params.revision()?,
            consistency: params.consistency()?,
            timeout_ms: params.timeout_ms(),
        };
        params.finish()?;
        let item = app.core.get(request).await?.item.ok_or_else(|| {
            let key = crate::kv::shown(&key);
            ApiError::new(ErrorCode::NotFound, format!("{key} does not exist"))
        })?;
        let revision = item.mod_revision.to_string();
        let headers = [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/octet-stream"),
            ),
            (header::ETAG, header_value(&format!("\"{revision}\""))?),
            (
                HeaderName::from_static(REVISION_HEADER),
                header_value(&revision)?,
            ),
        ];
        Ok((headers, item.value).into_response())
    };
    counted(&app.core, "get", answer).await
}

fn header_value(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(text).map_err(|error| bad(error.to_string()))
}

pub(super) async fn delete(
    State(app): State<App>,
    uri: Uri,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let answer = async {
        params.finish()?;
        if headers.contains_key(header::IF_NONE_MATCH) {
            return Err(bad("DELETE takes If-Match, and no If-None-Match").into());
        }
        let done = app
            .core
            .delete(v1::DeleteRequest {
                key: key_of(&uri)?,
                if_mod_revision: if_match(&headers)?,
                idempotency_key: idempotency_key(&headers)?,
                timeout_ms: params.timeout_ms(),
            })
            .await?;
        Ok(json(&DeleteAnswer::from(&done)))
    };
    counted(&app.core, "delete", answer).await
}

pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Response, Failure> {
    let answer = async {
        let mut request = v1::RangeRequest {
            start: params.bytes("start").unwrap_or_default(),
            end: params.bytes("end").unwrap_or_default(),
            prefix: params.bytes("prefix"),
            limit: params.number("limit")?.unwrap_or(0),
            revision: params.revision()?,
            keys_only: params.flag("keys_only")?,
            consistency: params.consistency()?,
            timeout_ms: params.timeout_ms(),
        };
        let token = params.text("page_token").filter(|token| !token.is_empty());
        params.finish()?;
        if let Some(token) = token {
            let (revision, next) = parse_token(&token)?;
            crate::kv::go_on(&mut request, revision, next);
        }
        let limit = app.core.page_items(request.limit);
        let page = app.core.page(&request, limit).await?;
        let token = page.next.map(|next| write_token(page.revision, &next));
        let document =
            RangeAnswer::from_proto(&page.items, token, params.encoding()).map_err(not_text)?;
        Ok(json(&document))
    };
    counted(&app.core, "range", answer).await
}

/// A page token: revision, next key, checksum; base64 of bytes that clients must not read.
fn write_token(revision: u64, next: &[u8]) -> String {
    let mut bytes = revision.to_le_bytes().to_vec();
    bytes.extend_from_slice(next);
    bytes.extend_from_slice(&token_sum(&bytes).to_le_bytes());
    base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes)
}

fn token_sum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

fn parse_token(text: &str) -> Result<(u64, bytes::Bytes), ApiError> {
    let parse = || {
        let bytes =
            base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text).ok()?;
        let (body, sum) = bytes.split_last_chunk::<8>()?;
        let (revision, next) = body.split_first_chunk::<8>()?;
        let valid = u64::from_le_bytes(*sum) == token_sum(body) && !next.is_empty();
        valid.then(|| {
            (
                u64::from_le_bytes(*revision),
                bytes::Bytes::copy_from_slice(next),
            )
        })
    };
    parse().ok_or_else(|| bad("page_token is none that a page has given"))
}

pub(super) async fn txn(
    State(app): State<App>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let answer = async {
        let deadline = app.core.deadline(params.timeout_ms())?;
        params.finish()?;
        let idempotency_key = idempotency_key(&headers)?;
        let (body, left_ms) = collect(&app.core, body, deadline).await?;
        let body: TxnBody = serde_json::from_slice(&body)
            .map_err(|error| bad(format!("the body is no transaction: {error}")))?;
        let mut request = body
            .to_proto(params.encoding())
            .map_err(|error| bad(error.to_string()))?;
        request.idempotency_key = idempotency_key;
        request.timeout_ms = left_ms;
        let done = app.core.txn(request).await?;
        let document = TxnAnswer::from_proto(&done, params.encoding())
            .map_err(|error| unshown(&done, error))?;
        Ok(json(&document))
    };
    counted(&app.core, "txn", answer).await
}

/// What a transaction has read has no form in the encoding. If it has written, an error that says that nothing was done would be false.
fn unshown(done: &v1::TxnResponse, error: TextError) -> ApiError {
    use v1::op_result::Result::{Delete, Put};
    let mut results = done
        .results
        .iter()
        .filter_map(|result| result.result.as_ref());
    let wrote = results.any(|result| match result {
        Put(_) => true,
        Delete(delete) => delete.deleted,
        _ => false,
    });
    if !wrote {
        return not_text(error);
    }
    let what = format!(
        "the transaction was applied at revision {}, but what it has read cannot be shown: {error}",
        done.revision
    );
    ApiError::new(ErrorCode::OutcomeUnknown, what).with_remedy(
        "Read the keys without encoding=utf8; do not send the transaction again, unless it had an idempotency key.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_transaction_that_wrote_is_never_called_a_bad_request() {
        use v1::op_result::{self, Result};
        let done = |result| v1::TxnResponse {
            revision: 7,
            results: vec![v1::OpResult {
                result: Some(result),
            }],
            ..v1::TxnResponse::default()
        };
        let deleted = |deleted| Result::Delete(op_result::Delete { deleted });
        for (result, code) in [
            (Result::Put(op_result::Put {}), ErrorCode::OutcomeUnknown),
            (deleted(true), ErrorCode::OutcomeUnknown),
            (deleted(false), ErrorCode::BadRequest),
            (
                Result::Get(op_result::Get::default()),
                ErrorCode::BadRequest,
            ),
        ] {
            let error = unshown(&done(result), TextError::NotUtf8);
            assert_eq!(error.code, code, "{error}");
            assert_eq!(
                error.message.contains("at revision 7"),
                code == ErrorCode::OutcomeUnknown
            );
        }
    }

    proptest! {
        #[test]
        fn tokens_come_back_and_others_are_refused(revision: u64, next in prop::collection::vec(any::<u8>(), 1..20), hostile in ".{0,60}") {
            let token = write_token(revision, &next);
            prop_assert_eq!(parse_token(&token).unwrap(), (revision, bytes::Bytes::from(next)));
            let _ = parse_token(&hostile);
            let mut cut = token;
            cut.pop();
            prop_assert!(parse_token(&cut).is_err());
        }
    }
}
