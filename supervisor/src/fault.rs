//! Why a node cannot start: what, where, why, what to do, and the exit code.

use mareedb_ipc::ExitCode;
use std::fmt;
use std::io;

/// A start that failed. Printed once, where the process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFault {
    /// The exit code of the node.
    pub code: ExitCode,
    /// What was tried, and where: `cannot listen on 10.0.0.1:8080`.
    pub what: String,
    /// Why it failed.
    pub why: String,
    /// The way out.
    pub remedy: String,
}

impl fmt::Display for StartFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}. What to do: {}",
            self.what, self.why, self.remedy
        )
    }
}

impl std::error::Error for StartFault {}

/// What a start ends with before a daemon runs.
#[derive(Debug)]
pub enum StartError {
    /// Something is in the way.
    Fault(StartFault),
    /// A stop was asked for while the start waited.
    Stopped,
}

impl From<StartFault> for StartError {
    fn from(fault: StartFault) -> Self {
        StartError::Fault(fault)
    }
}

/// The kernel's words for an error, without Rust's `(os error 98)`.
pub(crate) fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}
