//! How long a log takes to be read back: `cargo bench -p mareedb-storaged --bench recover`; with `LOG_DIR`, one that is there
//! already.

use bytes::Bytes;
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, OperationId, RandomId, ReplicaId};
use mareedb_storaged::io::{Disk, StdDisk};
use mareedb_storaged::log::unit::{Change, Record};
use mareedb_storaged::log::{Log, LogOptions};
use std::io::Write;
use std::time::Instant;

const UNITS: u64 = 8_000;
const SEGMENT_BYTES: u64 = 16 << 20;

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        cache_bytes_max: 8 << 20,
        incarnation: 1,
        acknowledged: 0,
    }
}

fn main() {
    if let Some(dir) = std::env::var_os("LOG_DIR") {
        measure(&mut StdDisk::open(dir.as_ref()).expect("the disk"));
        return;
    }
    let dir = tempfile::tempdir_in(".").expect("a directory on the disk");
    let mut disk = StdDisk::open(dir.path()).expect("the disk");
    let mut log = Log::open(&mut disk, options(), &|| ()).expect("a log");
    let group = FIRST_DATA_GROUP;
    for number in 0..=UNITS {
        let change = if number == 0 {
            Change::Create {
                group,
                replica: ReplicaId(1),
                range: KeyRange::whole(),
            }
        } else {
            let entry = LogEntry {
                position: LogPosition {
                    term: 1,
                    index: number - 1,
                },
                body: EntryBody::Normal(Bytes::from(vec![b'v'; 300])),
            };
            Change::Append {
                group,
                entries: vec![entry],
            }
        };
        if !log.fits(1024) {
            if let Some(work) = log.prepare() {
                work.run(&mut disk).expect("the disk");
                log.prepared();
            }
            let begin = log.begin_segment().expect("a file is ready");
            disk.write(begin.location.segment, begin.location.offset, &begin.bytes)
                .expect("the disk");
            log.written(begin.lsn);
        }
        let id = OperationId {
            generation: RandomId(1),
            position: number,
        };
        let write = log
            .take(vec![Record::Operation { id, change }])
            .expect("it follows");
        disk.write(write.location.segment, write.location.offset, &write.bytes)
            .expect("the disk");
        log.written(write.lsn);
    }
    drop(log);
    measure(&mut disk);
}

fn measure(disk: &mut StdDisk) {
    let key = disk.key().expect("a key");
    for _ in 0..10 {
        let began = Instant::now();
        let recovered = mareedb_storaged::log::recover::recover(disk, key, 8 << 20, 0, &|| ())
            .expect("it is read back");
        let took = began.elapsed().as_micros();
        let text = format!(
            "up to unit {} in {} segments, {} entries: {:.1} ms\n",
            recovered.next_lsn - 1,
            recovered.segments.len(),
            recovered
                .index
                .groups
                .values()
                .map(|group| group.entries.len())
                .sum::<usize>(),
            took as f64 / 1000.0
        );
        std::io::stdout()
            .write_all(text.as_bytes())
            .expect("standard output");
    }
}
