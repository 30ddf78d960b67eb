//! Keys over REST.

use super::App;
use super::query::Params;
use super::reply::{Failure, json};
use crate::core::Core;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use mareedb_api::rest::{
    Decimal, DeleteAnswer, Encoding, PutAnswer, RangeAnswer, TextError, TxnAnswer, TxnBody,
    decode_key,
};
use mareedb_api::{ApiError, ErrorCode, IDEMPOTENCY_HEADER, REVISION_HEADER, v1};
use std::future::Future;
use std::time::Instant;

fn bad(message: impl Into<String>) -> ApiError {
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
    let raw = uri.path().strip_prefix("/v1/kv/").unwrap_or_default();
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
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, Failure> {
    let answer = async {
        let encoding = params.encoding()?;
        let timeout_ms = params.timeout_ms()?;
        params.finish()?;
        let key = key_of(&uri)?;
        let value = body_of(&app.core, body)?;
        let done = app
            .core
            .put(v1::PutRequest {
                key: key.clone(),
                value,
                if_mod_revision: if_match(&headers)?,
                if_absent: if_none_match(&headers)?,
                idempotency_key: idempotency_key(&headers)?,
                timeout_ms,
            })
            .await?;
        Ok(json(&PutAnswer {
            key: encoding.write(&key).map_err(not_text)?,
            revision: Decimal(done.revision),
        }))
    };
    counted(&app.core, "put", answer).await
}

fn body_of(
    core: &Core,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| {
        if rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::new(
                ErrorCode::ValueTooLarge,
                format!(
                    "the body is larger than limits.request_bytes_max ({} bytes) allows",
                    core.config.limits.request_bytes_max
                ),
            )
        } else {
            bad(format!("the body: {rejection}"))
        }
    })
}

pub(super) async fn get(
    State(app): State<App>,
    uri: Uri,
    params: Params,
) -> Result<Response, Failure> {
    let answer = async {
        let request = v1::GetRequest {
            key: key_of(&uri)?,
            revision: params.revision()?,
            consistency: params.consistency()?,
            timeout_ms: params.timeout_ms()?,
        };
        params.finish()?;
        let item = app
            .core
            .get(request)
            .await?
            .item
            .ok_or_else(|| ApiError::new(ErrorCode::NotFound, "the key does not exist"))?;
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
        let timeout_ms = params.timeout_ms()?;
        params.finish()?;
        let done = app
            .core
            .delete(v1::DeleteRequest {
                key: key_of(&uri)?,
                if_mod_revision: if_match(&headers)?,
                idempotency_key: idempotency_key(&headers)?,
                timeout_ms,
            })
            .await?;
        Ok(json(&DeleteAnswer::from(&done)))
    };
    counted(&app.core, "delete", answer).await
}

pub(super) async fn list(State(app): State<App>, params: Params) -> Result<Response, Failure> {
    let answer = async {
        let encoding = params.encoding()?;
        let mut request = v1::RangeRequest {
            start: params.bytes("start").unwrap_or_default(),
            end: params.bytes("end").unwrap_or_default(),
            prefix: params.bytes("prefix"),
            limit: params.number("limit")?.unwrap_or(0),
            revision: params.revision()?,
            keys_only: params.flag("keys_only")?,
            consistency: params.consistency()?,
            timeout_ms: params.timeout_ms()?,
        };
        let token = params.text("page_token").filter(|token| !token.is_empty());
        params.finish()?;
        if let Some(token) = token {
            let (revision, next) = parse_token(&token)?;
            // The page goes on where the one before ended, within the same bounds.
            if let Some(prefix) = request.prefix.take() {
                request.end = crate::kv::after_prefix(&prefix);
            }
            request.start = next;
            request.revision = revision;
        }
        let limit = app.core.page_items(request.limit);
        let page = app.core.page(&request, limit).await?;
        let token = page.next.map(|next| write_token(page.revision, &next));
        let document = RangeAnswer::from_proto(&page.items, token, encoding).map_err(not_text)?;
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
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Response, Failure> {
    let answer = async {
        let encoding: Encoding = params.encoding()?;
        let timeout_ms = params.timeout_ms()?;
        params.finish()?;
        let body = body_of(&app.core, body)?;
        let body: TxnBody = serde_json::from_slice(&body)
            .map_err(|error| bad(format!("the body is no transaction: {error}")))?;
        let mut request = body
            .to_proto(encoding)
            .map_err(|error| bad(error.to_string()))?;
        request.idempotency_key = idempotency_key(&headers)?;
        request.timeout_ms = timeout_ms;
        let done = app.core.txn(request).await?;
        let document = TxnAnswer::from_proto(&done, encoding).map_err(not_text)?;
        Ok(json(&document))
    };
    counted(&app.core, "txn", answer).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
