//! Segments as files of a directory.

use super::{Disk, sync_dir};
use mareedb_ipc::wire::RandomId;
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
                sync_dir(parent)?;
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
        let mut segments = disk.segments()?;
        segments.sort_unstable_by(|a, b| b.cmp(a));
        for (age, segment) in segments.into_iter().enumerate() {
            let file = File::open(disk.path(segment))?;
            file.lock()?;
            // A predecessor may have been killed in the middle of a durable write, with its bytes in the kernel's memory and not on
            // the disk: what is read is called durable. It wrote to the newest segment, or the next one is made already.
            if age < 2 {
                file.sync_data()?;
            }
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
        sync_dir(&self.dir)
    }
}

/// Bytes of the key's file: magic, key, CRC-32C of both.
const KEY_FILE_BYTES: usize = 20;
const KEY_MAGIC: &[u8; 8] = b"MAREEKEY";

fn key_file(key: u64) -> [u8; KEY_FILE_BYTES] {
    let mut bytes = [0; KEY_FILE_BYTES];
    bytes[..8].copy_from_slice(KEY_MAGIC);
    bytes[8..16].copy_from_slice(&key.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

impl Disk for StdDisk {
    fn key(&mut self) -> io::Result<u64> {
        let path = self.dir.join("key");
        let damaged = |what: &str| {
            let what = format!("{}: {what}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        match fs::read(&path) {
            Ok(bytes) => {
                let key = bytes.get(8..16).and_then(|key| key.try_into().ok());
                let key = u64::from_le_bytes(key.ok_or_else(|| damaged("the key is cut short"))?);
                if bytes != key_file(key) {
                    return Err(damaged("the key of the log is not what was written"));
                }
                Ok(key)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.segments()?.is_empty() {
                    return Err(damaged("segments are there, and their key is not"));
                }
                let key = u64::try_from(RandomId::draw().0 >> 64).map_err(io::Error::other)?;
                let new = self.dir.join("new-key");
                fs::write(&new, key_file(key))?;
                File::open(&new)?.sync_all()?;
                fs::rename(&new, &path)?;
                self.sync_dir()?;
                Ok(key)
            }
            Err(error) => Err(error),
        }
    }

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
        // A half one, tried again and again, would take the room that others need.
        let free = super::free_bytes(&self.dir)?;
        #[cfg(feature = "faults")]
        let free = if super::faults::wanted(&self.dir).fail_create {
            super::faults::took_place(&self.dir);
            0
        } else {
            free
        };
        if free < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
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

    fn expect_read(&self, segment: u64) {
        // A file system may not know this advice; then the segment is read when it is wanted.
        if let Ok(file) = File::open(self.path(segment)) {
            let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// LOG-5
    #[test]
    fn a_log_is_opened_when_a_predecessors_descriptors_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let mut disk = StdDisk::open(&path).unwrap();
        disk.create(1, 4096).unwrap();
        let writes = File::open(disk.path(1)).unwrap();
        writes.lock().unwrap();
        let opening = std::thread::spawn(move || StdDisk::open(&path).map(drop));
        // The kernel's list marks who waits for a lock.
        let file = format!(":{} ", writes.metadata().unwrap().ino());
        let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&file);
        let locks = || fs::read_to_string("/proc/locks").unwrap();
        let began = std::time::Instant::now();
        while !locks().lines().any(waits) {
            assert!(!opening.is_finished(), "a write may still land");
            assert!(began.elapsed().as_secs() < 60, "/proc/locks lists it not");
            std::thread::yield_now();
        }
        drop(writes);
        opening.join().unwrap().unwrap();
    }

    #[test]
    fn a_key_stays_and_segments_without_it_are_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = StdDisk::open(dir.path()).unwrap().key().unwrap();
        let mut disk = StdDisk::open(dir.path()).unwrap();
        assert_eq!(disk.key().unwrap(), key);
        disk.create(1, 4096).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let error = disk.key().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(disk.key().is_err(), "{at} bytes");
        }
        fs::remove_file(&path).unwrap();
        let error = disk.key().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(!path.exists(), "none is drawn in its place");
    }
}
