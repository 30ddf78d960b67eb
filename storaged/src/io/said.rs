//! What a test says of the disk, in its own thread and as long as it holds what it is given.

use std::cell::Cell;
use std::io;

thread_local! {
    static ROOM: Cell<Option<u64>> = const { Cell::new(None) };
    static NO_SYNC: Cell<Option<i32>> = const { Cell::new(None) };
}

/// Free bytes, if they are said.
pub(super) fn room() -> Option<u64> {
    ROOM.get()
}

/// How a directory's sync fails, if that is said.
pub(super) fn sync() -> io::Result<()> {
    match NO_SYNC.get() {
        Some(code) => Err(io::Error::from_raw_os_error(code)),
        None => Ok(()),
    }
}

/// The disk has so many free bytes.
pub(crate) struct Room(());

impl Room {
    pub(crate) fn of(bytes: u64) -> Room {
        ROOM.set(Some(bytes));
        Room(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        ROOM.set(None);
    }
}

/// No sync of a directory goes well.
pub(crate) struct NoSync(());

impl NoSync {
    pub(crate) fn with(code: i32) -> NoSync {
        NO_SYNC.set(Some(code));
        NoSync(())
    }
}

impl Drop for NoSync {
    fn drop(&mut self) {
        NO_SYNC.set(None);
    }
}
