//! What appends tell of who leads, before openraft takes their word for it.
//!
//! openraft names a new leader once the vote for it is durable, which a disk that stalls keeps from happening. To show a leader and to send it
//! requests needs no promise: an append of a term comes from the leader of that term (RAFT-1).

use crate::rt;
use mareedb_ipc::wire::ReplicaId;
use std::time::{Duration, Instant};

/// The newest leader that sent an append, and when its last one came.
pub struct Heard {
    at: Instant,
    leader: Option<(u64, ReplicaId)>,
}

impl Heard {
    /// Nothing has come; silence is counted from now on.
    pub fn nothing() -> Heard {
        Heard {
            at: rt::now(),
            leader: None,
        }
    }

    /// An append of the leader of a term. One that a later leader has deposed does not know it yet: it breaks no silence.
    pub fn hear(&mut self, term: u64, from: ReplicaId) {
        if self.leader.is_none_or(|(known, _)| known <= term) {
            self.at = rt::now();
            self.leader = Some((term, from));
        }
    }

    /// How long nothing has come of it.
    pub fn silence(&self) -> Duration {
        rt::now().saturating_duration_since(self.at)
    }

    /// The leader and the term, of openraft's and of what was heard the newer ones. A leader that was heard `patience` ago or earlier is
    /// none, and its predecessor is none either.
    pub fn newer(&self, leader: Option<u64>, term: u64, patience: Duration) -> (Option<u64>, u64) {
        match self.leader {
            Some((heard, from)) if term < heard || term == heard && leader.is_none() => {
                ((self.silence() < patience).then_some(from.0), heard)
            }
            _ => (leader, term),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3600);

    #[test]
    fn a_later_term_and_a_leader_that_is_not_known_yet_are_taken() {
        let mut heard = Heard::nothing();
        assert_eq!(heard.newer(Some(1), 2, PATIENCE), (Some(1), 2));
        heard.hear(3, ReplicaId(7));
        assert_eq!(heard.newer(Some(1), 2, PATIENCE), (Some(7), 3));
        assert_eq!(heard.newer(None, 3, PATIENCE), (Some(7), 3));
        // What openraft knows of the same term or a later one stands.
        assert_eq!(heard.newer(Some(7), 3, PATIENCE), (Some(7), 3));
        assert_eq!(heard.newer(None, 4, PATIENCE), (None, 4));
    }

    #[test]
    fn a_predecessor_is_not_heard_and_silence_is_no_leader() {
        let mut heard = Heard::nothing();
        heard.hear(3, ReplicaId(7));
        heard.hear(2, ReplicaId(5));
        assert_eq!(heard.newer(None, 2, PATIENCE), (Some(7), 3));
        assert_eq!(heard.newer(Some(5), 2, Duration::ZERO), (None, 3));
    }

    #[test]
    fn a_deposed_leader_does_not_speak_for_its_successor() {
        let mut heard = Heard::nothing();
        heard.hear(3, ReplicaId(7));
        let silence = Duration::from_secs(1);
        heard.at -= silence;
        heard.hear(2, ReplicaId(5));
        assert_eq!(heard.newer(Some(5), 2, silence), (None, 3));
        assert!(heard.silence() >= silence);
        heard.hear(3, ReplicaId(7));
        assert_eq!(heard.newer(Some(5), 2, PATIENCE), (Some(7), 3));
    }
}
