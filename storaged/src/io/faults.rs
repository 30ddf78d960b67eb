//! Faults of a disk, asked for from outside: for tests of whole nodes. Only in an executable that was built for them.
//!
//! The file `faults` in the data directory has a line for each fault that is wanted at this moment, and is looked at before each write:
//!
//! - `delay_ms=N`: a write of the log takes so much longer.
//! - `fail_write`: a write of the log fails with EIO, and is not made.
//! - `fail_create`: no segment can be made, ENOSPC.
//! - `tear`: of a write of the log the first half is made, then the process is gone.
//! - `lose`: a write of the log is not made, and the process is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the file asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Before a write is made.
    pub delay: Duration,
    /// It fails.
    pub fail_write: bool,
    /// So does making a segment.
    pub fail_create: bool,
    /// Half of a write, then the end.
    pub tear: bool,
    /// Nothing of a write, then the end.
    pub lose: bool,
}

/// What is wanted of the disk that holds a log's directory.
pub fn wanted(log_dir: &Path) -> Faults {
    let text = fs::read_to_string(file(log_dir)).unwrap_or_default();
    let mut faults = Faults::default();
    for line in text.lines() {
        match line.split_once('=') {
            Some(("delay_ms", ms)) => {
                faults.delay = Duration::from_millis(ms.trim().parse().unwrap_or(0));
            }
            Some(_) => {}
            None => match line.trim() {
                "fail_write" => faults.fail_write = true,
                "fail_create" => faults.fail_create = true,
                "tear" => faults.tear = true,
                "lose" => faults.lose = true,
                _ => {}
            },
        }
    }
    faults
}

/// Notes that a wanted fault has taken place: who asked cannot see otherwise that nothing had to be made meanwhile.
pub fn took_place(log_dir: &Path) {
    // Whoever asked may have removed the directory.
    let _ = fs::write(file(log_dir).with_extension("acted"), b"");
}

/// The error of a device.
pub fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// The end, as when the machine loses power.
pub fn die() -> ! {
    loop {
        // Nothing is left to do when this fails but to try again.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// `DATA/log/shard-N` is where a log is.
fn file(log_dir: &Path) -> PathBuf {
    let data = log_dir.ancestors().nth(2).unwrap_or(log_dir);
    data.join("faults")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_wanted_line_by_line_and_not_without_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log").join("shard-0");
        assert_eq!(wanted(&log), Faults::default());
        fs::write(
            dir.path().join("faults"),
            "delay_ms=1500\nfail_create\nnonsense\n",
        )
        .unwrap();
        let expected = Faults {
            delay: Duration::from_millis(1500),
            fail_create: true,
            ..Faults::default()
        };
        assert_eq!(wanted(&log), expected);
        fs::write(dir.path().join("faults"), "fail_write\ntear\nlose\n").unwrap();
        let found = wanted(&log);
        assert!(found.fail_write && found.tear && found.lose);
    }
}
