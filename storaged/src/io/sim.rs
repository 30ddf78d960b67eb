//! A disk that crashes: it keeps what was made durable, and of what was not any part, torn at sectors.

use super::Disk;
use std::collections::BTreeMap;
use std::io;

const SECTOR: usize = 512;

/// Segments in memory. Writes through [`Disk::write`] are durable; writes through [`SimDisk::start`] are in flight until
/// [`SimDisk::finish`], and a crash leaves any of their sectors. [`SimDisk::crash_in`] lets the machine stop in the middle
/// of a call.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    files: BTreeMap<u64, Vec<u8>>,
    flying: BTreeMap<u64, (u64, u64, Vec<u8>)>,
    next: u64,
    seed: u64,
    /// Changing calls until the machine stops.
    left: Option<u64>,
    stopped: bool,
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

    /// Whether a call changes the disk: all of it, or by half because the machine stops in it.
    fn change(&mut self) -> io::Result<bool> {
        if self.stopped {
            return Err(stopped());
        }
        match &mut self.left {
            Some(0) => {
                self.stopped = true;
                Ok(false)
            }
            Some(left) => {
                *left -= 1;
                Ok(true)
            }
            None => Ok(true),
        }
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

    /// Writes in flight.
    pub fn in_flight(&self) -> Vec<u64> {
        self.flying.keys().copied().collect()
    }

    /// The machine stops: of each write in flight any sectors are there.
    pub fn crash(&mut self) {
        (self.left, self.stopped) = (None, false);
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
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.file(segment)?
            .get(at..at + bytes)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
    fn create(&mut self, segment: u64, bytes: u64) -> io::Result<()> {
        let whole = self.change()?;
        if whole || self.random(2) == 0 {
            let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
            self.files.insert(segment, vec![0; bytes]);
        }
        ended(whole)
    }
    fn rename(&mut self, segment: u64, to: u64) -> io::Result<()> {
        let whole = self.change()?;
        if whole || self.random(2) == 0 {
            let file = self.files.remove(&segment).ok_or(io::ErrorKind::NotFound)?;
            self.files.insert(to, file);
        }
        ended(whole)
    }
    fn delete(&mut self, segment: u64) -> io::Result<()> {
        let whole = self.change()?;
        if whole || self.random(2) == 0 {
            self.files.remove(&segment).ok_or(io::ErrorKind::NotFound)?;
        }
        ended(whole)
    }
    fn bytes(&self, segment: u64) -> io::Result<u64> {
        Ok(self.file(segment)?.len() as u64)
    }
    fn write(&mut self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let whole = self.change()?;
        if whole {
            self.put(segment, offset, bytes);
        } else {
            self.tear(segment, offset, bytes);
        }
        ended(whole)
    }
}

fn stopped() -> io::Error {
    io::Error::other("the simulated machine has stopped")
}

fn ended(whole: bool) -> io::Result<()> {
    if whole { Ok(()) } else { Err(stopped()) }
}
