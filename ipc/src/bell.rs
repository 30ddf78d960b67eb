//! Doorbells: one a waiting thread, shared by all rings that it waits for.
//!
//! A ring says "look", never at what: a waiter drains its bell first and looks at all its rings after that, so that a ring
//! that comes in between is not taken away unseen.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// One end of a doorbell. Its descriptor becomes readable when somebody rang.
pub struct Bell {
    fd: OwnedFd,
    kind: BellKind,
    /// Who waits, as far as a simulation has to know it.
    #[cfg(feature = "simulation")]
    waiter: Option<crate::Waiter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BellKind {
    Event,
    Socket,
}

impl Bell {
    pub(crate) fn new(fd: OwnedFd, kind: BellKind) -> Bell {
        Bell {
            fd,
            kind,
            #[cfg(feature = "simulation")]
            waiter: None,
        }
    }

    /// The ringing end that an inherited doorbell of `waiter` is.
    #[cfg_attr(
        not(feature = "simulation"),
        expect(unused_mut, unused_variables, reason = "a simulation rings by name")
    )]
    pub(crate) fn inherited(fd: OwnedFd, kind: BellKind, waiter: crate::Waiter) -> Bell {
        let mut bell = Bell::new(fd, kind);
        #[cfg(feature = "simulation")]
        {
            bell.waiter = Some(waiter);
        }
        bell
    }

    /// Wakes whoever waits. Never blocks (RING-9): a bell that is full of rings will wake its waiter anyway.
    ///
    /// # Panics
    /// The descriptor is no doorbell.
    pub fn ring(&self) {
        #[cfg(feature = "simulation")]
        if let (Some(waiter), Some(world)) = (self.waiter, crate::world::current()) {
            return world.ring(waiter);
        }
        loop {
            let rung = match self.kind {
                BellKind::Event => nix::unistd::write(&self.fd, &1u64.to_ne_bytes()),
                // The flags hold whatever an event loop did to the socket's own; nor does a closed end raise SIGPIPE.
                BellKind::Socket => send(
                    self.fd.as_raw_fd(),
                    &[1],
                    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                ),
            };
            match rung {
                Ok(_) | Err(Errno::EAGAIN) => return,
                // Nobody waits any more. The supervisor keeps both ends open, so this is the end of the node.
                Err(Errno::EPIPE | Errno::ECONNRESET) => return,
                Err(Errno::EINTR) => {}
                Err(error) => panic!("a doorbell cannot be rung: {error}"),
            }
        }
    }

    /// Takes all rings so far, so that the descriptor is quiet until the next.
    pub fn drain(&self) {
        let mut bytes = [0; 512];
        loop {
            match nix::unistd::read(&self.fd, &mut bytes) {
                Ok(n) if n == bytes.len() => {}
                Ok(_) | Err(Errno::EAGAIN | Errno::ECONNRESET) => return,
                Err(Errno::EINTR) => {}
                Err(error) => panic!("a doorbell cannot be read: {error}"),
            }
        }
    }

    /// Waits until somebody rings, and takes the ring. `false`: the time was over first.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        // A time beyond the clock's range is for ever.
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    /// RING-9: a socket that nobody reads fills up; ringing goes on returning, and the waiter still wakes. Blocking mode
    /// set by somebody else changes nothing.
    #[test]
    fn ring_9_a_full_bell_never_blocks_its_ringer() {
        let (wait, ring) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let bell = Bell::new(ring, BellKind::Socket);
        let payload = [1u8; 1];
        let full = || send(bell.fd.as_raw_fd(), &payload, MsgFlags::MSG_DONTWAIT);
        while full().is_ok() {}
        assert_eq!(full(), Err(Errno::EAGAIN));
        bell.ring();
        nix::fcntl::fcntl(
            &wait,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .unwrap();
        let waiter = Bell::new(wait, BellKind::Socket);
        assert!(waiter.wait(Some(Duration::ZERO)));
        assert!(!waiter.wait(Some(Duration::ZERO)), "all rings were taken");
        drop(waiter);
        bell.ring();
    }

    #[test]
    fn ring_9_a_full_eventfd_never_blocks_its_ringer() {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        event.write(u64::MAX - 1).unwrap();
        let bell = Bell::new(event.into(), BellKind::Event);
        bell.ring();
        assert!(bell.wait(Some(Duration::MAX)));
        assert!(!bell.wait(Some(Duration::ZERO)));
    }
}
