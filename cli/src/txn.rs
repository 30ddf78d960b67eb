//! txn: a transaction from a JSON document.

use crate::client::{Connection, idempotency_key};
use crate::failure::{Exit, Failure};
use crate::kv::content;
use crate::output::{self, Format};
use crate::tries::Repeat;
use clap::Args;
use mareedb_api::rest::{Encoding, TxnAnswer, TxnBody};
use std::path::PathBuf;

/// Runs a transaction.
#[derive(Args)]
pub struct Txn {
    /// JSON file as `POST /v1/txn` takes it; - reads standard input.
    file: PathBuf,
    /// Byte strings in the file are base64 instead of plain text.
    #[arg(long)]
    base64: bool,
    /// Repeats with the same key take effect once.
    #[arg(long)]
    idempotency_key: Option<String>,
}

impl Txn {
    pub async fn run(self, connection: Connection, format: Format) -> Result<Exit, Failure> {
        let encoding = if self.base64 {
            Encoding::Base64
        } else {
            Encoding::Utf8
        };
        let bytes = content(&self.file)?;
        let told = |error: &dyn std::fmt::Display| {
            Failure::Usage(format!("{}: {error}", self.file.display()))
        };
        let body: TxnBody = serde_json::from_slice(&bytes).map_err(|error| told(&error))?;
        let mut request = body.to_proto(encoding).map_err(|error| told(&error))?;
        let key = self.idempotency_key.map_or_else(idempotency_key, Ok)?;
        request.idempotency_key.clone_from(&key);
        let done = connection
            .call(Repeat::Keyed(&key), |channel, timeout_ms| {
                let mut request = request.clone();
                request.timeout_ms = timeout_ms;
                async move { Connection::kv(channel).txn(request).await }
            })
            .await?
            .into_inner();
        let answer = TxnAnswer::from_proto(&done, encoding)
            .or_else(|_| TxnAnswer::from_proto(&done, Encoding::Base64))
            .map_err(|error| told(&error))?;
        if format == Format::Table {
            let branch = if answer.succeeded {
                "success"
            } else {
                "failure"
            };
            output::line(&format!("{branch}, revision {}", answer.revision.0))?;
            for result in &answer.results {
                let text = serde_json::to_string(result).map_err(|error| told(&error))?;
                output::line(&text)?;
            }
            return Ok(Exit::Done);
        }
        output::json(&answer)
    }
}
