//! Segments of whole units, some of whose bytes were changed, are read back or called damaged, never with a panic; what is
//! read back twice is the same.
#![no_main]

use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, OperationId, RandomId, ReplicaId};
use mareedb_storaged::io::{Disk, SimDisk};
use mareedb_storaged::log::unit::Change;
use mareedb_storaged::log::{Log, LogOptions};

const SEGMENT_BYTES: u64 = 64 << 10;

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        cache_bytes_max: 1 << 20,
        incarnation: 1,
        acknowledged: 0,
    }
}

libfuzzer_sys::fuzz_target!(|input: (u8, Vec<(u8, u32, Vec<u8>)>)| {
    let (appends, changes) = input;
    let mut disk = SimDisk::new(1);
    let mut log = Log::open(&mut disk, options(), &|| ()).expect("an empty log");
    for number in 0..=u64::from(appends) {
        let group = FIRST_DATA_GROUP;
        let change = if number == 0 {
            Change::Create {
                group,
                replica: ReplicaId(1),
                range: KeyRange::whole(),
            }
        } else {
            let index = number - 1;
            let body = EntryBody::Normal(Bytes::from(vec![7; 100]));
            let position = LogPosition { term: 1, index };
            Change::Append {
                group,
                entries: vec![LogEntry { position, body }],
            }
        };
        if !log.fits(512) {
            if let Some(work) = log.prepare() {
                work.run(&mut disk).expect("room");
                log.prepared();
            }
            let begin = log.begin_segment().expect("a file is ready");
            disk.write(begin.location.segment, 0, &begin.bytes)
                .expect("a write");
            log.written(begin.lsn);
        }
        let id = OperationId {
            generation: RandomId(1),
            position: number,
        };
        let write = log.append(vec![(id, change)]).expect("it follows");
        disk.write(write.location.segment, write.location.offset, &write.bytes)
            .expect("a write");
        log.written(write.lsn);
    }
    drop(log);
    let segments = disk.segments().expect("segments");
    for (segment, offset, bytes) in changes {
        let segment = segments[usize::from(segment) % segments.len()];
        let room = SEGMENT_BYTES.saturating_sub(bytes.len() as u64).max(1);
        let offset = u64::from(offset) % room;
        if offset + bytes.len() as u64 <= SEGMENT_BYTES {
            disk.write(segment, offset, &bytes).expect("a write");
        }
    }
    let Ok(first) = Log::open(&mut disk, options(), &|| ()) else {
        return;
    };
    let last = first.index.groups.get(&FIRST_DATA_GROUP).map(|group| group.last);
    drop(first);
    let second = Log::open(&mut disk, options(), &|| ()).expect("what was read back is whole");
    let again = second.index.groups.get(&FIRST_DATA_GROUP).map(|group| group.last);
    assert_eq!(last, again);
});
