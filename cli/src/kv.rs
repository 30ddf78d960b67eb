//! put, get, del.

use crate::client::{Connection, idempotency_key};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::tries::Repeat;
use clap::Args;
use mareedb_api::rest::{Decimal, DeleteAnswer, Encoding, Item, PutAnswer};
use mareedb_api::v1::{self, Consistency};
use mareedb_api::{ApiError, ErrorCode};
use std::io::Read;
use std::path::PathBuf;

/// Writes a key.
#[derive(Args)]
pub struct Put {
    /// The key.
    key: String,
    /// The value; - reads it from standard input.
    #[arg(required_unless_present = "file")]
    value: Option<String>,
    /// Takes the value from a file.
    #[arg(long, conflicts_with = "value")]
    file: Option<PathBuf>,
    /// Only if the key does not exist.
    #[arg(long)]
    if_absent: bool,
    /// Only if the key's last change has this revision.
    #[arg(long, value_name = "REVISION", conflicts_with = "if_absent")]
    if_revision: Option<u64>,
    /// Repeats with the same key take effect once.
    #[arg(long)]
    idempotency_key: Option<String>,
}

fn key_of(given: Option<String>) -> Result<String, Failure> {
    given.map_or_else(idempotency_key, Ok)
}

/// The content of a file, or of standard input for `-`.
pub fn content(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(path).map(|read| bytes = read)
    };
    match read {
        Ok(()) => Ok(bytes),
        Err(error) => Err(Failure::Local(format!("{}: {error}", path.display()))),
    }
}

impl Put {
    pub async fn run(self, connection: Connection, format: Format) -> Result<Exit, Failure> {
        let value = match (self.file, self.value) {
            (Some(path), _) => content(&path)?,
            (None, Some(value)) if value == "-" => content(std::path::Path::new("-"))?,
            (None, value) => value.unwrap_or_default().into_bytes(),
        };
        let key = key_of(self.idempotency_key)?;
        let request = v1::PutRequest {
            key: self.key.clone().into(),
            value: value.into(),
            if_mod_revision: self.if_revision,
            if_absent: self.if_absent,
            idempotency_key: key.clone(),
            timeout_ms: 0,
        };
        let done = connection
            .call(Repeat::Keyed(&key), |channel, timeout_ms| {
                let mut request = request.clone();
                request.timeout_ms = timeout_ms;
                async move { Connection::kv(channel).put(request).await }
            })
            .await?
            .into_inner();
        match format {
            Format::Table => output::line(&format!("OK revision {}", done.revision)),
            Format::Json => output::json(&PutAnswer {
                key: base64(request.key.as_ref()),
                revision: Decimal(done.revision),
            }),
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes)
}

/// Reads a key.
#[derive(Args)]
pub struct Get {
    /// The key.
    key: String,
    /// As of this revision.
    #[arg(long)]
    revision: Option<u64>,
    /// Takes what the node itself has, which may be old.
    #[arg(long)]
    stale: bool,
}

/// How fresh a read is.
pub fn consistency(stale: bool) -> i32 {
    if stale {
        Consistency::Stale
    } else {
        Consistency::Linearizable
    }
    .into()
}

/// An item as the REST API has it.
pub fn document(item: &v1::Item) -> Result<Item, Failure> {
    Item::from_proto(item, Encoding::Base64).map_err(|error| Failure::Local(error.to_string()))
}

impl Get {
    pub async fn run(self, connection: Connection, format: Format) -> Result<Exit, Failure> {
        let request = v1::GetRequest {
            key: self.key.clone().into(),
            revision: self.revision.unwrap_or(0),
            consistency: consistency(self.stale),
            timeout_ms: 0,
        };
        let found = connection
            .call(Repeat::Read, |channel, timeout_ms| {
                let mut request = request.clone();
                request.timeout_ms = timeout_ms;
                async move { Connection::kv(channel).get(request).await }
            })
            .await?
            .into_inner();
        let Some(item) = found.item else {
            return Err(ApiError::new(
                ErrorCode::NotFound,
                format!("the key '{}' does not exist", self.key),
            )
            .into());
        };
        match format {
            Format::Table => {
                let mut value = item.value.to_vec();
                // On a terminal the prompt begins on a line of its own; a file gets the bytes as they are.
                if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                    value.push(b'\n');
                }
                output::bytes(&value)
            }
            Format::Json => output::json(&document(&item)?),
        }
    }
}

/// Deletes a key.
#[derive(Args)]
pub struct Del {
    /// The key.
    key: String,
    /// Only if the key's last change has this revision.
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<u64>,
    /// Repeats with the same key take effect once.
    #[arg(long)]
    idempotency_key: Option<String>,
}

impl Del {
    pub async fn run(self, connection: Connection, format: Format) -> Result<Exit, Failure> {
        let key = key_of(self.idempotency_key)?;
        let request = v1::DeleteRequest {
            key: self.key.into(),
            if_mod_revision: self.if_revision,
            idempotency_key: key.clone(),
            timeout_ms: 0,
        };
        let done = connection
            .call(Repeat::Keyed(&key), |channel, timeout_ms| {
                let mut request = request.clone();
                request.timeout_ms = timeout_ms;
                async move { Connection::kv(channel).delete(request).await }
            })
            .await?
            .into_inner();
        match format {
            Format::Table if done.deleted => output::line("deleted"),
            Format::Table => output::line("there was no such key"),
            Format::Json => output::json(&DeleteAnswer::from(&done)),
        }
    }
}
