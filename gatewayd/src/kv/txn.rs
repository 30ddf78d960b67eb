//! Transactions: what a request says, in the command that the log carries.

use super::range::bounds;
use super::{TXN_BOUND_BYTES_MAX, check_bounds, to_result};
use crate::core::Core;
use mareedb_api::v1;
use mareedb_api::{ApiError, ErrorCode};
use mareedb_ipc::wire::command::{Compare, CompareOp, CompareTarget, Op, Txn};
use std::collections::BTreeMap;

impl Core {
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
            return Err(ApiError::bad_request(format!(
                "the transaction has {operations} operations, at most {}",
                limits.txn_operations_max
            )));
        }
        let txn = Txn {
            compare: request
                .compare
                .into_iter()
                .enumerate()
                .map(|(i, compare)| self.compare(i, compare))
                .collect::<Result<_, _>>()?,
            success: self.operations("success", request.success)?,
            failure: self.operations("failure", request.failure)?,
        };
        if txn.compare.is_empty() && txn.success.is_empty() && txn.failure.is_empty() {
            return Err(ApiError::bad_request("the transaction is empty"));
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

    fn compare(&self, i: usize, compare: v1::Compare) -> Result<Compare, ApiError> {
        use v1::compare::{Operator, Target};
        self.check_key(format_args!("compare[{i}].key"), &compare.key)?;
        let op = match Operator::try_from(compare.op) {
            Ok(Operator::Equal) => CompareOp::Equal,
            Ok(Operator::NotEqual) => CompareOp::NotEqual,
            Ok(Operator::Less) => CompareOp::Less,
            Ok(Operator::Greater) => CompareOp::Greater,
            Err(_) => {
                let op = compare.op;
                return Err(ApiError::bad_request(format!(
                    "compare[{i}].op is {op}, which is no operator"
                )));
            }
        };
        let target = match compare.target {
            Some(Target::Value(value)) => {
                self.check_value(format_args!("compare[{i}].value"), &value)?;
                CompareTarget::Value(value)
            }
            Some(Target::Version(version)) => CompareTarget::Version(version),
            Some(Target::CreateRevision(revision)) => CompareTarget::CreateRevision(revision),
            Some(Target::ModRevision(revision)) => CompareTarget::ModRevision(revision),
            None => return Err(ApiError::bad_request(format!("compare[{i}] has no target"))),
        };
        Ok(Compare {
            key: compare.key,
            target,
            op,
        })
    }

    /// The operations of the list that has this name in a request.
    fn operations(&self, list: &str, operations: Vec<v1::Op>) -> Result<Vec<Op>, ApiError> {
        use v1::op;
        let mut written = BTreeMap::new();
        let mut out = Vec::with_capacity(operations.len());
        for (i, operation) in operations.into_iter().enumerate() {
            let op = match operation.op {
                Some(op::Op::Put(put)) => {
                    self.check_key(format_args!("{list}[{i}].put.key"), &put.key)?;
                    self.check_value(format_args!("{list}[{i}].put.value"), &put.value)?;
                    Op::Put {
                        key: put.key,
                        value: put.value,
                    }
                }
                Some(op::Op::Get(get)) => {
                    self.check_key(format_args!("{list}[{i}].get.key"), &get.key)?;
                    Op::Get { key: get.key }
                }
                Some(op::Op::Delete(delete)) => {
                    self.check_key(format_args!("{list}[{i}].delete.key"), &delete.key)?;
                    Op::Delete { key: delete.key }
                }
                Some(op::Op::Range(range)) => {
                    let prefix = range.prefix.as_ref();
                    let at = format_args!("{list}[{i}].range");
                    let (start, end) = bounds(at, &range.start, &range.end, prefix)?;
                    check_bounds(at, &start, &end, TXN_BOUND_BYTES_MAX)?;
                    Op::Range {
                        start,
                        end,
                        // As it is asked for, as long as the fingerprint is not taken.
                        limit: u32::try_from(range.limit).unwrap_or(u32::MAX),
                    }
                }
                None => {
                    return Err(ApiError::bad_request(format!(
                        "{list}[{i}] is an operation of no kind"
                    )));
                }
            };
            if let Op::Put { key, .. } | Op::Delete { key } = &op
                && let Some(first) = written.insert(key.clone(), i)
            {
                return Err(ApiError::bad_request(format!(
                    "{list}[{first}] and {list}[{i}] write the same key"
                )));
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
                format!(
                    "{list} has {bytes} bytes of keys and values, at most {max} (limits.request_bytes_max)"
                ),
            ));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::Bed;
    use bytes::Bytes;
    use futures::poll;
    use mareedb_config::Config;
    use mareedb_config::bounds::KEY_BYTES_MAX;
    use mareedb_ipc::wire::command::Command;
    use mareedb_ipc::wire::decode;
    use std::pin::pin;
    use std::task::Poll;

    /// What is proposed for this request by a node whose pages have so many items, and under which fingerprint.
    async fn lowered(request: v1::TxnRequest, page_items_max: u64) -> (Txn, u128) {
        let mut config = Config::default();
        config.limits.page_items_max = page_items_max;
        let mut bed = Bed::new(config);
        bed.led_by(1, 1);
        let core = bed.core.clone();
        let txn = core.txn(request);
        tokio::pin!(txn);
        let (_, command) = bed.first_proposed(txn.as_mut()).await;
        let command: Command = decode(&command).unwrap();
        match command {
            Command::Write {
                idempotency: Some(key),
                txn,
                ..
            } => (txn, key.fingerprint),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_bound_that_the_log_does_not_carry_is_refused_before_it_is_proposed() {
        let mut bed = Bed::new(Config::default());
        bed.led_by(1, 1);
        let core = bed.core.clone();
        let range = |start_bytes: usize, end_bytes: usize| v1::TxnRequest {
            success: vec![v1::Op {
                op: Some(v1::op::Op::Range(v1::op::Range {
                    start: vec![b'k'; start_bytes].into(),
                    end: vec![b'k'; end_bytes].into(),
                    ..v1::op::Range::default()
                })),
            }],
            ..v1::TxnRequest::default()
        };
        let beyond = KEY_BYTES_MAX + 1;
        for request in [range(beyond, 0), range(0, beyond)] {
            let told = poll!(pin!(core.txn(request)));
            let Poll::Ready(Err(told)) = told else {
                panic!("{told:?}");
            };
            assert_eq!(told.code, ErrorCode::KeyTooLarge);
            assert!(bed.unasked());
        }
        let longest = core.txn(range(KEY_BYTES_MAX, KEY_BYTES_MAX));
        bed.first_proposed(pin!(longest)).await;
    }

    #[tokio::test]
    async fn once_1_a_repeat_is_known_by_a_node_that_cuts_ranges_elsewhere() {
        let range = |limit| v1::Op {
            op: Some(v1::op::Op::Range(v1::op::Range {
                prefix: Some(Bytes::from_static(b"a")),
                limit,
                ..v1::op::Range::default()
            })),
        };
        let request = v1::TxnRequest {
            success: [0, 5, 20, u64::MAX].map(range).to_vec(),
            failure: vec![range(20)],
            idempotency_key: "once".into(),
            ..v1::TxnRequest::default()
        };
        let limits = |txn: Txn| -> Vec<u32> {
            let ops = txn.success.iter().chain(&txn.failure);
            ops.map(|op| match op {
                Op::Range { limit, .. } => *limit,
                other => panic!("{other:?}"),
            })
            .collect()
        };
        let (few, few_print) = lowered(request.clone(), 10).await;
        let (many, many_print) = lowered(request, 100).await;
        assert_eq!(few_print, many_print);
        assert_eq!(limits(few), [10, 5, 10, 10, 10]);
        assert_eq!(limits(many), [100, 5, 20, 100, 20]);
    }
}
