//! Members of a group that are brought to the end of its log: by a snapshot first, then by what came after it.
//!
//! What is written while a snapshot is on its way has to be in the log when it has come: otherwise its receiver needs another one, and
//! another one, and does not come back while others write (LIVE-4). So the log keeps what such members lack, within bounds: a member that
//! never gets to the end must not fill the disk.

use crate::rt;
use mareedb_ipc::wire::ReplicaId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// For so long after a snapshot has come, and after each look at which its receiver has got further, the log keeps what it lacks. At the end
/// of the log that is nothing.
const CATCH_UP: Duration = Duration::from_secs(30);

/// Those members. Cloning it gives another handle.
#[derive(Clone, Default)]
pub struct Behind(Arc<Shared>);

#[derive(Default)]
struct Shared {
    members: Mutex<Members>,
    /// Who lacks this entry is waited for no longer; 0: everybody is.
    given_up: AtomicU64,
}

#[derive(Default)]
struct Members {
    next: u64,
    /// By the number of the snapshot.
    receivers: BTreeMap<u64, Receiver>,
}

struct Receiver {
    replica: ReplicaId,
    /// The last entry that the snapshot holds.
    has: u64,
    /// The last entry that it had acknowledged at any look.
    matched: Option<u64>,
    /// `None`: the snapshot is on its way.
    until: Option<Instant>,
}

/// A snapshot on its way. When this is dropped before it has come, the log need not keep anything for it: the next one begins later.
#[must_use = "dropping it says that the snapshot does not come"]
pub(super) struct Sending {
    behind: Behind,
    number: u64,
}

impl Behind {
    /// A snapshot that holds all up to `has` is sent to a member. It replaces an earlier one.
    pub(super) fn send(&self, replica: ReplicaId, has: u64) -> Sending {
        let mut members = self.0.members.lock();
        members
            .receivers
            .retain(|_, receiver| receiver.replica != replica);
        let number = members.next;
        members.next += 1;
        let receiver = Receiver {
            replica,
            has,
            matched: None,
            until: None,
        };
        members.receivers.insert(number, receiver);
        Sending {
            behind: self.clone(),
            number,
        }
    }

    /// The last entry that none of them lacks; `None`: there are none. `matched` tells what a member has acknowledged, and nothing is kept
    /// for one that lacks what is `purged`: it needs another snapshot in any case.
    pub fn all_have(
        &self,
        purged: Option<u64>,
        matched: impl Fn(ReplicaId) -> Option<u64>,
    ) -> Option<u64> {
        let mut members = self.0.members.lock();
        members.all_have(rt::now(), purged, matched)
    }

    /// Who lacks this entry is waited for no longer; 0: everybody is.
    pub fn give_up(&self, lacks: u64) {
        self.0.given_up.store(lacks, Ordering::Relaxed);
    }

    /// Whether a member that has acknowledged so much is not waited for.
    pub(super) fn is_given_up(&self, matched: u64) -> bool {
        matched < self.0.given_up.load(Ordering::Relaxed)
    }
}

impl Members {
    fn all_have(
        &mut self,
        now: Instant,
        purged: Option<u64>,
        matched: impl Fn(ReplicaId) -> Option<u64>,
    ) -> Option<u64> {
        self.receivers.retain(|_, receiver| {
            let found = matched(receiver.replica);
            if found > receiver.matched {
                receiver.matched = found;
                receiver.until = receiver.until.map(|_| now + CATCH_UP);
            }
            receiver.until.is_none_or(|until| now < until)
        });
        let has = |receiver: &Receiver| Some(receiver.has).max(matched(receiver.replica));
        self.receivers
            .values()
            .filter_map(has)
            .filter(|has| Some(*has) >= purged)
            .min()
    }
}

impl Sending {
    /// It has come.
    pub(super) fn has_come(&self) {
        let mut members = self.behind.0.members.lock();
        if let Some(receiver) = members.receivers.get_mut(&self.number) {
            receiver.until = Some(rt::now() + CATCH_UP);
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let number = self.number;
        let mut members = self.behind.0.members.lock();
        members
            .receivers
            .retain(|at, receiver| *at != number || receiver.until.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: fn(ReplicaId) -> Option<u64> = |_| None;

    #[test]
    fn what_a_receiver_of_a_snapshot_lacks_is_known_until_it_has_it() {
        let behind = Behind::default();
        assert_eq!(behind.all_have(None, NOBODY), None);
        let sending = behind.send(ReplicaId(2), 10);
        assert_eq!(behind.all_have(Some(10), NOBODY), Some(10));
        assert_eq!(behind.all_have(Some(11), NOBODY), None, "it comes too late");
        // Another try begins with a later snapshot.
        drop(sending);
        assert_eq!(behind.all_have(None, NOBODY), None);
        let first = behind.send(ReplicaId(2), 20);
        let second = behind.send(ReplicaId(2), 30);
        drop(first);
        assert_eq!(behind.all_have(None, NOBODY), Some(30));
        second.has_come();
        drop(second);
        assert_eq!(behind.all_have(None, NOBODY), Some(30));
        let other = behind.send(ReplicaId(3), 35);
        let matched = |replica: ReplicaId| (replica == ReplicaId(2)).then_some(40);
        assert_eq!(behind.all_have(None, matched), Some(35));
        drop(other);
        assert_eq!(behind.all_have(None, matched), Some(40));
        let later = rt::now() + CATCH_UP;
        let mut members = behind.0.members.lock();
        assert_eq!(members.all_have(later, None, matched), None);
    }

    #[test]
    fn who_gets_on_after_a_snapshot_is_waited_for() {
        let behind = Behind::default();
        let sending = behind.send(ReplicaId(2), 10);
        sending.has_come();
        drop(sending);
        let came = rt::now();
        let mut members = behind.0.members.lock();
        let mut all_have = |seconds, matched| {
            let now = came + Duration::from_secs(seconds);
            members.all_have(now, None, |_| Some(matched))
        };
        assert_eq!(all_have(20, 15), Some(15));
        assert_eq!(all_have(40, 15), Some(15), "it has got on since it came");
        assert_eq!(all_have(50, 15), None, "it has not since");
    }

    #[test]
    fn who_has_what_stays_is_not_given_up() {
        let behind = Behind::default();
        assert!(!behind.is_given_up(0));
        behind.give_up(5);
        assert!(behind.is_given_up(4) && !behind.is_given_up(5));
        behind.give_up(0);
        assert!(!behind.is_given_up(0));
    }
}
