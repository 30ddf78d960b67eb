//! What a machine must offer before three nodes can run on it, checked before anything is started.

use std::fs;
use std::io::{Error, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

/// A node locks about so much memory for its io_uring rings and buffers.
const MEMLOCK_BYTES_MIN: u64 = 2 << 20;

/// What is in the way, each with the way out; empty when nothing is.
pub fn faults(hosts: &[Ipv4Addr], ports: &[u16]) -> Vec<String> {
    let mut faults = Vec::new();
    for host in hosts {
        for port in ports {
            let addr = SocketAddrV4::new(*host, *port);
            if let Err(error) = TcpListener::bind(addr) {
                faults.push(unbound(addr, &error));
            }
        }
    }
    faults.extend(io_uring());
    faults.extend(memlock());
    faults
}

/// Why nothing can listen on an address, and the way out.
fn unbound(addr: SocketAddrV4, error: &Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            let culprit = holder(addr).unwrap_or_else(|| error.to_string());
            format!(
                "{addr} is taken ({culprit}): stop that process, or move the demo with --base, for example --base 127.0.77.0"
            )
        }
        ErrorKind::AddrNotAvailable => format!(
            "{addr} is no address of this machine ({error}): is the loopback interface up? `ip link set lo up` as root"
        ),
        _ => format!("nothing can listen on {addr}: {error}"),
    }
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
        _ => "a Linux kernel of 5.15 or newer with io_uring is needed",
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

/// Who is in the way of a TCP listener, for people: looks the socket up in /proc.
fn holder(addr: SocketAddrV4) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| listener(&fs::read_to_string(table).ok()?, addr))?;
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

/// Inode of the listening socket in a table of /proc/net that takes the port of `addr`: on that address or on all.
fn listener(table: &str, addr: SocketAddrV4) -> Option<String> {
    // The kernel prints an address as words of four bytes, each as the machine reads it.
    let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
    let (zero, mapped) = (word([0; 4]), word([0, 0, 0xff, 0xff]));
    let host = word(addr.ip().octets());
    let hosts = [
        host.clone(),
        zero.clone(),
        zero.repeat(4),
        format!("{zero}{zero}{mapped}{host}"),
    ];
    let wanted = hosts.map(|host| format!("{host}:{:04X}", addr.port()));
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listening = fields.get(3) == Some(&"0A");
        let local = fields.get(1)?;
        let inode = fields.get(9)?;
        (listening && wanted.iter().any(|wanted| wanted == local)).then(|| (*inode).to_owned())
    })
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

    #[test]
    fn only_a_listener_in_the_way_counts() {
        let addr = SocketAddrV4::new(Ipv4Addr::new(127, 0, 77, 1), 8080);
        let row = |host: &str, state: &str, inode: u32| {
            let rest = "00000000:00000000 00:00000000 00000000 0 0";
            format!("   0: {host}:1F90 00000000:0000 {state} {rest} {inode} 1 0000000000000000\n")
        };
        let word = |host: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(host));
        let other = row(&word([127, 0, 0, 1]), "0A", 1);
        let connected = row(&word([127, 0, 77, 1]), "01", 2);
        let own = row(&word([127, 0, 77, 1]), "0A", 3);
        let found = |rows: &[&str]| listener(&format!("head\n{}", rows.concat()), addr);
        assert_eq!(found(&[&other, &connected]), None);
        assert_eq!(found(&[&other, &connected, &own]).as_deref(), Some("3"));
        for all in ["0".repeat(8), "0".repeat(32)] {
            let all = row(&all, "0A", 4);
            assert_eq!(found(&[&other, &all]).as_deref(), Some("4"));
        }
    }

    #[test]
    fn an_address_that_is_not_there_is_not_taken() {
        let addr = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let text = unbound(addr, &Error::from(ErrorKind::AddrNotAvailable));
        assert!(!text.contains("taken") && text.contains("lo up"), "{text}");
    }
}
