//! A node's simulated disk, shared by the lives of its storaged; the log's files are in memory, the state machines' trees in
//! a directory (ADR 18).

use crate::rng::Rng;
use mareedb_storaged::io::{Disk, SimDisk};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// The log's disk.
#[derive(Clone)]
pub struct LogDisk(Arc<Mutex<SimDisk>>);

impl LogDisk {
    /// An empty one.
    pub fn new(seed: u64) -> LogDisk {
        LogDisk(Arc::new(Mutex::new(SimDisk::new(seed))))
    }

    /// Looks at it, or does something to it.
    pub fn with<T>(&self, act: impl FnOnce(&mut SimDisk) -> T) -> T {
        act(&mut self.0.lock())
    }

    /// Flips a bit of some segment. `false`: there is none.
    pub fn rot(&self, rng: &mut Rng) -> bool {
        self.with(|disk| {
            let Ok(segments) = disk.segments() else {
                return false;
            };
            if segments.is_empty() {
                return false;
            }
            let segment = *rng.pick(&segments);
            let bytes = disk.bytes(segment).unwrap_or(0);
            // Most of a segment is empty; its beginning is not.
            let bytes = if rng.chance(700) {
                bytes.min(16 << 10)
            } else {
                bytes
            };
            let bit = usize::try_from(rng.below(bytes * 8)).expect("a small segment");
            disk.flip(segment, bit);
            true
        })
    }
}

impl Disk for LogDisk {
    fn key(&mut self) -> io::Result<u64> {
        self.0.lock().key()
    }
    fn segments(&self) -> io::Result<Vec<u64>> {
        self.0.lock().segments()
    }
    fn read_at(&self, segment: u64, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        self.0.lock().read_at(segment, offset, bytes)
    }
    fn create(&mut self, segment: u64, bytes: u64) -> io::Result<()> {
        self.0.lock().create(segment, bytes)
    }
    fn rename(&mut self, segment: u64, to: u64) -> io::Result<()> {
        self.0.lock().rename(segment, to)
    }
    fn delete(&mut self, segment: u64) -> io::Result<()> {
        self.0.lock().delete(segment)
    }
    fn bytes(&self, segment: u64) -> io::Result<u64> {
        self.0.lock().bytes(segment)
    }
    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().write(segment, offset, bytes)
    }
}
