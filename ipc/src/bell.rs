//! Doorbells: one a waiting thread.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// One end of a doorbell. Its descriptor becomes readable when somebody rang.
pub struct Bell {
    fd: OwnedFd,
    kind: BellKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BellKind {
    Event,
    Socket,
}

impl Bell {
    pub(crate) fn new(fd: OwnedFd, kind: BellKind) -> Bell {
        Bell { fd, kind }
    }

    /// Wakes whoever waits. Never blocks: a bell that is full of rings will wake its waiter anyway.
    pub fn ring(&self) {
        let bytes: &[u8] = match self.kind {
            BellKind::Event => &1u64.to_ne_bytes(),
            BellKind::Socket => &[1],
        };
        match nix::unistd::write(&self.fd, bytes) {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(Errno::EINTR) => self.ring(),
            Err(error) => panic!("a doorbell cannot be rung: {error}"),
        }
    }

    /// Takes all rings so far, so that the descriptor is quiet until the next.
    pub fn drain(&self) {
        let mut bytes = [0; 512];
        loop {
            match nix::unistd::read(&self.fd, &mut bytes) {
                Ok(n) if n == bytes.len() => {}
                Ok(_) | Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(error) => panic!("a doorbell cannot be read: {error}"),
            }
        }
    }

    /// Waits until somebody rings, and takes the ring. `false`: the time was over first.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = match end {
                None => PollTimeout::NONE,
                Some(end) => {
                    // Rounded up, or the last part of a millisecond would be spun away.
                    let left = end.saturating_duration_since(Instant::now());
                    let ms = left.as_micros().div_ceil(1000).min(60_000);
                    PollTimeout::try_from(i32::try_from(ms).unwrap_or(60_000))
                        .unwrap_or(PollTimeout::MAX)
                }
            };
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], left) {
                Ok(0) => {
                    if end.is_some_and(|end| Instant::now() >= end) {
                        return false;
                    }
                }
                Ok(_) => {
                    self.drain();
                    return true;
                }
                Err(Errno::EINTR) => {}
                Err(error) => panic!("a doorbell cannot be polled: {error}"),
            }
        }
    }

    /// The descriptor, for an event loop of the caller's. It is non-blocking.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
