//! What the log rests on: each call of [`StdDisk`] is done and durable when it returns, and before that as a whole or not at all.

use crate::calls;
use crate::files::{Dice, Files, Op};
use crate::recorder::{History, Recorder, Trouble};
use mareedb_ipc::wire::storage::KeyRange;
use mareedb_ipc::wire::{FIRST_DATA_GROUP, OperationId, RandomId, ReplicaId, Vote, encode};
use mareedb_storaged::io::{Disk, StdDisk};
use mareedb_storaged::log::recover::LogError;
use mareedb_storaged::log::unit::{Change, RECORD_EXTRA_BYTES, Record};
use mareedb_storaged::log::{Log, LogOptions};
use std::io::ErrorKind;
use std::path::Path;
use tempfile::TempDir;

const SEGMENT: u64 = 32 << 10;

fn log_dir(root: &Path) -> std::path::PathBuf {
    root.join("log").join("shard-0")
}

/// Runs over what is there, and gives all images that a crash in it may leave, some of each moment: with whether it had ended.
fn images(before: &History, run: impl FnOnce(&mut StdDisk)) -> (History, Vec<(bool, Files)>) {
    let dir = crate::scratch();
    let recorder = Recorder::new(dir.path(), before.clone());
    let (recorder, ()) = calls::record(recorder, || {
        let mut disk = StdDisk::unlocked(&log_dir(dir.path()));
        run(&mut disk);
    });
    let history = recorder.done();
    let mut dice = Dice::new(5);
    let mut out = Vec::new();
    for at in before.ops.len()..=history.ops.len() {
        for _ in 0..12 {
            let image = history.at(at).crash(&mut dice);
            out.push((at == history.ops.len(), image));
        }
    }
    (history, out)
}

fn opened(image: &Files) -> (TempDir, StdDisk) {
    let dir = crate::scratch();
    image.make(dir.path());
    let disk = StdDisk::open(&log_dir(dir.path())).unwrap();
    (dir, disk)
}

/// A directory with a key and two segments, all of it durable.
fn begun() -> History {
    let dir = crate::scratch();
    let recorder = Recorder::new(dir.path(), History::new());
    let (recorder, ()) = calls::record(recorder, || {
        let mut disk = StdDisk::open(&log_dir(dir.path())).unwrap();
        disk.key().unwrap();
        for number in 1..=2 {
            disk.create(number, SEGMENT).unwrap();
            disk.write(number, 0, &[7; 4096]).unwrap();
        }
    });
    recorder.done()
}

fn numbers(disk: &StdDisk) -> Vec<u64> {
    let mut numbers = disk.segments().unwrap();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_segment_is_made_whole_or_not_at_all() {
    let (_, images) = images(&begun(), |disk| disk.create(3, SEGMENT).unwrap());
    for (ended, image) in images {
        let (_dir, disk) = opened(&image);
        let made = numbers(&disk) == [1, 2, 3];
        assert!(made || (!ended && numbers(&disk) == [1, 2]));
        if made {
            assert_eq!(disk.bytes(3).unwrap(), SEGMENT);
        }
        assert_eq!(disk.read_at(2, 0, 4096).unwrap(), [7; 4096]);
    }
}

#[test]
fn a_file_has_the_old_number_or_the_new_one() {
    let (_, images) = images(&begun(), |disk| disk.rename(1, 3).unwrap());
    for (ended, image) in images {
        let (_dir, disk) = opened(&image);
        let moved = numbers(&disk) == [2, 3];
        assert!(moved || (!ended && numbers(&disk) == [1, 2]));
        let number = if moved { 3 } else { 1 };
        assert_eq!(disk.read_at(number, 0, 4096).unwrap(), [7; 4096]);
    }
}

#[test]
fn a_deleted_segment_stays_deleted() {
    let (_, images) = images(&begun(), |disk| disk.delete(1).unwrap());
    for (ended, image) in images {
        let (_dir, disk) = opened(&image);
        assert!(numbers(&disk) == [2] || (!ended && numbers(&disk) == [1, 2]));
    }
}

#[test]
fn a_write_is_there_when_it_has_ended() {
    let (_, images) = images(&begun(), |disk| disk.write(2, 8192, &[9; 8192]).unwrap());
    for (ended, image) in images {
        let (_dir, disk) = opened(&image);
        let bytes = disk.read_at(2, 8192, 8192).unwrap();
        assert!(!ended || bytes == [9; 8192]);
        assert!(bytes.iter().all(|byte| [0, 9].contains(byte)));
        assert_eq!(disk.read_at(2, 0, 4096).unwrap(), [7; 4096]);
    }
}

#[test]
fn a_key_that_was_told_is_kept() {
    let dir = crate::scratch();
    let recorder = Recorder::new(dir.path(), History::new());
    let (recorder, key) = calls::record(recorder, || {
        StdDisk::open(&log_dir(dir.path())).and_then(|mut disk| disk.key())
    });
    let (key, history) = (key.unwrap(), recorder.done());
    let mut dice = Dice::new(6);
    for at in 0..=history.ops.len() {
        for _ in 0..12 {
            let (_dir, mut disk) = opened(&history.at(at).crash(&mut dice));
            let found = disk.key().unwrap();
            assert!(found == key || at < history.ops.len());
        }
    }
}

/// A log over real files: its votes are what is told and acknowledged.
struct Voter {
    log: Log,
    position: u64,
}

fn id(position: u64) -> OperationId {
    OperationId {
        generation: RandomId(1),
        position,
    }
}

impl Voter {
    fn open(disk: &mut StdDisk) -> Result<Voter, LogError> {
        let options = LogOptions {
            segment_bytes: SEGMENT,
            cache_bytes_max: 0,
            incarnation: 1,
            acknowledged: 0,
        };
        let log = Log::open(disk, options, &|| {})?;
        let position = log.index.last.map_or(0, |last| last.position);
        Ok(Voter { log, position })
    }

    /// Writes a vote and waits for it; a segment is begun when there is no room.
    fn vote(&mut self, disk: &mut StdDisk) -> std::io::Result<()> {
        let group = FIRST_DATA_GROUP;
        let change = if self.position == 0 {
            Change::Create {
                group,
                replica: ReplicaId(1),
                range: KeyRange::whole(),
            }
        } else {
            let vote = Vote {
                term: self.position,
                voted_for: None,
                committed: false,
            };
            Change::Vote { group, vote }
        };
        let bytes = encode(&change).len() + RECORD_EXTRA_BYTES;
        if !self.log.fits(bytes) {
            self.log.recycle();
            if let Some(work) = self.log.prepare() {
                let prepared = work.run(disk);
                if prepared.is_err() {
                    self.log.unprepared();
                }
                prepared?;
                self.log.prepared();
            }
            let write = self.log.begin_segment().expect("its file is there");
            disk.write(write.location.segment, write.location.offset, &write.bytes)?;
            self.log.written(write.lsn);
        }
        let id = id(self.position + 1);
        let write = self
            .log
            .take(vec![Record::Operation { id, change }])
            .unwrap();
        self.position += 1;
        disk.write(write.location.segment, write.location.offset, &write.bytes)?;
        self.log.written(write.lsn);
        Ok(())
    }
}

#[test]
fn a_log_in_real_files_keeps_what_was_acknowledged() {
    let mut history = History::new();
    let (mut least, mut dice) = (0, Dice::new(7));
    for _ in 0..12 {
        let dir = crate::scratch();
        let recorder = Recorder::new(dir.path(), history.clone());
        let before = history.ops.len();
        let (recorder, told) = calls::record(recorder, || {
            let mut told = vec![(0, least)];
            let mut disk = StdDisk::open(&log_dir(dir.path())).unwrap();
            let mut voter = Voter::open(&mut disk).unwrap();
            assert!(
                voter.position >= least,
                "DUR-2: {} of {least}",
                voter.position
            );
            for _ in 0..dice.roll(30) {
                voter.vote(&mut disk).unwrap();
                let at = calls::with(|recorder| recorder.history.ops.len()).unwrap();
                told.push((at, voter.position));
            }
            told
        });
        history = recorder.done();
        let span = (history.ops.len() - before) as u64;
        let at = before + usize::try_from(dice.roll(span + 1)).unwrap();
        least = told
            .iter()
            .filter(|(when, _)| *when <= at)
            .map(|(_, at)| *at)
            .max()
            .unwrap();
        if dice.roll(3) == 0 {
            history.ops.truncate(at);
        } else {
            history = History::over(history.at(at).crash(&mut dice));
        }
    }
}

/// What a successor reads it calls durable, also where the file of the next segment is there already and the one that was written to is
/// not the newest one.
#[test]
fn a_write_that_a_kill_interrupted_is_durable_once_it_is_read() {
    let dir = crate::scratch();
    let recorder = Recorder::new(dir.path(), History::new());
    let (recorder, ()) = calls::record(recorder, || {
        let mut disk = StdDisk::open(&log_dir(dir.path())).unwrap();
        let mut voter = Voter::open(&mut disk).unwrap();
        for _ in 0..5 {
            voter.vote(&mut disk).unwrap();
        }
        let ahead = voter.log.prepare().expect("none is there");
        ahead.run(&mut disk).unwrap();
        voter.log.prepared();
        voter.vote(&mut disk).unwrap();
    });
    let mut history = recorder.done();
    // The process was killed before the bytes of the last one had reached the disk.
    assert!(matches!(history.ops.pop(), Some(Op::Sync(_))));
    let dir = crate::scratch();
    let recorder = Recorder::new(dir.path(), history);
    let (recorder, ()) = calls::record(recorder, || {
        let mut disk = StdDisk::open(&log_dir(dir.path())).unwrap();
        let mut voter = Voter::open(&mut disk).unwrap();
        assert_eq!(voter.position, 6);
        voter.vote(&mut disk).unwrap();
    });
    let files = recorder.done().now();
    let mut dice = Dice::new(8);
    for _ in 0..12 {
        let (_dir, mut disk) = opened(&files.crash(&mut dice));
        let voter = Voter::open(&mut disk).unwrap();
        assert!(voter.position >= 7, "DUR-2: {} of 7", voter.position);
    }
}

/// docs/formats/log.md: a disk without room for a segment, and without a spare one.
#[test]
fn a_full_disk_refuses_what_would_need_a_segment_and_loses_nothing() {
    let dir = crate::scratch();
    let root = dir.path();
    let recorder = Recorder::new(root, History::new());
    let (recorder, ()) = calls::record(recorder, || {
        let mut disk = StdDisk::open(&log_dir(root)).unwrap();
        let mut voter = Voter::open(&mut disk).unwrap();
        while voter.log.fits(200) {
            voter.vote(&mut disk).unwrap();
        }
        let (position, segments) = (voter.position, numbers(&disk));
        // In the middle of the file, and with its first byte.
        for after in [0, 1, 2, 0, 1] {
            calls::with(|recorder| {
                recorder.trouble = Some(Trouble {
                    after,
                    calls: 1,
                    errno: libc::ENOSPC,
                });
            });
            let refused = voter.vote(&mut disk).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::StorageFull);
            calls::with(|recorder| recorder.trouble = None);
            assert_eq!(
                (voter.position, numbers(&disk)),
                (position, segments.clone())
            );
            let files = std::fs::read_dir(log_dir(root)).unwrap().flatten();
            let half = files.filter(|file| file.file_name().to_string_lossy().starts_with("new-"));
            assert_eq!(
                half.count(),
                0,
                "a half file holds the room that is missing"
            );
        }
        // A restart does not help, and does no harm; with room it goes on.
        drop(voter);
        calls::with(|recorder| {
            recorder.trouble = Some(Trouble {
                after: 0,
                // It is tried twice: with a new file, and with one that nobody needs, if there is one.
                calls: 2,
                errno: libc::ENOSPC,
            });
        });
        let refused = Voter::open(&mut disk).map(|voter| voter.position);
        assert!(
            matches!(&refused, Err(LogError::Io(error)) if error.kind() == ErrorKind::StorageFull),
            "{refused:?}"
        );
        calls::with(|recorder| recorder.trouble = None);
        let mut voter = Voter::open(&mut disk).unwrap();
        assert_eq!(voter.position, position, "DUR-2");
        for _ in 0..20 {
            voter.vote(&mut disk).unwrap();
        }
    });
    recorder.done();
}
