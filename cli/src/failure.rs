//! How a command ends: exit codes are an interface (docs/cli.md), errors have a way out.

use crate::output;
use mareedb_api::{ApiError, ErrorCode};
use std::process::ExitCode;

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; of `cluster status`: healthy.
    Done = 0,
    /// The command failed.
    Failed = 1,
    /// No node could be reached, or none answered.
    NoConnection = 2,
    /// The cluster works with less than it should have.
    Degraded = 10,
    /// The cluster has no quorum, or is forming.
    NoQuorum = 11,
    /// Wrong usage.
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// Why a command did not do what it should.
#[derive(Debug)]
pub enum Failure {
    /// A node answered with an error.
    Api(ApiError),
    /// No node answered: each endpoint with the reason.
    NoConnection(Vec<(String, String)>),
    /// Wrong usage beyond what the parser sees.
    Usage(String),
    /// Something of this machine failed.
    Local(String),
    /// Whoever read standard output has gone away. Nothing failed, and nothing is left to do.
    Closed,
}

impl Failure {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Api(_) | Failure::Local(_) => Exit::Failed,
            Failure::NoConnection(_) => Exit::NoConnection,
            Failure::Usage(_) => Exit::Usage,
            Failure::Closed => Exit::Done,
        }
    }

    /// Tells the user.
    pub fn print(&self) {
        output::aside(&self.text());
    }

    /// What the user is told, in whole lines.
    pub fn text(&self) -> String {
        match self {
            Failure::Api(error) => {
                let mut text = format!("error: {}: {}\n", error.code, error.message);
                if !error.remedy.is_empty() {
                    text.push_str(&format!("       {}\n", error.remedy));
                }
                text
            }
            Failure::NoConnection(tried) => {
                let mut text = String::from("error: no node answers\n");
                for (endpoint, why) in tried {
                    text.push_str(&format!("       {endpoint}: {why}\n"));
                }
                text.push_str(
                    "       Check that a node runs there (systemctl status mareedb), or name another with --endpoint HOST:7001.\n",
                );
                text
            }
            Failure::Usage(why) | Failure::Local(why) => format!("error: {why}\n"),
            Failure::Closed => String::new(),
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure::Api(error)
    }
}

/// What a gRPC status says: an error of ours, or one of the connection.
pub fn from_status(endpoint: &str, status: &tonic::Status) -> Failure {
    if let Some(error) = ApiError::from_status(status) {
        return Failure::Api(error);
    }
    match status.code() {
        // What the connection, or who sits on it, makes of its end.
        tonic::Code::Unavailable
        | tonic::Code::Unknown
        | tonic::Code::Cancelled
        | tonic::Code::Internal
        | tonic::Code::DeadlineExceeded => {
            Failure::NoConnection(vec![(endpoint.to_owned(), status.message().to_owned())])
        }
        tonic::Code::Unimplemented => Failure::Api(ApiError::new(
            ErrorCode::Unsupported,
            "the node does not know this request",
        )),
        _ => Failure::Local(format!("{endpoint}: {}", status.message())),
    }
}
