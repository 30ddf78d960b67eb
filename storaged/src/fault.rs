//! A disk that failed is not trusted again by itself.
//!
//! After a failed write or sync the kernel may call pages clean that never reached the disk, and show them to whoever reads next: a
//! restart would find all well. So the process ends with [`ExitCode::DiskFault`], a mark stays in the data directory as far as the disk
//! still takes it, and no start looks at the data before somebody has removed the mark (STO-FAULT). What the kernel holds of the files is
//! given up by then, so that what is read is what the disk has. The board says it from the first fault on: whatever ends the process
//! between that and its exit, the supervisor starts it no more.

use crate::io::sync_dir;
use crate::shard::Ended;
use mareedb_ipc::world::wall_ms;
use mareedb_ipc::{BoardWriter, ExitCode, Gauge};
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MARK: &str = "DISK_FAULT";
/// As much of a mark is shown.
const TOLD_BYTES_MAX: usize = 600;

/// Whether an error is the disk's: not a full one, not a missing or forbidden file.
pub fn is_fault(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Some(
            libc::EIO
                | libc::EROFS
                | libc::ENXIO
                | libc::ENODEV
                | libc::ENOMEDIUM
                | libc::ENODATA
                | libc::ENOLINK
                | libc::EBADE
                | libc::ESTALE
                | libc::EREMOTEIO
                | libc::EUCLEAN
                | libc::EBADMSG
                | libc::EILSEQ
                | libc::ETIMEDOUT
        )
    )
}

/// The system's number, which may be inside what a library made of the error.
fn errno(error: &io::Error) -> Option<i32> {
    if let Some(code) = error.raw_os_error() {
        return Some(code);
    }
    let mut inner: Option<&(dyn Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(error) = inner {
        match error.downcast_ref::<io::Error>() {
            Some(error) => return errno(error),
            None => inner = error.source(),
        }
    }
    // tempfile, with which the engine replaces its list of files, gives no other way to it than the text.
    let text = error.to_string();
    let (_, code) = text.split_once("(os error ")?;
    code.split_once(')')?.0.parse().ok()
}

/// Whether there is no room for what was asked.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The first fault that anything in this process has met, whoever was told of it.
static SEEN: OnceLock<String> = OnceLock::new();

/// Where the first fault is shown at once.
static BOARD: OnceLock<BoardWriter> = OnceLock::new();

/// Has faults shown on this process's board.
pub fn show_on(board: BoardWriter) {
    BOARD.get_or_init(|| board);
}

/// Remembers an error if it is a fault: it ends the process, also where it is only answered to somebody.
pub fn note(error: &io::Error) {
    if is_fault(error) {
        SEEN.get_or_init(|| error.to_string());
        if let Some(board) = BOARD.get() {
            board.set(Gauge::DiskFault, 1);
        }
    }
}

/// The first fault that was met.
pub fn seen() -> Option<&'static str> {
    SEEN.get().map(String::as_str)
}

/// What an end is once a fault was `seen`: what follows one is its consequence, whatever it looks like, a good end too.
pub fn overrules(ended: Ended, seen: Option<&str>) -> Ended {
    let Some(seen) = seen else {
        return ended;
    };
    let why = match ended {
        Ended::Failed(ExitCode::DiskFault, _) => return ended,
        Ended::Failed(_, why) => format!("{seen}; then {why}"),
        Ended::Ring(error) => format!("{seen}; then {error}"),
        Ended::Stopped => format!("{seen}, while it stopped"),
    };
    Ended::Failed(ExitCode::DiskFault, why)
}

/// What a process that cannot go on for this error ends with.
pub fn exit_of(error: &io::Error) -> ExitCode {
    if is_fault(error) {
        ExitCode::DiskFault
    } else {
        ExitCode::Io
    }
}

/// Refuses to start over data that a disk's fault may have touched.
///
/// # Errors
/// The mark is there; the text says what it holds and the ways out.
pub fn check(data_dir: &Path) -> Result<(), Ended> {
    let mark = mark(data_dir);
    let told = match fs::read(&mark) {
        Ok(told) => told,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => error.to_string().into_bytes(),
    };
    forget_pages(data_dir);
    let told = String::from_utf8_lossy(&told[..told.len().min(TOLD_BYTES_MAX)]).into_owned();
    Err(Ended::Failed(
        ExitCode::DiskFault,
        format!(
            "the disk failed before ({}): what {} holds may not be what was written. Check the disk; remove {} to take \
             what is there, which is checked as it is read, or treat the node as lost; see docs/runbooks/disk-fault.md",
            told.trim_end(),
            data_dir.display(),
            mark.display()
        ),
    ))
}

/// Leaves the mark, as far as the disk takes it.
pub fn remember(data_dir: &Path, why: &str) {
    let at = wall_ms() / 1000;
    let written = File::create(mark(data_dir)).and_then(|mut file| {
        writeln!(file, "unix time {at}: {why}")?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| sync_dir(data_dir)) {
        tracing::error!(%error, "no mark of the disk's fault could be left");
    }
    forget_pages(data_dir);
}

fn mark(data_dir: &Path) -> PathBuf {
    data_dir.join(MARK)
}

/// Has the kernel give up what it holds of the files; best effort.
fn forget_pages(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            forget_pages(&path);
        } else if let Ok(file) = File::open(&path) {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            // It is advice.
            let _ = nix::fcntl::posix_fadvise(&file, 0, 0, advice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_missing_file_are_no_fault() {
        for code in [
            libc::ENOSPC,
            libc::ENOENT,
            libc::EACCES,
            libc::EDQUOT,
            libc::EMFILE,
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(exit_of(&error), ExitCode::Io, "{error}");
        }
        for code in [libc::EIO, libc::EROFS, libc::EUCLEAN] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(exit_of(&error), ExitCode::DiskFault, "{error}");
        }
    }

    /// STO-FAULT
    #[test]
    fn a_fault_is_one_whatever_a_library_wraps_around_it() {
        for (code, fault) in [(libc::EIO, true), (libc::ENOSPC, false)] {
            let error = || io::Error::from_raw_os_error(code);
            let kind = error().kind();
            let twice = io::Error::new(kind, io::Error::new(kind, error()));
            assert_eq!(is_fault(&twice), fault);
            let engine = io::Error::new(kind, lsm_tree::Error::Io(error()));
            assert_eq!(is_fault(&engine), fault);
            assert_eq!(is_full(&engine), !fault);
        }
        assert!(!is_fault(&io::Error::other("no number")));
        // As tempfile wraps it: only the text has the number.
        let full = tempfile::NamedTempFile::from_parts(
            File::options().write(true).open("/dev/full").unwrap(),
            tempfile::TempPath::try_from_path("/nowhere/list").unwrap(),
        );
        let error = { full }.write_all(b"x").unwrap_err();
        assert_eq!(error.raw_os_error(), None);
        assert_eq!(errno(&error), Some(libc::ENOSPC));
    }

    /// STO-FAULT
    #[test]
    fn the_data_is_refused_until_somebody_has_removed_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        remember(dir.path(), "write of unit 7: Input/output error");
        for _ in 0..2 {
            let Err(Ended::Failed(exit, why)) = check(dir.path()) else {
                panic!("it starts over the data");
            };
            assert_eq!(exit, ExitCode::DiskFault);
            assert!(why.contains("unit 7") && why.contains(MARK), "{why}");
        }
        fs::remove_file(dir.path().join(MARK)).unwrap();
        check(dir.path()).unwrap();
    }

    #[test]
    fn a_mark_that_is_no_text_or_no_file_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join(MARK);
        fs::write(&mark, vec![0xff; 10_000]).unwrap();
        assert!(check(dir.path()).is_err());
        fs::remove_file(&mark).unwrap();
        fs::create_dir(mark).unwrap();
        assert!(check(dir.path()).is_err());
    }

    /// STO-FAULT
    #[test]
    fn a_fault_is_remembered_and_shown_whoever_is_told_of_it() {
        use crate::state::StoreError;
        use mareedb_ipc::Role;
        use mareedb_ipc::testing::NodeInProcess;
        let node = NodeInProcess::small("{}");
        let board = node.attach(Role::Storage).board();
        show_on(board.clone());
        let _ = StoreError::from(io::Error::from_raw_os_error(libc::EIO));
        assert!(seen().is_some_and(|why| why.contains("error 5")));
        assert_eq!(board.reader().get(Gauge::DiskFault), 1);
    }

    /// STO-FAULT
    #[test]
    fn whatever_follows_a_fault_ends_with_its_code() {
        let ends = || {
            [
                Ended::Stopped,
                Ended::broken("a test"),
                Ended::Failed(ExitCode::DiskFault, "EIO".to_owned()),
            ]
        };
        for ended in ends() {
            let Ended::Failed(ExitCode::DiskFault, why) = overrules(ended, Some("EIO")) else {
                panic!("another code");
            };
            assert!(why.starts_with("EIO"), "{why}");
        }
        for ended in ends() {
            let before = format!("{ended:?}");
            assert_eq!(format!("{:?}", overrules(ended, None)), before);
        }
    }
}
