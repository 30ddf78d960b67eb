//! The log level that all four processes share and that a reload changes.
//!
//! A memfd holds the level's text. Daemons inherit it and read it when they start and at every SIGHUP, so a daemon that is
//! restarted after a reload speaks at the same level as the others. Only the supervisor writes, and it sends SIGHUP afterwards: a
//! starting daemon that read half a text reads again.

use mareedb_config::LEVEL_BYTES_MAX;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;

/// Names the inherited descriptor.
pub const LEVEL_FD: &str = "MAREEDB_LOG_LEVEL_FD";

/// The shared level.
#[derive(Debug)]
pub struct SharedLevel {
    file: File,
}

impl SharedLevel {
    /// With a first text.
    pub fn new(text: &str) -> io::Result<SharedLevel> {
        let file = File::from(memfd_create(c"mareedb-log-level", MFdFlags::MFD_CLOEXEC)?);
        let level = SharedLevel { file };
        level.set(text)?;
        Ok(level)
    }

    /// In a daemon: what the supervisor handed down, or `None` without a supervisor.
    pub fn from_env() -> Option<SharedLevel> {
        let fd: RawFd = std::env::var(LEVEL_FD).ok()?.parse().ok()?;
        // SAFETY: the variable is set only by our supervisor, for a descriptor that it leaves open for the life of this process; it is only
        // looked at for the duplication, and a number that names nothing is an error of fcntl.
        let inherited = unsafe { BorrowedFd::borrow_raw(fd) };
        let file = File::from(inherited.try_clone_to_owned().ok()?);
        Some(SharedLevel { file })
    }

    /// Replaces the text. One that has no room, or a zero in it, would be read as another: no configuration has such a one.
    pub fn set(&self, text: &str) -> io::Result<()> {
        if text.len() > LEVEL_BYTES_MAX || text.contains('\0') {
            let why = format!(
                "log.level has {} bytes: at most {LEVEL_BYTES_MAX}, without zeros",
                text.len()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut bytes = [0u8; LEVEL_BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        self.file.write_all_at(&bytes, 0)
    }

    /// The text.
    pub fn get(&self) -> io::Result<String> {
        let mut bytes = [0u8; LEVEL_BYTES_MAX];
        self.file.read_exact_at(&mut bytes, 0)?;
        let length = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        String::from_utf8(bytes[..length].to_vec())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The descriptor that daemons inherit.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_text_leaves_nothing_of_the_longer_one() {
        let level = SharedLevel::new("info,mareedb_consensusd=debug").unwrap();
        assert_eq!(level.get().unwrap(), "info,mareedb_consensusd=debug");
        level.set("warn").unwrap();
        assert_eq!(level.get().unwrap(), "warn");
    }

    #[test]
    fn what_would_be_read_as_another_text_is_refused() {
        let longest = "x".repeat(LEVEL_BYTES_MAX);
        let level = SharedLevel::new(&longest).unwrap();
        for bad in [format!("{longest}x"), "info,a\0=debug".to_owned()] {
            let error = level.set(&bad).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(level.get().unwrap(), longest);
    }
}
