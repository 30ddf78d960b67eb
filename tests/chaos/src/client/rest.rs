//! Requests over REST.

use super::{Compare, Condition, Item, PATIENCE, Reply, Request, Step, TIMEOUT_MS, Trouble};
use bytes::Bytes;
use http::Method;
use mareedb_api::rest;
use mareedb_api::rest::{Scalar, encode_key};
use mareedb_api::{ErrorCode, IDEMPOTENCY_HEADER, REVISION_HEADER};
use mareedb_bench::http::{Answer, Broken, Client};
use serde::de::DeserializeOwned;
use std::io::ErrorKind;

/// Sends one request once.
pub(super) async fn ask(
    client: &mut Client,
    request: &Request,
    key: Option<&str>,
) -> Result<Reply, Trouble> {
    let mut headers: Vec<(&str, String)> = Vec::new();
    if let Some(key) = key {
        headers.push((IDEMPOTENCY_HEADER, key.to_owned()));
    }
    let path = |name: &str| {
        format!(
            "/v1/kv/{}?timeout_ms={TIMEOUT_MS}",
            encode_key(name.as_bytes())
        )
    };
    let (method, path, body) = match request {
        Request::Put(name, value, condition) => {
            match condition {
                Condition::None => {}
                Condition::Absent => headers.push(("if-none-match", "*".to_owned())),
                Condition::Revision(revision) => headers.push(("if-match", revision.to_string())),
            }
            (
                Method::PUT,
                path(name),
                Bytes::copy_from_slice(value.as_bytes()),
            )
        }
        Request::Get {
            key,
            stale,
            revision,
        } => {
            let revision = revision.map_or(String::new(), |at| format!("&revision={at}"));
            let path = format!("{}{}{revision}", path(key), staleness(*stale));
            (Method::GET, path, Bytes::new())
        }
        Request::Delete(name) => (Method::DELETE, path(name), Bytes::new()),
        Request::Range { prefix, stale } => {
            return range(client, prefix, *stale).await;
        }
        Request::Txn(compare, steps) => {
            let body = rest::TxnBody {
                compare: compare.iter().map(comparison).collect(),
                success: steps.iter().map(operation).collect(),
                failure: Vec::new(),
            };
            let path = format!("/v1/txn?encoding=utf8&timeout_ms={TIMEOUT_MS}");
            let body = serde_json::to_vec(&body).map_err(unreadable)?;
            (Method::POST, path, body.into())
        }
    };
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let answer = client
        .request(method, &path, &headers, body, PATIENCE)
        .await
        .map_err(broken)?;
    if answer.status == 404 && matches!(request, Request::Get { .. }) {
        return Ok(Reply::Items(Vec::new()));
    }
    refused(&answer)?;
    match request {
        Request::Put(..) => {
            let done: rest::PutAnswer = document(&answer)?;
            Ok(Reply::Written(done.revision.0))
        }
        Request::Get { key, .. } => Ok(Reply::Items(vec![got(key, &answer)?])),
        Request::Delete(_) => {
            let done: rest::DeleteAnswer = document(&answer)?;
            Ok(Reply::Deleted(done.deleted, done.revision.map(|at| at.0)))
        }
        Request::Range { .. } => unreachable!("answered above"),
        Request::Txn(..) => {
            let done: rest::TxnAnswer = document(&answer)?;
            let read = done.results.into_iter().map(|result| match result {
                rest::OpResult::Get { item } => item.map(of_document),
                _ => None,
            });
            Ok(Reply::Done {
                succeeded: done.succeeded,
                revision: done.revision.0,
                read: read.collect(),
            })
        }
    }
}

/// All pages of a range; the first one says at which moment the others are read.
async fn range(client: &mut Client, prefix: &str, stale: bool) -> Result<Reply, Trouble> {
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!(
            "/v1/kv?encoding=utf8&limit=100&timeout_ms={TIMEOUT_MS}&prefix={}{}{token}",
            encode_key(prefix.as_bytes()),
            staleness(stale),
        );
        let answer = client
            .request(Method::GET, &path, &[], Bytes::new(), PATIENCE)
            .await
            .map_err(broken)?;
        refused(&answer)?;
        let page: rest::RangeAnswer = document(&answer)?;
        items.extend(page.items.into_iter().map(of_document));
        match page.next_page_token {
            Some(next) => token = format!("&page_token={}", encode_key(next.as_bytes())),
            None => return Ok(Reply::Items(items)),
        }
    }
}

fn staleness(stale: bool) -> &'static str {
    if stale { "&consistency=stale" } else { "" }
}

fn comparison(compare: &Compare) -> rest::Compare {
    let (key, target, value) = match compare {
        Compare::Value(key, value) => {
            (key, rest::CompareTarget::Value, Scalar::Text(value.clone()))
        }
        Compare::Revision(key, revision) => (
            key,
            rest::CompareTarget::ModRevision,
            Scalar::Text(revision.to_string()),
        ),
    };
    rest::Compare {
        key: key.clone(),
        target,
        op: rest::CompareOp::Equal,
        value,
    }
}

fn operation(step: &Step) -> rest::Op {
    match step {
        Step::Put(key, value) => rest::Op::Put(rest::PutOp {
            key: key.clone(),
            value: value.clone(),
        }),
        Step::Get(key) => rest::Op::Get(rest::KeyOp { key: key.clone() }),
        Step::Delete(key) => rest::Op::Delete(rest::KeyOp { key: key.clone() }),
    }
}

fn of_document(item: rest::Item) -> Item {
    Item {
        key: item.key,
        value: item.value,
        revision: item.mod_revision.0,
        version: item.version,
    }
}

/// A value as `GET /v1/kv/{key}` gives it, which does not tell the version.
fn got(key: &str, answer: &Answer) -> Result<Item, Trouble> {
    let revision = answer
        .headers
        .get(REVISION_HEADER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .ok_or_else(|| unreadable("no revision in the answer"))?;
    Ok(Item {
        key: key.to_owned(),
        value: String::from_utf8(answer.body.to_vec()).map_err(unreadable)?,
        revision,
        version: 0,
    })
}

fn broken(broken: Broken) -> Trouble {
    match broken {
        Broken::Connect(error) if error.kind() == ErrorKind::ConnectionRefused => Trouble::Refused,
        Broken::Connect(error) => Trouble::Certain(format!("not connected: {error}")),
        other => Trouble::Unknown(other.to_string()),
    }
}

fn refused(answer: &Answer) -> Result<(), Trouble> {
    if answer.status == 200 {
        return Ok(());
    }
    let told: Option<ErrorCode> = serde_json::from_slice::<rest::ErrorBody>(&answer.body)
        .ok()
        .and_then(|body| body.code.parse().ok());
    Err(match told {
        Some(code) => Trouble::of(code),
        None => Trouble::Unknown(format!("status {}", answer.status)),
    })
}

fn document<T: DeserializeOwned>(answer: &Answer) -> Result<T, Trouble> {
    serde_json::from_slice(&answer.body).map_err(unreadable)
}

fn unreadable(why: impl std::fmt::Display) -> Trouble {
    Trouble::Unreadable(why.to_string())
}
