//! Kills both ends of a ring, and a writer of a status board, again and again: real processes, SIGKILL at random moments.
//!
//! The processes are this executable, started over a [`NodeMemory`] as the supervisor starts a daemon. What each record
//! holds follows from its position and its sender's epoch, so that a lost, torn, reordered or replaced one is noticed:
//! - the producer notes in a file how far it has published: its successor must find a tail at least there (RING-1);
//! - the consumer notes each record in a file and releases it only after that: its successor must find a head that is
//!   not beyond the file (RING-2), gets the rest again, byte for byte the same, and then what follows without a gap;
//! - both sleep whenever they can: a lost wake-up stops the progress that the parent waits for (RING-5);
//! - some are *mute*: their rings reach nobody, as if they died between every publishing and ringing. The successor of one
//!   that was killed has to wake the other side (RING-6);
//! - a killed board writer leaves a whole record (BOARD-2).

use mareedb_ipc::wire::RandomId;
use mareedb_ipc::{
    BoardReader, Cell, Extras, Gauge, Inheritance, Lane, NodeMemory, RingSizes, Role, Topology,
    Waiter,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const KILLS: u64 = 1000;
const RING_BYTES: u64 = 16 << 10;
/// Far longer than any machine needs: only a lost wake-up reaches it.
const STALL: Duration = Duration::from_secs(60);
const DIRECTORY: &str = "KILL_LOOP_DIRECTORY";
const ROUND: &str = "KILL_LOOP_ROUND";

fn main() {
    if Inheritance::present() {
        let inheritance = Inheritance::from_env().unwrap_or_else(|error| fail(&error.to_string()));
        let directory = PathBuf::from(std::env::var_os(DIRECTORY).expect("set by the parent"));
        match inheritance.role() {
            Role::Consensus => produce(inheritance, &directory),
            Role::Storage => consume(inheritance, &directory),
            Role::Gateway => scrawl(&inheritance),
            Role::Supervisor => fail("no daemon"),
        }
        return;
    }
    // The part of the test harness's command line that matters here.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    if arguments.iter().any(|argument| argument == "--list")
        || filter.is_some_and(|filter| !"kill_loop".contains(filter.as_str()))
    {
        return;
    }
    refusals();
    parent();
}

/// A process that did not inherit what its environment says ends with an error, not with a panic or somebody else's files.
fn refusals() {
    let memory = NodeMemory::create(topology(), "{}", RandomId::draw()).unwrap();
    let (name, truth) = memory.plan(Role::Storage, &Extras::default()).env;
    // The descriptors of the true one are close-on-exec here, so the child has none of them.
    for text in ["", "no hexadecimal", "00", &truth] {
        let child = Command::new(std::env::current_exe().unwrap())
            .env(&name, text)
            .env(DIRECTORY, "/nowhere")
            .output()
            .unwrap();
        assert_eq!(child.status.code(), Some(3), "{text}: {child:?}");
    }
}

/// Ends a child with evidence; the parent turns it into a failure.
fn fail(why: &str) -> ! {
    eprintln!("kill_loop child {}: {why}", std::process::id());
    std::process::exit(3);
}

/// splitmix64
fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a sender with this epoch writes at this position.
fn message(position: u64, epoch: u64) -> Vec<u8> {
    let seed = mix(position ^ mix(epoch));
    let len = usize::try_from(seed % 1500).unwrap();
    let mut bytes = Vec::with_capacity(16 + len);
    bytes.extend_from_slice(&position.to_le_bytes());
    bytes.extend_from_slice(&epoch.to_le_bytes());
    bytes.extend((0..len).map(|at| seed.to_le_bytes()[at % 8] ^ at.to_le_bytes()[0]));
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// How far the producer promised to have published.
fn promised(directory: &Path) -> u64 {
    std::fs::read(directory.join("published"))
        .ok()
        .filter(|bytes| bytes.len() == 8)
        .map_or(0, |bytes| number(&bytes))
}

fn produce(mut inheritance: Inheritance, directory: &Path) {
    let mut tx = inheritance.sender(Role::Storage, Lane::Log(0));
    let bell = inheritance.bell(Waiter::Consensus);
    inheritance.ring_all_bells();
    if tx.tail() < promised(directory) {
        fail("RING-1: a published record is gone");
    }
    let note = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("published"))
        .unwrap();
    let stop = directory.join("stop");
    let epoch = tx.epoch();
    while !stop.exists() {
        for _ in 0..1 + mix(tx.written()) % 40 {
            loop {
                // Read before the attempt: a head that moves after it must not be slept on.
                let seen = tx.head().unwrap_or_else(|error| fail(&error.to_string()));
                match tx.try_send_encoded(&message(tx.written(), epoch)) {
                    Ok(Some(_)) => break,
                    Ok(None) => {
                        if tx.arm_progress(seen).unwrap() {
                            bell.wait(None);
                        }
                    }
                    Err(error) => fail(&error.to_string()),
                }
            }
            if mix(tx.written() ^ 1).is_multiple_of(3) {
                tx.publish();
            }
        }
        tx.publish();
        note.write_all_at(&tx.tail().to_le_bytes(), 0).unwrap();
        if mix(tx.written() ^ 2).is_multiple_of(4) {
            // Lets the consumer fall asleep.
            std::thread::sleep(Duration::from_micros(mix(tx.written()) % 300));
        }
    }
}

/// An entry of the consumer's file: start, end, checksum of the message.
const ENTRY: usize = 24;

fn handled(directory: &Path) -> Vec<[u64; 3]> {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(directory.join("handled")) {
        file.read_to_end(&mut bytes).unwrap();
    }
    bytes
        .chunks_exact(ENTRY)
        .map(|entry| [0, 8, 16].map(|at| number(&entry[at..])))
        .collect()
}

fn consume(mut inheritance: Inheritance, directory: &Path) {
    let mut rx = inheritance.receiver(Role::Consensus, Lane::Log(0));
    let bell = inheritance.bell(Waiter::Shard(0));
    let board = inheritance.board();
    inheritance.ring_all_bells();
    let entries = handled(directory);
    let mut done = entries.last().map_or(0, |entry| entry[1]);
    let known: BTreeMap<u64, u64> = entries
        .iter()
        .map(|[start, _, crc]| (*start, *crc))
        .collect();
    if rx.head() > done {
        fail("RING-2: released, but never handled");
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("handled"))
        .unwrap();
    // A kill may have cut the last entry; what it was about comes again.
    file.set_len((entries.len() * ENTRY) as u64).unwrap();
    loop {
        while let Some((bytes, end)) = rx
            .try_recv_encoded()
            .unwrap_or_else(|error| fail(&error.to_string()))
        {
            let start = number(&bytes);
            let epoch = number(&bytes[8..]);
            if bytes[..] != message(start, epoch)[..] {
                fail("a torn record");
            }
            if start + (16 + bytes.len() as u64).next_multiple_of(8) != end {
                fail("a record at a place that is not its own");
            }
            let crc = u64::from(crc32c::crc32c(&bytes));
            if end <= done {
                if known.get(&start) != Some(&crc) {
                    fail("another record came again than was handled");
                }
                board.add(Gauge::Flushes, 1);
            } else if start != done {
                fail("a record is lost");
            } else {
                let entry: Vec<u8> = [start, end, crc]
                    .into_iter()
                    .flat_map(u64::to_le_bytes)
                    .collect();
                file.write_all(&entry).unwrap();
                done = end;
            }
            if mix(end ^ 3).is_multiple_of(8) {
                rx.release(end);
                board.set(Gauge::Applied, end);
            }
        }
        rx.release(rx.cursor());
        board.set(Gauge::Applied, rx.cursor());
        if rx.arm().unwrap_or_else(|error| fail(&error.to_string())) {
            bell.wait(None);
        }
    }
}

fn scrawl(inheritance: &Inheritance) {
    let board = inheritance.board();
    let round: u64 = std::env::var(ROUND).unwrap().parse().unwrap();
    for count in 0u64.. {
        let letter = char::from(b'a' + u8::try_from(count % 26).unwrap());
        let len = usize::try_from(500 + mix(count) % 3000).unwrap();
        board.put(
            Cell::Digests,
            &(round << 32 | count, letter.to_string().repeat(len)),
        );
        if count.is_multiple_of(50) {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// The bells that a role rings, each with a bell of the same kind that nobody hears.
fn dead_ends(role: Role, fds: &[RawFd]) -> Vec<(RawFd, OwnedFd)> {
    // Toward storaged's shard it is a socket, toward everybody else an eventfd.
    let kind = match role {
        Role::Consensus => "socket:",
        _ => "anon_inode:[eventfd]",
    };
    fds.iter()
        .filter(|fd| {
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            link.to_string_lossy().starts_with(kind)
        })
        .map(|fd| {
            let end: OwnedFd = match role {
                Role::Consensus => {
                    let (end, other) = UnixStream::pair().unwrap();
                    drop(other);
                    end.into()
                }
                _ => EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                    .unwrap()
                    .into(),
            };
            (*fd, end)
        })
        .collect()
}

/// A child that does not outlive the test, whatever happens.
struct Process(Child);
impl Process {
    fn start(memory: &NodeMemory, role: Role, directory: &Path, round: u64, mute: bool) -> Process {
        let plan = memory.plan(role, &Extras::default());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .env(plan.env.0, plan.env.1)
            .env(DIRECTORY, directory)
            .env(ROUND, round.to_string());
        let fds = plan.fds;
        let ended = if mute {
            dead_ends(role, &fds)
        } else {
            Vec::new()
        };
        // SAFETY: only plain system calls between fork and exec, no allocation; the descriptors are open in the child.
        unsafe {
            command.pre_exec(move || {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                for (fd, end) in &ended {
                    if nix::libc::dup2(end.as_raw_fd(), *fd) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for fd in &fds {
                    let fd = BorrowedFd::borrow_raw(*fd);
                    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                Ok(())
            });
        }
        Process(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert_eq!(
            status.signal(),
            Some(9),
            "a child ended by itself: {status}"
        );
    }
}
impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

fn topology() -> Topology {
    Topology {
        shards: 1,
        readers: 1,
        sizes: RingSizes::each(RING_BYTES),
    }
}

/// Waits until the consumer has got beyond `position`.
fn progress(board: &BoardReader, children: &mut [&mut Process], position: u64, seed: u64) -> u64 {
    let begin = Instant::now();
    loop {
        let now = board.get(Gauge::Applied);
        if now > position {
            return now;
        }
        for child in &mut *children {
            if let Some(status) = child.0.try_wait().unwrap() {
                panic!("seed {seed}: a child ended by itself: {status}");
            }
        }
        assert!(
            begin.elapsed() < STALL,
            "seed {seed}: a lost wake-up at {position}"
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// BOARD-2: what is read is whole, and never older than what was read before.
fn check_scrawl(board: &BoardReader, last: &mut u64) -> bool {
    let Some((count, text)) = board.read::<(u64, String)>(Cell::Digests) else {
        return false;
    };
    assert!(count >= *last, "BOARD-2: {count} after {last}");
    *last = count;
    let letter = b'a' + u8::try_from((count & 0xffff_ffff) % 26).unwrap();
    let len = usize::try_from(500 + mix(count & 0xffff_ffff) % 3000).unwrap();
    assert!(
        text.len() == len && text.bytes().all(|byte| byte == letter),
        "BOARD-2: torn"
    );
    true
}

fn parent() {
    let begin = Instant::now();
    let seed = std::env::var("KILL_LOOP_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    );
    let kills = std::env::var("KILL_LOOP_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let memory = NodeMemory::create(topology(), "{}", RandomId::draw()).unwrap();
    let storage = memory.read_board(Role::Storage);
    let gateway = memory.read_board(Role::Gateway);
    let start = |role, round, mute| Process::start(&memory, role, directory, round, mute);

    let mut consumer = start(Role::Storage, 0, false);
    let mut producer = start(Role::Consensus, 0, false);
    let mut scrawler = start(Role::Gateway, 0, false);
    let (mut at, mut scrawled, mut seen) = (0, 0, false);
    let mut killed = [0u64; 3];
    let mut mute: Option<Role> = None;
    while killed.iter().sum::<u64>() < kills {
        let round = killed.iter().sum::<u64>() + 1;
        let dice = mix(seed ^ mix(round));
        // One in five dies at once, during its attach. Beside a mute one nothing may move, and it is the next to die.
        if mute.is_none() && !dice.is_multiple_of(5) {
            at = progress(&storage, &mut [&mut consumer, &mut producer], at, seed);
        }
        if !dice.is_multiple_of(5) {
            std::thread::sleep(Duration::from_micros((dice >> 8) % 4000));
        }
        let which = match mute.take() {
            Some(Role::Storage) => 3,
            Some(_) => 9,
            None => (dice >> 32) % 10,
        };
        let next_is_mute = (dice >> 40).is_multiple_of(6) && !(4..6).contains(&which);
        if which < 6 {
            consumer.kill();
            consumer = start(Role::Storage, round, next_is_mute);
            mute = next_is_mute.then_some(Role::Storage);
            killed[0] += 1;
        }
        if which >= 4 {
            producer.kill();
            producer = start(Role::Consensus, round, next_is_mute);
            mute = next_is_mute.then_some(Role::Consensus);
            killed[1] += 1;
        }
        seen |= check_scrawl(&gateway, &mut scrawled);
        if which == 0 {
            scrawler.kill();
            assert!(
                check_scrawl(&gateway, &mut scrawled) || !seen,
                "BOARD-2: nothing left"
            );
            scrawler = start(Role::Gateway, round, false);
            killed[2] += 1;
        }
    }

    // Everything that was ever published arrives.
    if mute.take().is_some() {
        consumer.kill();
        consumer = start(Role::Storage, 0, false);
        producer.kill();
        producer = start(Role::Consensus, 0, false);
    }
    progress(&storage, &mut [&mut consumer, &mut producer], at, seed);
    std::fs::write(directory.join("stop"), b"").unwrap();
    let status = producer.0.wait().unwrap();
    assert!(status.success(), "seed {seed}: {status}");
    let end = promised(directory);
    if storage.get(Gauge::Applied) < end {
        progress(&storage, &mut [&mut consumer], end - 1, seed);
    }
    // The consumer tells of a record before it releases it: killed in between, it would leave the last one in the ring.
    let began = Instant::now();
    while memory.usage().iter().any(|usage| usage.used > 0) && began.elapsed() < STALL {
        std::thread::yield_now();
    }
    consumer.kill();
    scrawler.kill();
    let entries = handled(directory);
    let mut position = 0;
    for [start, end, _] in &entries {
        assert_eq!(*start, position, "seed {seed}: a gap");
        position = *end;
    }
    assert!(position >= end, "seed {seed}: {position} handled of {end}");
    let again = storage.get(Gauge::Flushes);
    assert!(
        again > 0,
        "seed {seed}: no record ever came twice, so the kills hit nothing"
    );
    assert!(seen && memory.usage().iter().all(|usage| usage.used == 0));
    eprintln!(
        "kill_loop seed {seed}: killed {} consumers, {} producers, {} board writers in {:.1?}; {} records, {again} came again: ok",
        killed[0],
        killed[1],
        killed[2],
        begin.elapsed(),
        entries.len(),
    );
}
