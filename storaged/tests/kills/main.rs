//! Kills, stops and damages real storaged processes whose consensusd the test plays, over rings as a supervisor makes them.
//!
//! DUR-2, LOG-3, LOG-5, LOG-6, LOG-9, STO-PURGE.

mod host;
mod model;

use host::Host;
use mareedb_ipc::wire::storage::{StorageAnswer, StorageRequest, ToStorage};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, LogPosition, RandomId};
use mareedb_ipc::{Cell, ExitCode, Gauge, Inheritance, LogEnd};
use model::Model;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const KILLS: u64 = 40;
/// Names the directory for the test that needs one on a small file system.
const SMALL_DISK: &str = "KILLS_SMALL_DISK";

fn main() {
    if Inheritance::present() {
        let inheritance = Inheritance::from_env().unwrap();
        let exit = mareedb_storaged::run(inheritance);
        std::process::exit(exit.code().into());
    }
    // The part of the test harness's command line that matters here.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let tests: [(&str, fn()); 8] = [
        (
            "nothing_is_lost_in_kills_under_load",
            nothing_is_lost_in_kills_under_load,
        ),
        (
            "a_graceful_stop_ends_in_order",
            a_graceful_stop_ends_in_order,
        ),
        (
            "damage_is_told_with_file_and_offset",
            damage_is_told_with_file_and_offset,
        ),
        ("a_lost_end_is_missed", a_lost_end_is_missed),
        (
            "a_commit_position_costs_no_write_of_its_own",
            a_commit_position_costs_no_write_of_its_own,
        ),
        (
            "a_purge_beyond_what_is_persisted_is_refused",
            a_purge_beyond_what_is_persisted_is_refused,
        ),
        (
            "an_installed_snapshot_empties_the_log",
            an_installed_snapshot_empties_the_log,
        ),
        (
            "a_full_disk_stalls_the_log_and_nothing_else",
            a_full_disk_stalls_the_log_and_nothing_else,
        ),
    ];
    for (name, test) in tests {
        if filter.is_none_or(|filter| name.contains(filter.as_str())) {
            if name.starts_with("a_full_disk") && std::env::var_os(SMALL_DISK).is_none() {
                eprintln!("test {name} ... ignored ({SMALL_DISK} is not set)");
                continue;
            }
            let begin = Instant::now();
            test();
            eprintln!("test {name} ... ok ({:.1?})", begin.elapsed());
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn nothing_is_lost_in_kills_under_load() {
    let seed = number("KILLS_SEED", u64::from(std::process::id()));
    eprintln!("KILLS_SEED={seed}");
    let mut host = Host::new();
    let mut model = Model::new(seed);
    let (mut cut, mut early) = (0, 0);
    host.start();
    model.create(&mut host);
    for round in 0..number("KILLS", KILLS) {
        if model.dice.roll(5) == 0 {
            // While it recovers, or a moment later.
            let moment = Instant::now() + Duration::from_micros(model.dice.roll(60_000));
            while Instant::now() < moment {
                host.pump(true);
            }
            early += 1;
        } else {
            let found = host.hello();
            model.check(&found);
            if round % 4 == 3 {
                model.check_entries(&mut host);
            }
            let moment = Instant::now() + Duration::from_micros(20_000 + model.dice.roll(150_000));
            while Instant::now() < moment {
                let some = model.step(&mut host);
                if model.dice.roll(6) == 0 || !some {
                    host.publish();
                    // Now and then all of it is acknowledged.
                    if model.dice.roll(30) == 0 {
                        host.settle();
                    }
                    if !some {
                        host.pump(true);
                    }
                }
            }
        }
        // In the midst of a burst.
        for _ in 0..model.dice.roll(60) {
            if !model.step(&mut host) {
                break;
            }
        }
        host.publish();
        let moment = Instant::now() + Duration::from_micros(model.dice.roll(1500));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        host.kill();
        cut += u64::from(host.unacknowledged() > 0);
        host.start();
    }
    let found = host.hello();
    model.check(&found);
    model.check_entries(&mut host);
    let segments = host.segments();
    let last = segments.last().unwrap().to_str().unwrap();
    let begun: usize = last.rsplit('-').next().unwrap().parse().unwrap();
    eprintln!(
        "{} operations, {cut} kills with some of them in flight, {early} during a start, {begun} segments, {} files",
        model.sent,
        segments.len()
    );
    assert!(cut > 15, "only {cut} kills hit something");
    assert!(begun > 2 * segments.len(), "segments were not used again");
    assert_eq!(host.board.get(Gauge::IoErrors), 0);
    assert!(host.stop().success());
}

fn loaded(seed: u64) -> (Host, Model) {
    let mut host = Host::new();
    let mut model = Model::new(seed);
    host.start();
    model.create(&mut host);
    for _ in 0..200 {
        while !model.step(&mut host) {
            host.publish();
            host.pump(true);
        }
        host.publish();
    }
    host.settle();
    (host, model)
}

fn a_graceful_stop_ends_in_order() {
    let (mut host, mut model) = loaded(1);
    host.await_ready();
    // With operations in the ring, and more to come all the time, it still stops.
    for _ in 0..50 {
        model.step(&mut host);
    }
    host.publish();
    let status = host.stop();
    assert_eq!(
        status.code(),
        Some(i32::from(ExitCode::Done.code())),
        "{}",
        host.words()
    );
    assert!(
        host.board.get(Gauge::FsyncUsP99) > 0,
        "no latency was shown"
    );
    host.start();
    let found = host.hello();
    model.check(&found);
    model.check_entries(&mut host);
    assert!(host.stop().success());
}

/// The segment that is written to, and where its last unit that holds something begins and ends.
fn last_unit(host: &Host) -> (std::path::PathBuf, usize, usize) {
    let written = |path: &std::path::PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        let name = path.to_str().unwrap().rsplit('-').next().unwrap();
        let segment: u64 = name.parse().unwrap();
        let starts: Vec<usize> = (0..bytes.len())
            .step_by(4096)
            .filter(|at| {
                bytes[*at..].starts_with(b"MAREEUNT")
                    && bytes[at + 8..at + 16] == segment.to_le_bytes()
            })
            .collect();
        starts
    };
    let path = host
        .segments()
        .into_iter()
        .rev()
        .find(|path| written(path).len() > 2)
        .unwrap();
    let starts = written(&path);
    (path, starts[starts.len() - 2], starts[starts.len() - 1])
}

fn assert_damaged(host: &mut Host, file: &std::path::Path) {
    host.start();
    let status = host.ended();
    let words = host.words();
    assert_eq!(
        status.code(),
        Some(i32::from(ExitCode::LogDamaged.code())),
        "{words}"
    );
    let segment = file.to_str().unwrap().rsplit('-').next().unwrap();
    let segment = format!("segment {}, offset ", segment.trim_start_matches('0'));
    assert!(words.contains(&segment), "{words}");
    assert!(words.contains("shard-0"), "{words}");
}

fn damage_is_told_with_file_and_offset() {
    let (mut host, _) = loaded(2);
    assert!(host.stop().success());
    let (path, at, _) = last_unit(&host);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64 + 30).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at as u64 + 30).unwrap();
    let before = std::fs::read(&path).unwrap();
    // LOG-3: and it stays an error, for nothing is skipped or overwritten.
    for _ in 0..2 {
        assert_damaged(&mut host, &path);
    }
    assert_eq!(std::fs::read(&path).unwrap(), before);
    file.write_all_at(&byte, at as u64 + 30).unwrap();
    host.start();
    host.hello();
}

fn a_lost_end_is_missed() {
    let (mut host, mut model) = loaded(3);
    while !model.append(&mut host, FIRST_DATA_GROUP) {
        host.pump(true);
    }
    host.settle();
    // The last unit was acknowledged, and no later one says so: only the board, as the rings, remembers.
    host.kill();
    let ends: Vec<LogEnd> = host.board.read(Cell::LogEnds).unwrap();
    assert!(ends[0].unit > 0);
    let (path, _, last) = last_unit(&host);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut block = vec![0; 4096];
    file.read_exact_at(&mut block, last as u64).unwrap();
    file.write_all_at(&[0; 4096], last as u64).unwrap();
    for _ in 0..2 {
        assert_damaged(&mut host, &path);
    }
    file.write_all_at(&block, last as u64).unwrap();
    host.start();
    let found = host.hello();
    model.check(&found);
}

fn a_commit_position_costs_no_write_of_its_own() {
    // LOG-9
    const TOLD: u64 = 200;
    let (mut host, mut model) = loaded(7);
    let group = FIRST_DATA_GROUP;
    let last = model.groups[&group].last.unwrap();
    let committed = |host: &mut Host| {
        let found = host.hello().replicas;
        let state = found.iter().find(|state| state.group == group).unwrap();
        state.committed
    };
    let before = host.board.get(Gauge::Flushes);
    let began = Instant::now();
    for index in last.index.saturating_sub(TOLD)..=last.index {
        let committed = Some(LogPosition { index, ..last });
        host.send(&ToStorage::SaveCommitted { group, committed });
        host.settle();
    }
    // A quiet moment is 200 ms, and a slow machine has some of them.
    let quiet = u64::try_from(began.elapsed().as_millis()).unwrap() / 200;
    let writes = host.board.get(Gauge::Flushes) - before;
    assert!(
        writes <= 2 * quiet + 2,
        "{writes} writes in {quiet} moments"
    );
    assert_eq!(committed(&mut host), Some(last), "it is told at once");
    // With the next operation it is durable.
    while !model.append(&mut host, group) {
        host.pump(true);
    }
    host.settle();
    host.kill();
    host.start();
    assert_eq!(committed(&mut host), Some(last));
    // So it is after a quiet moment, in which a mark is written, too.
    let upto = model.groups[&group].last;
    let before = host.board.get(Gauge::Flushes);
    host.send(&ToStorage::SaveCommitted {
        group,
        committed: upto,
    });
    host.settle();
    while host.board.get(Gauge::Flushes) < before + 2 {
        host.pump(true);
    }
    host.kill();
    host.start();
    assert_eq!(committed(&mut host), upto);
}

fn a_purge_beyond_what_is_persisted_is_refused() {
    let (mut host, model) = loaded(4);
    let upto = model.groups[&FIRST_DATA_GROUP].last.unwrap();
    let upto = LogPosition {
        index: upto.index + 1,
        ..upto
    };
    host.send(&ToStorage::Purge {
        group: FIRST_DATA_GROUP,
        upto,
    });
    host.publish();
    let status = host.ended();
    assert_eq!(status.code(), Some(i32::from(ExitCode::Internal.code())));
    assert!(host.words().contains("STO-PURGE"), "{}", host.words());
}

fn an_installed_snapshot_empties_the_log() {
    let (mut from, source) = loaded(5);
    let group = FIRST_DATA_GROUP;
    let upto = source.groups[&group].last.unwrap();
    let apply = StorageRequest::Apply {
        group,
        results_from: u64::MAX,
        upto,
    };
    assert!(matches!(from.ask(apply), StorageAnswer::Applied { .. }));
    let StorageAnswer::Opened { snapshot, meta } = from.ask(StorageRequest::OpenSnapshot { group })
    else {
        panic!("no snapshot");
    };
    assert_eq!(meta.last_applied, Some(upto));

    let mut to = Host::new();
    let mut model = Model::new(6);
    to.start();
    model.create(&mut to);
    for _ in 0..3 {
        assert!(model.append(&mut to, group));
    }
    let install = RandomId::draw();
    let begun = to.ask(StorageRequest::BeginInstall { group, install });
    assert_eq!(begun, StorageAnswer::Done);
    let mut cursor = bytes::Bytes::new();
    for number in 0.. {
        let read = StorageRequest::ReadSnapshot {
            snapshot,
            cursor,
            max_bytes: 64 << 10,
        };
        let StorageAnswer::Chunk(chunk) = from.ask(read) else {
            panic!("no chunk");
        };
        let next = chunk.next.clone();
        let put = StorageRequest::InstallChunk {
            install,
            number,
            chunk,
        };
        assert_eq!(to.ask(put), StorageAnswer::Done);
        match next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    let done = to.ask(StorageRequest::FinishInstall {
        group,
        install,
        meta: meta.clone(),
    });
    assert_eq!(done, StorageAnswer::Snapshot(meta.clone()));
    // Answered: so it is durable, with the log's part of it.
    to.kill();
    to.start();
    let found = to.hello();
    let state = found
        .replicas
        .iter()
        .find(|state| state.group == group)
        .unwrap();
    assert_eq!(state.persisted, meta);
    assert_eq!((state.purged, state.last), (Some(upto), Some(upto)));
    // And it goes on from there.
    let state = model.groups.get_mut(&group).unwrap();
    (state.purged, state.last) = (Some(upto), Some(upto));
    state.terms.clear();
    (state.applying, state.persisted) = (Some(upto), Some(upto));
    assert!(model.append(&mut to, group));
    to.settle();
    let found = to.hello();
    model.check(&found);
    model.check_entries(&mut to);
}

/// Needs a small file system of its own: `KILLS_SMALL_DISK=DIRECTORY` on one of 40 to 200 MB.
fn a_full_disk_stalls_the_log_and_nothing_else() {
    let disk = std::env::var_os(SMALL_DISK).expect("asked for without it");
    let disk = std::path::PathBuf::from(disk);
    let mut host = Host::within(&disk);
    let mut model = Model::new(8);
    host.start();
    model.create(&mut host);
    host.settle();
    host.await_ready();
    let ballast = disk.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    let block = vec![7; 64 << 10];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    drop(file);
    // Nothing is purged, so that segments run out.
    let begin = Instant::now();
    while host.board.get(Gauge::DiskStalled) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "it never stalls");
        if !model.append(&mut host, FIRST_DATA_GROUP) {
            host.publish();
            host.pump(true);
        }
    }
    assert!(host.unacknowledged() > 0);
    assert_eq!(host.board.get(Gauge::IoErrors), 0);
    // And by itself it goes on when there is room.
    std::fs::remove_file(&ballast).unwrap();
    host.settle();
    assert_eq!(host.board.get(Gauge::IoErrors), 0);
    let found = host.hello();
    model.check(&found);
    model.check_entries(&mut host);
    host.kill();
    host.start();
    let found = host.hello();
    model.check(&found);
    assert!(host.stop().success());
}
