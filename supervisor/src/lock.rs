//! The data directory and its lock: one node owns a directory at a time.
//!
//! The lock is a flock on `<data_dir>/LOCK`. storaged inherits the same open file description, so the lock lives until the last
//! process that could write to the directory is gone, even when the supervisor died first, or left one behind that sits in the
//! kernel. Hence nothing here ever unlocks: an explicit LOCK_UN by one holder takes the lock from all of them.

use crate::fault::{StartError, StartFault, words};
use crate::patience::{Attempt, wait_for};
use crate::signals::Signals;
use mareedb_ipc::ExitCode;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the lock file in the data directory.
pub const LOCK_FILE: &str = "LOCK";

/// The held lock.
#[derive(Debug)]
pub struct DirLock {
    file: File,
}

impl DirLock {
    /// Creates the directory if it is missing and takes its lock, waiting for a predecessor for at most `limit`.
    pub fn take(dir: &Path, limit: Duration, signals: &Signals) -> Result<DirLock, StartError> {
        create_dir(dir)?;
        let path = dir.join(LOCK_FILE);
        let mut file = open(&path)?;
        wait_for(signals, limit, || match file.try_lock() {
            Ok(()) => Attempt::Done(()),
            Err(TryLockError::WouldBlock) => Attempt::Later(held(&path, limit, &mut file)),
            Err(TryLockError::Error(error)) => Attempt::Never(cannot(&path, "lock", &error)),
        })?;
        // Who holds it stands in the file, for the message of whoever comes next. It is a courtesy: failing to write it fails
        // nothing.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(DirLock { file })
    }

    /// The descriptor that storaged inherits.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn create_dir(dir: &Path) -> Result<(), StartFault> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| {
            // An existing file gives AlreadyExists.
            let why = if error.kind() == ErrorKind::AlreadyExists {
                "it exists and is not a directory".to_owned()
            } else {
                words(&error)
            };
            StartFault {
                code: code_of(&error, ExitCode::CannotCreate),
                what: format!("cannot create the data directory {}", dir.display()),
                why,
                remedy: format!(
                    "create it and give it to the user that runs the node (mkdir -p {0} && chown <user> {0}), or set server.data_dir",
                    dir.display()
                ),
            }
        })
}

fn open(path: &PathBuf) -> Result<File, StartFault> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::libc::O_CLOEXEC | nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| cannot(path, "open", &error))
}

fn cannot(path: &Path, verb: &str, error: &io::Error) -> StartFault {
    StartFault {
        code: code_of(error, ExitCode::CannotCreate),
        what: format!("cannot {verb} {}", path.display()),
        why: words(error),
        remedy: "the user that runs the node must be able to write in server.data_dir, on a local file system that is not mounted read-only"
            .to_owned(),
    }
}

fn held(path: &Path, limit: Duration, file: &mut File) -> StartFault {
    let mut holder = String::new();
    let by = file
        .rewind()
        .and_then(|()| file.take(32).read_to_string(&mut holder))
        .ok()
        .and_then(|_| holder.trim().parse::<u32>().ok())
        .map_or_else(String::new, |pid| {
            format!(" (the last owner was pid {pid})")
        });
    StartFault {
        code: ExitCode::Locked,
        what: format!("cannot lock {}", path.display()),
        why: format!(
            "another node uses this data directory{by}, and it was still locked after {} ms",
            limit.as_millis()
        ),
        remedy: format!(
            "stop the other node (systemctl stop mareedb), or give this one another server.data_dir; `fuser {}` shows who holds it",
            path.display()
        ),
    }
}

fn code_of(error: &io::Error, otherwise: ExitCode) -> ExitCode {
    if error.kind() == ErrorKind::PermissionDenied {
        ExitCode::NoPermission
    } else {
        otherwise
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// A process that another test starts holds all descriptors of this one until it executes.
    const FREED: Duration = Duration::from_secs(20);

    fn signals() -> Signals {
        Signals::take().expect("signals")
    }

    #[test]
    fn the_directory_is_created_and_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        let first = DirLock::take(&data, Duration::ZERO, &signals()).unwrap();
        assert!(first.fd() > 2);
        let Err(StartError::Fault(fault)) =
            DirLock::take(&data, Duration::from_millis(50), &signals())
        else {
            panic!("locked twice")
        };
        assert_eq!(fault.code, ExitCode::Locked);
        let text = fault.to_string();
        assert!(
            text.contains(&data.join(LOCK_FILE).display().to_string()),
            "{text}"
        );
        assert!(
            text.contains(&format!("pid {}", std::process::id())),
            "{text}"
        );
        assert!(text.contains("server.data_dir"), "{text}");
        drop(first);
        DirLock::take(&data, FREED, &signals()).expect("free again");
    }

    #[test]
    fn a_process_that_inherited_the_lock_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path(), FREED, &signals()).unwrap();
        // As storaged does: the same open file description, in a process that its supervisor leaves behind.
        let mut heir = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::from(lock.file.try_clone().unwrap()))
            .spawn()
            .unwrap();
        drop(lock);
        let taken = DirLock::take(dir.path(), Duration::from_millis(50), &signals());
        heir.kill().unwrap();
        heir.wait().unwrap();
        let Err(StartError::Fault(fault)) = taken else {
            panic!("taken from a living process")
        };
        assert_eq!(fault.code, ExitCode::Locked);
        DirLock::take(dir.path(), FREED, &signals()).expect("free with its end");
    }

    #[test]
    fn a_start_waits_for_the_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path(), Duration::ZERO, &signals()).unwrap();
        let path = dir.path().to_owned();
        let waiter = std::thread::spawn(move || {
            DirLock::take(&path, Duration::from_secs(20), &signals()).is_ok()
        });
        drop(first);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn a_file_in_the_way_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("data");
        std::fs::write(&file, b"x").unwrap();
        let Err(StartError::Fault(fault)) = DirLock::take(&file, Duration::ZERO, &signals()) else {
            panic!("a file is no directory")
        };
        assert_eq!(fault.code, ExitCode::CannotCreate);
        assert!(fault.to_string().contains("not a directory"), "{fault}");
    }
}
