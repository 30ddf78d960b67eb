//! The daemon's side: what it was given at exec, each thing to be taken once.

use crate::bell::Bell;
use crate::board::{BOARD_BYTES, BoardReader, BoardWriter, Gauge};
use crate::mapping::Mapping;
use crate::memory::kind_of;
use crate::receiver::Receiver;
use crate::ring::{HEADER_BYTES, Ring, RingError};
use crate::sender::Sender;
use crate::topology::{Lane, LinkId, Role, Topology, Waiter};
use crate::wire::{RandomId, decode, encode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The environment variable that makes an executable a daemon.
pub const ENV: &str = "MAREEDB_INHERIT";
/// No configuration is longer.
pub(crate) const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What could not be inherited.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// The variable is not set: this process was not started by a supervisor.
    #[error("{ENV} is not set: a daemon is started by maree-db-server, never by hand")]
    Missing,
    /// The variable's text is malformed.
    #[error("{ENV} is malformed: {0}")]
    Malformed(String),
    /// A descriptor is not what it should be.
    #[error("{what}: {source}")]
    Descriptor {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A ring is corrupt.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// What the variable says; descriptors are numbers of the child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) role: Role,
    pub(crate) start: RandomId,
    pub(crate) topology: Topology,
    pub(crate) config: RawFd,
    pub(crate) config_bytes: u64,
    pub(crate) rings: Vec<RingFd>,
    pub(crate) bells: Vec<BellFds>,
    pub(crate) board: RawFd,
    pub(crate) boards: Vec<(Role, RawFd)>,
    pub(crate) rest: Option<RawFd>,
    pub(crate) grpc: Option<RawFd>,
    pub(crate) lock: Option<RawFd>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RingFd {
    pub(crate) link: LinkId,
    pub(crate) generation: RandomId,
    pub(crate) fd: RawFd,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BellFds {
    pub(crate) waiter: Waiter,
    pub(crate) ring: RawFd,
    pub(crate) wait: Option<RawFd>,
}

impl Manifest {
    /// Hexadecimal of the postcard encoding.
    pub(crate) fn to_text(&self) -> String {
        encode(self)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    pub(crate) fn from_text(text: &str) -> Result<Manifest, InheritError> {
        let malformed = |why: &str| InheritError::Malformed(why.to_owned());
        if !text.len().is_multiple_of(2) || !text.is_ascii() {
            return Err(malformed("no pairs of hexadecimal digits"));
        }
        let bytes: Option<Vec<u8>> = (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
            .collect();
        let bytes = bytes.ok_or_else(|| malformed("no pairs of hexadecimal digits"))?;
        let manifest: Manifest =
            decode(&bytes).map_err(|error| InheritError::Malformed(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether it gives this role exactly what the topology says, so that a daemon never meets a missing end later.
    fn check(&self) -> Result<(), InheritError> {
        let malformed = |why: String| Err(InheritError::Malformed(why));
        if let Some(fault) = self.topology.fault() {
            return malformed(fault);
        }
        if self.role == Role::Supervisor {
            return malformed("the supervisor inherits nothing".into());
        }
        if self.config_bytes > CONFIG_BYTES_MAX {
            return malformed(format!("a configuration of {} bytes", self.config_bytes));
        }
        let of_role = |link: &LinkId| link.from == self.role || link.to == self.role;
        let expected: BTreeSet<LinkId> = self.topology.links().into_iter().collect();
        let given: Vec<LinkId> = self.rings.iter().map(|ring| ring.link).collect();
        if !same(given, expected.into_iter().filter(of_role).collect()) {
            return malformed("the rings are not those of this role and topology".into());
        }
        let given = self.bells.iter().map(|bell| bell.waiter).collect();
        let waiting = |bell: &BellFds| bell.wait.is_some() == (bell.waiter.role() == self.role);
        if !same(given, self.topology.waiters().into_iter().collect())
            || !self.bells.iter().all(waiting)
        {
            return malformed("the doorbells are not those of this role and topology".into());
        }
        let given = self.boards.iter().map(|(owner, _)| *owner).collect();
        let mut others: BTreeSet<Role> = Role::DAEMONS.into_iter().collect();
        others.insert(Role::Supervisor);
        others.remove(&self.role);
        if !same(given, others) {
            return malformed("the boards are not those of the other processes".into());
        }
        if self.rest.is_some() != self.grpc.is_some()
            || (self.rest.is_some() && self.role != Role::Gateway)
        {
            return malformed("listening sockets are the gateway's, both or none".into());
        }
        let mut fds = self.fds();
        let count = fds.len();
        fds.sort_unstable();
        fds.dedup();
        if fds.len() != count || fds.first().is_some_and(|fd| *fd <= 2) {
            return malformed("a descriptor stands there twice, or is a standard one".into());
        }
        Ok(())
    }

    /// All descriptors, each once.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        let mut fds = vec![self.config, self.board];
        fds.extend(self.rings.iter().map(|ring| ring.fd));
        fds.extend(
            self.bells
                .iter()
                .flat_map(|bell| [Some(bell.ring), bell.wait].into_iter().flatten()),
        );
        fds.extend(self.boards.iter().map(|(_, fd)| *fd));
        fds.extend([self.rest, self.grpc, self.lock].into_iter().flatten());
        fds
    }
}

/// Whether `given` holds each of `expected` once and nothing else.
fn same<T: Ord>(given: Vec<T>, expected: BTreeSet<T>) -> bool {
    given.len() == expected.len() && given.into_iter().collect::<BTreeSet<T>>() == expected
}

/// The listening sockets.
pub struct Listeners {
    /// REST.
    pub rest: OwnedFd,
    /// gRPC and peers.
    pub grpc: OwnedFd,
}

type Bells = BTreeMap<Waiter, Bell>;
type Ringers = BTreeMap<Waiter, Arc<Bell>>;
type Senders = BTreeMap<(Role, Lane), Sender>;
type Receivers = BTreeMap<(Role, Lane), Receiver>;

/// Everything that a daemon was given.
pub struct Inheritance {
    role: Role,
    start: RandomId,
    topology: Topology,
    config: String,
    senders: Senders,
    receivers: Receivers,
    bells: Bells,
    ringers: Ringers,
    board: BoardWriter,
    boards: BTreeMap<Role, BoardReader>,
    listeners: Option<Listeners>,
    /// Held as long as the process lives: the data directory stays ours even when the supervisor dies first.
    _lock: Option<OwnedFd>,
}

impl Inheritance {
    /// Whether this process was started as a daemon.
    pub fn present() -> bool {
        std::env::var_os(ENV).is_some()
    }

    /// Takes what the supervisor gave to this process. To be called first thing in `main`, before other threads exist; the
    /// variable is removed, so that it works once.
    ///
    /// # Errors
    /// Nothing was given, or something else than the variable says. A corrupt ring is also reported on this daemon's board
    /// ([`crate::Cell::CorruptLink`]).
    pub fn from_env() -> Result<Inheritance, InheritError> {
        let text = std::env::var_os(ENV).ok_or(InheritError::Missing)?;
        // SAFETY: the process has no other thread yet that reads the environment (the allocator's own does not); this is the first
        // thing that a daemon's `main` does.
        unsafe { std::env::remove_var(ENV) };
        let manifest = Manifest::from_text(&text.to_string_lossy())?;
        for fd in manifest.fds() {
            // SAFETY: fails for a number that is no open descriptor; what a daemon inherited it does not pass on.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(InheritError::Descriptor {
                    what: format!("descriptor {fd}"),
                    source: io::Error::last_os_error(),
                });
            }
        }
        // SAFETY: the descriptors are open, were passed to this process for exactly this use, stand in the list once, and
        // nothing else in the process owns them: this runs once, before anything else.
        let own = |fd: RawFd| unsafe { OwnedFd::from_raw_fd(fd) };
        Inheritance::assemble(&manifest, own)
    }

    pub(crate) fn assemble(
        manifest: &Manifest,
        mut own: impl FnMut(RawFd) -> OwnedFd,
    ) -> Result<Inheritance, InheritError> {
        let board = own(manifest.board);
        let board =
            Mapping::new(board.as_fd(), BOARD_BYTES, true).map_err(told("own board".into()))?;
        let board = BoardWriter::new(board);
        let (bells, ringers) = take_bells(manifest, &mut own);
        let (senders, receivers) =
            take_rings(manifest, &ringers, &mut own).inspect_err(|error| {
                if let InheritError::Ring(error) = error {
                    report(&board, error);
                }
            })?;
        let mut boards = BTreeMap::new();
        for (owner, fd) in &manifest.boards {
            let fd = own(*fd);
            let map = Mapping::new(fd.as_fd(), BOARD_BYTES, false)
                .map_err(told(format!("board of {owner}")))?;
            boards.insert(*owner, BoardReader::new(map));
        }
        let config = read_config(own(manifest.config), manifest.config_bytes)?;
        let listeners = match (manifest.rest, manifest.grpc) {
            (Some(rest), Some(grpc)) => Some(Listeners {
                rest: own(rest),
                grpc: own(grpc),
            }),
            _ => None,
        };
        Ok(Inheritance {
            role: manifest.role,
            start: manifest.start,
            topology: manifest.topology,
            config,
            senders,
            receivers,
            bells,
            ringers,
            board,
            boards,
            listeners,
            _lock: manifest.lock.map(own),
        })
    }

    /// Which daemon this is.
    pub fn role(&self) -> Role {
        self.role
    }
    /// Start id of the supervisor: another one means that the node was down.
    pub fn start(&self) -> RandomId {
        self.start
    }
    /// Shape of the node.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }
    /// The configuration, as JSON.
    pub fn config_json(&self) -> &str {
        &self.config
    }

    /// The producing end of a ring.
    ///
    /// # Panics
    /// There is no such ring, or it was taken.
    pub fn sender(&mut self, to: Role, lane: Lane) -> Sender {
        self.senders
            .remove(&(to, lane))
            .unwrap_or_else(|| panic!("no sender to {to} on {lane} left"))
    }

    /// The consuming end of a ring.
    ///
    /// # Panics
    /// There is no such ring, or it was taken.
    pub fn receiver(&mut self, from: Role, lane: Lane) -> Receiver {
        self.receivers
            .remove(&(from, lane))
            .unwrap_or_else(|| panic!("no receiver from {from} on {lane} left"))
    }

    /// The waiting end of one of this daemon's doorbells.
    ///
    /// # Panics
    /// It is not this daemon's, or was taken.
    pub fn bell(&mut self, waiter: Waiter) -> Bell {
        self.bells
            .remove(&waiter)
            .unwrap_or_else(|| panic!("no doorbell of {waiter:?} left"))
    }

    /// The ringing end of a doorbell, for threads of this daemon that wake each other.
    ///
    /// # Panics
    /// There is no such waiter.
    pub fn ringer(&self, waiter: Waiter) -> Arc<Bell> {
        self.ringers
            .get(&waiter)
            .unwrap_or_else(|| panic!("no doorbell of {waiter:?}"))
            .clone()
    }

    /// Rings everybody once: a predecessor may have died between publishing and ringing (RING-6).
    pub fn ring_all_bells(&self) {
        for bell in self.ringers.values() {
            bell.ring();
        }
    }

    /// This daemon's board.
    pub fn board(&self) -> BoardWriter {
        self.board.clone()
    }

    /// Another process's board.
    ///
    /// # Panics
    /// `role` is this daemon itself.
    pub fn peer_board(&self, role: Role) -> BoardReader {
        self.boards
            .get(&role)
            .unwrap_or_else(|| panic!("{role} reads its own board"))
            .clone()
    }

    /// The listening sockets; gatewayd's, once.
    pub fn listeners(&mut self) -> Option<Listeners> {
        self.listeners.take()
    }
}

fn told(what: String) -> impl FnOnce(io::Error) -> InheritError {
    move |source| InheritError::Descriptor { what, source }
}

/// The supervisor must learn which link it has to replace even from a daemon that never gets to run. The beat says that what the
/// board shows is this process's, not its predecessor's; so that goes first.
fn report(board: &BoardWriter, error: &RingError) {
    board.set(Gauge::Ready, 0);
    board.ended_by(error);
    board.beat();
}

/// The waiting ends that are this role's, and all ringing ends.
fn take_bells(manifest: &Manifest, own: &mut impl FnMut(RawFd) -> OwnedFd) -> (Bells, Ringers) {
    let mut bells = BTreeMap::new();
    let mut ringers = BTreeMap::new();
    for fds in &manifest.bells {
        let kind = kind_of(fds.waiter);
        let ringer = Bell::inherited(own(fds.ring), kind, fds.waiter);
        ringers.insert(fds.waiter, Arc::new(ringer));
        if let Some(wait) = fds.wait {
            bells.insert(fds.waiter, Bell::new(own(wait), kind));
        }
    }
    (bells, ringers)
}

fn take_rings(
    manifest: &Manifest,
    ringers: &Ringers,
    own: &mut impl FnMut(RawFd) -> OwnedFd,
) -> Result<(Senders, Receivers), InheritError> {
    let role = manifest.role;
    let mut senders = BTreeMap::new();
    let mut receivers = BTreeMap::new();
    for given in &manifest.rings {
        let link = given.link;
        let fd = own(given.fd);
        let capacity = manifest.topology.capacity(link.lane);
        let len = usize::try_from(capacity)
            .unwrap_or(usize::MAX)
            .saturating_add(HEADER_BYTES);
        let map = Mapping::new(fd.as_fd(), len, true).map_err(told(format!("ring {link}")))?;
        map.keep_out_of_cores();
        let ring = Ring::open(map, link, capacity, given.generation)?;
        let sends = link.from == role;
        let other = if sends { link.to } else { link.from };
        let bell = ringers
            .get(&link.waiter_of(other))
            .cloned()
            .ok_or_else(|| InheritError::Malformed(format!("no doorbell for ring {link}")))?;
        if sends {
            senders.insert((other, link.lane), Sender::attach(ring, bell)?);
        } else {
            receivers.insert((other, link.lane), Receiver::attach(ring, bell)?);
        }
    }
    Ok((senders, receivers))
}

fn read_config(fd: OwnedFd, bytes: u64) -> Result<String, InheritError> {
    let len = usize::try_from(bytes).expect("bounded by `check`");
    let mut text = vec![0; len];
    File::from(fd)
        .read_exact_at(&mut text, 0)
        .map_err(told("configuration".into()))?;
    String::from_utf8(text)
        .map_err(|_| InheritError::Malformed("the configuration is no UTF-8".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Cell;
    use crate::memory::Extras;
    use crate::ring::AT_MAGIC;
    use crate::status::CorruptLink;
    use crate::testing::NodeInProcess;
    use std::sync::atomic::Ordering;

    /// A daemon without a beat is taken for one that wrote nothing on its board: then all its links would be replaced, for the one
    /// that it has named.
    #[test]
    fn a_failed_attach_reports_as_itself_and_beats() {
        let node = NodeInProcess::small("{}");
        let reader = node.memory().read_board(Role::Consensus);
        let board = node.attach(Role::Consensus).board();
        board.set(Gauge::Ready, 1);
        board.last_words("of the predecessor");
        let link = LinkId {
            from: Role::Storage,
            to: Role::Consensus,
            lane: Lane::Log(0),
        };
        let magic = node.memory().rings[&link].map.word(AT_MAGIC);
        magic.store(3, Ordering::Release);
        let before = reader.beats();
        let Err(InheritError::Ring(error)) = node.try_attach(Role::Consensus, &Extras::default())
        else {
            panic!("it attached");
        };
        assert!(reader.beats() > before);
        assert_eq!(reader.get(Gauge::Ready), 0, "the predecessor's");
        let words: String = reader.read(Cell::LastWords).unwrap();
        assert_eq!(words, error.to_string());
        let report: CorruptLink = reader.read(Cell::CorruptLink).unwrap();
        assert_eq!((report.link, report.blame), (link, Role::Supervisor));
    }
}
