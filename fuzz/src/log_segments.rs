//! A log that is written, recycled and opened again, between which bytes are changed and units with right checksums forged,
//! is read back or called damaged, never with a panic; what is read back twice is the same.

use super::{log_unit, next, stream};
use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, LogEntry};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, OperationId, RandomId};
use mareedb_storaged::io::{Disk, SimDisk};
use mareedb_storaged::log::unit::{BLOCK, Change, Record, Unit};
use mareedb_storaged::log::{FileWork, Log, LogOptions, Write};
use serde::{Deserialize, Serialize};

const SEGMENT_BYTES: u64 = 64 << 10;

#[derive(Serialize, Deserialize)]
enum Step {
    /// An operation, as one unit.
    Change(Change),
    /// So many entries that follow, of so many bytes.
    Entries(u8, u16),
    /// Records, as one unit.
    Take(Vec<Record>),
    /// A mark of what is durable.
    Close,
    /// Segments that nobody needs are used again, entries that pin one are moved.
    Recycle,
    /// The log is opened again.
    Reopen,
    /// Bytes change: of a segment, at an offset.
    Bytes(u8, u16, Vec<u8>),
    /// A unit with a right checksum: in a segment, at a block, its LSN and durable mark from the newest down.
    Forge(u8, u8, i8, i8, Vec<Record>),
    /// One with any LSN.
    Far(u8, u8, u64, u64, Vec<Record>),
    /// A block is copied to another place: from segment and block, to segment and block.
    Copy(u8, u8, u8, u8),
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        cache_bytes_max: 4 << 10,
        incarnation: 1,
        acknowledged: 0,
    }
}

/// What a log holds, to be compared.
fn content(log: &Log) -> Vec<u8> {
    let index = &log.index;
    let positions: Vec<_> = index
        .groups
        .iter()
        .map(|(group, state)| {
            let entries: Vec<_> = state.entries.values().map(|slot| slot.position).collect();
            (*group, entries)
        })
        .collect();
    mareedb_ipc::wire::encode(&(index.checkpoint(), positions))
}

struct Run {
    disk: SimDisk,
    log: Option<Log>,
    position: u64,
}

impl Run {
    fn write(&mut self, write: &Write) {
        self.disk
            .write(write.location.segment, write.location.offset, &write.bytes)
            .expect("a write");
        if let Some(log) = &mut self.log {
            log.written(write.lsn);
        }
    }

    fn file(&mut self, work: Option<FileWork>) {
        if let Some(work) = work {
            work.run(&mut self.disk).expect("room");
        }
    }

    /// Makes room for so many bytes; `None`: no segment has it.
    fn room(&mut self, bytes: usize) -> Option<()> {
        if self.log.as_ref()?.fits(bytes) {
            return Some(());
        }
        if !self.log.as_ref()?.fits_empty(bytes) {
            return None;
        }
        let work = self.log.as_mut()?.prepare();
        self.file(work);
        let log = self.log.as_mut()?;
        log.prepared();
        let begin = log.begin_segment()?;
        self.write(&begin);
        Some(())
    }

    fn take(&mut self, records: Vec<Record>) -> Option<()> {
        self.room(mareedb_ipc::wire::encode(&records).len())?;
        match self.log.as_mut()?.take(records) {
            Ok(write) => self.write(&write),
            // Broken by who asked: storaged ends.
            Err(_) => self.log = None,
        }
        Some(())
    }

    fn change(&mut self, change: Change) {
        self.position += 64;
        let id = OperationId {
            generation: RandomId(1),
            position: self.position,
        };
        self.take(vec![Record::Operation { id, change }]);
    }

    fn entries(&mut self, count: u8, bytes: u16) -> Option<()> {
        let group = FIRST_DATA_GROUP;
        let last = self.log.as_ref()?.index.groups.get(&group)?.last;
        let first = last.map_or(0, |last| last.index.saturating_add(1));
        let entries = (0..u64::from(count % 16)).map(|number| LogEntry {
            position: LogPosition {
                term: last.map_or(1, |last| last.term),
                index: first.saturating_add(number),
            },
            body: EntryBody::Normal(Bytes::from(vec![7; usize::from(bytes % 4096)])),
        });
        self.change(Change::Append {
            group,
            entries: entries.collect(),
        });
        Some(())
    }

    fn recycle(&mut self) -> Option<()> {
        let closing = self.log.as_mut()?.closing();
        if let Some(closing) = closing {
            self.write(&closing);
        }
        let log = self.log.as_mut()?;
        log.recycle();
        let (surplus, sealed) = (log.surplus(), log.sealed());
        self.file(surplus);
        self.file(sealed);
        for plan in self.log.as_ref()?.cold() {
            let group = plan.group();
            let entries = plan.fetch(&self.disk);
            if let Ok(entries) = entries
                && let Some(moved) = self.log.as_ref()?.moved(group, entries)
            {
                self.take(vec![moved]);
            }
        }
        Some(())
    }

    fn place(&self, segment: u8) -> Option<u64> {
        let segments = self.disk.segments().expect("segments");
        let number = usize::from(segment).checked_rem(segments.len())?;
        Some(segments[number])
    }

    fn overwrite(&mut self, segment: u8, offset: u64, bytes: &[u8]) {
        if let Some(segment) = self.place(segment)
            && offset + bytes.len() as u64 <= SEGMENT_BYTES
        {
            self.disk.write(segment, offset, bytes).expect("a write");
        }
    }

    fn forge(&mut self, segment: u8, block: u8, lsn: u64, durable: u64, records: Vec<Record>) {
        let Some(number) = self.place(segment) else {
            return;
        };
        let unit = Unit {
            segment: number,
            lsn,
            durable,
            incarnation: 1,
            key: self.disk.key().expect("a key"),
            records,
        };
        let blocks = SEGMENT_BYTES / BLOCK as u64;
        let offset = u64::from(block) % blocks * BLOCK as u64;
        self.overwrite(segment, offset, &unit.encode());
    }

    fn reopen(&mut self) {
        self.log = None;
        let Ok(log) = Log::open(&mut self.disk, options(), &|| ()) else {
            return;
        };
        let first = content(&log);
        drop(log);
        let log = Log::open(&mut self.disk, options(), &|| ()).expect("what was read is whole");
        assert_eq!(content(&log), first);
        self.log = Some(log);
    }

    fn step(&mut self, step: Step) {
        let newest = self.log.as_ref().map_or(1, Log::issued);
        match step {
            Step::Change(change) => self.change(change),
            Step::Entries(count, bytes) => drop(self.entries(count, bytes)),
            Step::Take(records) => drop(self.take(records)),
            Step::Close => {
                if let Some(write) = self.log.as_mut().and_then(Log::closing) {
                    self.write(&write);
                }
            }
            Step::Recycle => drop(self.recycle()),
            Step::Reopen => self.reopen(),
            Step::Bytes(segment, offset, bytes) => {
                self.overwrite(segment, u64::from(offset), &bytes);
            }
            Step::Forge(segment, block, lsn, durable, records) => {
                let from = |by: i8| newest.saturating_add_signed(by.into());
                self.forge(segment, block, from(lsn), from(durable), records);
            }
            Step::Far(segment, block, lsn, durable, records) => {
                self.forge(segment, block, lsn, durable, records);
            }
            Step::Copy(from, at, to, onto) => {
                let blocks = SEGMENT_BYTES / BLOCK as u64;
                let offset = |block: u8| u64::from(block) % blocks * BLOCK as u64;
                if let Some(source) = self.place(from) {
                    let block = self.disk.read_at(source, offset(at), BLOCK).expect("bytes");
                    self.overwrite(to, offset(onto), &block);
                }
            }
        }
    }
}

pub fn run(mut bytes: &[u8]) {
    let mut run = Run {
        disk: SimDisk::new(1),
        log: None,
        position: 0,
    };
    run.reopen();
    for _ in 0..200 {
        let Some(step) = next::<Step>(&mut bytes) else {
            break;
        };
        // Files are memory here.
        if run.disk.segments().expect("segments").len() > 40 {
            break;
        }
        run.step(step);
    }
    run.reopen();
}

pub fn seeds() -> Vec<Vec<u8>> {
    let create = || Step::Change(log_unit::changes().remove(0));
    let mut whole: Vec<Step> = log_unit::changes().into_iter().map(Step::Change).collect();
    whole.extend([Step::Close, Step::Reopen]);
    let many = |last: Vec<Step>| {
        let mut steps = vec![create()];
        steps.extend((0..12).map(|_| Step::Entries(8, 1000)));
        steps.extend(last);
        stream(&steps)
    };
    let purge = |index| {
        Step::Change(Change::Purge {
            group: FIRST_DATA_GROUP,
            upto: LogPosition { term: 1, index },
        })
    };
    let forged = || log_unit::records().split_off(7);
    let last = LogPosition {
        term: 1,
        index: u64::MAX,
    };
    let group = FIRST_DATA_GROUP;
    let checkpoint = |purged, last| {
        let mut records = forged();
        if let Record::Checkpoint(checkpoint) = &mut records[0] {
            (checkpoint.groups[0].purged, checkpoint.groups[0].last) = (purged, last);
        }
        records.truncate(1);
        records
    };
    let truncate = Change::Truncate {
        group,
        last: Some(last),
    };
    vec![
        stream(&whole),
        many(vec![purge(60), Step::Recycle, Step::Recycle, Step::Reopen]),
        many(vec![
            Step::Reopen,
            purge(90),
            Step::Recycle,
            Step::Entries(15, 4000),
            Step::Reopen,
        ]),
        many(vec![Step::Bytes(0, 5000, vec![1, 2, 3]), Step::Reopen]),
        many(vec![Step::Forge(1, 12, 1, 0, forged()), Step::Reopen]),
        many(vec![
            Step::Forge(9, 15, 1, -1, vec![Record::Mark]),
            Step::Reopen,
        ]),
        many(vec![
            Step::Far(0, 9, u64::MAX, 0, vec![Record::Mark]),
            Step::Reopen,
        ]),
        many(vec![
            Step::Copy(0, 0, 1, 3),
            Step::Copy(1, 0, 0, 0),
            Step::Reopen,
        ]),
        stream(&[create(), Step::Take(forged()), Step::Reopen]),
        // An installed snapshot below what was purged.
        many(vec![
            purge(60),
            Step::Take(log_unit::records().split_off(10)),
            Step::Entries(3, 1),
            Step::Reopen,
        ]),
        // Numbers that no log has.
        stream(&[
            create(),
            Step::Take(checkpoint(None, Some(last))),
            Step::Entries(1, 1),
        ]),
        stream(&[
            create(),
            Step::Take(checkpoint(Some(last), None)),
            Step::Entries(1, 1),
        ]),
        stream(&[create(), Step::Change(truncate), Step::Entries(1, 1)]),
        stream(&[create(), purge(u64::MAX), Step::Entries(1, 1)]),
        stream(&[
            create(),
            purge(u64::MAX - 1),
            Step::Entries(1, 1),
            Step::Reopen,
        ]),
    ]
}
