//! Exit codes of the node and its daemons: an interface, documented in docs/exit-codes.md.

/// How a process of the node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// It was told to stop, and did.
    Done = 0,
    /// Something else failed.
    Failed = 1,
    /// Wrong command line arguments.
    Usage = 64,
    /// A port is taken.
    Unavailable = 69,
    /// A broken invariant.
    Internal = 70,
    /// The machine lacks io_uring, or may lock too little memory.
    OsUnfit = 71,
    /// The data directory cannot be made.
    CannotCreate = 73,
    /// Files cannot be made, read or written.
    Io = 74,
    /// Another node uses the data directory.
    Locked = 75,
    /// A ring holds what no correct peer writes.
    LinkCorrupt = 76,
    /// The permissions do not suffice.
    NoPermission = 77,
    /// The configuration is wrong.
    Config = 78,
    /// A daemon died too often.
    CrashLoop = 80,
    /// The log is damaged.
    LogDamaged = 81,
    /// The state machine's files are damaged.
    StateDamaged = 82,
    /// The disk failed to read or write: what it holds may not be what was written.
    DiskFault = 83,
}

impl ExitCode {
    /// All of them, ascending.
    pub const ALL: [ExitCode; 16] = [
        ExitCode::Done,
        ExitCode::Failed,
        ExitCode::Usage,
        ExitCode::Unavailable,
        ExitCode::Internal,
        ExitCode::OsUnfit,
        ExitCode::CannotCreate,
        ExitCode::Io,
        ExitCode::Locked,
        ExitCode::LinkCorrupt,
        ExitCode::NoPermission,
        ExitCode::Config,
        ExitCode::CrashLoop,
        ExitCode::LogDamaged,
        ExitCode::StateDamaged,
        ExitCode::DiskFault,
    ];

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The exit code with this number.
    pub fn from_code(code: i32) -> Option<ExitCode> {
        Self::ALL
            .into_iter()
            .find(|exit| i32::from(exit.code()) == code)
    }

    /// Whether a restart does not cure it and somebody has to act first. The supervisor believes a daemon that says so twice, and
    /// systemd starts no node again that ended so (`RestartPreventExitStatus` of the unit).
    pub fn is_verdict(self) -> bool {
        match self {
            ExitCode::Usage
            | ExitCode::OsUnfit
            | ExitCode::NoPermission
            | ExitCode::Config
            | ExitCode::LogDamaged
            | ExitCode::StateDamaged
            | ExitCode::DiskFault => true,
            ExitCode::Done
            | ExitCode::Failed
            | ExitCode::Unavailable
            | ExitCode::Internal
            | ExitCode::CannotCreate
            | ExitCode::Io
            | ExitCode::Locked
            | ExitCode::LinkCorrupt
            | ExitCode::CrashLoop => false,
        }
    }

    /// What it means, in a sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            ExitCode::Done => "stopped as asked",
            ExitCode::Failed => "failed for a reason that the log tells",
            ExitCode::Usage => "wrong command line arguments",
            ExitCode::Unavailable => "a port or an address cannot be had",
            ExitCode::Internal => "a broken invariant: a fault of the program",
            ExitCode::OsUnfit => "the machine lacks io_uring or lockable memory",
            ExitCode::CannotCreate => "the data directory cannot be made",
            ExitCode::Io => "files cannot be made, read or written",
            ExitCode::Locked => "another node uses the data directory",
            ExitCode::LinkCorrupt => "shared memory between two daemons is corrupt",
            ExitCode::NoPermission => "the permissions do not suffice",
            ExitCode::Config => "the configuration is wrong",
            ExitCode::CrashLoop => "a daemon died too often",
            ExitCode::LogDamaged => "the log on disk is damaged",
            ExitCode::StateDamaged => "the state machine's files are damaged",
            ExitCode::DiskFault => "the disk failed to read or write",
        }
    }

    /// The way out.
    pub fn remedy(self) -> &'static str {
        match self {
            ExitCode::Done => "nothing to do",
            ExitCode::Failed => "read the last lines of the journal: journalctl -u mareedb -n 50",
            ExitCode::Usage => "see maree-db-server --help",
            ExitCode::Unavailable => {
                "do what the message says: free the port, or correct server.listen_addr or server.advertise_addr"
            }
            ExitCode::Internal => {
                "report it with the last words from the journal; the node restarts by itself"
            }
            ExitCode::OsUnfit => {
                "allow io_uring (sysctl kernel.io_uring_disabled=0) and raise LimitMEMLOCK"
            }
            ExitCode::CannotCreate => "check the path and permissions of server.data_dir",
            ExitCode::Io => "check server.data_dir as the message says, and its file system",
            ExitCode::Locked => {
                "one data directory belongs to one node: stop the other one or change server.data_dir"
            }
            ExitCode::LinkCorrupt => {
                "none needed: both ends restart over a new link; report it if it repeats"
            }
            ExitCode::NoPermission => {
                "run it as the owner of server.data_dir; ports below 1024 need CAP_NET_BIND_SERVICE"
            }
            ExitCode::Config => "correct what maree-db-server --check lists",
            ExitCode::CrashLoop => "see docs/runbooks/crash-loop.md",
            ExitCode::LogDamaged => {
                "keep the node stopped and its files as they are: see docs/runbooks/lost-node.md"
            }
            ExitCode::StateDamaged => {
                "keep the node stopped and its files as they are: see docs/runbooks/lost-node.md"
            }
            ExitCode::DiskFault => {
                "check the disk (dmesg, smartctl), see docs/runbooks/disk-fault.md; the other nodes hold the data"
            }
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(exit: ExitCode) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with an empty directory cannot take a member's place.
    #[test]
    fn no_way_out_costs_the_data() {
        for exit in ExitCode::ALL {
            let remedy = exit.remedy();
            assert!(!remedy.contains("empty"), "{exit:?}: {remedy}");
        }
        for exit in [ExitCode::LogDamaged, ExitCode::StateDamaged] {
            let remedy = exit.remedy();
            assert!(remedy.contains("files as they are"), "{exit:?}: {remedy}");
        }
    }
}
