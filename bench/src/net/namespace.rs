//! One network namespace, with its link to this machine.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// First part of every name; the pid of the maker and a number follow.
const PREFIX: &str = "mdb";

pub(super) struct Namespace {
    name: String,
}

impl Namespace {
    /// `ends`: this machine's address and the node's, the first two of a net of four.
    pub(super) fn new(at: u8, ends: [Ipv4Addr; 2]) -> io::Result<Namespace> {
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let made = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{made}", std::process::id());
        // Interface names have at most 15 letters.
        let link = format!("{PREFIX}{}x{made}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Namespace { name };
        let name = &namespace.name;
        ip(&[
            "link", "add", &link, "type", "veth", "peer", "name", "clients", "netns", name,
        ])?;
        ip(&["addr", "add", &format!("{}/30", ends[0]), "dev", &link])?;
        ip(&["link", "set", &link, "up"])?;
        let mine = format!("{}/30", ends[1]);
        ip(&["-n", name, "addr", "add", &mine, "dev", "clients"])?;
        ip(&["-n", name, "link", "set", "clients", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])
            .map_err(|error| io::Error::new(error.kind(), format!("node {}: {error}", at + 1)))?;
        Ok(namespace)
    }

    /// The file that stands for it.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip` inside of it.
    pub(super) fn ip(&self, arguments: &[&str]) -> io::Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// What stands before a command so that it runs inside; the pid stays the same.
    pub(super) fn launcher(&self) -> Vec<OsString> {
        let mut net = OsString::from("--net=");
        net.push(self.path());
        vec!["nsenter".into(), net, "--".into()]
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its links go with it. What is still in there keeps it alive until it ends.
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// Removes the namespaces of processes that do not live any more.
pub(super) fn remove_left_behind() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_prefix('-'))
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if let (Some(pid), Some(name)) = (owner, name.to_str())
            && !PathBuf::from(format!("/proc/{pid}")).exists()
        {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

pub(super) fn tools_exist() -> bool {
    ["ip", "nsenter"].iter().all(|tool| {
        Command::new(tool)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let done = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&done.stderr).trim()
    )))
}
