//! Standard output, and what is said beside it. A closed pipe ends the command at once, and quietly.

use crate::failure::{Exit, Failure};
use serde::Serialize;
use std::io::{self, Write};
use std::os::fd::AsFd;
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: the documents of the REST API.
    Json,
}

/// Writes bytes as they are.
///
/// # Errors
/// [`Failure::Closed`]: nobody reads any more, so that whatever loops over its output ends.
pub fn bytes(bytes: &[u8]) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::Closed),
        Err(error) => Err(Failure::Local(format!("standard output: {error}"))),
    }
}

/// Ends when nobody reads standard output any more; never when it is no pipe.
pub async fn closed() {
    // A descriptor of its own, as this one is closed when it has been watched. A file is refused, for it has nothing to watch.
    let watched = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .and_then(pipe::Sender::from_owned_fd_unchecked);
    if let Ok(watched) = watched
        && let Ok(ready) = watched.ready(Interest::ERROR).await
        && ready.is_error()
    {
        return;
    }
    std::future::pending().await
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

/// A document in one line, so that any number of them can be piped.
pub fn compact<T: Serialize>(document: &T) -> Result<String, Failure> {
    serde_json::to_string(document).map_err(|error| Failure::Local(error.to_string()))
}

/// Writes whole lines to standard error. Nothing depends on whether they are read.
pub fn aside(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Bytes for people: text as it is, anything else escaped.
pub fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}
