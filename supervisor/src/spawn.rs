//! Starting a daemon.
//!
//! **Invariants.**
//! - SUP-2: a daemon never outlives its supervisor. PDEATHSIG kills it when the supervisor's *main thread* ends, so daemons are
//!   started from there only; the window before the child has asked for that signal is closed by comparing getppid with the pid
//!   that forked it.
//! - A daemon is the same version as its supervisor: what is executed is a descriptor of the supervisor's own executable that was
//!   opened at the start, not a path that an upgrade may have replaced since.
//! - A daemon inherits stdio and what its inheritance names; every other descriptor is close-on-exec.
//! - Each daemon leads a process group of its own, so that Ctrl-C in a terminal reaches the supervisor alone.

use crate::notify::VARIABLES;
use mareedb_ipc::{InheritPlan, Role};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{getpid, getppid, gettid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The executable of all roles, held open.
pub struct Executable {
    fd: OwnedFd,
}

impl Executable {
    /// This process's own.
    pub fn own() -> io::Result<Executable> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(Path::new("/proc/self/exe"), flags, Mode::empty())?;
        Ok(Executable { fd })
    }
}

/// A running process of a daemon. Dropping it neither kills nor reaps.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By a signal.
    Signal(i32),
    /// With a code.
    Code(i32),
}

impl Process {
    /// This process, as if it had been spawned, for tests that ask nothing of it.
    #[cfg(test)]
    pub(crate) fn this() -> io::Result<Process> {
        Ok(Process {
            pid: std::process::id(),
            pidfd: std::fs::File::open("/proc/self/stat")?.into(),
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; a process that is gone already is fine.
    pub fn signal(&self, signal: Signal) {
        // SAFETY: a plain system call with a descriptor that we own, no pointers that the kernel would follow (siginfo is null).
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0u32,
            );
        }
    }

    /// Reaps it, if it has ended. Never waits.
    pub fn reap(&self) -> io::Result<Option<Ended>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        Ok(match waitid(Id::PIDFd(self.pidfd.as_fd()), flags)? {
            WaitStatus::Exited(_, code) => Some(Ended::Code(code)),
            WaitStatus::Signaled(_, signal, _) => Some(Ended::Signal(signal as i32)),
            _ => None,
        })
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Starts `role`.
///
/// # Panics
/// If this is not the main thread (SUP-2).
pub fn spawn(
    executable: &Executable,
    role: Role,
    inherit: InheritPlan,
    extra: &[(&str, RawFd)],
) -> io::Result<Process> {
    assert_eq!(
        gettid(),
        getpid(),
        "SUP-2: daemons are started by the main thread"
    );
    let supervisor = getpid();
    let mut fds = inherit.fds;
    fds.extend(extra.iter().map(|(_, fd)| *fd));
    let mut command = Command::new(format!("/proc/self/fd/{}", executable.fd.as_raw_fd()));
    command
        .arg0(format!("maree-db-server: {role}"))
        .env(inherit.env.0, inherit.env.1)
        .stdin(Stdio::null())
        .process_group(0);
    for (name, fd) in extra {
        command.env(name, fd.to_string());
    }
    for name in VARIABLES {
        command.env_remove(name);
    }
    // SAFETY: between fork and exec only system calls are made: prctl, getppid, sigprocmask, fcntl. Nothing allocates or locks; the
    // vector was built before the fork.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != supervisor {
                // The supervisor died before the line above: nobody would send the signal any more.
                return Err(Errno::ESRCH.into());
            }
            // The supervisor reads its signals from a descriptor and blocks them; a mask outlives exec.
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            for fd in &fds {
                let fd = BorrowedFd::borrow_raw(*fd);
                let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD)?);
                fcntl(fd, FcntlArg::F_SETFD(flags & !FdFlag::FD_CLOEXEC))?;
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = child.id();
    match pidfd_open(pid) {
        Ok(pidfd) => Ok(Process { pid, pidfd }),
        Err(error) => {
            // Without a pidfd nobody could watch it, so it must not live. Waiting here is short: it was just killed.
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call without pointers; the child is ours and not reaped, so the pid cannot name another process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0u32) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor (close-on-exec) and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
