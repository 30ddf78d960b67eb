//! What is known of an exit: the cause for the policy, and the record for people.

use crate::plan::{Cause, Why};
use crate::spawn::Ended;
use mareedb_ipc::{BoardReader, Cell, CorruptLink, ExitCode, LastExit, Role};
use nix::sys::signal::Signal;
use std::time::{SystemTime, UNIX_EPOCH};

/// Codes that a restart does not cure. A disk's fault is believed at once, the others when they come twice (see [`crate::plan`]).
const VERDICTS: [ExitCode; 7] = [
    ExitCode::Usage,
    ExitCode::OsUnfit,
    ExitCode::NoPermission,
    ExitCode::Config,
    ExitCode::LogDamaged,
    ExitCode::StateDamaged,
    ExitCode::DiskFault,
];

/// Longest reason of an exit; all of it is in the journal.
const REASON_BYTES_MAX: usize = 1200;

/// Milliseconds since 1970, for records that people read.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// Reads the dead daemon's board and puts the evidence together.
pub(crate) fn judge(
    role: Role,
    ended: Ended,
    killed: Option<Why>,
    attached: bool,
    board: &BoardReader,
) -> (Cause, LastExit) {
    // Words of one that never attached would be its predecessor's.
    let words: String = board
        .read(Cell::LastWords)
        .filter(|_| attached)
        .unwrap_or_default();
    let cause = match ended {
        Ended::Code(code) => cause_of(role, code, attached, board),
        Ended::Signal(_) => Cause::Crash,
    };
    let mut reason = describe(ended, killed);
    if !words.is_empty() {
        reason.push_str(": ");
        reason.push_str(&words);
        // The record has to fit into a cell of the board, whatever a daemon had to say.
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
    }
    let (signal, code) = match ended {
        Ended::Signal(signal) => (Some(signal), None),
        Ended::Code(code) => (None, Some(code)),
    };
    let exit = LastExit {
        at_unix_ms: unix_ms(),
        signal,
        code,
        reason,
    };
    (cause, exit)
}

fn cause_of(role: Role, code: i32, attached: bool, board: &BoardReader) -> Cause {
    match ExitCode::from_code(code) {
        // The cell may be a predecessor's when this process had no time to write its own.
        Some(ExitCode::LinkCorrupt) if !attached => Cause::CorruptAttach,
        Some(ExitCode::LinkCorrupt) => board
            .read::<CorruptLink>(Cell::CorruptLink)
            .map_or(Cause::CorruptAttach, |report| blame(role, &report)),
        Some(code) if VERDICTS.contains(&code) => Cause::Verdict(code),
        _ => Cause::Crash,
    }
}

/// Who wrote the bad word is to blame, and the other end of that link goes with it.
fn blame(role: Role, report: &CorruptLink) -> Cause {
    let ends = [report.link.from, report.link.to];
    // A report about a link that the reporter has no end of is nonsense: it must not bring down others.
    if !ends.contains(&role) || !ends.contains(&report.blame) || ends.contains(&Role::Supervisor) {
        return Cause::Crash;
    }
    let other = if ends[0] == report.blame {
        ends[1]
    } else {
        ends[0]
    };
    Cause::CorruptLink {
        blamed: report.blame,
        other,
    }
}

fn describe(ended: Ended, killed: Option<Why>) -> String {
    let how = match ended {
        Ended::Signal(number) => {
            let name = Signal::try_from(number).map_or("unknown", Signal::as_str);
            format!("signal {number} ({name})")
        }
        Ended::Code(number) => match ExitCode::from_code(number) {
            Some(code) => format!("exit code {number} ({})", code.meaning()),
            None => format!("exit code {number}"),
        },
    };
    match killed {
        None => how,
        Some(why) => format!("{how}, from the supervisor: {}", reason_of(why)),
    }
}

pub(crate) fn reason_of(why: Why) -> &'static str {
    match why {
        Why::Hung => "no heartbeat for too long",
        Why::LinkReplaced => "a link that it shared was replaced",
        Why::Escalation => "all daemons are restarted together",
        Why::StopLimit => "it did not stop in time",
    }
}
