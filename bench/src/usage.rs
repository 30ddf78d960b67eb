//! What processes and directories cost, as the kernel counts it.

use serde::Serialize;
use std::ops::AddAssign;
use std::path::Path;
use std::time::Duration;

/// Memory of a process, in KiB: its proportional share of every page that it has touched, so that the sum over processes is what they
/// cost together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// All.
    pub pss_kib: u64,
    /// Of that: its own (heap, stacks, changed data).
    pub anon_kib: u64,
    /// Of that: files, which is the executable and its libraries.
    pub file_kib: u64,
    /// Of that: shared memory, which is rings and boards.
    pub shmem_kib: u64,
}

impl AddAssign for Memory {
    fn add_assign(&mut self, other: Memory) {
        self.pss_kib += other.pss_kib;
        self.anon_kib += other.anon_kib;
        self.file_kib += other.file_kib;
        self.shmem_kib += other.shmem_kib;
    }
}

impl Memory {
    /// Of this process; `None` when it is gone.
    pub fn of(pid: u32) -> Option<Memory> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        Some(Memory {
            pss_kib: field(&text, "Pss:")?,
            anon_kib: field(&text, "Pss_Anon:").unwrap_or(0),
            file_kib: field(&text, "Pss_File:").unwrap_or(0),
            shmem_kib: field(&text, "Pss_Shmem:").unwrap_or(0),
        })
    }

    /// Of several processes.
    pub fn sum(pids: impl IntoIterator<Item = u32>) -> Memory {
        let mut all = Memory::default();
        for some in pids.into_iter().filter_map(Memory::of) {
            all += some;
        }
        all
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// User and system time of a process so far; `None` when it is gone.
pub fn cpu(pid: u32) -> Option<Duration> {
    // SAFETY: asks for a constant of the system.
    let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let used = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_micros(used * 1_000_000 / ticks))
}

/// Disk space of all files below a directory, or of a file.
pub fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| disk_bytes(&entry.path())).sum()
        }
        Ok(meta) => meta.blocks() * 512,
        // A file may go while it is looked at.
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_its_parts_are_no_more_than_the_whole() {
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.pss_kib > 0 && memory.anon_kib > 0);
        assert!(memory.anon_kib + memory.file_kib + memory.shmem_kib <= memory.pss_kib + 3);
        assert_eq!(Memory::of(u32::MAX), None);
        assert_eq!(Memory::sum([u32::MAX]), Memory::default());
    }

    #[test]
    fn files_count_with_what_they_take_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        std::fs::write(dir.path().join("below/file"), vec![1; 10_000]).unwrap();
        let file = std::fs::File::open(dir.path().join("below/file")).unwrap();
        file.sync_all().unwrap();
        assert!(disk_bytes(dir.path()) >= 10_000);
        assert_eq!(disk_bytes(&dir.path().join("absent")), 0);
    }
}
