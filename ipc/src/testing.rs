//! A node's memory inside one process, for tests of the daemons: each attach of a role is a restart of that daemon over
//! the same memory.

use crate::inherit::{InheritError, Inheritance};
use crate::memory::{Extras, NodeMemory};
use crate::status::LinkUsage;
use crate::topology::{RingSizes, Role, Topology};
use crate::wire::RandomId;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

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
        let ring = 1 << 20;
        NodeInProcess::new(
            Topology {
                shards: 1,
                readers: 1,
                sizes: RingSizes {
                    log: ring,
                    client: ring,
                    peer: ring,
                    bulk: ring,
                    read: ring,
                },
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
