//! A node's memory inside one process, for tests of the daemons: each attach of a role is a restart of that daemon over
//! the same memory.

use crate::bell::{Bell, BellKind};
use crate::board::{BOARD_BYTES, BoardReader, BoardWriter, Cell, SLOT_BYTES, slot_at};
use crate::inherit::Manifest;
use crate::inherit::{InheritError, Inheritance};
use crate::mapping::{Mapping, sealed_memfd};
use crate::memory::{Extras, NodeMemory};
use crate::receiver::Receiver;
use crate::ring::{AT_HEAD, AT_TAIL, HEADER_BYTES, Ring, RingError};
use crate::status::LinkUsage;
use crate::topology::{Lane, LinkId, RingSizes, Role, Topology};
use crate::wire::RandomId;
use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Links, boards and doorbells of a node without its processes.
pub struct NodeInProcess {
    memory: NodeMemory,
}

impl NodeInProcess {
    /// Makes the memory.
    ///
    /// # Panics
    /// The kernel gives none, or the topology is impossible.
    pub fn new(topology: Topology, config_json: &str) -> NodeInProcess {
        NodeInProcess {
            memory: NodeMemory::create(topology, config_json, RandomId::draw())
                .expect("shared memory for a test"),
        }
    }

    /// One shard, one reader, small rings.
    pub fn small(config_json: &str) -> NodeInProcess {
        NodeInProcess::new(
            Topology {
                shards: 1,
                readers: 1,
                sizes: RingSizes::each(1 << 20),
            },
            config_json,
        )
    }

    /// Attaches as a daemon. The caller has dropped what an earlier attach of the same role gave.
    ///
    /// # Panics
    /// A ring is corrupt; see [`NodeInProcess::try_attach`].
    pub fn attach(&self, role: Role) -> Inheritance {
        self.try_attach(role, &Extras::default())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Attaches as a daemon, with listening sockets or a lock; they are duplicated.
    ///
    /// # Errors
    /// A ring is corrupt.
    pub fn try_attach(&self, role: Role, extras: &Extras) -> Result<Inheritance, InheritError> {
        let manifest = self.memory.manifest(role, extras);
        let own = |fd: RawFd| {
            // SAFETY: the numbers come from `self.memory` and the caller's extras, which are open during this call.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            borrowed
                .try_clone_to_owned()
                .expect("descriptors for a test")
        };
        Inheritance::assemble(&manifest, own)
    }

    /// See [`NodeMemory::renew_links`].
    ///
    /// # Errors
    /// The kernel gives no memory.
    pub fn renew_links(&mut self, a: Role, b: Role) -> io::Result<()> {
        self.memory.renew_links(a, b)
    }

    /// See [`NodeMemory::usage`].
    pub fn usage(&self) -> Vec<LinkUsage> {
        self.memory.usage()
    }

    /// The supervisor's memory.
    pub fn memory(&self) -> &NodeMemory {
        &self.memory
    }
}

/// A fuzzer's entry to the parser of the environment variable; no descriptor is touched.
///
/// # Errors
/// The text is not what a supervisor writes.
pub fn parse_inheritance(text: &str) -> Result<(), InheritError> {
    Manifest::from_text(text).map(|_| ())
}

/// A fuzzer's entry to the reader of records: receives all that a ring of 4 KiB with these words and bytes holds.
///
/// # Errors
/// The ring is corrupt.
///
/// # Panics
/// The kernel gives no memory.
pub fn receive_from_image(tail: u64, head: u64, data: &[u8]) -> Result<Vec<Bytes>, RingError> {
    const CAPACITY: usize = 4096;
    let len = HEADER_BYTES + CAPACITY;
    let fd = sealed_memfd(c"image", len as u64).expect("shared memory for a test");
    let map = || Mapping::new(&fd, len, true).expect("shared memory for a test");
    let generation = RandomId(1);
    let image = map();
    Ring::format(&image, generation);
    image.write(HEADER_BYTES, &data[..data.len().min(CAPACITY)]);
    image.word(AT_TAIL).store(tail, Ordering::Release);
    image.word(AT_HEAD).store(head, Ordering::Release);
    let link = LinkId {
        from: Role::Consensus,
        to: Role::Storage,
        lane: Lane::Log(0),
    };
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .expect("an eventfd for a test");
    let bell = Arc::new(Bell::new(event.into(), BellKind::Event));
    let ring = Ring::open(map(), link, CAPACITY as u64, generation)?;
    let mut receiver = Receiver::attach(ring, bell)?;
    let mut records = Vec::new();
    while let Some((bytes, end)) = receiver.try_recv_encoded()? {
        records.push(bytes);
        receiver.release(end);
    }
    Ok(records)
}

/// A fuzzer's entry to the reader of status boards: what a cell shows whose two slots have these words, and these bytes behind them.
/// The board's owner goes on with it, too.
///
/// # Panics
/// The kernel gives no memory.
pub fn read_from_slots(slots: [(u64, &[u8]); 2]) -> Option<String> {
    let fd = sealed_memfd(c"image", BOARD_BYTES as u64).expect("shared memory for a test");
    let map = || Mapping::new(&fd, BOARD_BYTES, true).expect("shared memory for a test");
    let image = map();
    for (slot, (sequence, bytes)) in (0..).zip(slots) {
        // Last words are the first cell.
        let at = slot_at(0, slot);
        image.write(at + 8, &bytes[..bytes.len().min(SLOT_BYTES - 8)]);
        image.word(at).store(sequence, Ordering::Release);
    }
    let shown = BoardReader::new(map()).read(Cell::LastWords);
    BoardWriter::new(map()).put(Cell::LastWords, "next");
    shown
}
