//! Segments as files of a directory.

use super::Disk;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Files `segment-NUMBER` in a directory.
pub struct StdDisk {
    dir: PathBuf,
}

impl StdDisk {
    /// Opens or makes the directory, and waits until no write of a predecessor can land any more: it holds a lock through
    /// the open file descriptions that its writes use, which the kernel keeps until the last of them has ended (LOG-5).
    ///
    /// # Errors
    /// The disk.
    pub fn open(dir: &Path) -> io::Result<StdDisk> {
        fs::create_dir_all(dir)?;
        for parent in dir.ancestors().skip(1).take(2) {
            // So that the directory itself is not forgotten; relative paths end in an empty one.
            if !parent.as_os_str().is_empty() {
                File::open(parent)?.sync_all()?;
            }
        }
        let disk = StdDisk {
            dir: dir.to_owned(),
        };
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Files that a crash left half made.
            if entry.file_name().to_string_lossy().starts_with("new-") {
                fs::remove_file(entry.path())?;
            }
        }
        for segment in disk.segments()? {
            let file = File::open(disk.path(segment))?;
            file.lock()?;
        }
        Ok(disk)
    }

    /// The directory of a log that this process has opened already.
    pub fn unlocked(dir: &Path) -> StdDisk {
        StdDisk {
            dir: dir.to_owned(),
        }
    }

    /// Path of a segment.
    pub fn path(&self, segment: u64) -> PathBuf {
        self.dir.join(format!("segment-{segment:010}"))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl Disk for StdDisk {
    fn segments(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("segment-"))
                .and_then(|number| number.parse::<u64>().ok());
            numbers.extend(number);
        }
        Ok(numbers)
    }

    fn read_at(&self, segment: u64, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        File::open(self.path(segment))?.read_exact_at(&mut out, offset)?;
        Ok(out)
    }

    fn create(&mut self, segment: u64, bytes: u64) -> io::Result<()> {
        let new = self.dir.join(format!("new-{segment}"));
        let made = fill(&new, bytes)
            .and_then(|()| fs::rename(&new, self.path(segment)))
            .and_then(|()| self.sync_dir());
        if made.is_err() {
            // A half one would hold the room that is missing.
            let _ = fs::remove_file(&new);
        }
        made
    }

    fn rename(&mut self, segment: u64, to: u64) -> io::Result<()> {
        fs::rename(self.path(segment), self.path(to))?;
        self.sync_dir()
    }

    fn delete(&mut self, segment: u64) -> io::Result<()> {
        fs::remove_file(self.path(segment))?;
        self.sync_dir()
    }

    fn bytes(&self, segment: u64) -> io::Result<u64> {
        Ok(fs::metadata(self.path(segment))?.len())
    }

    fn expect_read(&self, segment: u64) -> io::Result<()> {
        let file = File::open(self.path(segment))?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
        Ok(())
    }

    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_DSYNC)
            .open(self.path(segment))?;
        file.write_all_at(bytes, offset)
    }
}

/// Written, not only allocated: overwriting is several times cheaper than growing.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let len = usize::try_from((bytes - at).min(1 << 20)).expect("at most 1 MiB");
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
    }
    file.sync_all()
}
