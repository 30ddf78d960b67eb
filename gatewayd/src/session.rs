//! This gateway's sessions: who asks, so that each command takes effect once (ONCE-1).
//!
//! It has one in each group. A session that its group does not know any more is never opened again: with it the group has
//! forgotten what it answered, so that a repeat would take effect a second time. Another one takes its place.

use mareedb_ipc::wire::command::SessionRef;
use mareedb_ipc::wire::{GroupId, RandomId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The group keeps the outcomes of all numbers from the lowest open one on, in memory. One request that stays open for long must not
/// make it keep all that came after it: beyond so many numbers they come from another session, and the old one expires.
const SPAN_MAX: u64 = 16 << 10;

/// The sessions of one gateway incarnation, one a group.
pub struct Sessions {
    groups: Mutex<BTreeMap<GroupId, Session>>,
    /// One opens, the others wait.
    pub(crate) opening: tokio::sync::Mutex<()>,
}

struct Session {
    id: RandomId,
    open: bool,
    last: u64,
    outstanding: BTreeSet<u64>,
}

impl Session {
    fn new() -> Session {
        Session {
            id: RandomId::draw(),
            open: false,
            last: 0,
            outstanding: BTreeSet::new(),
        }
    }
}

impl Sessions {
    /// Sessions that no group knows yet.
    pub fn new() -> Arc<Sessions> {
        Arc::new(Sessions {
            groups: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
        })
    }

    /// The id of a group's session, if the group is still to be told of it.
    pub fn unopened(&self, group: GroupId) -> Option<RandomId> {
        let mut groups = self.groups.lock();
        let session = groups.entry(group).or_insert_with(Session::new);
        let oldest = session.outstanding.first().copied();
        if oldest.is_some_and(|oldest| session.last - oldest >= SPAN_MAX) {
            *session = Session::new();
        }
        (!session.open).then_some(session.id)
    }

    /// The group knows the session now.
    pub fn opened(&self, group: GroupId, id: RandomId) {
        if let Some(session) = self.groups.lock().get_mut(&group)
            && session.id == id
        {
            session.open = true;
        }
    }

    /// The group does not know the session: another one takes its place, unless that has happened already.
    pub fn lost(&self, group: GroupId, id: RandomId) {
        if let Some(session) = self.groups.lock().get_mut(&group)
            && session.id == id
        {
            *session = Session::new();
        }
    }

    /// The next request number; everything below the lowest open one is answered.
    pub fn begin(self: &Arc<Self>, group: GroupId) -> Request {
        let mut groups = self.groups.lock();
        let session = groups.entry(group).or_insert_with(Session::new);
        session.last += 1;
        let sequence = session.last;
        session.outstanding.insert(sequence);
        let low_water = *session.outstanding.first().expect("just inserted");
        Request {
            sessions: self.clone(),
            group,
            origin: SessionRef {
                session: session.id,
                sequence,
                low_water,
            },
        }
    }
}

/// An open request. Dropping it gives its number up: a copy of it that is applied later is refused.
pub struct Request {
    sessions: Arc<Sessions>,
    group: GroupId,
    /// What goes into the command.
    pub origin: SessionRef,
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.groups.lock().get_mut(&self.group)
            && session.id == self.origin.session
        {
            session.outstanding.remove(&self.origin.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::FIRST_DATA_GROUP;

    #[test]
    fn the_low_water_mark_stays_below_every_open_request() {
        let sessions = Sessions::new();
        let first = sessions.begin(FIRST_DATA_GROUP);
        let second = sessions.begin(FIRST_DATA_GROUP);
        assert_eq!((first.origin.sequence, first.origin.low_water), (1, 1));
        assert_eq!((second.origin.sequence, second.origin.low_water), (2, 1));
        drop(first);
        assert_eq!(sessions.begin(FIRST_DATA_GROUP).origin.low_water, 2);
        drop(second);
        assert_eq!(sessions.begin(FIRST_DATA_GROUP).origin.low_water, 4);
    }

    #[test]
    fn once_1_a_session_that_was_lost_is_never_opened_again() {
        let sessions = Sessions::new();
        let id = sessions.unopened(FIRST_DATA_GROUP).unwrap();
        sessions.opened(FIRST_DATA_GROUP, id);
        assert_eq!(sessions.unopened(FIRST_DATA_GROUP), None);
        let request = sessions.begin(FIRST_DATA_GROUP);
        assert_eq!(request.origin.session, id);
        sessions.lost(FIRST_DATA_GROUP, id);
        let next = sessions.unopened(FIRST_DATA_GROUP).unwrap();
        assert_ne!(next, id);
        // Late words about the old one change nothing, nor do its requests.
        sessions.opened(FIRST_DATA_GROUP, id);
        sessions.lost(FIRST_DATA_GROUP, id);
        assert_eq!(sessions.unopened(FIRST_DATA_GROUP), Some(next));
        let other = sessions.begin(FIRST_DATA_GROUP);
        assert_eq!((other.origin.session, other.origin.sequence), (next, 1));
        drop(request);
        assert_eq!(sessions.begin(FIRST_DATA_GROUP).origin.low_water, 1);
    }

    #[test]
    fn a_request_that_stays_open_does_not_make_the_group_keep_all_that_follow() {
        let sessions = Sessions::new();
        let first = sessions.unopened(FIRST_DATA_GROUP).unwrap();
        sessions.opened(FIRST_DATA_GROUP, first);
        let stays = sessions.begin(FIRST_DATA_GROUP);
        for _ in 0..SPAN_MAX {
            assert_eq!(sessions.unopened(FIRST_DATA_GROUP), None);
            drop(sessions.begin(FIRST_DATA_GROUP));
        }
        let second = sessions.unopened(FIRST_DATA_GROUP).unwrap();
        assert_ne!(second, first);
        sessions.opened(FIRST_DATA_GROUP, second);
        let next = sessions.begin(FIRST_DATA_GROUP);
        assert_eq!((next.origin.session, next.origin.low_water), (second, 1));
        // The old one's end is nothing to the new one.
        assert_eq!(stays.origin.session, first);
        drop(stays);
        assert_eq!(sessions.begin(FIRST_DATA_GROUP).origin.low_water, 1);
    }
}
