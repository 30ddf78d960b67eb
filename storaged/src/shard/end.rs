//! Why a shard ended, and how far its log had got: what a successor and an operator need to know.

use crate::fault;
use crate::log::recover::LogError;
use crate::state::StoreError;
use mareedb_ipc::{BoardWriter, Cell, ExitCode, LogEnd, RingError};
use parking_lot::Mutex;
use std::any::Any;
use std::sync::Arc;

/// Why a shard ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// A ring is corrupt.
    Ring(RingError),
    /// Something else, with the exit code that says what.
    Failed(ExitCode, String),
}

impl From<RingError> for Ended {
    fn from(error: RingError) -> Self {
        Ended::Ring(error)
    }
}

impl From<LogError> for Ended {
    fn from(error: LogError) -> Self {
        let exit = match &error {
            LogError::Io(error) => fault::exit_of(error),
            LogError::Key(_) | LogError::Damaged { .. } => ExitCode::LogDamaged,
        };
        Ended::Failed(exit, error.to_string())
    }
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        let exit = match error {
            StoreError::Io(ref error) => fault::exit_of(error),
            StoreError::Unsettled(_) => ExitCode::Io,
            StoreError::Damaged(_) => ExitCode::StateDamaged,
            StoreError::NoReplica(_) | StoreError::Hole { .. } | StoreError::Refused(_) => {
                ExitCode::Internal
            }
        };
        Ended::Failed(exit, error.to_string())
    }
}

impl Ended {
    /// A broken invariant.
    pub fn broken(why: impl Into<String>) -> Ended {
        Ended::Failed(ExitCode::Internal, why.into())
    }

    /// A thread panicked: what it said is the evidence.
    pub fn panicked(who: &str, payload: &(dyn Any + Send)) -> Ended {
        let said = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no text");
        Ended::broken(format!("{who} panicked: {said}"))
    }
}

/// How far each shard's log was acknowledged, on the board: it outlives this process as the rings do, so that a successor
/// which recovers less knows that something is missing (LOG-3).
#[derive(Clone)]
pub struct Ends {
    board: BoardWriter,
    known: Arc<Mutex<Vec<LogEnd>>>,
}

impl Ends {
    /// What a predecessor left.
    pub fn new(board: BoardWriter) -> Ends {
        let known = board.reader().read(Cell::LogEnds).unwrap_or_default();
        Ends {
            board,
            known: Arc::new(Mutex::new(known)),
        }
    }

    /// The last unit of a shard's log that was acknowledged; 0: nobody knows of one.
    pub fn get(&self, shard: u16) -> u64 {
        let known = self.known.lock();
        known
            .iter()
            .find(|end| end.shard == shard)
            .map_or(0, |end| end.unit)
    }

    /// To be told before the ring's head says so.
    pub fn set(&self, shard: u16, unit: u64) {
        let mut known = self.known.lock();
        match known.iter_mut().find(|end| end.shard == shard) {
            Some(end) if end.unit >= unit => return,
            Some(end) => end.unit = unit,
            None => known.push(LogEnd { shard, unit }),
        }
        self.board.put(Cell::LogEnds, &*known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Disk, StdDisk};
    use crate::log::{Log, LogOptions};

    #[test]
    fn a_damaged_key_of_the_log_is_damage_and_not_the_disks_fault() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = StdDisk::open(dir.path()).unwrap();
        disk.key().unwrap();
        disk.create(1, 4096).unwrap();
        std::fs::write(dir.path().join("key"), b"no key").unwrap();
        let options = LogOptions {
            segment_bytes: 1 << 20,
            cache_bytes_max: 1 << 20,
            incarnation: 1,
            acknowledged: 0,
        };
        let error = Log::open(&mut disk, options, &|| ()).err().unwrap();
        let Ended::Failed(exit, why) = Ended::from(error) else {
            panic!("no failure");
        };
        assert_eq!(exit, ExitCode::LogDamaged, "{why}");
    }
}
