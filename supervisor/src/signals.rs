//! The supervisor's signals, taken from a descriptor instead of handlers.
//!
//! SIGTERM, SIGINT and SIGHUP are blocked and read through a signalfd. Children start with an empty mask (see [`crate::spawn`]).

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// The signals of this process.
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks the signals and opens the descriptor. SIGCHLD gets its default disposition back: a parent that ignored it would have the
    /// kernel reap our children before we have seen their exit.
    pub fn take() -> io::Result<Signals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.add(Signal::SIGHUP);
        set.thread_block()?;
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: installing the default disposition runs no code of ours in a handler.
        unsafe { sigaction(Signal::SIGCHLD, &default)? };
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd })
    }

    /// The next request, if one is pending.
    pub fn next(&self) -> Option<Request> {
        let info = self.fd.read_signal().ok()??;
        let number = i32::try_from(info.ssi_signo).unwrap_or(0);
        if number == Signal::SIGHUP as i32 {
            Some(Request::Reload)
        } else {
            Some(Request::Stop)
        }
    }

    /// Sleeps for `duration` unless a stop is asked for. Returns whether it was. A reload is too early and forgotten.
    pub fn pause(&self, duration: Duration) -> bool {
        let timeout = PollTimeout::try_from(duration).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        // An interrupted or failed poll only makes the pause shorter; whoever pauses looks at a clock.
        let _ = poll(&mut fds, timeout);
        std::iter::from_fn(|| self.next()).any(|request| request == Request::Stop)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
