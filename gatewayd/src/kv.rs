//! The key-value operations, in the messages of the public contract; REST and gRPC are two ways to say them.

use crate::admission::Kind;
use crate::core::Core;
use bytes::Bytes;
use mareedb_api::v1::{self, Consistency};
use mareedb_api::{ApiError, ErrorCode, IDEMPOTENCY_KEY_BYTES_MAX};
use mareedb_ipc::wire::command::{
    Compare, CompareOp, CompareTarget, IdempotencyKey, Item, Op, OpResult, Txn, TxnResult,
};
use mareedb_ipc::wire::read::Query;
use mareedb_ipc::wire::{Revision, encode};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}

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
            return Err(bad(format!("timeout_ms is {timeout_ms}, at most {max}")));
        }
        let ms = if timeout_ms == 0 {
            mareedb_api::DEFAULT_TIMEOUT_MS.min(max)
        } else {
            timeout_ms
        };
        Ok(Instant::now() + Duration::from_millis(ms))
    }

    fn check_key(&self, key: &[u8]) -> Result<(), ApiError> {
        let max = self.config.limits.key_bytes_max;
        if key.is_empty() {
            return Err(bad("the key is empty"));
        }
        if key.len() as u64 > max {
            return Err(ApiError::new(
                ErrorCode::KeyTooLarge,
                format!("the key has {} bytes, at most {max}", key.len()),
            ));
        }
        Ok(())
    }

    fn check_bound(&self, key: &[u8]) -> Result<(), ApiError> {
        if key.is_empty() {
            Ok(())
        } else {
            self.check_key(key)
        }
    }

    fn check_value(&self, value: &[u8]) -> Result<(), ApiError> {
        let max = self.config.limits.value_bytes_max;
        if value.len() as u64 > max {
            return Err(ApiError::new(
                ErrorCode::ValueTooLarge,
                format!("the value has {} bytes, at most {max}", value.len()),
            ));
        }
        Ok(())
    }

    async fn transact(
        &self,
        txn: Txn,
        idempotency_key: &str,
        timeout_ms: u64,
    ) -> Result<TxnResult, ApiError> {
        if idempotency_key.len() > IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(bad(format!(
                "the idempotency key has {} bytes, at most {IDEMPOTENCY_KEY_BYTES_MAX}",
                idempotency_key.len()
            )));
        }
        let idempotency = (!idempotency_key.is_empty()).then(|| IdempotencyKey {
            key: idempotency_key.to_owned(),
            fingerprint: xxhash_rust::xxh3::xxh3_128(&encode(&txn)),
        });
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
        self.check_key(&request.key)?;
        self.check_value(&request.value)?;
        if request.if_absent && request.if_mod_revision.is_some() {
            return Err(bad(
                "a key cannot be absent and have a revision: give one condition",
            ));
        }
        let compare = condition(&request.key, request.if_absent, request.if_mod_revision);
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
        succeeded(&done)?;
        Ok(v1::PutResponse {
            revision: done.revision.0,
        })
    }

    /// Delete.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn delete(&self, request: v1::DeleteRequest) -> Result<v1::DeleteResponse, ApiError> {
        self.check_key(&request.key)?;
        let compare = condition(&request.key, false, request.if_mod_revision);
        let txn = Txn {
            compare,
            success: vec![Op::Delete { key: request.key }],
            failure: Vec::new(),
        };
        let done = self
            .transact(txn, &request.idempotency_key, request.timeout_ms)
            .await?;
        succeeded(&done)?;
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
        self.check_key(&request.key)?;
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
        let (start, end) = bounds(&request.start, &request.end, request.prefix.as_ref())?;
        self.check_bound(&start)?;
        let deadline = self.deadline(request.timeout_ms)?;
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

    /// Txn.
    ///
    /// # Errors
    /// As the contract says.
    pub async fn txn(&self, request: v1::TxnRequest) -> Result<v1::TxnResponse, ApiError> {
        let limits = &self.config.limits;
        let operations = request
            .compare
            .len()
            .max(request.success.len())
            .max(request.failure.len());
        if operations as u64 > limits.txn_operations_max {
            return Err(bad(format!(
                "the transaction has {operations} operations, at most {}",
                limits.txn_operations_max
            )));
        }
        let txn = Txn {
            compare: request
                .compare
                .into_iter()
                .map(|compare| self.compare(compare))
                .collect::<Result<_, _>>()?,
            success: self.operations(request.success)?,
            failure: self.operations(request.failure)?,
        };
        if txn.compare.is_empty() && txn.success.is_empty() && txn.failure.is_empty() {
            return Err(bad("the transaction is empty"));
        }
        let done = self
            .transact(txn, &request.idempotency_key, request.timeout_ms)
            .await?;
        Ok(v1::TxnResponse {
            succeeded: done.succeeded,
            revision: done.revision.0,
            results: done.results.into_iter().map(to_result).collect(),
        })
    }

    fn compare(&self, compare: v1::Compare) -> Result<Compare, ApiError> {
        use v1::compare::{Operator, Target};
        self.check_key(&compare.key)?;
        let op = match Operator::try_from(compare.op) {
            Ok(Operator::Equal) => CompareOp::Equal,
            Ok(Operator::NotEqual) => CompareOp::NotEqual,
            Ok(Operator::Less) => CompareOp::Less,
            Ok(Operator::Greater) => CompareOp::Greater,
            Err(_) => return Err(bad(format!("comparison operator {}", compare.op))),
        };
        let target = match compare.target {
            Some(Target::Value(value)) => {
                self.check_value(&value)?;
                CompareTarget::Value(value)
            }
            Some(Target::Version(version)) => CompareTarget::Version(version),
            Some(Target::CreateRevision(revision)) => CompareTarget::CreateRevision(revision),
            Some(Target::ModRevision(revision)) => CompareTarget::ModRevision(revision),
            None => return Err(bad("a comparison without a target")),
        };
        Ok(Compare {
            key: compare.key,
            target,
            op,
        })
    }

    fn operations(&self, operations: Vec<v1::Op>) -> Result<Vec<Op>, ApiError> {
        use v1::op;
        let mut written = BTreeSet::new();
        let mut out = Vec::with_capacity(operations.len());
        for operation in operations {
            let op = match operation.op {
                Some(op::Op::Put(put)) => {
                    self.check_key(&put.key)?;
                    self.check_value(&put.value)?;
                    Op::Put {
                        key: put.key,
                        value: put.value,
                    }
                }
                Some(op::Op::Get(get)) => {
                    self.check_key(&get.key)?;
                    Op::Get { key: get.key }
                }
                Some(op::Op::Delete(delete)) => {
                    self.check_key(&delete.key)?;
                    Op::Delete { key: delete.key }
                }
                Some(op::Op::Range(range)) => {
                    let (start, end) = bounds(&range.start, &range.end, range.prefix.as_ref())?;
                    self.check_bound(&start)?;
                    Op::Range {
                        start,
                        end,
                        limit: self.page_items(range.limit),
                    }
                }
                None => return Err(bad("an operation of no kind")),
            };
            if let Op::Put { key, .. } | Op::Delete { key } = &op
                && !written.insert(key.clone())
            {
                return Err(bad("a key is written twice in one transaction"));
            }
            out.push(op);
        }
        let bytes: usize = out
            .iter()
            .map(|op| match op {
                Op::Put { key, value } => key.len() + value.len(),
                Op::Get { key } | Op::Delete { key } => key.len(),
                Op::Range { start, end, .. } => start.len() + end.len(),
            })
            .sum();
        let max = self.config.limits.request_bytes_max;
        if bytes as u64 > max {
            return Err(ApiError::new(
                ErrorCode::ValueTooLarge,
                format!("the request has {bytes} bytes of keys and values, at most {max}"),
            ));
        }
        Ok(out)
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

fn succeeded(done: &TxnResult) -> Result<(), ApiError> {
    if done.succeeded {
        Ok(())
    } else {
        Err(ApiError::new(
            ErrorCode::PreconditionFailed,
            "the key is not as the request's condition says",
        ))
    }
}

fn past(revision: u64) -> Option<Revision> {
    (revision != 0).then_some(Revision(revision))
}

fn is_stale(consistency: i32) -> Result<bool, ApiError> {
    match Consistency::try_from(consistency) {
        Ok(Consistency::Linearizable) => Ok(false),
        Ok(Consistency::Stale) => Ok(true),
        Err(_) => Err(bad(format!("consistency {consistency}"))),
    }
}

/// Start and end of a range; an empty end is the end of the key space.
fn bounds(start: &Bytes, end: &Bytes, prefix: Option<&Bytes>) -> Result<(Bytes, Bytes), ApiError> {
    match prefix {
        None => Ok((start.clone(), end.clone())),
        Some(_) if !start.is_empty() || !end.is_empty() => {
            Err(bad("a range has a prefix, or start and end, not both"))
        }
        Some(prefix) => Ok((prefix.clone(), after_prefix(prefix))),
    }
}

/// First key after every key with this prefix; empty: there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end.into()
}

/// The next key.
fn after(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
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
