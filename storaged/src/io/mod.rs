//! The disk as the log sees it, behind a trait: the simulation brings one that forgets what was not made durable.
//!
//! What is here blocks: it runs at start, on the threads beside a shard's executor, and in tests. The hot path, a durable
//! write of a unit, is [`crate::shard`]'s, over io_uring; both agree in what is durable: what has returned.

#[cfg(feature = "faults")]
pub mod faults;
#[cfg(test)]
pub(crate) mod said;
mod sim;
mod std_disk;

pub use sim::SimDisk;
pub use std_disk::StdDisk;

use std::fs::File;
use std::io;
use std::path::Path;

/// Bytes that may still be written on the disk of a directory.
///
/// # Errors
/// The disk.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    #[cfg(test)]
    if let Some(bytes) = said::room() {
        return Ok(bytes);
    }
    let room = nix::sys::statvfs::statvfs(dir)?;
    #[allow(
        clippy::useless_conversion,
        reason = "its width differs between systems"
    )]
    Ok(u64::from(room.blocks_available()) * u64::from(room.fragment_size()))
}

/// Makes the names in a directory durable.
///
/// # Errors
/// The disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    #[cfg(test)]
    said::sync()?;
    File::open(dir)?.sync_all()
}

/// Segment files of one log.
pub trait Disk {
    /// The key of the log, drawn and made durable when there is none and no segment either.
    ///
    /// # Errors
    /// The disk; or segments are there whose key is gone or damaged, which is [`io::ErrorKind::InvalidData`].
    fn key(&mut self) -> io::Result<u64>;
    /// Numbers of all segments, in no order.
    ///
    /// # Errors
    /// The disk.
    fn segments(&self) -> io::Result<Vec<u64>>;
    /// Part of a segment.
    ///
    /// # Errors
    /// The disk, or less is there.
    fn read_at(&self, segment: u64, offset: u64, bytes: usize) -> io::Result<Vec<u8>>;
    /// Makes a segment of this size, written once from end to end, durably. It is there whole or not at all.
    ///
    /// # Errors
    /// The disk.
    fn create(&mut self, segment: u64, bytes: u64) -> io::Result<()>;
    /// Gives the file of a segment that nobody needs to another one, durably. Its content stays.
    ///
    /// # Errors
    /// The disk.
    fn rename(&mut self, segment: u64, to: u64) -> io::Result<()>;
    /// Removes a segment, durably.
    ///
    /// # Errors
    /// The disk.
    fn delete(&mut self, segment: u64) -> io::Result<()>;
    /// Size of a segment.
    ///
    /// # Errors
    /// The disk.
    fn bytes(&self, segment: u64) -> io::Result<u64>;
    /// Says that a segment may be read soon: it should be in memory by then. Nothing is waited for, and nothing rests on it.
    fn expect_read(&self, segment: u64) {
        let _ = segment;
    }
    /// Writes durably.
    ///
    /// # Errors
    /// The disk.
    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()>;
}
