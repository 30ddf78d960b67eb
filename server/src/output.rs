//! stderr as the log's destination, without the risk that comes with it: a reader that does not read stops nobody.
//!
//! All four processes write to the same pipe. If it is full (a stuck journal, a harness that reads too late), a blocking write would
//! hold a daemon's main loop, which then is killed as hung, or the supervisor itself. So a line that finds no room is dropped, and the
//! next one that finds some says how many were.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::fmt::MakeWriter;

/// What a pipe takes without blocking once poll(2) says that it is writable (PIPE_BUF).
const CHUNK_BYTES: usize = 4096;

/// The destination.
#[derive(Clone)]
pub struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    fd: OwnedFd,
    dropped: AtomicU64,
}

impl Output {
    /// Writes to a duplicate of stderr.
    pub fn stderr() -> io::Result<Output> {
        Ok(Output::over(io::stderr().as_fd().try_clone_to_owned()?))
    }

    /// Writes to this.
    pub fn over(fd: OwnedFd) -> Output {
        let dropped = AtomicU64::new(0);
        Output {
            shared: Arc::new(Shared { fd, dropped }),
        }
    }

    fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(self.shared.fd.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::ZERO);
        let writable = fds[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLOUT));
        ready == Ok(1) && writable
    }

    /// Writes as much as finds room; a whole line nearly always does.
    fn offer(&self, bytes: &[u8]) -> bool {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            // Two processes may race for the last page: then one write waits until the reader has taken a page. That is rare and ends.
            if !self.has_room() || nix::unistd::write(&self.shared.fd, chunk).is_err() {
                return false;
            }
        }
        true
    }
}

impl Write for Output {
    /// Never fails and never writes a part: what cannot be written is counted.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let dropped = self.shared.dropped.swap(0, Ordering::Relaxed);
        let told = dropped == 0
            || self.offer(
                format!("[{dropped} lines of log were dropped: stderr was full]\n").as_bytes(),
            );
        if !told {
            self.shared
                .dropped
                .fetch_add(dropped + 1, Ordering::Relaxed);
        } else if !self.offer(bytes) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Output {
    type Writer = Output;
    fn make_writer(&self) -> Output {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_full_pipe_stops_nobody_and_the_loss_is_told() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::over(OwnedFd::from(writer));
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        // More than any default pipe holds (64 KiB, or one page for a user with many pipes).
        for _ in 0..200 {
            output.write_all(&line).unwrap();
        }
        let lost = output.shared.dropped.load(Ordering::Relaxed);
        assert!((100..200).contains(&lost), "{lost}");
        let mut taken = vec![0; 32_000];
        reader.read_exact(&mut taken).unwrap();
        output.write_all(b"after\n").unwrap();
        drop(output);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let tail = format!("[{lost} lines of log were dropped: stderr was full]\nafter\n");
        assert!(rest.ends_with(&tail), "{}", &rest[rest.len() - 100..]);
    }
}
