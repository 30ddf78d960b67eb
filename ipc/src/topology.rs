//! Who talks to whom: the rings and doorbells of a node.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A process of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Spawns and watches the others.
    Supervisor,
    /// consensusd
    Consensus,
    /// storaged
    Storage,
    /// gatewayd
    Gateway,
}
impl Role {
    /// The three that the supervisor runs.
    pub const DAEMONS: [Role; 3] = [Role::Consensus, Role::Storage, Role::Gateway];
    /// Its name, which is also its `comm`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Supervisor => "supervisor",
            Role::Consensus => "consensusd",
            Role::Storage => "storaged",
            Role::Gateway => "gatewayd",
        }
    }
}
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a ring is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// Operations of a storage shard, in one order.
    Log(u16),
    /// Proposals, read indexes, the view of the cluster.
    Client,
    /// Frames of peers.
    Peer,
    /// Snapshots of peers.
    Bulk,
    /// Reads by a reader thread.
    Read(u16),
}
impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lane::Log(shard) => write!(f, "log-{shard}"),
            Lane::Client => f.write_str("client"),
            Lane::Peer => f.write_str("peer"),
            Lane::Bulk => f.write_str("bulk"),
            Lane::Read(reader) => write!(f, "read-{reader}"),
        }
    }
}

/// A thread that sleeps on a doorbell of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Waiter {
    /// gatewayd's event loop.
    Gateway,
    /// consensusd's event loop.
    Consensus,
    /// A shard's executor; its bell is a stream socket.
    Shard(u16),
    /// A reader thread.
    Reader(u16),
}
impl Waiter {
    /// The process that it belongs to.
    pub fn role(self) -> Role {
        match self {
            Waiter::Gateway => Role::Gateway,
            Waiter::Consensus => Role::Consensus,
            Waiter::Shard(_) | Waiter::Reader(_) => Role::Storage,
        }
    }
}

/// Names a link: the ring of one direction of a lane. Two daemons share several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkId {
    /// Who writes.
    pub from: Role,
    /// Who reads.
    pub to: Role,
    /// What for.
    pub lane: Lane,
}
impl LinkId {
    /// The waiter of one of its ends.
    pub(crate) fn waiter_of(self, role: Role) -> Waiter {
        match (role, self.lane) {
            (Role::Gateway, _) => Waiter::Gateway,
            (Role::Storage, Lane::Read(reader)) => Waiter::Reader(reader),
            (Role::Storage, Lane::Log(shard)) => Waiter::Shard(shard),
            _ => Waiter::Consensus,
        }
    }
}
impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} ({})", self.from, self.to, self.lane)
    }
}

/// Bytes of each ring, by lane; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSizes {
    /// [`Lane::Log`]
    pub log: u64,
    /// [`Lane::Client`]
    pub client: u64,
    /// [`Lane::Peer`]
    pub peer: u64,
    /// [`Lane::Bulk`]
    pub bulk: u64,
    /// [`Lane::Read`]
    pub read: u64,
}
impl RingSizes {
    /// The same for each.
    pub const fn each(bytes: u64) -> RingSizes {
        RingSizes {
            log: bytes,
            client: bytes,
            peer: bytes,
            bulk: bytes,
            read: bytes,
        }
    }
}

/// The shape of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Storage shards.
    pub shards: u16,
    /// Reader threads.
    pub readers: u16,
    /// Bytes of the rings.
    pub sizes: RingSizes,
}

/// The most shards, and the most readers, of a node. What a daemon is told at exec is one environment variable, which
/// the kernel bounds to 128 KiB.
pub const SHARDS_MAX: u16 = 256;

/// Smallest and largest ring that can be made. What a configuration may ask for lies within, and begins where a ring is of use.
pub const RING_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 32;

impl Topology {
    /// All rings, in a fixed order.
    pub fn links(&self) -> Vec<LinkId> {
        let mut links = Vec::new();
        let mut both = |a: Role, b: Role, lane: Lane| {
            links.push(LinkId {
                from: a,
                to: b,
                lane,
            });
            links.push(LinkId {
                from: b,
                to: a,
                lane,
            });
        };
        for shard in 0..self.shards {
            both(Role::Consensus, Role::Storage, Lane::Log(shard));
        }
        for lane in [Lane::Client, Lane::Peer, Lane::Bulk] {
            both(Role::Gateway, Role::Consensus, lane);
        }
        for reader in 0..self.readers {
            both(Role::Gateway, Role::Storage, Lane::Read(reader));
        }
        links
    }

    /// All waiters, in a fixed order.
    pub fn waiters(&self) -> Vec<Waiter> {
        let mut waiters = vec![Waiter::Gateway, Waiter::Consensus];
        waiters.extend((0..self.shards).map(Waiter::Shard));
        waiters.extend((0..self.readers).map(Waiter::Reader));
        waiters
    }

    /// Bytes of a ring.
    pub fn capacity(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Log(_) => self.sizes.log,
            Lane::Client => self.sizes.client,
            Lane::Peer => self.sizes.peer,
            Lane::Bulk => self.sizes.bulk,
            Lane::Read(_) => self.sizes.read,
        }
    }

    /// Why the shape is impossible, if it is.
    pub fn fault(&self) -> Option<String> {
        if self.shards == 0 || self.readers == 0 {
            return Some("a node has at least one shard and one reader".into());
        }
        if self.shards > SHARDS_MAX || self.readers > SHARDS_MAX {
            return Some(format!(
                "{} shards and {} readers, a node has at most {SHARDS_MAX} of each",
                self.shards, self.readers
            ));
        }
        self.links().into_iter().find_map(|link| {
            let bytes = self.capacity(link.lane);
            (!bytes.is_power_of_two() || !RING_BYTES.contains(&bytes)).then(|| {
                format!("ring {link}: {bytes} bytes is no power of two from 4 KiB to 4 GiB")
            })
        })
    }
}
