//! The directory that a demo or a measurement makes anew: held by one run at a time, and emptied only if a run has made it.
//!
//! Invariants: what no run has made is never deleted, nor what a run still uses. The marker is the lock, too, and stays for
//! ever, so that a run that is ended while it empties the directory leaves one that the next run takes.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file that says that a run has made the directory. Who holds the directory has locked it, and its pid stands in it.
pub const MARKER: &str = "made-by-maree-db-bench";
/// The marker of earlier demos.
const MARKER_BEFORE: &str = "made-by-demo";
/// A run that has just ended may have a task, or a process between fork and exec, that holds the lock a little longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A directory that no other run takes while the value lives; keep it longer than what uses the directory.
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
    _lock: File,
}

impl Claim {
    /// The directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Deletes all that is in the directory but the marker.
    ///
    /// # Errors
    /// What could not be deleted.
    pub fn empty(&self) -> Result<(), String> {
        for entry in fs::read_dir(&self.dir).map_err(|error| told(&self.dir, &error))? {
            let entry = entry.map_err(|error| told(&self.dir, &error))?;
            if entry.file_name() != MARKER {
                remove(&entry).map_err(|error| told(&entry.path(), &error))?;
            }
        }
        Ok(())
    }
}

/// Makes `dir`, or empties the one that an earlier run has made, and holds it.
///
/// # Errors
/// It holds files that no run has made, another run uses it, or it cannot be made or emptied; the message has the way out.
pub fn claim(dir: &Path) -> Result<Claim, String> {
    let claim = hold(dir)?;
    claim.empty()?;
    Ok(claim)
}

/// The same without emptying it, for who has to undo something before, for example mounts: then [`Claim::empty`].
///
/// # Errors
/// As [`claim`].
pub fn hold(dir: &Path) -> Result<Claim, String> {
    hold_within(dir, PATIENCE)
}

fn hold_within(dir: &Path, patience: Duration) -> Result<Claim, String> {
    let dir = std::path::absolute(dir).map_err(|error| told(dir, &error))?;
    fs::create_dir_all(&dir).map_err(|error| told(&dir, &error))?;
    if !is_ours(&dir).map_err(|error| told(&dir, &error))? {
        return Err(format!(
            "{} holds files that no run of this program made, and would be emptied: name another directory with --dir, or \
             remove it yourself",
            dir.display()
        ));
    }
    let path = dir.join(MARKER);
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| told(&path, &error))?;
    lock_within(&mut lock, &dir, patience)?;
    // For the message of whoever comes next. It is a courtesy: failing to write it fails nothing.
    let _ = lock
        .set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(Claim { dir, _lock: lock })
}

/// Whether a run has made it, or it is empty.
fn is_ours(dir: &Path) -> io::Result<bool> {
    let marked = [MARKER, MARKER_BEFORE]
        .iter()
        .any(|marker| dir.join(marker).is_file());
    Ok(marked || fs::read_dir(dir)?.next().is_none())
}

fn lock_within(lock: &mut File, dir: &Path, patience: Duration) -> Result<(), String> {
    let end = Instant::now() + patience;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(told(dir, &error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= end => {
                return Err(format!(
                    "another run uses {}{}: wait for its end, or name another directory with --dir",
                    dir.display(),
                    holder(lock)
                ));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The pid that stands in the marker, for people.
fn holder(lock: &mut File) -> String {
    let mut text = String::new();
    lock.rewind()
        .and_then(|()| lock.take(32).read_to_string(&mut text))
        .ok()
        .and_then(|_| text.trim().parse::<u32>().ok())
        .map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

fn remove(entry: &fs::DirEntry) -> io::Result<()> {
    // A link to a directory is a file here: what it leads to is not ours.
    if entry.file_type()?.is_dir() {
        fs::remove_dir_all(entry.path())
    } else {
        fs::remove_file(entry.path())
    }
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_somebody_else_is_not_emptied() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "x").unwrap();
        let why = claim(dir.path()).unwrap_err();
        assert!(why.contains("--dir"), "{why}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn what_a_run_has_made_is_emptied_but_not_what_links_lead_to() {
        let all = tempfile::tempdir().unwrap();
        let (own, other) = (all.path().join("a/own"), all.path().join("other"));
        drop(claim(&own).unwrap());
        fs::create_dir_all(own.join("node1/data")).unwrap();
        fs::write(own.join("left"), "x").unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("precious"), "x").unwrap();
        std::os::unix::fs::symlink(&other, own.join("link")).unwrap();
        let claim = claim(&own).unwrap();
        let left: Vec<_> = fs::read_dir(claim.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [MARKER]);
        assert!(other.join("precious").exists());
    }

    #[test]
    fn what_an_earlier_demo_has_made_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(MARKER_BEFORE), "").unwrap();
        fs::create_dir(dir.path().join("node1")).unwrap();
        drop(claim(dir.path()).unwrap());
        assert!(!dir.path().join("node1").exists());
        assert!(dir.path().join(MARKER).exists());
    }

    #[test]
    fn two_runs_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(dir.path()).unwrap();
        fs::write(first.dir().join("live"), "x").unwrap();
        let why = hold_within(dir.path(), Duration::ZERO).unwrap_err();
        let pid = format!("(pid {})", std::process::id());
        assert!(why.contains(&pid) && why.contains("--dir"), "{why}");
        assert!(dir.path().join("live").exists());
        drop(first);
        let second = hold(dir.path()).unwrap();
        assert!(dir.path().join("live").exists());
        second.empty().unwrap();
        assert!(!dir.path().join("live").exists());
    }
}
