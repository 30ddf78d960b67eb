//! txn: a transaction from a JSON document.

use crate::client::{Connection, idempotency_key};
use crate::failure::{Exit, Failure};
use crate::kv::content;
use crate::output::{self, Format};
use crate::tries::Repeat;
use clap::Args;
use mareedb_api::rest::{Encoding, TextError, TxnAnswer, TxnBody};
use mareedb_api::v1;
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
        match format {
            Format::Table => output::bytes(screen(&done, encoding)?.as_bytes()),
            Format::Json => output::json(&document(&done)?),
        }
    }
}

/// The answer for programs, as the other commands have it: byte strings are base64, whatever they hold and however the
/// transaction was written. It has been applied: showing it must not be what fails.
fn document(done: &v1::TxnResponse) -> Result<TxnAnswer, Failure> {
    TxnAnswer::from_proto(done, Encoding::Base64).map_err(local)
}

fn local(error: TextError) -> Failure {
    Failure::Local(error.to_string())
}

/// The answer for people: in the encoding of the transaction, or in base64 if it has bytes that are no text, which is said.
fn screen(done: &v1::TxnResponse, encoding: Encoding) -> Result<String, Failure> {
    let (answer, note) = match TxnAnswer::from_proto(done, encoding) {
        Ok(answer) => (answer, ""),
        Err(TextError::NotUtf8) => (document(done)?, " (byte strings in base64)"),
        Err(error) => return Err(local(error)),
    };
    let branch = if answer.succeeded {
        "success"
    } else {
        "failure"
    };
    let mut out = format!("{branch}, revision {}{note}\n", answer.revision.0);
    for result in &answer.results {
        out.push_str(&output::compact(result)?);
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_api::v1::op_result::{Get, Result as Kind};

    /// What a transaction that has read this value answers.
    fn read(value: &'static [u8]) -> v1::TxnResponse {
        let item = v1::Item {
            key: "k".into(),
            value: value.into(),
            create_revision: 1,
            mod_revision: 2,
            version: 2,
        };
        v1::TxnResponse {
            succeeded: true,
            revision: 7,
            results: vec![v1::OpResult {
                result: Some(Kind::Get(Get { item: Some(item) })),
            }],
        }
    }

    #[test]
    fn programs_get_base64_whatever_was_read() {
        for (value, expected) in [(&b"v"[..], "dg=="), (b"\xff", "/w==")] {
            let document = serde_json::to_value(document(&read(value)).unwrap()).unwrap();
            let item = &document["results"][0]["get"]["item"];
            assert_eq!(item["key"], "aw==", "{document}");
            assert_eq!(item["value"], expected, "{document}");
        }
    }

    #[test]
    fn people_get_text_or_are_told() {
        let screen = |value: &'static [u8], encoding| screen(&read(value), encoding).unwrap();
        let line = |key: &str, value: &str| {
            format!(
                r#"{{"get":{{"item":{{"key":"{key}","value":"{value}","create_revision":"1","mod_revision":"2","version":2}}}}}}"#
            )
        };
        assert_eq!(
            screen(b"v", Encoding::Utf8),
            format!("success, revision 7\n{}\n", line("k", "v"))
        );
        assert_eq!(
            screen(b"\xff", Encoding::Utf8),
            format!(
                "success, revision 7 (byte strings in base64)\n{}\n",
                line("aw==", "/w==")
            )
        );
        assert_eq!(
            screen(b"v", Encoding::Base64),
            format!("success, revision 7\n{}\n", line("aw==", "dg=="))
        );
    }
}
