//! What is known of an exit: the cause for the policy, and the record for people.

use crate::plan::{Cause, Why};
use crate::spawn::Ended;
use mareedb_ipc::world::wall_ms;
use mareedb_ipc::{BoardReader, Cell, CorruptLink, ExitCode, Gauge, LastExit, Role};
use nix::sys::signal::Signal;

/// Longest reason of an exit; all of it is in the journal.
const REASON_BYTES_MAX: usize = 1200;

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
        _ if has_disk_fault(board) => Cause::Verdict(ExitCode::DiskFault),
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
        at_unix_ms: wall_ms(),
        signal,
        code,
        reason,
    };
    (cause, exit)
}

/// Whether the daemon has said that its disk failed. It says so as soon as it knows: on a sick disk it may not live to exit with the
/// code, since leaving its mark takes as long as the disk does (STO-FAULT).
fn has_disk_fault(board: &BoardReader) -> bool {
    board.get(Gauge::DiskFault) == 1
}

/// What the node ends with. A failed disk overrules what was decided: of a daemon that not even SIGKILL ended in time there is no exit
/// to be judged, but its word (STO-FAULT).
pub(crate) fn final_code<'a>(
    decided: ExitCode,
    mut boards: impl Iterator<Item = &'a BoardReader>,
) -> ExitCode {
    if boards.any(has_disk_fault) {
        ExitCode::DiskFault
    } else {
        decided
    }
}

fn cause_of(role: Role, code: i32, attached: bool, board: &BoardReader) -> Cause {
    match ExitCode::from_code(code) {
        // The cell may be a predecessor's when this process had no time to write its own.
        Some(ExitCode::LinkCorrupt) if !attached => Cause::CorruptAttach,
        Some(ExitCode::LinkCorrupt) => board
            .read::<CorruptLink>(Cell::CorruptLink)
            .map_or(Cause::CorruptAttach, |report| blame(role, &report)),
        Some(code) if code.is_verdict() => Cause::Verdict(code),
        _ => Cause::Crash,
    }
}

/// Who wrote the bad word is to blame, and the other end of that link goes with it.
fn blame(role: Role, report: &CorruptLink) -> Cause {
    let ends = [report.link.from, report.link.to];
    // A report about a link that the reporter has no end of is nonsense: it must not bring down others.
    if !ends.contains(&role) || ends.contains(&Role::Supervisor) {
        return Cause::Crash;
    }
    match (report.blame, ends) {
        // What the supervisor wrote when it made the ring is spoiled, by nobody knows whom, nor what else.
        (Role::Supervisor, _) => Cause::CorruptAttach,
        (blamed, [from, other]) if blamed == from => Cause::CorruptLink { blamed, other },
        (blamed, [other, to]) if blamed == to => Cause::CorruptLink { blamed, other },
        _ => Cause::Crash,
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

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::RandomId;
    use mareedb_ipc::{Lane, LinkId, NodeMemory, RingSizes, Topology};

    #[test]
    fn a_failed_disk_is_what_the_node_ends_with_whatever_was_decided() {
        let topology = Topology {
            shards: 1,
            readers: 1,
            sizes: RingSizes::each(1 << 16),
        };
        let memory = NodeMemory::create(topology, "{}", RandomId::draw()).unwrap();
        let boards = [Role::Gateway, Role::Supervisor].map(|role| memory.read_board(role));
        let ends_with = |decided| final_code(decided, boards.iter());
        for decided in [ExitCode::Done, ExitCode::CrashLoop] {
            assert_eq!(ends_with(decided), decided);
        }
        memory.board().set(Gauge::DiskFault, 1);
        for decided in [ExitCode::Done, ExitCode::CrashLoop] {
            assert_eq!(ends_with(decided), ExitCode::DiskFault);
        }
    }

    #[test]
    fn the_writer_is_blamed_and_a_spoiled_header_is_nobodys() {
        let (from, to) = (Role::Consensus, Role::Storage);
        let blamed = |role, blame| {
            let link = LinkId {
                from,
                to,
                lane: Lane::Log(0),
            };
            let what = String::new();
            super::blame(role, &CorruptLink { link, blame, what })
        };
        let cause = |blamed, other| Cause::CorruptLink { blamed, other };
        assert_eq!(blamed(to, from), cause(from, to));
        assert_eq!(blamed(to, to), cause(to, from));
        assert_eq!(blamed(from, to), cause(to, from));
        assert_eq!(blamed(to, Role::Supervisor), Cause::CorruptAttach);
        for nonsense in [
            blamed(Role::Gateway, from),
            blamed(Role::Gateway, Role::Supervisor),
            blamed(to, Role::Gateway),
        ] {
            assert_eq!(nonsense, Cause::Crash);
        }
    }
}
