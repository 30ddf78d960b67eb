//! What the operating system must give before daemons are worth starting: io_uring, locked memory, descriptors.
//!
//! storaged would fail without them, too, but deep inside a library and over and over. Here the reason is found out once and explained.

use crate::fault::StartFault;
use mareedb_ipc::ExitCode;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

/// Locked memory of one shard executor.
pub const MEMLOCK_BYTES_PER_SHARD: u64 = 1 << 20;

/// Raises soft limits to the hard ones where needed and checks what is left to check. The `Ok` value holds warnings.
pub fn check(shards: u16, connections_max: u64) -> Result<Vec<String>, StartFault> {
    memlock(shards)?;
    io_uring()?;
    Ok(descriptors(connections_max).into_iter().collect())
}

/// Raises the soft limit up to the hard one if it is below `needed`; returns what it is now.
fn raise(resource: Resource, needed: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(resource) else {
        return 0;
    };
    if soft >= needed {
        return soft;
    }
    let wanted = needed.min(hard);
    match setrlimit(resource, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}

fn memlock(shards: u16) -> Result<(), StartFault> {
    let needed = u64::from(shards) * MEMLOCK_BYTES_PER_SHARD;
    let have = raise(Resource::RLIMIT_MEMLOCK, needed);
    if have >= needed {
        return Ok(());
    }
    Err(memlock_fault(shards, needed, have))
}

fn memlock_fault(shards: u16, needed: u64, have: u64) -> StartFault {
    StartFault {
        code: ExitCode::OsUnfit,
        what: format!("cannot start {shards} storage shard(s)"),
        why: format!(
            "they need {} KiB of locked memory, and this process may lock {} KiB (RLIMIT_MEMLOCK, hard limit)",
            needed >> 10,
            have >> 10
        ),
        remedy: "set LimitMEMLOCK=64M in the unit (packaging/mareedb.service does), `ulimit -Hl` in a shell, or \
                 --ulimit memlock=67108864 in Docker"
            .to_owned(),
    }
}

fn descriptors(connections_max: u64) -> Option<String> {
    // Both ports, a forwarded stream a peer, files of the trees, and some to spare.
    let needed = connections_max.saturating_mul(2).saturating_add(1024);
    let have = raise(Resource::RLIMIT_NOFILE, needed);
    (have < needed).then(|| {
        format!(
            "this process may open {have} descriptors, limits.connections_max = {connections_max} on two ports may need {needed}: \
             set LimitNOFILE={needed} in the unit"
        )
    })
}

/// Asks the kernel for a ring and gives it back.
fn io_uring() -> Result<(), StartFault> {
    // struct io_uring_params is 120 bytes; all zero means: no flags.
    let mut params = [0u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes at the pointer, which is the size of the array; it is valid for the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4u32, params.as_mut_ptr()) };
    match i32::try_from(fd) {
        Ok(fd) if fd >= 0 => {
            // SAFETY: the kernel has just returned this descriptor and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(())
        }
        _ => Err(io_uring_fault(
            Errno::last(),
            sysctl_disabled(),
            seccomp_mode(),
        )),
    }
}

fn sysctl_disabled() -> Option<u32> {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

fn seccomp_mode() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("Seccomp:"))?;
    line.trim().parse().ok()
}

fn io_uring_fault(errno: Errno, disabled: Option<u32>, seccomp: Option<u32>) -> StartFault {
    let (why, remedy) = match (errno, disabled, seccomp) {
        (_, Some(2), _) => (
            "the sysctl kernel.io_uring_disabled is 2: io_uring is off for every process".to_owned(),
            "sysctl -w kernel.io_uring_disabled=0, and keep it in /etc/sysctl.d".to_owned(),
        ),
        (Errno::EPERM, Some(1), _) => (
            "the sysctl kernel.io_uring_disabled is 1: only privileged processes and the group kernel.io_uring_group may use it".to_owned(),
            "set kernel.io_uring_group to a group of the node's user, or sysctl -w kernel.io_uring_disabled=0".to_owned(),
        ),
        // A filter that lets io_uring pass is there as well: the unit's own settings are one.
        (Errno::EPERM | Errno::EACCES, _, Some(2)) => (
            format!("a seccomp filter refuses io_uring ({}); Docker's default profile does so", errno.desc()),
            "run the container with a profile that allows io_uring_setup, io_uring_enter and io_uring_register (docker run \
             --security-opt seccomp=profile.json); in systemd check SystemCallFilter"
                .to_owned(),
        ),
        (Errno::ENOSYS, _, _) => (
            "this kernel has no io_uring".to_owned(),
            "use Linux 5.15 or later".to_owned(),
        ),
        (Errno::ENOMEM, _, _) => (
            "not enough locked memory is left for this user (io_uring_setup: ENOMEM)".to_owned(),
            "set LimitMEMLOCK=64M in the unit; other processes of the same user count as well".to_owned(),
        ),
        (Errno::EMFILE | Errno::ENFILE, _, _) => (
            errno.desc().to_owned(),
            "raise LimitNOFILE in the unit, or the sysctl fs.file-max".to_owned(),
        ),
        _ => (
            errno.desc().to_owned(),
            "`strace -e io_uring_setup` shows the refusal; security modules may forbid it".to_owned(),
        ),
    };
    // What is short now may be there at the next start; for an unfit machine systemd does not try one.
    let code = match errno {
        Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN => ExitCode::Failed,
        _ => ExitCode::OsUnfit,
    };
    StartFault {
        code,
        what: "cannot use io_uring, which storage needs".to_owned(),
        why,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_disable_io_uring_has_its_own_words() {
        let unfit = ExitCode::OsUnfit;
        let cases = [
            (Errno::EPERM, Some(2), Some(0), "is 2", unfit),
            (Errno::EPERM, Some(1), Some(0), "io_uring_group", unfit),
            (Errno::EPERM, Some(0), Some(2), "seccomp", unfit),
            (Errno::EACCES, Some(0), Some(2), "seccomp", unfit),
            (Errno::EACCES, Some(0), Some(0), "strace", unfit),
            // The unit's own filter lets io_uring pass.
            (Errno::ENOSYS, None, Some(2), "Linux 5.15", unfit),
            (
                Errno::ENOMEM,
                Some(0),
                Some(2),
                "LimitMEMLOCK",
                ExitCode::Failed,
            ),
            (
                Errno::EMFILE,
                Some(0),
                Some(2),
                "LimitNOFILE",
                ExitCode::Failed,
            ),
            (
                Errno::ENFILE,
                Some(0),
                Some(2),
                "file-max",
                ExitCode::Failed,
            ),
        ];
        for (errno, disabled, seccomp, word, code) in cases {
            let fault = io_uring_fault(errno, disabled, seccomp);
            assert_eq!(fault.code, code, "{errno}");
            assert!(fault.to_string().contains(word), "{errno}: {fault}");
        }
    }

    #[test]
    fn too_little_locked_memory_says_how_much() {
        let text = memlock_fault(8, 8 << 20, 64 << 10).to_string();
        assert!(text.contains("8192 KiB"), "{text}");
        assert!(text.contains("64 KiB"), "{text}");
        assert!(text.contains("LimitMEMLOCK"), "{text}");
    }

    #[test]
    fn descriptors_are_warned_about_only() {
        assert!(descriptors(1).is_none());
        let warning = descriptors(u64::MAX).expect("nobody has that many");
        assert!(warning.contains("LimitNOFILE"), "{warning}");
    }
}
