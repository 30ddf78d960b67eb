//! This gateway's session: who asks, so that each command takes effect once (ONCE-1).

use mareedb_ipc::wire::command::SessionRef;
use mareedb_ipc::wire::{GroupId, RandomId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The session of one gateway incarnation, in all groups.
pub struct Session {
    id: RandomId,
    groups: Mutex<BTreeMap<GroupId, Group>>,
    /// One opens, the others wait.
    pub(crate) opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Group {
    open: bool,
    next: u64,
    outstanding: BTreeSet<u64>,
}

impl Session {
    /// A session that no group knows yet.
    pub fn new() -> Arc<Session> {
        Arc::new(Session {
            id: RandomId::draw(),
            groups: Mutex::default(),
            opening: tokio::sync::Mutex::new(()),
        })
    }

    /// Its id.
    pub fn id(&self) -> RandomId {
        self.id
    }

    /// Whether the group knows it, as far as this gateway knows.
    pub fn is_open(&self, group: GroupId) -> bool {
        self.groups
            .lock()
            .get(&group)
            .is_some_and(|group| group.open)
    }

    /// Notes whether the group knows it.
    pub fn set_open(&self, group: GroupId, open: bool) {
        self.groups.lock().entry(group).or_default().open = open;
    }

    /// The next request number; everything below the lowest open one is answered.
    pub fn begin(self: &Arc<Self>, group: GroupId) -> Request {
        let mut groups = self.groups.lock();
        let state = groups.entry(group).or_default();
        state.next += 1;
        let sequence = state.next;
        state.outstanding.insert(sequence);
        let low_water = *state.outstanding.first().expect("just inserted");
        Request {
            session: self.clone(),
            group,
            origin: SessionRef {
                session: self.id,
                sequence,
                low_water,
            },
        }
    }
}

/// An open request. Dropping it gives its number up: a copy of it that is applied later is refused.
pub struct Request {
    session: Arc<Session>,
    group: GroupId,
    /// What goes into the command.
    pub origin: SessionRef,
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(state) = self.session.groups.lock().get_mut(&self.group) {
            state.outstanding.remove(&self.origin.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::FIRST_DATA_GROUP;

    #[test]
    fn the_low_water_mark_stays_below_every_open_request() {
        let session = Session::new();
        let first = session.begin(FIRST_DATA_GROUP);
        let second = session.begin(FIRST_DATA_GROUP);
        assert_eq!((first.origin.sequence, first.origin.low_water), (1, 1));
        assert_eq!((second.origin.sequence, second.origin.low_water), (2, 1));
        drop(first);
        assert_eq!(session.begin(FIRST_DATA_GROUP).origin.low_water, 2);
        drop(second);
        assert_eq!(session.begin(FIRST_DATA_GROUP).origin.low_water, 4);
    }
}
