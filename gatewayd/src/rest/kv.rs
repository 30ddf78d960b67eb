//! Keys over REST.

use super::body::collect;
use super::query::Params;
use super::reply::{Failure, json};
use super::{App, token};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use mareedb_api::rest::{
    Decimal, DeleteAnswer, PutAnswer, RangeAnswer, TextError, TxnAnswer, TxnBody, decode_key,
};
use mareedb_api::{ApiError, ErrorCode, IDEMPOTENCY_HEADER, REVISION_HEADER, v1};

fn not_text(error: TextError) -> ApiError {
    ApiError::bad_request(error.to_string()).with_remedy("Leave out encoding=utf8 to get base64.")
}

/// The key is taken from the raw path: percent-encoded bytes, in which an encoded slash is part of the key.
fn key_of(uri: &Uri) -> Result<bytes::Bytes, ApiError> {
    let raw = uri.path().strip_prefix(super::KEYS).unwrap_or_default();
    let raw = raw.strip_prefix('/').unwrap_or_default();
    decode_key(raw).map_err(|error| ApiError::bad_request(format!("the key in the path: {error}")))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(ApiError::bad_request(format!(
            "header {name} stands there twice"
        )));
    }
    value.to_str().map(Some).map_err(|_| {
        ApiError::bad_request(format!("header {name} has bytes that are no ASCII text"))
    })
}

fn idempotency_key(headers: &HeaderMap) -> Result<String, ApiError> {
    match header_text(headers, IDEMPOTENCY_HEADER)? {
        Some("") => Err(ApiError::bad_request("the Idempotency-Key is empty")),
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
        .map_err(|_| ApiError::bad_request(format!("If-Match is '{text}', a revision is wanted")))
}

/// `If-None-Match: *`
fn if_none_match(headers: &HeaderMap) -> Result<bool, ApiError> {
    match header_text(headers, "if-none-match")? {
        None => Ok(false),
        Some("*") => Ok(true),
        Some(other) => Err(ApiError::bad_request(format!(
            "If-None-Match is '{other}', only * is taken"
        ))),
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
    app.core.metrics.counted("put", answer, Failure::code).await
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
    app.core.metrics.counted("get", answer, Failure::code).await
}

fn header_value(text: &str) -> Result<HeaderValue, ApiError> {
    HeaderValue::from_str(text).map_err(|error| ApiError::bad_request(error.to_string()))
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
            return Err(
                ApiError::bad_request("DELETE takes If-Match, and no If-None-Match").into(),
            );
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
    app.core
        .metrics
        .counted("delete", answer, Failure::code)
        .await
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
            let (revision, next) = token::read(&token)?;
            crate::kv::go_on(&mut request, revision, next);
        }
        let limit = app.core.page_items(request.limit);
        let page = app.core.page(&request, limit).await?;
        let token = page.next.map(|next| token::write(page.revision, &next));
        let document =
            RangeAnswer::from_proto(&page.items, token, params.encoding()).map_err(not_text)?;
        Ok(json(&document))
    };
    app.core
        .metrics
        .counted("range", answer, Failure::code)
        .await
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
        let body: TxnBody = serde_json::from_slice(&body).map_err(|error| {
            ApiError::bad_request(format!("the body is no transaction: {error}"))
        })?;
        let mut request = body
            .to_proto(params.encoding())
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        request.idempotency_key = idempotency_key;
        request.timeout_ms = left_ms;
        let done = app.core.txn(request).await?;
        let document = TxnAnswer::from_proto(&done, params.encoding())
            .map_err(|error| unshown(&done, error))?;
        Ok(json(&document))
    };
    app.core.metrics.counted("txn", answer, Failure::code).await
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
}
