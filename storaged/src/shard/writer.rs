//! Durable writes of units over io_uring, several at once.

use crate::io::StdDisk;
use crate::log::Write;
use futures::channel::mpsc::UnboundedSender;
use glommio::io::{DmaFile, OpenOptions};
use std::cell::RefCell;
use std::collections::VecDeque;
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
    flying: usize,
    /// When the oldest write in flight began; for the stall mark.
    began: VecDeque<Instant>,
    wake: UnboundedSender<()>,
}

impl Writer {
    /// A writer that wakes through `wake`.
    pub fn new(disk: StdDisk, wake: UnboundedSender<()>) -> Writer {
        Writer {
            disk,
            file: None,
            #[cfg(feature = "faults")]
            dir: std::path::PathBuf::new(),
            done: Rc::default(),
            flying: 0,
            began: VecDeque::new(),
            wake,
        }
    }
}

impl UnitWriter for Writer {
    fn has_room(&self) -> bool {
        self.flying < WRITES_MAX
    }

    fn waiting(&self) -> Duration {
        self.began.front().map_or(Duration::ZERO, Instant::elapsed)
    }

    fn ended(&mut self) -> Option<Written> {
        let written = self.done.borrow_mut().pop_front()?;
        self.flying -= 1;
        self.began.pop_front();
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
            .map_err(io::Error::from)?;
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
        let (file, done, wake) = (file.clone(), self.done.clone(), self.wake.clone());
        #[cfg(feature = "faults")]
        let faults = crate::io::faults::wanted(&self.dir);
        self.flying += 1;
        self.began.push_back(Instant::now());
        glommio::spawn_local(async move {
            let began = Instant::now();
            #[cfg(feature = "faults")]
            let result = with_faults(&file, &write, faults).await;
            #[cfg(not(feature = "faults"))]
            let result = put(&file, &write.bytes, write.location.offset).await;
            done.borrow_mut().push_back(Written {
                lsn: write.lsn,
                took: began.elapsed(),
                result,
            });
            // The main task may have ended; then nobody waits.
            let _ = wake.unbounded_send(());
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
        Err(error) => Err(error.into()),
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
