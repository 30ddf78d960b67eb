//! The key-value operations, in the messages of the public contract; REST and gRPC are two ways to say them.

use crate::admission::Kind;
use crate::core::Core;
use bytes::Bytes;
use mareedb_api::v1::{self, Consistency};
use mareedb_api::{ApiError, ErrorCode, IDEMPOTENCY_KEY_BYTES_MAX};
use mareedb_config::bounds::KEY_BYTES_MAX;
use mareedb_ipc::wire::command::{
    Compare, CompareOp, CompareTarget, IdempotencyKey, Item, Op, OpResult, Txn, TxnResult,
};
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::wire::{Revision, encode};
use std::fmt::Arguments;
use std::time::Duration;
use tokio::time::Instant;

mod range;
mod txn;

pub(crate) use range::go_on;
use range::{after, bounds};

/// The longest bound of a range: the first key after the longest one that any node may have stored.
const BOUND_BYTES_MAX: u64 = KEY_BYTES_MAX as u64 + 1;
/// The same in a transaction: what the log carries has no bound that is longer than a key (DET-1).
const TXN_BOUND_BYTES_MAX: u64 = KEY_BYTES_MAX as u64;

const _: () = assert!(
    IDEMPOTENCY_KEY_BYTES_MAX == mareedb_config::bounds::IDEMPOTENCY_KEY_BYTES_MAX,
    "the contract allows what storaged takes"
);

/// A page of a range.
pub struct Page {
    /// Its items.
    pub items: Vec<v1::Item>,
    /// The revision that was read.
    pub revision: u64,
    /// First key of the next page, if there is one.
    pub next: Option<Bytes>,
}

impl Core {
    /// The deadline of a request that asks for `timeout_ms`; 0: the default.
    ///
    /// # Errors
    /// More than the limit.
    pub fn deadline(&self, timeout_ms: u64) -> Result<Instant, ApiError> {
        let max = self.config.limits.timeout_ms_max;
        if timeout_ms > max {
            return Err(ApiError::bad_request(format!(
                "timeout_ms is {timeout_ms}, at most {max}"
            )));
        }
        let ms = if timeout_ms == 0 {
            mareedb_api::DEFAULT_TIMEOUT_MS.min(max)
        } else {
            timeout_ms
        };
        Ok(Instant::now() + Duration::from_millis(ms))
    }

    /// `at` says which of a request's keys it is.
    fn check_key(&self, at: Arguments<'_>, key: &[u8]) -> Result<(), ApiError> {
        if key.is_empty() {
            return Err(ApiError::bad_request(format!("{at} is empty")));
        }
        check_length(at, key, self.config.limits.key_bytes_max)
    }

    fn check_value(&self, at: Arguments<'_>, value: &[u8]) -> Result<(), ApiError> {
        let max = self.config.limits.value_bytes_max;
        if value.len() as u64 > max {
            return Err(ApiError::new(
                ErrorCode::ValueTooLarge,
                format!("{at} has {} bytes, at most {max}", value.len()),
            ));
        }
        Ok(())
    }

    async fn transact(
        &self,
        mut txn: Txn,
        idempotency_key: &str,
        timeout_ms: u64,
    ) -> Result<TxnResult, ApiError> {
        if idempotency_key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(ApiError::bad_request(format!(
                "the idempotency key has {} bytes, at most {IDEMPOTENCY_KEY_BYTES_MAX}",
                idempotency_key.len()
            )));
        }
        let idempotency = (!idempotency_key.is_empty()).then(|| IdempotencyKey {
            key: idempotency_key.to_owned(),
            fingerprint: xxhash_rust::xxh3::xxh3_128(&encode(&txn)),
        });
        // After the fingerprint: a repeat may come through a node that cuts ranges elsewhere.
        for op in txn.success.iter_mut().chain(&mut txn.failure) {
            if let Op::Range { limit, .. } = op {
                *limit = self.page_items(u64::from(*limit));
            }
        }
        let deadline = self.deadline(timeout_ms)?;
        let place = self.admit(Kind::Write)?;
        let done = self.write(txn, idempotency, deadline).await?;
        place.served();
        Ok(done)
    }

    /// Put.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn put(&self, request: v1::PutRequest) -> Result<v1::PutResponse, ApiError> {
        self.check_key(format_args!("the key"), &request.key)?;
        self.check_value(format_args!("the value"), &request.value)?;
        if request.if_absent && request.if_mod_revision.is_some() {
            return Err(ApiError::bad_request(
                "a key cannot be absent and have a revision: give one condition",
            ));
        }
        let compare = condition(&request.key, request.if_absent, request.if_mod_revision);
        let key = request.key.clone();
        let txn = Txn {
            compare,
            success: vec![Op::Put {
                key: request.key,
                value: request.value,
            }],
            failure: Vec::new(),
        };
        let done = self
            .transact(txn, &request.idempotency_key, request.timeout_ms)
            .await?;
        if !done.succeeded {
            return Err(unmet(&key, request.if_mod_revision));
        }
        Ok(v1::PutResponse {
            revision: done.revision.0,
        })
    }

    /// Delete.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, ApiError> {
        self.check_key(format_args!("the key"), &request.key)?;
        let compare = condition(&request.key, false, request.if_mod_revision);
        let key = request.key.clone();
        let txn = Txn {
            compare,
            success: vec![Op::Delete { key: request.key }],
            failure: Vec::new(),
        };
        let done = self
            .transact(txn, &request.idempotency_key, request.timeout_ms)
            .await?;
        if !done.succeeded {
            return Err(unmet(&key, request.if_mod_revision));
        }
        let deleted = matches!(
            done.results.first(),
            Some(OpResult::Delete { deleted: true })
        );
        Ok(v1::DeleteResponse {
            deleted,
            revision: deleted.then_some(done.revision.0),
        })
    }

    /// Get.
    ///
    /// # Errors
    /// As the contract says; an absent key is no error here.
    pub async fn get(&self, request: v1::GetRequest) -> Result<v1::GetResponse, ApiError> {
        self.check_key(format_args!("the key"), &request.key)?;
        let deadline = self.deadline(request.timeout_ms)?;
        let stale = is_stale(request.consistency)?;
        let place = self.admit(if stale { Kind::Other } else { Kind::Get })?;
        let query = Query::Get {
            key: request.key.clone(),
            revision: past(request.revision),
        };
        let response = self.read(&request.key, query, stale, deadline).await?;
        place.served();
        Ok(v1::GetResponse {
            item: response.items.into_iter().next().map(to_item),
        })
    }

    /// One page of a range.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn page(&self, request: &v1::RangeRequest, limit: u32) -> Result<Page, ApiError> {
        let deadline = self.deadline(request.timeout_ms)?;
        self.page_by(request, limit, deadline).await
    }

    /// The same by a deadline that is known already.
    pub(crate) async fn page_by(
        &self,
        request: &v1::RangeRequest,
        limit: u32,
        deadline: Instant,
    ) -> Result<Page, ApiError> {
        let at = format_args!("the range");
        let (start, end) = bounds(at, &request.start, &request.end, request.prefix.as_ref())?;
        check_bounds(at, &start, &end, BOUND_BYTES_MAX)?;
        let _place = self.admit(Kind::Other)?;
        let max_bytes = self.config.limits.page_bytes_max;
        let query = Query::Range {
            start: start.clone(),
            end,
            limit,
            max_bytes: u32::try_from(max_bytes).unwrap_or(u32::MAX),
            revision: past(request.revision),
            keys_only: request.keys_only,
        };
        let stale = is_stale(request.consistency)?;
        let response = self.read(&start, query, stale, deadline).await?;
        let next = response
            .items
            .last()
            .filter(|_| response.more)
            .map(|item| after(&item.key));
        Ok(Page {
            items: response.items.into_iter().map(to_item).collect(),
            revision: response.revision.0,
            next,
        })
    }

    /// Most items that a page may have, for a request that asks for `limit`; 0: as many as may be.
    pub fn page_items(&self, limit: u64) -> u32 {
        let max = self.config.limits.page_items_max;
        let items = if limit == 0 { max } else { limit.min(max) };
        u32::try_from(items).unwrap_or(u32::MAX)
    }
}

fn condition(key: &Bytes, if_absent: bool, if_mod_revision: Option<u64>) -> Vec<Compare> {
    let target = match if_mod_revision {
        Some(revision) => CompareTarget::ModRevision(revision),
        None if if_absent => CompareTarget::Version(0),
        None => return Vec::new(),
    };
    vec![Compare {
        key: key.clone(),
        target,
        op: CompareOp::Equal,
    }]
}

/// What is said when a condition on a key does not hold.
fn unmet(key: &[u8], if_mod_revision: Option<u64>) -> ApiError {
    let key = shown(key);
    let what = match if_mod_revision {
        Some(revision) => format!("the mod_revision of {key} is not {revision}"),
        None => format!("{key} is not absent"),
    };
    ApiError::new(ErrorCode::PreconditionFailed, what)
}

/// A key in a message.
pub(crate) fn shown(key: &[u8]) -> String {
    const BYTES_MAX: usize = 100;
    match key.get(..BYTES_MAX) {
        Some(begin) if key.len() > BYTES_MAX => {
            format!(
                "the key '{}'... of {} bytes",
                begin.escape_ascii(),
                key.len()
            )
        }
        _ => format!("the key '{}'", key.escape_ascii()),
    }
}

fn check_length(at: Arguments<'_>, key: &[u8], max: u64) -> Result<(), ApiError> {
    if key.len() as u64 <= max {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::KeyTooLarge,
        format!("{at} has {} bytes, at most {max}", key.len()),
    ))
}

/// Bounds of a range, which may be those of keys that are longer than this node would store: a page that ends at one goes on from there.
fn check_bounds(at: Arguments<'_>, start: &[u8], end: &[u8], max: u64) -> Result<(), ApiError> {
    check_length(format_args!("the start of {at}"), start, max)?;
    check_length(format_args!("the end of {at}"), end, max)
}

fn past(revision: u64) -> Option<Revision> {
    (revision != 0).then_some(Revision(revision))
}

fn is_stale(consistency: i32) -> Result<bool, ApiError> {
    match Consistency::try_from(consistency) {
        Ok(Consistency::Linearizable) => Ok(false),
        Ok(Consistency::Stale) => Ok(true),
        Err(_) => Err(ApiError::bad_request(format!("consistency {consistency}"))),
    }
}

fn to_item(item: Item) -> v1::Item {
    v1::Item {
        key: item.key,
        value: item.value,
        create_revision: item.create_revision.0,
        mod_revision: item.mod_revision.0,
        version: item.version,
    }
}

fn to_result(result: OpResult) -> v1::OpResult {
    use v1::op_result::{self, Result};
    let result = match result {
        OpResult::Put => Result::Put(op_result::Put {}),
        OpResult::Delete { deleted } => Result::Delete(op_result::Delete { deleted }),
        OpResult::Get { item } => Result::Get(op_result::Get {
            item: item.map(to_item),
        }),
        OpResult::Range { items, more } => Result::Range(op_result::Range {
            items: items.into_iter().map(to_item).collect(),
            more,
        }),
    };
    v1::OpResult {
        result: Some(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::Bed;
    use mareedb_config::Config;

    #[tokio::test]
    async fn a_page_may_end_at_a_key_that_is_too_long_to_be_written_here() {
        let mut config = Config::default();
        config.limits.key_bytes_max = 64;
        let core = Bed::new(config).core;
        let key = vec![b'k'; KEY_BYTES_MAX];
        let next = after(&key);
        let at = format_args!("the range");
        let checked = |start: &[u8], end: &[u8]| check_bounds(at, start, end, BOUND_BYTES_MAX);
        assert_eq!(checked(&next, &next), Ok(()));
        let beyond = after(&next);
        for told in [
            core.check_key(at, &key),
            checked(&beyond, b""),
            checked(b"", &beyond),
        ] {
            assert_eq!(told.unwrap_err().code, ErrorCode::KeyTooLarge);
        }
        // The scan itself takes it: nobody has told yet where to read.
        let request = v1::RangeRequest {
            start: next,
            timeout_ms: 1,
            ..v1::RangeRequest::default()
        };
        let told = core.page(&request, 1).await;
        assert_eq!(told.err().map(|told| told.code), Some(ErrorCode::NotReady));
    }

    #[test]
    fn keys_are_shown_as_text_and_cut() {
        assert_eq!(shown(b"a\n\xff"), r"the key 'a\n\xff'");
        let long = shown(&[b'k'; 4096]);
        assert!(
            long.len() < 150 && long.ends_with("of 4096 bytes"),
            "{long}"
        );
        assert_eq!(shown(&[b'k'; 100]).len(), "the key ''".len() + 100);
    }
}
