//! Why this node comes to lead a group: noted while it happens, told with the leader's first word.

use crate::rt;
use mareedb_ipc::wire::NodeId;
use mareedb_ipc::wire::command::Cause;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// A campaign's cause explains an election that comes so soon; a later one has another.
const EXPLAINS: Duration = Duration::from_secs(3);

/// What this node has seen of its predecessors.
#[derive(Default)]
pub struct Rise(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    leader: Option<NodeId>,
    campaign: Option<(Cause, Instant)>,
}

impl Rise {
    /// Another node leads.
    pub fn follows(&self, leader: NodeId) {
        self.0.lock().leader = Some(leader);
    }

    /// This node is about to campaign, for a cause.
    pub fn campaigns(&self, cause: Cause) {
        self.0.lock().campaign = Some((cause, rt::now()));
    }

    /// Why this node leads now.
    pub fn cause(&self) -> Cause {
        let seen = self.0.lock();
        match seen.campaign {
            Some((cause, at)) if rt::now().saturating_duration_since(at) < EXPLAINS => cause,
            _ => seen.leader.map_or(Cause::NoLeader, Cause::Silence),
        }
    }

    /// The cause has been told: it explains no later election.
    pub fn told(&self) {
        self.0.lock().campaign = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_explains_one_election_and_silence_the_others() {
        let rise = Rise::default();
        assert_eq!(rise.cause(), Cause::NoLeader);
        rise.follows(NodeId(2));
        rise.campaigns(Cause::HandOver(NodeId(2)));
        assert_eq!(rise.cause(), Cause::HandOver(NodeId(2)));
        assert_eq!(rise.cause(), Cause::HandOver(NodeId(2)), "until it is told");
        rise.told();
        assert_eq!(rise.cause(), Cause::Silence(NodeId(2)));
    }
}
