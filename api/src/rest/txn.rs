//! Documents of `POST /v1/txn`.

use super::kv::Item;
use super::number::{Decimal, Scalar, lenient_u64, parse_decimal};
use super::text::{Encoding, TextError};
use crate::v1;
use serde::{Deserialize, Serialize};

/// A transaction. At least one of the lists may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnBody {
    /// All must hold for `success` to be carried out.
    #[serde(default)]
    pub compare: Vec<Compare>,
    /// Carried out when all comparisons hold.
    #[serde(default)]
    pub success: Vec<Op>,
    /// Carried out when one does not.
    #[serde(default)]
    pub failure: Vec<Op>,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// What is compared.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
    /// The constant: a byte string when `target` is `value`, else a decimal string or a number.
    pub value: Scalar,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompareTarget {
    /// The value, bytewise.
    Value,
    /// Number of writes since the key was created.
    Version,
    /// Revision of its creation.
    CreateRevision,
    /// Revision of its last write.
    ModRevision,
}

/// An operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOp {
    /// `==`
    #[serde(rename = "==")]
    Equal,
    /// `!=`
    #[serde(rename = "!=")]
    NotEqual,
    /// `<`
    #[serde(rename = "<")]
    Less,
    /// `>`
    #[serde(rename = ">")]
    Greater,
}

/// One operation: `{"put": {..}}`, `{"get": {..}}`, `{"delete": {..}}` or `{"range": {..}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Writes a key.
    Put(PutOp),
    /// Reads a key.
    Get(KeyOp),
    /// Deletes a key.
    Delete(KeyOp),
    /// Reads a range.
    Range(RangeOp),
}

/// What `put` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutOp {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// What `get` and `delete` hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyOp {
    /// The key.
    pub key: String,
}

/// What `range` holds: either `prefix`, or `start` and `end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeOp {
    /// All keys that begin with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// First key; left out: from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// First key beyond; left out: to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// At most so many items; left out or 0: as many as a page may hold.
    #[serde(default, deserialize_with = "lenient_u64")]
    pub limit: u64,
}

/// A transaction that is well-formed JSON and still makes no sense. `at` is a path such as `compare[2].value`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// A byte string that the encoding cannot read.
    #[error("{at}: {source}")]
    Text {
        /// Where.
        at: String,
        /// Why.
        source: TextError,
    },
    /// A comparison's constant of the wrong kind.
    #[error("{at}: must be {expected}")]
    Constant {
        /// Where.
        at: String,
        /// What was expected.
        expected: &'static str,
    },
    /// `prefix` together with `start` or `end`.
    #[error("{at}: give either prefix, or start and end")]
    PrefixAndBounds {
        /// Where.
        at: String,
    },
}

impl TxnBody {
    /// The message of the document; `idempotency_key` and `timeout_ms` come from elsewhere and are left empty.
    pub fn to_proto(&self, encoding: Encoding) -> Result<v1::TxnRequest, TxnError> {
        let ops = |list: &[Op], name: &str| {
            list.iter()
                .enumerate()
                .map(|(i, op)| op.to_proto(encoding, &format!("{name}[{i}]")))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(v1::TxnRequest {
            compare: self
                .compare
                .iter()
                .enumerate()
                .map(|(i, compare)| compare.to_proto(encoding, &format!("compare[{i}]")))
                .collect::<Result<_, _>>()?,
            success: ops(&self.success, "success")?,
            failure: ops(&self.failure, "failure")?,
            idempotency_key: String::new(),
            timeout_ms: 0,
        })
    }
}

fn read(encoding: Encoding, text: &str, at: &str, field: &str) -> Result<bytes::Bytes, TxnError> {
    encoding.read(text).map_err(|source| TxnError::Text {
        at: format!("{at}.{field}"),
        source,
    })
}

impl Compare {
    fn to_proto(&self, encoding: Encoding, at: &str) -> Result<v1::Compare, TxnError> {
        use v1::compare::{Operator, Target};
        let number = || match &self.value {
            Scalar::Number(n) => Ok(*n),
            Scalar::Text(text) => parse_decimal(text).ok_or(TxnError::Constant {
                at: format!("{at}.value"),
                expected: "an integer below 2^64, as a decimal string or a number",
            }),
        };
        let target = match self.target {
            CompareTarget::Value => match &self.value {
                Scalar::Text(text) => Target::Value(read(encoding, text, at, "value")?),
                Scalar::Number(_) => {
                    return Err(TxnError::Constant {
                        at: format!("{at}.value"),
                        expected: "a string, as the target is the value",
                    });
                }
            },
            CompareTarget::Version => Target::Version(number()?),
            CompareTarget::CreateRevision => Target::CreateRevision(number()?),
            CompareTarget::ModRevision => Target::ModRevision(number()?),
        };
        let op = match self.op {
            CompareOp::Equal => Operator::Equal,
            CompareOp::NotEqual => Operator::NotEqual,
            CompareOp::Less => Operator::Less,
            CompareOp::Greater => Operator::Greater,
        };
        Ok(v1::Compare {
            key: read(encoding, &self.key, at, "key")?,
            op: op.into(),
            target: Some(target),
        })
    }
}

impl Op {
    fn to_proto(&self, encoding: Encoding, at: &str) -> Result<v1::Op, TxnError> {
        use v1::op;
        let op = match self {
            Op::Put(put) => op::Op::Put(op::Put {
                key: read(encoding, &put.key, at, "put.key")?,
                value: read(encoding, &put.value, at, "put.value")?,
            }),
            Op::Get(get) => op::Op::Get(op::Get {
                key: read(encoding, &get.key, at, "get.key")?,
            }),
            Op::Delete(delete) => op::Op::Delete(op::Delete {
                key: read(encoding, &delete.key, at, "delete.key")?,
            }),
            Op::Range(range) => {
                if range.prefix.is_some() && (range.start.is_some() || range.end.is_some()) {
                    return Err(TxnError::PrefixAndBounds {
                        at: format!("{at}.range"),
                    });
                }
                let bound = |text: &Option<String>, field: &str| match text {
                    None => Ok(None),
                    Some(text) => read(encoding, text, at, field).map(Some),
                };
                op::Op::Range(op::Range {
                    start: bound(&range.start, "range.start")?.unwrap_or_default(),
                    end: bound(&range.end, "range.end")?.unwrap_or_default(),
                    prefix: bound(&range.prefix, "range.prefix")?,
                    limit: range.limit,
                })
            }
        };
        Ok(v1::Op { op: Some(op) })
    }
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnAnswer {
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// Revision of its writes; the last revision when it wrote nothing.
    pub revision: Decimal,
    /// One result an operation of the list taken, in order.
    pub results: Vec<OpResult>,
}

/// The result of one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpResult {
    /// Of a put.
    Put {},
    /// Of a get.
    Get {
        /// Null when the key is absent.
        item: Option<Item>,
    },
    /// Of a delete.
    Delete {
        /// Whether the key was there.
        deleted: bool,
    },
    /// Of a range.
    Range {
        /// Items in key order.
        items: Vec<Item>,
        /// Whether the limit cut the answer.
        more: bool,
    },
}

impl TxnAnswer {
    /// The document of an answer.
    pub fn from_proto(answer: &v1::TxnResponse, encoding: Encoding) -> Result<Self, TextError> {
        Ok(TxnAnswer {
            succeeded: answer.succeeded,
            revision: Decimal(answer.revision),
            results: answer
                .results
                .iter()
                // A result of a kind that this version does not know has no document.
                .filter_map(|result| result.result.as_ref())
                .map(|result| OpResult::from_proto(result, encoding))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl OpResult {
    fn from_proto(
        result: &v1::op_result::Result,
        encoding: Encoding,
    ) -> Result<OpResult, TextError> {
        use v1::op_result::Result as Kind;
        Ok(match result {
            Kind::Put(_) => OpResult::Put {},
            Kind::Get(get) => OpResult::Get {
                item: get
                    .item
                    .as_ref()
                    .map(|item| Item::from_proto(item, encoding))
                    .transpose()?,
            },
            Kind::Delete(delete) => OpResult::Delete {
                deleted: delete.deleted,
            },
            Kind::Range(range) => OpResult::Range {
                items: range
                    .items
                    .iter()
                    .map(|item| Item::from_proto(item, encoding))
                    .collect::<Result<_, _>>()?,
                more: range.more,
            },
        })
    }
}

#[cfg(test)]
#[path = "txn_tests.rs"]
mod tests;
