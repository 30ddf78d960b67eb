//! A session that clients share as the requests of a gateway do (`gatewayd/src/session.rs`): several are under way at once, and the
//! low-water mark stays below every one of them.

use mareedb_ipc::wire::RandomId;
use mareedb_ipc::wire::command::SessionRef;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// The session of some clients.
pub(super) struct Session {
    now: RefCell<Now>,
    /// One opens, the others wait.
    pub(super) opening: futures::lock::Mutex<()>,
}

struct Now {
    id: RandomId,
    open: bool,
    last: u64,
    outstanding: BTreeSet<u64>,
}

impl Now {
    fn new() -> Now {
        Now {
            id: RandomId::draw(),
            open: false,
            last: 0,
            outstanding: BTreeSet::new(),
        }
    }
}

impl Session {
    /// One that the group does not know yet.
    pub(super) fn new() -> Rc<Session> {
        Rc::new(Session {
            now: RefCell::new(Now::new()),
            opening: futures::lock::Mutex::new(()),
        })
    }

    /// Its id, if the group is still to be told of it.
    pub(super) fn unopened(&self) -> Option<RandomId> {
        let now = self.now.borrow();
        (!now.open).then_some(now.id)
    }

    /// The group knows it.
    pub(super) fn opened(&self, id: RandomId) {
        let mut now = self.now.borrow_mut();
        now.open |= now.id == id;
    }

    /// The group does not know it any more: another one takes its place, unless that has happened already.
    pub(super) fn lost(&self, id: RandomId) {
        let mut now = self.now.borrow_mut();
        if now.id == id {
            *now = Now::new();
        }
    }

    /// The next request; everything below the lowest open one is settled.
    pub(super) fn begin(&self) -> SessionRef {
        let mut now = self.now.borrow_mut();
        now.last += 1;
        let sequence = now.last;
        now.outstanding.insert(sequence);
        SessionRef {
            session: now.id,
            sequence,
            low_water: *now.outstanding.first().expect("just inserted"),
        }
    }

    /// A request was answered or is given up: a copy of it that is applied later may be refused.
    pub(super) fn settle(&self, request: SessionRef) {
        let mut now = self.now.borrow_mut();
        if now.id == request.session {
            now.outstanding.remove(&request.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_low_water_mark_stays_below_every_request_that_is_under_way() {
        let session = Session::new();
        let (first, second) = (session.begin(), session.begin());
        assert_eq!((first.sequence, first.low_water), (1, 1));
        assert_eq!((second.sequence, second.low_water), (2, 1));
        session.settle(second);
        assert_eq!(session.begin().low_water, 1);
        session.settle(first);
        assert_eq!(session.begin().low_water, 3);
    }

    #[test]
    fn what_was_lost_is_never_opened_again() {
        let session = Session::new();
        let before = session.begin();
        session.opened(before.session);
        assert_eq!(session.unopened(), None);
        session.lost(before.session);
        let next = session.unopened().expect("another one");
        assert_ne!(next, before.session);
        // Late words about the old one change nothing.
        session.opened(before.session);
        session.lost(before.session);
        session.settle(before);
        assert_eq!(session.unopened(), Some(next));
        assert_eq!(
            (session.begin().sequence, session.begin().low_water),
            (1, 1)
        );
    }
}
