//! Standard output. A closed pipe ends the command quietly.

use crate::failure::{Exit, Failure};
use serde::Serialize;
use std::io::{self, Write};

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: the documents of the REST API.
    Json,
}

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8]) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(error) => Err(Failure::Local(format!("standard output: {error}"))),
    }
}

/// Writes a text with a line end.
pub fn line(text: &str) -> Result<Exit, Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes a document.
pub fn json<T: Serialize>(document: &T) -> Result<Exit, Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::Local(error.to_string()))?;
    line(&text)
}

/// Bytes for people: text as it is, anything else escaped.
pub fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}
