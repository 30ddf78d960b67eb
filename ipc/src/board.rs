//! Status boards: one memfd a process that only it can write, which outlives its daemon and which the others read.
//!
//! Invariants (docs/formats/ring.md): BOARD-1, only the owner writes; BOARD-2, a reader gets a whole value or the whole one
//! before it, and never waits for a writer. Non-goals: history, and anything that must survive the supervisor.
//!
//! A cell has two slots, written in turn. A writer that dies in the middle spoils the slot that it writes, and the other
//! one still holds the value before. A reader never waits for a writer: it tries a few times, then says that there is
//! nothing.

use crate::exit::ExitCode;
use crate::mapping::Mapping;
use crate::ring::RingError;
use crate::status::CorruptLink;
use crate::topology::Role;
use crate::wire::{decode, encode};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

/// A number that a daemon shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Gauge {
    /// 1: the daemon serves.
    Ready,
    /// 1: a flush takes longer than `storage.stall_limit_ms`.
    DiskStalled,
    /// Median duration of recent log flushes, microseconds.
    FsyncUsP50,
    /// 99th percentile of recent log flushes, microseconds.
    FsyncUsP99,
    /// Bytes of data.
    DataBytes,
    /// Free bytes on the file system of the data.
    FreeBytes,
    /// I/O errors since the daemon started.
    IoErrors,
    /// Entries applied since the daemon started.
    Applied,
    /// Bytes written to the log since the daemon started.
    LogBytes,
    /// Log flushes since the daemon started.
    Flushes,
    /// Bytes of the files that the log takes.
    LogFileBytes,
    /// What the wall clock is ahead of the clock that revisions follow, in milliseconds: a successor goes on with that.
    ClockHeldMs,
    /// 1: the disk failed (STO-FAULT). Never taken back while the supervisor lives: however the process ends from here on, it ended
    /// with [`crate::ExitCode::DiskFault`].
    DiskFault,
    /// Bytes of the largest command that each other member is known to take, on consensusd's board: a successor goes on with that. 0:
    /// nothing is known.
    CommandBytes,
}

/// A small record that a process shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// `String`: why the process ended itself.
    LastWords,
    /// [`crate::CorruptLink`]
    CorruptLink,
    /// [`crate::DaemonStatus`] on the supervisor's board.
    Daemon(Role),
    /// [`crate::NodeStatus`] on the supervisor's board.
    Node,
    /// `Vec<`[`crate::GroupDigest`]`>` on storaged's board.
    Digests,
    /// `Vec<`[`crate::LinkUsage`]`>` on the supervisor's board.
    Links,
    /// `Vec<`[`crate::LogEnd`]`>` on storaged's board.
    LogEnds,
    /// [`crate::Counted`] on storaged's board: durations of durable log writes.
    LogWrites,
}
impl Cell {
    fn index(self) -> usize {
        match self {
            Cell::LastWords => 0,
            Cell::CorruptLink => 1,
            Cell::Daemon(role) => 2 + role as usize,
            Cell::Node => 6,
            Cell::Digests => 7,
            Cell::Links => 8,
            Cell::LogEnds => 9,
            Cell::LogWrites => 10,
        }
    }
}

const CELLS: usize = 16;
const GAUGES: usize = 64;
pub(crate) const SLOT_BYTES: usize = 4096;
/// The largest record of a cell.
pub const CELL_BYTES_MAX: usize = SLOT_BYTES - SLOT_HEADER;
/// sequence u64, length u32, crc u32
const SLOT_HEADER: usize = 16;
const AT_BEATS: usize = 0;
const AT_GAUGES: usize = 64;
const AT_CELLS: usize = 4096;
pub(crate) const BOARD_BYTES: usize = AT_CELLS + CELLS * 2 * SLOT_BYTES;
const _: () = assert!(AT_GAUGES + GAUGES * 8 <= AT_CELLS);

pub(crate) fn slot_at(cell: usize, sequence: u64) -> usize {
    let slot = usize::from(!sequence.is_multiple_of(2));
    AT_CELLS + (cell * 2 + slot) * SLOT_BYTES
}

fn slot_crc(sequence: u64, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), payload)
}

/// What fits into a cell of a text.
fn fitting(text: &str) -> &str {
    // Its length takes two bytes at most in front of it.
    &text[..text.floor_char_boundary(CELL_BYTES_MAX - 2)]
}

/// Looks for the lock before last words are given up.
const LOOKS_MAX: usize = 100;

type Sequences = [u64; CELLS];

/// The owner's end of a board.
#[derive(Clone)]
pub struct BoardWriter {
    map: Arc<Mapping>,
    /// Sequence numbers of the cells; the lock makes puts of several threads one after the other.
    sequences: Arc<Mutex<Sequences>>,
}

impl BoardWriter {
    pub(crate) fn new(map: Mapping) -> BoardWriter {
        let mut sequences = [0; CELLS];
        for (cell, sequence) in sequences.iter_mut().enumerate() {
            // Both slots may be whole, or one torn: going on above the highest whole one overwrites the other slot, so
            // that the last value stays readable until the next one is whole (BOARD-2).
            *sequence = [0, 1]
                .into_iter()
                .filter_map(|slot| {
                    let at = slot_at(cell, slot);
                    let sequence = map.word(at).load(Ordering::Acquire);
                    (slot_at(cell, sequence) == at)
                        .then(|| read_slot(&map, sequence, at))
                        .flatten()
                        .map(|_| sequence)
                })
                .max()
                .unwrap_or(0);
        }
        BoardWriter {
            map: Arc::new(map),
            sequences: Arc::new(Mutex::new(sequences)),
        }
    }

    /// What this process or its predecessor shows.
    pub fn reader(&self) -> BoardReader {
        BoardReader {
            map: self.map.clone(),
        }
    }

    /// Proves that the main loop runs.
    pub fn beat(&self) {
        self.map.word(AT_BEATS).fetch_add(1, Ordering::Release);
    }

    /// Shows a number.
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.map
            .word(AT_GAUGES + gauge as usize * 8)
            .store(value, Ordering::Release);
    }

    /// Adds to a number.
    pub fn add(&self, gauge: Gauge, value: u64) {
        self.map
            .word(AT_GAUGES + gauge as usize * 8)
            .fetch_add(value, Ordering::AcqRel);
    }

    /// Shows the reason for which this process ends itself, cut to what fits. It does not wait for the lock: a thread that panics may be
    /// the one that holds it, and then its words are in the journal only.
    pub fn last_words(&self, text: &str) {
        for _ in 0..LOOKS_MAX {
            let mut sequences = match self.sequences.try_lock() {
                Ok(sequences) => sequences,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    std::thread::yield_now();
                    continue;
                }
            };
            self.write(&mut sequences, Cell::LastWords, &encode(&fitting(text)));
            return;
        }
    }

    /// Tells, in the log and as last words, why this process ends, and gives the code to end with.
    pub fn ended(&self, exit: ExitCode, why: &str) -> ExitCode {
        tracing::error!("{why}");
        self.put(Cell::LastWords, fitting(why));
        exit
    }

    /// The same of a ring that cannot go on; the supervisor is told which of them it has to replace.
    pub fn ended_by(&self, error: &RingError) -> ExitCode {
        let RingError::Corrupt { link, blame, what } = error else {
            return self.ended(ExitCode::Internal, &error.to_string());
        };
        let (link, blame, what) = (*link, *blame, what.clone());
        self.put(Cell::CorruptLink, &CorruptLink { link, blame, what });
        self.ended(ExitCode::LinkCorrupt, &error.to_string())
    }

    /// Shows a record. One that is larger than [`CELL_BYTES_MAX`] is not shown; text is better cut by the caller.
    pub fn put<T: Serialize + ?Sized>(&self, cell: Cell, value: &T) {
        let payload = encode(&value);
        if payload.len() > CELL_BYTES_MAX {
            tracing::warn!(
                ?cell,
                bytes = payload.len(),
                "too large for the status board"
            );
            return;
        }
        // A poisoned lock means that a thread died in here; what it left is a torn slot, which readers recognise.
        let mut sequences = self
            .sequences
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.write(&mut sequences, cell, &payload);
    }

    fn write(&self, sequences: &mut Sequences, cell: Cell, payload: &[u8]) {
        // 0 marks a slot that is being written.
        let sequence = sequences[cell.index()].wrapping_add(1).max(1);
        sequences[cell.index()] = sequence;
        let at = slot_at(cell.index(), sequence);
        self.map.word(at).store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        let len = u32::try_from(payload.len()).expect("bounded above");
        self.map.write(at + 8, &len.to_le_bytes());
        self.map
            .write(at + 12, &slot_crc(sequence, payload).to_le_bytes());
        self.map.write(at + SLOT_HEADER, payload);
        self.map.word(at).store(sequence, Ordering::Release);
    }
}

/// Another process's board, read-only.
#[derive(Clone)]
pub struct BoardReader {
    map: Arc<Mapping>,
}

impl BoardReader {
    pub(crate) fn new(map: Mapping) -> BoardReader {
        BoardReader { map: Arc::new(map) }
    }

    /// Beats of the owner's main loop, over all its incarnations.
    pub fn beats(&self) -> u64 {
        self.map.load(AT_BEATS)
    }

    /// A number.
    pub fn get(&self, gauge: Gauge) -> u64 {
        self.map.load(AT_GAUGES + gauge as usize * 8)
    }

    /// A record; `None` when there is none, or none that is whole (BOARD-2).
    pub fn read<T: DeserializeOwned>(&self, cell: Cell) -> Option<T> {
        // Bounded: a writer that is quicker than this reader eight times over must not hold it.
        for _ in 0..8 {
            let mut slots = [0u64, 1].map(|slot| {
                let at = slot_at(cell.index(), slot);
                (self.map.load(at), at)
            });
            slots.sort_unstable_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
            if slots[0].0 == 0 {
                return None;
            }
            for (sequence, at) in slots {
                if let Some(payload) = read_slot(&self.map, sequence, at) {
                    return decode(&payload).ok();
                }
            }
        }
        None
    }
}

/// The payload of a slot, if it is whole and was so from beginning to end.
fn read_slot(map: &Mapping, sequence: u64, at: usize) -> Option<Vec<u8>> {
    if sequence == 0 {
        return None;
    }
    let mut word = [0; 4];
    map.read(at + 8, &mut word);
    let len = u32::from_le_bytes(word) as usize;
    map.read(at + 12, &mut word);
    let crc = u32::from_le_bytes(word);
    if len > CELL_BYTES_MAX {
        return None;
    }
    let mut payload = vec![0; len];
    map.read(at + SLOT_HEADER, &mut payload);
    // Pairs with the fence in `put`: whoever saw a byte of the next value sees the sequence gone, too.
    fence(Ordering::SeqCst);
    let unchanged = map.load(at) == sequence;
    (unchanged && slot_crc(sequence, &payload) == crc).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::NodeInProcess;

    /// The panic hook says last words, also of a thread that panics while it shows something.
    #[test]
    fn last_words_never_wait_for_who_shows_something() {
        let board = NodeInProcess::small("{}").memory().board();
        board.last_words("before");
        let held = board.sequences.lock().unwrap();
        board.last_words("meanwhile");
        drop(held);
        let read = || board.reader().read::<String>(Cell::LastWords);
        assert_eq!(read().as_deref(), Some("before"));
        board.last_words("after");
        assert_eq!(read().as_deref(), Some("after"));
    }
}
