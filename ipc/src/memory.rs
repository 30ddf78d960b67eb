//! The supervisor's side: it makes all shared memory and all doorbells, and keeps them over every death of a daemon.

use crate::bell::BellKind;
use crate::board::{BOARD_BYTES, BoardReader, BoardWriter};
use crate::inherit::{BellFds, CONFIG_BYTES_MAX, Manifest, RingFd};
use crate::mapping::{Mapping, frozen_memfd, read_only, sealed_memfd};
use crate::ring::{AT_HEAD, AT_TAIL, HEADER_BYTES, Ring};
use crate::status::LinkUsage;
use crate::topology::{LinkId, Role, Topology, Waiter};
use crate::wire::RandomId;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;

/// All shared memory of a node.
pub struct NodeMemory {
    pub(crate) topology: Topology,
    pub(crate) start: RandomId,
    pub(crate) config: OwnedFd,
    pub(crate) config_bytes: u64,
    pub(crate) rings: BTreeMap<LinkId, SharedRing>,
    /// The waiting end and the ringing end; for an eventfd both are the same.
    pub(crate) bells: BTreeMap<Waiter, (OwnedFd, OwnedFd)>,
    pub(crate) boards: BTreeMap<Role, SharedBoard>,
    board: BoardWriter,
}

pub(crate) struct SharedRing {
    pub(crate) fd: OwnedFd,
    generation: RandomId,
    pub(crate) map: Mapping,
}

pub(crate) struct SharedBoard {
    pub(crate) fd: OwnedFd,
    pub(crate) read_only: OwnedFd,
}

/// Descriptors beyond the links that a daemon inherits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    /// Listening socket of the REST port.
    pub rest: Option<RawFd>,
    /// Listening socket of the gRPC port.
    pub grpc: Option<RawFd>,
    /// Lock of the data directory.
    pub lock: Option<RawFd>,
}

/// What a daemon is given at exec.
#[derive(Clone, Debug)]
pub struct InheritPlan {
    /// Descriptors whose close-on-exec flag the child clears.
    pub fds: Vec<RawFd>,
    /// The environment variable that tells the daemon about them.
    pub env: (String, String),
}

impl NodeMemory {
    /// Makes everything for a node of this shape.
    ///
    /// # Errors
    /// The topology is impossible, or the kernel gives no memory or descriptors.
    pub fn create(
        topology: Topology,
        config_json: &str,
        start: RandomId,
    ) -> io::Result<NodeMemory> {
        if let Some(fault) = topology.fault() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
        }
        let mut rings = BTreeMap::new();
        for link in topology.links() {
            rings.insert(link, SharedRing::create(&topology, link)?);
        }
        let mut bells = BTreeMap::new();
        for waiter in topology.waiters() {
            bells.insert(waiter, create_bell(waiter)?);
        }
        let mut boards = BTreeMap::new();
        for role in [Role::Supervisor].into_iter().chain(Role::DAEMONS) {
            let fd = sealed_memfd(c"mareedb-board", BOARD_BYTES as u64)?;
            let read_only = read_only(&fd)?;
            boards.insert(role, SharedBoard { fd, read_only });
        }
        let board = BoardWriter::new(Mapping::new(
            &boards[&Role::Supervisor].fd,
            BOARD_BYTES,
            true,
        )?);
        if config_json.len() as u64 > CONFIG_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a configuration of {} bytes", config_json.len()),
            ));
        }
        let config = frozen_memfd(c"mareedb-config", config_json.as_bytes())?;
        Ok(NodeMemory {
            topology,
            start,
            config,
            config_bytes: config_json.len() as u64,
            rings,
            bells,
            boards,
            board,
        })
    }

    /// The shape.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The supervisor's start id.
    pub fn start(&self) -> RandomId {
        self.start
    }

    /// The supervisor's own board.
    pub fn board(&self) -> BoardWriter {
        self.board.clone()
    }

    /// A board to read.
    ///
    /// # Panics
    /// The kernel cannot map it.
    pub fn read_board(&self, role: Role) -> BoardReader {
        let map = Mapping::new(&self.boards[&role].read_only, BOARD_BYTES, false)
            .expect("a board that was made can be mapped");
        BoardReader::new(map)
    }

    /// Gives all links between two daemons fresh memory with new generations. Both must be started anew.
    ///
    /// # Errors
    /// The kernel gives no memory; then nothing changed.
    pub fn renew_links(&mut self, a: Role, b: Role) -> io::Result<()> {
        let mut fresh = Vec::new();
        for link in self.rings.keys() {
            if (link.from, link.to) == (a, b) || (link.from, link.to) == (b, a) {
                fresh.push((*link, SharedRing::create(&self.topology, *link)?));
            }
        }
        self.rings.extend(fresh);
        Ok(())
    }

    /// How full each ring is, by its own words; a corrupt one shows as full.
    pub fn usage(&self) -> Vec<LinkUsage> {
        self.rings
            .iter()
            .map(|(link, ring)| {
                let capacity = self.topology.capacity(link.lane);
                // The head first: read the other way round, a moving head could seem to be beyond the tail.
                let head = ring.map.word(AT_HEAD).load(Ordering::Acquire);
                let tail = ring.map.word(AT_TAIL).load(Ordering::Acquire);
                LinkUsage {
                    link: *link,
                    capacity,
                    used: tail.checked_sub(head).unwrap_or(capacity).min(capacity),
                }
            })
            .collect()
    }

    /// What a daemon is to be given.
    pub fn plan(&self, role: Role, extras: &Extras) -> InheritPlan {
        let manifest = self.manifest(role, extras);
        InheritPlan {
            fds: manifest.fds(),
            env: (crate::inherit::ENV.to_owned(), manifest.to_text()),
        }
    }

    pub(crate) fn manifest(&self, role: Role, extras: &Extras) -> Manifest {
        let rings = self
            .rings
            .iter()
            .filter(|(link, _)| link.from == role || link.to == role)
            .map(|(link, ring)| RingFd {
                link: *link,
                generation: ring.generation,
                fd: ring.fd.as_raw_fd(),
            })
            .collect();
        let bells = self
            .bells
            .iter()
            .map(|(waiter, (wait, ring))| BellFds {
                waiter: *waiter,
                ring: ring.as_raw_fd(),
                wait: (waiter.role() == role).then(|| wait.as_raw_fd()),
            })
            .collect();
        let boards = self
            .boards
            .iter()
            .filter(|(owner, _)| **owner != role)
            .map(|(owner, board)| (*owner, board.read_only.as_raw_fd()))
            .collect();
        Manifest {
            role,
            start: self.start,
            topology: self.topology,
            config: self.config.as_raw_fd(),
            config_bytes: self.config_bytes,
            rings,
            bells,
            board: self.boards[&role].fd.as_raw_fd(),
            boards,
            rest: extras.rest,
            grpc: extras.grpc,
            lock: extras.lock,
        }
    }
}

impl SharedRing {
    fn create(topology: &Topology, link: LinkId) -> io::Result<SharedRing> {
        let bytes = HEADER_BYTES as u64 + topology.capacity(link.lane);
        let fd = sealed_memfd(c"mareedb-ring", bytes)?;
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        let map = Mapping::new(&fd, len, true)?;
        map.keep_out_of_cores();
        // RING-4: for this piece of memory, and for no other.
        let generation = RandomId::draw();
        Ring::format(&map, generation);
        Ok(SharedRing {
            fd,
            generation,
            map,
        })
    }
}

pub(crate) fn kind_of(waiter: Waiter) -> BellKind {
    match waiter {
        Waiter::Shard(_) => BellKind::Socket,
        _ => BellKind::Event,
    }
}

fn create_bell(waiter: Waiter) -> io::Result<(OwnedFd, OwnedFd)> {
    match kind_of(waiter) {
        BellKind::Event => {
            let event =
                EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let wait: OwnedFd = event.into();
            let ring = wait.try_clone()?;
            Ok((wait, ring))
        }
        // The supervisor keeps both ends for ever, so that neither side ever sees the other's end of file.
        BellKind::Socket => Ok(socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?),
    }
}
