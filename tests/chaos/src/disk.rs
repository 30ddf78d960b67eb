//! A file system of its own for each node's data: an image on the real disk, mounted through a loop device. So it can stand still
//! (`fsfreeze`) or be full without harm to anybody else.
//!
//! Invariant: dropping a [`Disk`] thaws and unmounts it; what a killed runner left is undone by the next one in the same directory.

use crate::bed::Taken;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Sparse; a node under test needs a tenth.
const IMAGE_BYTES: u64 = 1 << 30;
const BALLAST: &str = "ballast";

/// A mounted file system.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

fn tool(name: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> io::Result<()> {
    let mut command = Command::new(name);
    for argument in arguments {
        command.arg(argument.as_ref());
    }
    let done = command.stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{name}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    )))
}

impl Disk {
    /// Whether this process may make one: tried with a small one in `dir`.
    pub fn possible(dir: &Path) -> bool {
        let try_in = dir.join(format!("try-{}", std::process::id()));
        let works = nix::unistd::geteuid().is_root()
            && fs::create_dir_all(&try_in).is_ok()
            && Disk::sized(&try_in.join("image"), &try_in.join("mount"), 16 << 20)
                .is_ok_and(|disk| disk.freeze().is_ok() && disk.thaw().is_ok());
        let _ = fs::remove_dir_all(try_in);
        works
    }

    /// Makes an image and mounts it.
    ///
    /// # Errors
    /// A right or a tool is missing.
    pub fn new(image: &Path, at: &Path) -> io::Result<Disk> {
        Disk::sized(image, at, IMAGE_BYTES)
    }

    fn sized(image: &Path, at: &Path, bytes: u64) -> io::Result<Disk> {
        fs::create_dir_all(at)?;
        File::create(image)?.set_len(bytes)?;
        // No blocks reserved for root, which the nodes are.
        tool("mkfs.ext4", &[&"-q", &"-m", &"0", &image])?;
        tool("mount", &[&"-o", &"loop", &image, &at])?;
        Ok(Disk { at: at.to_owned() })
    }

    /// Every write waits from now on.
    ///
    /// # Errors
    /// It is frozen already.
    pub fn freeze(&self) -> io::Result<()> {
        tool("fsfreeze", &[&"-f", &self.at])
    }

    /// Writes go on.
    ///
    /// # Errors
    /// It is not frozen.
    pub fn thaw(&self) -> io::Result<()> {
        tool("fsfreeze", &[&"-u", &self.at])
    }

    /// Takes all room but `left` bytes, for a fault that has taken the node's files.
    ///
    /// # Errors
    /// Another one than that there is no room.
    pub fn fill(&self, left: u64, _: &Taken<'_>) -> io::Result<()> {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.at.join(BALLAST))?;
        let state = statvfs(&self.at)?;
        let free = state.blocks_free() * state.fragment_size();
        let most = i64::try_from(free.saturating_sub(left + (4 << 20))).unwrap_or(0);
        if most > 0 {
            // The file system needs some of it for itself; the rest is taken piece by piece.
            let _ = fallocate(&ballast, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, most);
            ballast.set_len(u64::try_from(most).unwrap_or(0))?;
        }
        let piece = vec![0xffu8; 64 << 10];
        loop {
            let state = statvfs(&self.at)?;
            if state.blocks_free() * state.fragment_size() <= left {
                return Ok(());
            }
            if let Err(error) = ballast.write_all(&piece).and_then(|()| ballast.sync_data()) {
                return match error.kind() {
                    io::ErrorKind::StorageFull => Ok(()),
                    _ => Err(error),
                };
            }
        }
    }

    /// Gives the room back.
    pub fn empty(&self) {
        // There may be no ballast.
        let _ = fs::remove_file(self.at.join(BALLAST));
    }

    /// Undoes whatever was done to it.
    pub fn heal(&self) {
        // It is an error that it is not frozen.
        let _ = self.thaw();
        self.empty();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// Thaws and unmounts; who still uses it keeps it until it ends.
fn unmount(at: &Path) {
    let _ = tool("fsfreeze", &[&"-u", &at]);
    let _ = tool("umount", &[&"-l", &at]);
}

/// Unmounts what an earlier runner has left mounted below `dir`.
pub fn unmount_left_behind(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        if let Some(at) = line.split(' ').nth(1)
            && Path::new(at).starts_with(dir)
        {
            unmount(Path::new(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed::Files;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        if !Disk::possible(dir.path()) {
            eprintln!("not tested: no right to mount");
            return;
        }
        let at = dir.path().join("data");
        let disk = Disk::sized(&dir.path().join("image"), &at, 32 << 20).unwrap();
        let files = Files::default();
        disk.fill(0, &files.take().unwrap()).unwrap();
        let wrote = fs::write(at.join("more"), vec![1u8; 1 << 20]);
        assert_eq!(wrote.unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.empty();
        fs::write(at.join("more"), vec![1u8; 1 << 20]).unwrap();
        drop(disk);
        assert!(!at.join("more").exists());
    }
}
