//! The JSON documents of the REST API.
//!
//! Byte strings are text in the [`Encoding`] of the request; revisions, terms, indexes and ids are [`Decimal`] strings;
//! times (`*_ms`), sizes (`*_bytes`) and counts are numbers. Documents are made from the messages of [`crate::v1`].
//!
//! Documents that clients send refuse unknown fields, so that a misspelt `failure` is not silently an empty one;
//! documents that clients receive may gain fields.

mod cluster;
mod error;
mod kv;
mod node;
mod number;
mod path;
mod text;
mod txn;

pub use cluster::{
    ClusterStatus, Election, Elections, Group, Member, Reason, Replica, TransferAnswer,
};
pub use error::ErrorBody;
pub use kv::{DeleteAnswer, Item, PutAnswer, RangeAnswer};
pub use node::{Daemon, Disk, LastExit, Link, LocalReplica, NodeStatus};
pub use number::{Decimal, Scalar, lenient_u64};
pub use path::{PathError, decode_key, encode_key};
pub use text::{Encoding, TextError};
pub use txn::{
    Compare, CompareOp, CompareTarget, KeyOp, Op, OpResult, PutOp, RangeOp, TxnAnswer, TxnBody,
    TxnError,
};
