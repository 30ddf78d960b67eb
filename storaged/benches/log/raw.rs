//! The disk alone.

use crate::report::{Figure, percentile};
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// As large as a segment.
const FILE_BYTES: usize = 16 << 20;
const ALIGNED: usize = 4096;
/// Before anything is measured.
const WARM: Duration = Duration::from_millis(50);

/// A file that was written before.
pub struct Raw {
    file: File,
    buffer: Vec<u8>,
    bytes: usize,
    next: usize,
}

impl Raw {
    /// Makes it.
    pub fn create(prefix: &Path, bytes: usize) -> Raw {
        let path = prefix.with_extension(bytes.to_string());
        let whole = File::create(&path).expect("a file");
        let zeros = vec![0; 1 << 20];
        for at in (0..FILE_BYTES).step_by(zeros.len()) {
            whole.write_all_at(&zeros, at as u64).expect("the disk");
        }
        whole.sync_all().expect("the disk");
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_DSYNC | libc::O_DIRECT)
            .open(&path)
            .expect("a file for direct writes");
        Raw {
            file,
            buffer: vec![b'r'; bytes + ALIGNED],
            bytes,
            next: 0,
        }
    }

    /// Writes one block after the other for a while.
    pub fn run(&mut self, time: Duration) -> Figure {
        let start = self.buffer.as_ptr().align_offset(ALIGNED);
        let began = Instant::now();
        let mut first = None;
        let mut took = Vec::new();
        loop {
            let now = Instant::now();
            if now - began > WARM {
                first.get_or_insert(now);
            }
            if first.is_some_and(|first| now - first > time) {
                break;
            }
            if self.next + self.bytes > FILE_BYTES {
                self.next = 0;
            }
            // No two writes are the same.
            self.buffer[start] = self.buffer[start].wrapping_add(1);
            let block = &self.buffer[start..start + self.bytes];
            self.file
                .write_all_at(block, self.next as u64)
                .expect("the disk");
            self.next += self.bytes;
            if first.is_some() {
                took.push(u64::try_from(now.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
        }
        let elapsed = first.map_or(time, |first| first.elapsed());
        let p50_us = percentile(&mut took, 50);
        Figure {
            rate: took.len() as f64 / elapsed.as_secs_f64(),
            p50_us,
            p99_us: percentile(&mut took, 99),
            per_write: 1.0,
            write_p50_us: p50_us,
        }
    }
}
