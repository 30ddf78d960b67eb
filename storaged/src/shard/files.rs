//! The thread that makes, renames and removes segment files, one after the other.

use super::end::Ended;
use super::full::FullDisk;
use super::threads::Shared;
use crate::fault;
use crate::io::Disk;
use crate::log::FileWork;
use crossbeam::channel::Receiver;
use std::time::Duration;

/// A full disk is tried again so often.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

pub(super) fn serve(shared: &Shared, works: &Receiver<FileWork>) -> Result<(), Ended> {
    let mut disk = shared.disk();
    let mut full = FullDisk::default();
    for work in works {
        if serve_one(shared, &mut *disk, work, &mut full)? {
            std::thread::sleep(AGAIN);
            again(shared);
        }
    }
    Ok(())
}

/// Does one. `Ok(true)`: there is no room for it, and after [`AGAIN`] [`again`] is to be called.
pub(super) fn serve_one(
    shared: &Shared,
    disk: &mut dyn Disk,
    work: FileWork,
    full: &mut FullDisk,
) -> Result<bool, Ended> {
    let done = work.run(disk);
    let at = shared.log_dir.display();
    let prepares = matches!(work, FileWork::Prepare { .. });
    match done {
        Ok(()) if prepares => {
            full.note(false, format_args!("{at}"));
            shared.log.lock().prepared();
            shared.bell.ring();
        }
        Ok(()) => {}
        Err(error) if prepares && fault::is_full(&error) => {
            // Nothing is lost: what waits for the segment is not acknowledged, and the board shows a stalled disk. The
            // log plans anew, with a file that nobody needs any more if there is one by then.
            full.note(true, format_args!("{at}: {work:?}: {error}"));
            return Ok(true);
        }
        Err(error) => {
            let what = format!("{at}: {work:?}: {error}");
            return Err(Ended::Failed(fault::exit_of(&error), what));
        }
    }
    Ok(false)
}

pub(super) fn again(shared: &Shared) {
    shared.log.lock().unprepared();
    shared.bell.ring();
}
