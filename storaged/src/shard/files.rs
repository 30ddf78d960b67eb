//! The thread that makes, renames and removes segment files, one after the other.

use super::end::Ended;
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
    let mut full = false;
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
    full: &mut bool,
) -> Result<bool, Ended> {
    let done = work.run(disk);
    let prepares = matches!(work, FileWork::Prepare { .. });
    match done {
        Ok(()) if prepares => {
            if std::mem::take(full) {
                tracing::info!("the disk has room again");
            }
            shared.log.lock().prepared();
            shared.bell.ring();
        }
        Ok(()) => {}
        Err(error) if prepares && fault::is_full(&error) => {
            // Nothing is lost: what waits for the segment is not acknowledged, and the board shows a stalled disk. The
            // log plans anew, with a file that nobody needs any more if there is one by then.
            if !std::mem::replace(full, true) {
                tracing::error!(
                    "{}: {work:?}: {error}; tried again every {AGAIN:?}",
                    shared.log_dir.display()
                );
            }
            return Ok(true);
        }
        Err(error) => {
            let what = format!("{}: {work:?}: {error}", shared.log_dir.display());
            return Err(Ended::Failed(fault::exit_of(&error), what));
        }
    }
    Ok(false)
}

pub(super) fn again(shared: &Shared) {
    shared.log.lock().unprepared();
    shared.bell.ring();
}
