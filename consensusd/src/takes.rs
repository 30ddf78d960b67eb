//! The largest command that every member takes.
//!
//! An entry has to pass the log ring and the peer ring of each member. Rings are as large as each node's own configuration says, and
//! an operator who makes them larger does so node by node: meanwhile a leader with large ones would commit to nothing that its
//! followers can never receive, and hold up all that comes after it. So members tell what they take, and the leader refuses what
//! is too large for one of them. A member that was never heard of counts as taking as much as this node.

use parking_lot::Mutex;
use std::collections::BTreeMap;

/// What a command has around it in a ring at most: the entry, the request that carries it, and the sender's hello.
const AROUND_BYTES: usize = 2 << 10;

/// What this node takes, and what the other members have told.
pub struct Takes {
    own: usize,
    members: Mutex<BTreeMap<String, Told>>,
}

struct Told {
    name: String,
    bytes: usize,
}

/// The largest command, and by whom it is bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Largest {
    /// Its bytes.
    pub bytes: usize,
    /// The member that takes no more, if that is not this node.
    pub member: Option<String>,
}

impl Takes {
    /// This node's rings carry messages of so many bytes.
    pub fn new(log_message_max: usize, peer_message_max: usize) -> Takes {
        let carried = log_message_max.min(peer_message_max);
        Takes {
            own: carried.saturating_sub(AROUND_BYTES),
            members: Mutex::default(),
        }
    }

    /// The largest command that this node takes.
    pub fn own(&self) -> usize {
        self.own
    }

    /// A member tells what it takes. It holds while the member is away, too: it will have to take what is written meanwhile.
    pub fn told(&self, addr: &str, name: &str, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut members = self.members.lock();
        if members.get(addr).is_some_and(|told| told.bytes == bytes) {
            return;
        }
        if bytes < self.own {
            tracing::warn!(
                member = name,
                bytes,
                own = self.own,
                "a member's rings are smaller than this node's: larger commands are refused"
            );
        }
        let name = name.to_owned();
        members.insert(addr.to_owned(), Told { name, bytes });
    }

    /// The largest command that all take.
    pub fn largest(&self) -> Largest {
        let members = self.members.lock();
        let smallest = members.values().min_by_key(|told| told.bytes);
        match smallest.filter(|told| told.bytes < self.own) {
            Some(told) => Largest {
                bytes: told.bytes,
                member: Some(told.name.clone()),
            },
            None => Largest {
                bytes: self.own,
                member: None,
            },
        }
    }
}

impl Largest {
    /// Why a command of so many bytes is refused; `None`: it is not.
    pub fn refuses(&self, bytes: usize) -> Option<String> {
        if bytes <= self.bytes {
            return None;
        }
        let who = match &self.member {
            Some(name) => format!("member '{name}'"),
            None => "this node".into(),
        };
        Some(format!(
            "the command has {bytes} bytes, {who} takes at most {}: raise limits.request_bytes_max, ipc.log_ring_bytes and \
             ipc.peer_ring_bytes there",
            self.bytes
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_member_says_how_large_a_command_may_be() {
        let takes = Takes::new(1 << 20, 4 << 20);
        let own = (1 << 20) - AROUND_BYTES;
        assert_eq!(takes.largest().bytes, own, "nobody was heard of");
        assert_eq!(takes.largest().refuses(own), None);
        assert!(
            takes
                .largest()
                .refuses(own + 1)
                .unwrap()
                .contains("this node")
        );
        takes.told("a", "node1", 2 << 20);
        assert_eq!(takes.largest().member, None, "this node is the smallest");
        takes.told("b", "node2", 1000);
        let why = takes.largest().refuses(1001).unwrap();
        assert!(why.contains("'node2' takes at most 1000"), "{why}");
        assert_eq!(takes.largest().refuses(1000), None);
        takes.told("b", "node2", 4 << 20);
        assert_eq!(takes.largest().bytes, own, "it was made larger");
    }
}
