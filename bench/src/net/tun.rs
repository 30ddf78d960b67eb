//! A TUN interface in a namespace: what the node sends to its peers is read here, what is written here it receives.

use super::namespace::Namespace;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

const NAME: &str = "peers";
/// Large, because the switch works a packet at a time.
pub(super) const MTU: usize = 9000;

/// `struct ifreq` as TUNSETIFF reads it: a name, flags, and room for the rest of the union.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// Makes the interface `peers` with `addr`/24 in `namespace`; reads and writes of the file are whole packets and never block.
pub(super) fn open(namespace: &Namespace, addr: Ipv4Addr) -> io::Result<File> {
    let inside = File::open(namespace.path())?;
    // A thread of its own, since it does not come back from there. The interface belongs to where the device is opened.
    let made = std::thread::spawn(move || {
        setns(inside, CloneFlags::CLONE_NEWNET)?;
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/dev/net/tun")?;
        let mut request = Request {
            name: [0; 16],
            flags: IFF_TUN | IFF_NO_PI,
            rest: [0; 22],
        };
        request.name[..NAME.len()].copy_from_slice(NAME.as_bytes());
        // SAFETY: TUNSETIFF reads and writes one ifreq of 40 bytes, which `request` is, and keeps no pointer to it.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &mut request) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(device)
    })
    .join()
    .expect("the thread does not panic")?;
    let net = format!("{addr}/24");
    namespace.ip(&["addr", "add", &net, "dev", NAME])?;
    let mtu = MTU.to_string();
    namespace.ip(&["link", "set", NAME, "mtu", &mtu, "txqueuelen", "4000", "up"])?;
    Ok(made)
}

const _: () = assert!(size_of::<Request>() == 40);
