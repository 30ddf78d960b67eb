//! What a peer that writes anything anywhere can do to this end: make it say `Corrupt`, never panic, loop or read outside.

use crate::bell::{Bell, BellKind};
use crate::board::{BOARD_BYTES, BoardReader, BoardWriter, Cell, SLOT_BYTES};
use crate::inherit::Manifest;
use crate::mapping::{Mapping, read_only, sealed_memfd};
use crate::memory::{Extras, NodeMemory};
use crate::receiver::Receiver;
use crate::ring::{AT_GENERATION, AT_HEAD, AT_MAGIC, AT_TAIL, HEADER_BYTES, Ring, RingError};
use crate::sender::Sender;
use crate::testing::{NodeInProcess, parse_inheritance, receive_from_image};
use crate::topology::{Lane, LinkId, RingSizes, Role, Topology};
use crate::wire::RandomId;
use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const CAPACITY: u64 = 4096;
const BYTES: usize = HEADER_BYTES + 4096;
const LINK: LinkId = LinkId {
    from: Role::Consensus,
    to: Role::Storage,
    lane: Lane::Log(0),
};

/// A ring whose words the test writes itself.
struct Victim {
    fd: OwnedFd,
    map: Mapping,
    generation: RandomId,
}
impl Victim {
    fn new() -> Victim {
        let fd = sealed_memfd(c"test-ring", BYTES as u64).unwrap();
        let map = Mapping::new(&fd, BYTES, true).unwrap();
        let generation = RandomId::draw();
        Ring::format(&map, generation);
        Victim {
            fd,
            map,
            generation,
        }
    }
    fn open(&self) -> Result<Ring, RingError> {
        let map = Mapping::new(&self.fd, BYTES, true).unwrap();
        Ring::open(map, LINK, CAPACITY, self.generation)
    }
    fn bell() -> Arc<Bell> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        Arc::new(Bell::new(event.into(), BellKind::Event))
    }
    fn sender(&self) -> Result<Sender, RingError> {
        Sender::attach(self.open()?, Victim::bell())
    }
    fn receiver(&self) -> Result<Receiver, RingError> {
        Receiver::attach(self.open()?, Victim::bell())
    }
    fn poke(&self, at: usize, value: u64) {
        self.map.word(at).store(value, Ordering::Release);
    }
}

/// Asserts that `result` accuses `role` of a word on the link.
fn accuses<T: std::fmt::Debug>(result: Result<T, RingError>, role: Role) {
    match result {
        Err(RingError::Corrupt { link, blame, .. }) => assert_eq!((link, blame), (LINK, role)),
        other => panic!("RING-3: {other:?}"),
    }
}

fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..10_000,
        (0u64..1300).prop_map(|n| n * 8),
        (0u64..5000).prop_map(|n| u64::MAX - n),
        (0u64..5000).prop_map(|n| (1 << 62) + n),
    ]
}

/// One thing that this end does, or that the world does to it.
#[derive(Clone, Debug)]
enum Step {
    Poke(usize, u64),
    Scribble(usize, Vec<u8>),
    Send(usize),
    Publish,
    Receive,
    Release,
    Arm,
    Progress,
    Sender,
    Receiver,
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![
        Just(AT_TAIL),
        Just(AT_HEAD),
        (0usize..1024).prop_map(|n| n * 8)
    ];
    let bytes = prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        2 => (at, word()).prop_map(|(at, value)| Step::Poke(at, value)),
        1 => (HEADER_BYTES..BYTES - 40, bytes).prop_map(|(at, bytes)| Step::Scribble(at, bytes)),
        6 => (0usize..1100).prop_map(Step::Send),
        4 => Just(Step::Publish),
        6 => Just(Step::Receive),
        3 => Just(Step::Release),
        2 => Just(Step::Arm),
        2 => Just(Step::Progress),
        1 => Just(Step::Sender),
        1 => Just(Step::Receiver),
    ]
}

/// Nothing but success and typed errors of this link.
fn tolerated<T>(result: Result<T, RingError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(RingError::Corrupt { link, blame, .. }) => {
            assert_eq!(link, LINK);
            assert!([Role::Consensus, Role::Storage, Role::Supervisor].contains(&blame));
            None
        }
        Err(RingError::TooLarge { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ring_3_scribbled_memory_is_an_error_and_never_a_panic(steps in prop::collection::vec(step(), 1..80)) {
        let victim = Victim::new();
        let mut tx = victim.sender().ok();
        let mut rx = victim.receiver().ok();
        for step in steps {
            match step {
                Step::Poke(at, value) => victim.poke(at, value),
                Step::Scribble(at, bytes) => victim.map.write(at, &bytes),
                Step::Sender => tx = tolerated(victim.sender()),
                Step::Receiver => rx = tolerated(victim.receiver()),
                Step::Send(len) => if let Some(tx) = &mut tx {
                    tolerated(tx.try_send_encoded(&vec![7; len]));
                    tolerated(tx.used());
                },
                Step::Publish => if let Some(tx) = &mut tx {
                    tx.publish();
                },
                Step::Progress => if let Some(tx) = &mut tx {
                    let seen = tolerated(tx.head()).unwrap_or(0);
                    tolerated(tx.arm_progress(seen));
                },
                Step::Receive => if let Some(rx) = &mut rx
                    && let Some(Some((bytes, end))) = tolerated(rx.try_recv_encoded())
                {
                    prop_assert!(bytes.len() <= 1024 && end == rx.cursor());
                },
                Step::Release => if let Some(rx) = &mut rx {
                    let upto = rx.cursor();
                    rx.release(upto);
                },
                Step::Arm => if let Some(rx) = &mut rx {
                    tolerated(rx.arm());
                },
            }
        }
    }

    /// Any image of a ring's memory, as a fuzzer gives it.
    #[test]
    fn ring_3_any_image_is_records_or_an_error(
        tail in word(), head in word(), data in prop::collection::vec(any::<u8>(), 0..6000),
    ) {
        let _records_or_error = receive_from_image(tail, head, &data);
    }

    /// Any damage to one record that changes it is noticed.
    #[test]
    fn ring_3_a_changed_byte_is_noticed(len in 0usize..1000, at in 0usize..1016, flip in 1u8..=255) {
        let victim = Victim::new();
        let mut tx = victim.sender().unwrap();
        tx.try_send_encoded(&vec![0x5a; len]).unwrap();
        tx.publish();
        let at = HEADER_BYTES + at % (16 + len);
        let mut byte = [0];
        victim.map.read(at, &mut byte);
        victim.map.write(at, &[byte[0] ^ flip]);
        accuses(victim.receiver().unwrap().try_recv_encoded(), Role::Consensus);
    }

    /// Any text in the environment variable.
    #[test]
    fn any_inheritance_is_taken_or_refused(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        prop_assert!(parse_inheritance(&text).is_err());
        prop_assert!(parse_inheritance(&hex).is_err());
    }

    /// A true text with one byte changed, or cut.
    #[test]
    fn a_damaged_inheritance_never_panics(at in any::<prop::sample::Index>(), digit in 0u8..16, cut in any::<bool>()) {
        let mut text = manifest().to_text();
        let at = at.index(text.len());
        if cut {
            text.truncate(at);
        } else {
            text.replace_range(at..=at, &format!("{digit:x}"));
        }
        let _taken_or_refused = parse_inheritance(&text);
    }

    /// BOARD-2: whatever byte of the newest slot is damaged, the reader gets the value before it, or the newest.
    #[test]
    fn board_2_a_torn_slot_leaves_the_value_before(at in 0usize..120, value in any::<u8>()) {
        let fd = sealed_memfd(c"test-board", BOARD_BYTES as u64).unwrap();
        let map = Mapping::new(&fd, BOARD_BYTES, true).unwrap();
        let writer = BoardWriter::new(Mapping::new(&fd, BOARD_BYTES, true).unwrap());
        let reader = BoardReader::new(Mapping::new(read_only(&fd).unwrap(), BOARD_BYTES, false).unwrap());
        let (old, new, next) = ("o".repeat(100), "n".repeat(100), "x".repeat(100));
        writer.put(Cell::LastWords, &old);
        writer.put(Cell::LastWords, &new);
        // Sequence 1 went to the second slot, 2 to the first.
        map.write(4096 + at, &[value]);
        let seen: String = reader.read(Cell::LastWords).unwrap();
        prop_assert!(seen == old || seen == new);
        // A successor of the writer goes on without spoiling what is left.
        let successor = BoardWriter::new(Mapping::new(&fd, BOARD_BYTES, true).unwrap());
        prop_assert_eq!(reader.read::<String>(Cell::LastWords).unwrap(), seen);
        successor.put(Cell::LastWords, &next);
        let seen: String = reader.read(Cell::LastWords).unwrap();
        let huge = at < 8 && seen != next;
        prop_assert!(seen == next || huge);
    }
}

fn manifest() -> Manifest {
    memory().manifest(Role::Gateway, &Extras::default())
}

fn memory() -> NodeMemory {
    let topology = Topology {
        shards: 2,
        readers: 2,
        sizes: RingSizes::each(CAPACITY),
    };
    NodeMemory::create(topology, "{}", RandomId::draw()).unwrap()
}

#[test]
fn ring_3_the_writer_of_a_bad_word_is_named() {
    for tail in [8u64, 4096 + 8, 1 << 40, 4, u64::MAX, (1 << 62) + 8] {
        let victim = Victim::new();
        let mut rx = victim.receiver().unwrap();
        victim.poke(AT_TAIL, tail);
        if tail == 8 {
            accuses(rx.try_recv_encoded(), Role::Consensus); // half a record header
        } else {
            accuses(rx.try_recv_encoded(), Role::Consensus);
            accuses(rx.arm(), Role::Consensus);
            accuses(victim.receiver().map(|_| ()), Role::Consensus);
        }
    }
    for head in [8u64, 4, u64::MAX] {
        let victim = Victim::new();
        let mut tx = victim.sender().unwrap();
        victim.poke(AT_HEAD, head);
        accuses(tx.head(), Role::Storage);
        accuses(tx.arm_progress(0), Role::Storage);
        accuses(victim.sender().map(|_| ()), Role::Storage);
    }
    // Going back is corrupt, too.
    let victim = Victim::new();
    let mut tx = victim.sender().unwrap();
    let mut rx = victim.receiver().unwrap();
    tx.try_send_encoded(b"message").unwrap();
    tx.publish();
    let (_, end) = rx.try_recv_encoded().unwrap().unwrap();
    rx.release(end);
    tx.head().unwrap();
    victim.poke(AT_HEAD, 0);
    accuses(tx.head(), Role::Storage);
    victim.poke(AT_TAIL, 0);
    accuses(rx.tail(), Role::Consensus);
}

#[test]
fn ring_3_a_record_of_an_earlier_lap_is_not_taken_for_one_of_this() {
    let victim = Victim::new();
    let mut tx = victim.sender().unwrap();
    let mut rx = victim.receiver().unwrap();
    for _ in 0..4 {
        tx.try_send_encoded(&[1; 1008]).unwrap();
    }
    tx.publish();
    while let Some((_, end)) = rx.try_recv_encoded().unwrap() {
        rx.release(end);
    }
    // A tail that moves a lap on without new records.
    victim.poke(AT_TAIL, 2 * CAPACITY);
    accuses(rx.try_recv_encoded(), Role::Consensus);
}

#[test]
fn ring_4_memory_of_another_generation_is_refused() {
    let victim = Victim::new();
    victim.poke(AT_GENERATION, 0);
    accuses(victim.open().map(|_| ()), Role::Supervisor);
    let victim = Victim::new();
    victim.poke(AT_MAGIC, 0);
    accuses(victim.open().map(|_| ()), Role::Supervisor);
}

#[test]
fn positions_near_their_limit_still_count() {
    let victim = Victim::new();
    let at = (1 << 62) - CAPACITY * 2;
    victim.poke(AT_HEAD, at);
    victim.poke(AT_TAIL, at);
    let mut tx = victim.sender().unwrap();
    let mut rx = victim.receiver().unwrap();
    for _ in 0..8 {
        tx.try_send_encoded(&[3; 100]).unwrap().unwrap();
        tx.publish();
        let (bytes, end) = rx.try_recv_encoded().unwrap().unwrap();
        assert_eq!(bytes[..], [3; 100]);
        rx.release(end);
    }
}

#[test]
fn ring_7_every_attach_raises_the_epoch_even_over_a_spoilt_word() {
    let victim = Victim::new();
    assert_eq!(victim.sender().unwrap().epoch(), 1);
    assert_eq!(victim.sender().unwrap().epoch(), 2);
    assert_eq!(victim.receiver().unwrap().epoch(), 1);
    victim.poke(crate::ring::AT_SENDER_EPOCH, u64::MAX);
    victim.sender().unwrap();
}

#[test]
fn memory_that_could_shrink_or_has_another_size_is_refused() {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let open = std::fs::File::from(memfd_create(c"open", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    open.set_len(BYTES as u64).unwrap();
    assert!(Mapping::new(&open, BYTES, true).is_err());
    let sealed = sealed_memfd(c"sealed", BYTES as u64).unwrap();
    assert!(Mapping::new(&sealed, BYTES * 2, true).is_err());
    assert!(Mapping::new(&sealed, BYTES / 2, true).is_err());
}

#[test]
fn board_1_only_the_owner_can_write() {
    let fd = sealed_memfd(c"test-board", BOARD_BYTES as u64).unwrap();
    let others = read_only(&fd).unwrap();
    assert!(Mapping::new(&others, BOARD_BYTES, true).is_err());
    assert!(nix::unistd::write(&others, b"x").is_err());
}

#[test]
fn board_2_a_writer_killed_between_two_steps_of_a_put_leaves_the_value_before() {
    let fd = sealed_memfd(c"test-board", BOARD_BYTES as u64).unwrap();
    let map = Mapping::new(&fd, BOARD_BYTES, true).unwrap();
    let writer = || BoardWriter::new(Mapping::new(&fd, BOARD_BYTES, true).unwrap());
    let reader = BoardReader::new(Mapping::new(&fd, BOARD_BYTES, false).unwrap());
    writer().put(Cell::LastWords, "first");
    writer().put(Cell::LastWords, "second");
    let read = || reader.read::<String>(Cell::LastWords);
    assert_eq!(read().as_deref(), Some("second"));
    // The third put goes to the second slot: taken, then half filled, then dead.
    let slot = 4096 + SLOT_BYTES;
    map.word(slot).store(0, Ordering::Release);
    assert_eq!(read().as_deref(), Some("second"));
    map.write(slot + 8, &[200, 0, 0, 0, 1, 2, 3, 4, 5]);
    assert_eq!(read().as_deref(), Some("second"));
    writer().put(Cell::LastWords, "third");
    assert_eq!(read().as_deref(), Some("third"));
    // A sequence at the end of its range: what follows it is lost, but nothing panics.
    map.word(slot).store(u64::MAX, Ordering::Release);
    writer().put(Cell::LastWords, "fourth");
    assert!(read().is_some());
}

#[test]
fn last_words_are_cut_to_what_fits() {
    let node = NodeInProcess::small("{}");
    let storage = node.attach(Role::Storage);
    // A character of two bytes lies across the end of what fits.
    let long = format!("x{}", "é".repeat(5000));
    storage.board().last_words(&long);
    let gateway = node.attach(Role::Gateway);
    let words: String = gateway
        .peer_board(Role::Storage)
        .read(Cell::LastWords)
        .unwrap();
    assert!(words.len() > 4000 && long.starts_with(&words));
}

#[test]
fn an_attach_over_a_corrupt_ring_is_told_on_the_board() {
    let node = NodeInProcess::small("{}");
    let manifest = node.memory().manifest(Role::Consensus, &Extras::default());
    let ring = manifest
        .rings
        .iter()
        .find(|ring| ring.link == LINK)
        .unwrap();
    node.memory().rings[&ring.link]
        .map
        .word(AT_TAIL)
        .store(3, Ordering::Release);
    assert!(
        node.try_attach(Role::Consensus, &Extras::default())
            .is_err()
    );
    let report: crate::CorruptLink = node
        .memory()
        .read_board(Role::Consensus)
        .read(Cell::CorruptLink)
        .unwrap();
    assert_eq!((report.link, report.blame), (LINK, Role::Consensus));
}

#[test]
fn an_inheritance_that_is_not_whole_is_refused() {
    let whole = manifest();
    assert_eq!(Manifest::from_text(&whole.to_text()).unwrap(), whole);
    let broken: [fn(&mut Manifest); 14] = [
        |m| m.role = Role::Supervisor,
        |m| m.role = Role::Storage,
        |m| m.topology.shards = 0,
        |m| m.topology.readers = 9999,
        |m| m.topology.sizes.log = 5000,
        |m| m.config_bytes = u64::MAX,
        |m| m.config = 2,
        |m| m.board = -1,
        |m| m.rings.truncate(1),
        |m| m.rings[0] = m.rings[1].clone(),
        |m| m.bells.truncate(1),
        |m| m.bells[1].wait = m.bells[0].wait,
        |m| m.boards.truncate(2),
        |m| m.rest = Some(900),
    ];
    for (number, spoil) in broken.into_iter().enumerate() {
        let mut manifest = whole.clone();
        spoil(&mut manifest);
        assert!(
            matches!(
                Manifest::from_text(&manifest.to_text()),
                Err(crate::InheritError::Malformed(_))
            ),
            "{number}"
        );
    }
    assert!(parse_inheritance("").is_err());
    assert!(parse_inheritance("é").is_err());
    assert!(parse_inheritance("+1").is_err());
}

/// The largest node still fits into the kernel's bound for one variable.
#[test]
fn the_largest_inheritance_fits_into_the_environment() {
    use crate::inherit::{BellFds, RingFd};
    let topology = Topology {
        shards: crate::topology::SHARDS_MAX,
        readers: crate::topology::SHARDS_MAX,
        ..memory().topology
    };
    let fd = i32::MAX;
    for role in Role::DAEMONS {
        let of_role = |link: &LinkId| link.from == role || link.to == role;
        let manifest = Manifest {
            role,
            start: RandomId(u128::MAX),
            topology,
            config: fd,
            config_bytes: u64::MAX,
            rings: topology
                .links()
                .into_iter()
                .filter(of_role)
                .map(|link| RingFd {
                    link,
                    generation: RandomId(u128::MAX),
                    fd,
                })
                .collect(),
            bells: topology
                .waiters()
                .into_iter()
                .map(|waiter| BellFds {
                    waiter,
                    ring: fd,
                    wait: (waiter.role() == role).then_some(fd),
                })
                .collect(),
            board: fd,
            boards: vec![(role, fd); 3],
            rest: Some(fd),
            grpc: Some(fd),
            lock: Some(fd),
        };
        let bytes = manifest.to_text().len();
        assert!(bytes < 128 << 10, "{role}: {bytes}");
    }
}
