//! What a machine must offer before three nodes can run on it, checked before anything is started.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// A node locks about so much memory for its io_uring rings and buffers.
const MEMLOCK_BYTES_MIN: u64 = 2 << 20;

/// What is in the way, each with the way out; empty when nothing is.
pub fn faults(hosts: &[Ipv4Addr], ports: &[u16]) -> Vec<String> {
    let mut faults = Vec::new();
    for host in hosts {
        for port in ports {
            let addr = SocketAddr::from((*host, *port));
            if let Err(error) = TcpListener::bind(addr) {
                let culprit = holder(*port).unwrap_or_else(|| error.to_string());
                faults.push(format!(
                    "{addr} is taken ({culprit}): stop that process, or move the demo with --base 127.0.77.0"
                ));
            }
        }
    }
    faults.extend(io_uring());
    faults.extend(memlock());
    faults
}

fn io_uring() -> Option<String> {
    // Layout of struct io_uring_params: 120 bytes, all zero asks for the defaults.
    let mut params = [0u8; 120];
    // SAFETY: the kernel reads and writes at most the 120 bytes of io_uring_params that `params` has.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    if fd >= 0 {
        if let Ok(fd) = i32::try_from(fd) {
            // SAFETY: the call above returned this descriptor, and nobody else knows it.
            unsafe { libc::close(fd) };
        }
        return None;
    }
    let error = std::io::Error::last_os_error();
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let way_out = match setting.trim() {
        "1" | "2" => "run `sysctl kernel.io_uring_disabled=0` as root",
        _ if std::path::Path::new("/.dockerenv").exists() => {
            "Docker's default seccomp profile forbids it: run the container with --security-opt seccomp=unconfined"
        }
        _ => "a Linux kernel of 5.8 or newer with io_uring is needed",
    };
    Some(format!("io_uring does not work here ({error}): {way_out}"))
}

fn memlock() -> Option<String> {
    let (soft, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK).ok()?;
    (hard < MEMLOCK_BYTES_MIN).then(|| {
        format!(
            "only {soft} bytes of memory may be locked, {MEMLOCK_BYTES_MIN} are needed: raise the limit with \
             `ulimit -l 8192`, or in /etc/security/limits.conf (memlock)"
        )
    })
}

/// Who listens on a TCP port, for people: looks the socket up in /proc.
fn holder(port: u16) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let wanted = format!(":{port:04X}");
    let inode = table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listening = fields.get(3) == Some(&"0A");
        (listening && fields.get(1)?.ends_with(&wanted)).then(|| fields.get(9).copied())?
    })?;
    let link = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name();
        if !pid.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(fds) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for fd in fds.flatten() {
            if fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == link.as_str()) {
                let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("by {}, pid {}", comm.trim(), pid.display()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_told_with_its_holder() {
        let host = Ipv4Addr::new(127, 0, 0, 1);
        let listener = TcpListener::bind((host, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = faults(&[host], &[port]);
        let text = faults.join("\n");
        assert!(
            text.contains(&format!("pid {}", std::process::id())),
            "{text}"
        );
    }
}
