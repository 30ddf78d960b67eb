//! The largest command that every member takes.
//!
//! An entry has to pass the log ring and the peer ring of each member. Rings are as large as each node's own configuration says, and
//! an operator who makes them larger does so node by node: meanwhile a leader with large ones would commit to nothing that its
//! followers can never receive, and hold up all that comes after it. So members tell what they take, and the leader refuses what
//! is too large for one of them.
//!
//! What they have told outlives consensusd on its status board: a member may be away for longer than this process lives. One that has
//! told nothing while this node's supervisor lives counts as taking what requests of default settings need, and no more. What is larger has
//! to wait until it has told.

use mareedb_ipc::{BoardWriter, Gauge};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};

/// What a command has around it in a ring at most: the entry, the request that carries it, and the sender's hello.
const AROUND_BYTES: usize = 2 << 10;
/// What a member is thought to take that has told nothing: with less no node would start with the default `limits.request_bytes_max`.
const UNTOLD_BYTES: usize = (2 << 20) + (64 << 10) - AROUND_BYTES;

/// What this node takes, and what the other members have told.
pub struct Takes {
    own: usize,
    board: Option<BoardWriter>,
    members: Mutex<Members>,
}

#[derive(Default)]
struct Members {
    told: BTreeMap<String, Told>,
    /// Addresses of all others, once the cluster is known.
    all: Option<BTreeSet<String>>,
    /// No member took less when the predecessor of this process ended.
    known: Option<usize>,
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
    /// Who takes no more.
    pub by: By,
}

/// Who bounds commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// This node.
    Own,
    /// The member of this name has told it.
    Member(String),
    /// A member that has not told what it takes, where it is known which.
    Silent(Option<String>),
}

impl Takes {
    /// This node's rings carry messages of so many bytes.
    pub fn new(log_message_max: usize, peer_message_max: usize) -> Takes {
        let carried = log_message_max.min(peer_message_max);
        Takes {
            own: carried.saturating_sub(AROUND_BYTES),
            board: None,
            members: Mutex::default(),
        }
    }

    /// Begins from what a predecessor has left on this board, and keeps it there.
    pub fn kept_on(self, board: BoardWriter) -> Takes {
        let known = board.reader().get(Gauge::CommandBytes);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        self.members.lock().known = (known > 0).then_some(known);
        Takes {
            board: Some(board),
            ..self
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
        if members
            .told
            .get(addr)
            .is_some_and(|told| told.bytes == bytes)
        {
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
        members.told.insert(addr.to_owned(), Told { name, bytes });
        self.keep_known(&members);
    }

    /// The cluster is known: these are all others.
    pub fn keep(&self, all: &BTreeSet<String>) {
        let mut members = self.members.lock();
        members.all = Some(all.clone());
        self.keep_known(&members);
    }

    fn keep_known(&self, members: &Members) {
        if let Some(board) = &self.board {
            // 0 is nothing known.
            let bytes = members.least().map_or(0, |(bytes, _)| bytes.max(1));
            board.set(Gauge::CommandBytes, bytes as u64);
        }
    }

    /// The largest command that all take.
    pub fn largest(&self) -> Largest {
        self.bounded(self.members.lock().least())
    }

    /// The largest that all take who have told it, and this node. What is larger is too large, whatever the others will tell.
    pub fn largest_told(&self) -> Largest {
        self.bounded(self.members.lock().least_told())
    }

    fn bounded(&self, least: Option<(usize, Who<'_>)>) -> Largest {
        match least {
            Some((bytes, who)) if bytes < self.own => Largest {
                bytes,
                by: who.owned(),
            },
            _ => Largest {
                bytes: self.own,
                by: By::Own,
            },
        }
    }
}

/// One of the others.
enum Who<'a> {
    Member(&'a str),
    Silent(Option<&'a str>),
}

impl Who<'_> {
    fn owned(&self) -> By {
        match self {
            Who::Member(name) => By::Member((*name).to_owned()),
            Who::Silent(addr) => By::Silent(addr.map(str::to_owned)),
        }
    }
}

impl Members {
    /// The one who takes the least; `None`: nothing is known of anybody.
    fn least(&self) -> Option<(usize, Who<'_>)> {
        let both = self.least_told().into_iter().chain(self.silent());
        both.min_by_key(|(bytes, _)| *bytes)
    }

    /// The same of those who have told.
    fn least_told(&self) -> Option<(usize, Who<'_>)> {
        let told = self.told.values();
        told.map(|told| (told.bytes, Who::Member(&told.name)))
            .min_by_key(|(bytes, _)| *bytes)
    }

    /// One who has not told.
    fn silent(&self) -> Option<(usize, Who<'_>)> {
        let Some(all) = &self.all else {
            // Nobody is asked to take anything yet.
            return Some((self.known?, Who::Silent(None)));
        };
        let addr = all.iter().find(|addr| !self.told.contains_key(*addr))?;
        let bytes = self.known.unwrap_or(UNTOLD_BYTES);
        Some((bytes, Who::Silent(Some(addr))))
    }
}

impl Largest {
    /// Why a command of so many bytes is refused; `None`: it is not.
    pub fn refuses(&self, bytes: usize) -> Option<String> {
        if bytes <= self.bytes {
            return None;
        }
        let most = self.bytes;
        let who = match &self.by {
            By::Own => "this node".into(),
            By::Member(name) => format!("member '{name}'"),
            By::Silent(addr) => {
                let at = addr.as_ref().map(|addr| format!(" at {addr}"));
                return Some(format!(
                    "the command has {bytes} bytes, and a member{} has not told this node yet whether it takes more than {most}: it \
                     tells as soon as it is there",
                    at.unwrap_or_default()
                ));
            }
        };
        Some(format!(
            "the command has {bytes} bytes, {who} takes at most {most}: raise limits.request_bytes_max, ipc.log_ring_bytes and \
             ipc.peer_ring_bytes there"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::Role;
    use mareedb_ipc::testing::NodeInProcess;

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
        assert_eq!(takes.largest().by, By::Own, "this node is the smallest");
        takes.told("b", "node2", 1000);
        let why = takes.largest().refuses(1001).unwrap();
        assert!(why.contains("'node2' takes at most 1000"), "{why}");
        assert_eq!(takes.largest().refuses(1000), None);
        takes.told("b", "node2", 4 << 20);
        assert_eq!(takes.largest().bytes, own, "it was made larger");
    }

    #[test]
    fn a_member_that_has_told_nothing_takes_what_default_settings_need() {
        let default = mareedb_config::Limits::default().request_bytes_max;
        let needed = default + mareedb_config::MESSAGE_EXTRA_BYTES;
        assert_eq!(
            UNTOLD_BYTES + AROUND_BYTES,
            usize::try_from(needed).unwrap()
        );
        let takes = Takes::new(4 << 20, 4 << 20);
        let own = takes.own();
        takes.keep(&BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        takes.told("a", "node1", 4 << 20);
        assert_eq!(takes.largest().refuses(UNTOLD_BYTES), None);
        let why = takes.largest().refuses(UNTOLD_BYTES + 1).unwrap();
        assert!(why.contains("a member at b has not told"), "{why}");
        takes.told("b", "node2", 4 << 20);
        assert_eq!(takes.largest().refuses(own), None, "all have told");
    }

    #[test]
    fn what_was_told_outlives_the_process_until_all_have_told_again() {
        let node = NodeInProcess::small("{}");
        let all = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let start = || {
            let takes = Takes::new(4 << 20, 4 << 20);
            takes.kept_on(node.attach(Role::Consensus).board())
        };
        let takes = start();
        takes.keep(&all);
        takes.told("a", "node1", 3 << 20);
        takes.told("b", "node2", 1000);
        for round in 0..2 {
            let takes = start();
            let why = takes.largest().refuses(1001);
            assert!(why.is_some(), "round {round}: before the cluster is known");
            takes.keep(&all);
            takes.told("a", "node1", 3 << 20);
            let why = takes.largest().refuses(1001).unwrap();
            assert!(why.contains("a member at b has not told"), "{why}");
        }
        let takes = start();
        takes.keep(&all);
        takes.told("a", "node1", 3 << 20);
        takes.told("b", "node2", 4 << 20);
        assert_eq!(takes.largest().bytes, 3 << 20, "it was made larger");
        // More than nothing was known: a member that is silent now has told then.
        let takes = start();
        takes.keep(&all);
        assert_eq!(takes.largest().bytes, 3 << 20);
    }
}
