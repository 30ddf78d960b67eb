//! Durable writes of units over io_uring, several at once.

use crate::io::StdDisk;
use crate::log::Write;
use futures::channel::mpsc::Sender;
use glommio::GlommioError;
use glommio::io::{DmaFile, OpenOptions};
use mareedb_ipc::world::now;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Writes in flight at once.
pub const WRITES_MAX: usize = 4;

/// A write that has ended.
pub struct Written {
    /// The unit.
    pub lsn: u64,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub result: io::Result<()>,
}

/// Writes in flight, which end in any order.
#[derive(Default)]
pub(super) struct Flying(BTreeMap<u64, Instant>);

impl Flying {
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < WRITES_MAX
    }

    /// The write of a unit begins.
    pub(super) fn begin(&mut self, lsn: u64) {
        self.0.insert(lsn, now());
    }

    /// A write has ended.
    pub(super) fn end(&mut self, lsn: u64) {
        self.0.remove(&lsn);
    }

    /// How long a write has been in flight.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn age(&self, lsn: u64) -> Duration {
        self.0.get(&lsn).map_or(Duration::ZERO, age)
    }

    /// How long the oldest one has been; those that began later may have ended before it (LIVE-3).
    pub(super) fn waiting(&self) -> Duration {
        self.0.values().next().map_or(Duration::ZERO, age)
    }
}

fn age(began: &Instant) -> Duration {
    now().saturating_duration_since(*began)
}

/// Where units are written durably, several at once.
pub(super) trait UnitWriter {
    /// Whether another write may be begun.
    fn has_room(&self) -> bool;
    /// How long the oldest write has been in flight.
    fn waiting(&self) -> Duration;
    /// The next write that has ended.
    fn ended(&mut self) -> Option<Written>;
    /// Opens a segment for writing.
    ///
    /// # Errors
    /// The disk.
    async fn open(&mut self, segment: u64) -> io::Result<()>;
    /// Where a segment is, for people.
    fn place(&self, segment: u64) -> String;
    /// Begins a write into the open segment.
    ///
    /// # Panics
    /// Another segment is open.
    fn begin(&mut self, write: Write);
}

/// Writes units, and wakes the executor's main task when they are durable.
pub struct Writer {
    disk: StdDisk,
    file: Option<(u64, Rc<DmaFile>)>,
    #[cfg(feature = "faults")]
    dir: std::path::PathBuf,
    done: Rc<RefCell<VecDeque<Written>>>,
    flying: Flying,
    wake: Sender<()>,
}

impl Writer {
    /// A writer that wakes through `wake`.
    pub fn new(disk: StdDisk, wake: Sender<()>) -> Writer {
        Writer {
            disk,
            file: None,
            #[cfg(feature = "faults")]
            dir: std::path::PathBuf::new(),
            done: Rc::default(),
            flying: Flying::default(),
            wake,
        }
    }
}

impl UnitWriter for Writer {
    fn has_room(&self) -> bool {
        self.flying.has_room()
    }

    fn waiting(&self) -> Duration {
        self.flying.waiting()
    }

    fn ended(&mut self) -> Option<Written> {
        let written = self.done.borrow_mut().pop_front()?;
        self.flying.end(written.lsn);
        Some(written)
    }

    /// Holds the segment's lock through the same open file description (LOG-5).
    async fn open(&mut self, segment: u64) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|(open, _)| *open == segment) {
            return Ok(());
        }
        let path = self.disk.path(segment);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DSYNC)
            .dma_open(&path)
            .await
            .map_err(told)?;
        // SAFETY: only asks the kernel to lock the description behind a descriptor that `file` owns.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.file = Some((segment, Rc::new(file)));
        #[cfg(feature = "faults")]
        if let Some(dir) = path.parent() {
            self.dir = dir.to_owned();
        }
        Ok(())
    }

    fn place(&self, segment: u64) -> String {
        self.disk.path(segment).display().to_string()
    }

    fn begin(&mut self, write: Write) {
        let (segment, file) = self.file.as_ref().expect("a segment is open");
        assert_eq!(
            *segment, write.location.segment,
            "LOG-2: a unit for another segment"
        );
        let (file, done, mut wake) = (file.clone(), self.done.clone(), self.wake.clone());
        #[cfg(feature = "faults")]
        let faults = crate::io::faults::wanted(&self.dir);
        self.flying.begin(write.lsn);
        glommio::spawn_local(async move {
            let began = now();
            #[cfg(feature = "faults")]
            let result = with_faults(&file, &write, faults).await;
            #[cfg(not(feature = "faults"))]
            let result = put(&file, &write.bytes, write.location.offset).await;
            done.borrow_mut().push_back(Written {
                lsn: write.lsn,
                took: age(&began),
                result,
            });
            // The main task may have ended; then nobody waits. Where there is no room, a ring waits to be heard.
            let _ = wake.try_send(());
        })
        .detach();
    }
}

/// A write that ends short is the disk's fault: the file has its blocks.
async fn put(file: &DmaFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut buffer = file.alloc_dma_buffer(bytes.len());
    buffer.as_bytes_mut()[..bytes.len()].copy_from_slice(bytes);
    match file.write_at(buffer, offset).await {
        Ok(written) if written >= bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        Err(error) => Err(told(error)),
    }
}

/// The system's error itself: what glommio makes of it keeps the kind and the text and loses the number, by which a fault of the disk
/// is known (STO-FAULT).
fn told(error: GlommioError<()>) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.into(),
    }
}

#[cfg(feature = "faults")]
async fn with_faults(
    file: &DmaFile,
    write: &Write,
    faults: crate::io::faults::Faults,
) -> io::Result<()> {
    use crate::io::faults::{die, eio};
    if faults.delay > Duration::ZERO {
        glommio::timer::sleep(faults.delay).await;
    }
    let (bytes, offset) = (&write.bytes, write.location.offset);
    if faults.tear {
        // What a device writes at once.
        const BLOCK: usize = 4096;
        let half = bytes.len() / 2 / BLOCK * BLOCK;
        if half > 0 {
            // It is the end either way.
            let _ = put(file, &bytes[..half], offset).await;
        }
        die();
    }
    if faults.lose {
        die();
    }
    if faults.fail_write {
        return Err(eio());
    }
    put(file, bytes, offset).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault;
    use crate::io::Disk;
    use futures::channel::mpsc;
    use glommio::{LocalExecutorBuilder, Placement};
    use mareedb_ipc::ExitCode;

    /// LIVE-3
    #[test]
    fn a_write_that_hangs_is_seen_although_later_ones_end() {
        let mut flying = Flying::default();
        for lsn in 1..=4 {
            flying.begin(lsn);
        }
        assert!(!flying.has_room());
        std::thread::sleep(Duration::from_millis(20));
        for lsn in 2..=4 {
            flying.end(lsn);
            flying.begin(lsn + 3);
        }
        assert!(!flying.has_room());
        assert!(flying.waiting() >= Duration::from_millis(20));
        flying.end(1);
        assert!(flying.waiting() < flying.age(5) + Duration::from_millis(20));
        for lsn in 5..=7 {
            flying.end(lsn);
        }
        assert_eq!(flying.waiting(), Duration::ZERO);
    }

    /// STO-FAULT
    #[test]
    fn what_the_executor_says_of_a_disk_keeps_the_number() {
        for (code, exit) in [
            (libc::EIO, ExitCode::DiskFault),
            (libc::EROFS, ExitCode::DiskFault),
            (libc::ENOSPC, ExitCode::Io),
        ] {
            let enhanced = GlommioError::EnhancedIoError {
                source: io::Error::from_raw_os_error(code),
                op: "Writing",
                path: Some("segment".into()),
                fd: Some(7),
            };
            let error = told(enhanced);
            assert_eq!(error.raw_os_error(), Some(code));
            assert_eq!(fault::exit_of(&error), exit, "{error}");
        }
    }

    /// STO-FAULT
    #[test]
    fn a_write_that_fails_and_a_segment_that_does_not_open_keep_the_number() {
        static BYTES: [u8; 4096] = [7; 4096];
        let dir = tempfile::tempdir().unwrap();
        let mut disk = StdDisk::open(dir.path()).unwrap();
        disk.create(1, 4096).unwrap();
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(1 << 20)
            .ring_depth(128)
            .make()
            .unwrap();
        executor.run(async move {
            let opened = OpenOptions::new().read(true).dma_open(disk.path(1)).await;
            let file = opened.unwrap();
            let error = put(&file, &BYTES, 0).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF), "{error}");
            file.close().await.unwrap();
            let (wake, _rung) = mpsc::channel(1);
            let mut writer = Writer::new(disk, wake);
            let error = writer.open(2).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
        });
    }
}
