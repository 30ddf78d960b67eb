//! A disk that crashes, fails, is full and rots: it keeps what was made durable, and of what was not any part, torn at
//! sectors.

use super::Disk;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

const SECTOR: usize = 512;

/// Segments in memory. Writes through [`Disk::write`] are durable; writes through [`SimDisk::start`] are in flight until
/// [`SimDisk::finish`], and a crash leaves any of their sectors, whatever the order in which they were started.
/// [`SimDisk::crash_in`] lets the machine stop in the middle of a call, [`SimDisk::fail_in`] lets a call fail, and
/// [`SimDisk::limit`] bounds the room.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    files: BTreeMap<u64, Vec<u8>>,
    flying: BTreeMap<u64, (u64, u64, Vec<u8>)>,
    next: u64,
    seed: u64,
    /// Changing calls until the machine stops.
    left: Option<u64>,
    stopped: bool,
    /// Changing calls until one fails.
    failing: Option<u64>,
    /// Reads until one fails.
    unreadable: Cell<Option<u64>>,
    /// Bytes that all segments may take.
    room: Option<u64>,
}

/// How a changing call goes: a part of it may be there when it does not go well.
enum Way {
    Whole,
    Part(io::Error),
}

impl Way {
    fn is_whole(&self) -> bool {
        matches!(self, Way::Whole)
    }

    fn ended(self) -> io::Result<()> {
        match self {
            Way::Whole => Ok(()),
            Way::Part(error) => Err(error),
        }
    }
}

impl SimDisk {
    /// An empty disk whose crashes follow from `seed`.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk {
            seed: seed.wrapping_mul(2) | 1,
            ..SimDisk::default()
        }
    }

    /// The machine stops in the middle of a changing call: the next one for 0. It and all later ones fail until
    /// [`SimDisk::crash`].
    pub fn crash_in(&mut self, calls: u64) {
        self.left = Some(calls);
    }

    /// A changing call fails with an input/output error, and leaves any part of what it should have done: the next one for 0.
    pub fn fail_in(&mut self, calls: u64) {
        self.failing = Some(calls);
    }

    /// A read fails with an input/output error: the next one for 0.
    pub fn fail_read_in(&mut self, reads: u64) {
        self.unreadable.set(Some(reads));
    }

    /// Calls fail no more.
    pub fn heal(&mut self) {
        (self.failing, self.left) = (None, None);
        self.unreadable.set(None);
    }

    /// From now on no segment is made beyond so many bytes; `None`: there is room for all.
    pub fn limit(&mut self, bytes: Option<u64>) {
        self.room = bytes;
    }

    /// Bytes of all segments.
    pub fn taken(&self) -> u64 {
        self.files.values().map(|file| file.len() as u64).sum()
    }

    /// How a changing call goes.
    fn change(&mut self) -> io::Result<Way> {
        if self.stopped {
            return Err(stopped());
        }
        if self.left == Some(0) {
            self.stopped = true;
            return Ok(Way::Part(stopped()));
        }
        self.left = self.left.map(|left| left - 1);
        if self.failing == Some(0) {
            self.failing = None;
            return Ok(Way::Part(failed()));
        }
        self.failing = self.failing.map(|left| left - 1);
        Ok(Way::Whole)
    }

    /// The next pseudo-random number below `bound` (xorshift64*).
    pub fn random(&mut self, bound: u64) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound.max(1)
    }

    /// Starts a write.
    pub fn start(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> u64 {
        self.next += 1;
        self.flying
            .insert(self.next, (segment, offset, bytes.to_vec()));
        self.next
    }

    /// Ends a write: it is durable.
    pub fn finish(&mut self, write: u64) {
        if let Some((segment, offset, bytes)) = self.flying.remove(&write) {
            self.put(segment, offset, &bytes);
        }
    }

    /// Ends a write with an error: any sectors of it are there.
    pub fn fail(&mut self, write: u64) {
        if let Some((segment, offset, bytes)) = self.flying.remove(&write) {
            self.tear(segment, offset, &bytes);
        }
    }

    /// Writes in flight.
    pub fn in_flight(&self) -> Vec<u64> {
        self.flying.keys().copied().collect()
    }

    /// The machine stops: of each write in flight any sectors are there.
    pub fn crash(&mut self) {
        self.heal();
        self.stopped = false;
        for (segment, offset, bytes) in std::mem::take(&mut self.flying).into_values() {
            self.tear(segment, offset, &bytes);
        }
    }

    fn tear(&mut self, segment: u64, offset: u64, bytes: &[u8]) {
        let mode = self.random(4);
        for (at, sector) in bytes.chunks(SECTOR).enumerate() {
            let lands = match mode {
                0 => false,
                1 => true,
                _ => self.random(2) == 0,
            };
            if lands {
                self.put(segment, offset + (at * SECTOR) as u64, sector);
            }
        }
    }

    /// Flips a bit of a segment.
    pub fn flip(&mut self, segment: u64, bit: usize) {
        if let Some(byte) = self
            .files
            .get_mut(&segment)
            .and_then(|file| file.get_mut(bit / 8))
        {
            *byte ^= 1 << (bit % 8);
        }
    }

    fn put(&mut self, segment: u64, offset: u64, bytes: &[u8]) {
        if let Some(file) = self.files.get_mut(&segment) {
            let at = usize::try_from(offset).expect("simulated segments are small");
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn file(&self, segment: u64) -> io::Result<&Vec<u8>> {
        self.files
            .get(&segment)
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Disk for SimDisk {
    fn key(&mut self) -> io::Result<u64> {
        Ok(7)
    }

    fn segments(&self) -> io::Result<Vec<u64>> {
        Ok(self.files.keys().copied().collect())
    }
    fn read_at(&self, segment: u64, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        match self.unreadable.get() {
            Some(0) => {
                self.unreadable.set(None);
                return Err(failed());
            }
            left => self.unreadable.set(left.map(|left| left - 1)),
        }
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.file(segment)?
            .get(at..at + bytes)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
    fn create(&mut self, segment: u64, bytes: u64) -> io::Result<()> {
        if self.room.is_some_and(|room| self.taken() + bytes > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let way = self.change()?;
        if way.is_whole() || self.random(2) == 0 {
            let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
            self.files.insert(segment, vec![0; bytes]);
        }
        way.ended()
    }
    fn rename(&mut self, segment: u64, to: u64) -> io::Result<()> {
        if self.room.is_some_and(|room| self.taken() >= room) {
            // A file system that copies on write needs room even for that.
            return Err(io::ErrorKind::StorageFull.into());
        }
        let way = self.change()?;
        if way.is_whole() || self.random(2) == 0 {
            let file = self.files.remove(&segment).ok_or(io::ErrorKind::NotFound)?;
            self.files.insert(to, file);
        }
        way.ended()
    }
    fn delete(&mut self, segment: u64) -> io::Result<()> {
        let way = self.change()?;
        if way.is_whole() || self.random(2) == 0 {
            self.files.remove(&segment).ok_or(io::ErrorKind::NotFound)?;
        }
        way.ended()
    }
    fn bytes(&self, segment: u64) -> io::Result<u64> {
        Ok(self.file(segment)?.len() as u64)
    }
    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let way = self.change()?;
        if way.is_whole() {
            self.put(segment, offset, bytes);
        } else {
            self.tear(segment, offset, bytes);
        }
        way.ended()
    }
}

fn stopped() -> io::Error {
    io::Error::other("the simulated machine has stopped")
}

fn failed() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}
