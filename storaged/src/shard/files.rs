//! The thread that makes, renames and removes segment files, one after the other.

use super::end::Ended;
use super::threads::Shared;
use crate::fault;
use crate::io::StdDisk;
use crate::log::FileWork;
use crossbeam::channel::Receiver;
use std::time::Duration;

/// A full disk is tried again so often.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) fn serve(shared: &Shared, works: &Receiver<FileWork>) -> Result<(), Ended> {
    let mut disk = StdDisk::unlocked(&shared.log_dir);
    let mut full = false;
    for work in works {
        let done = work.run(&mut disk);
        let prepares = matches!(work, FileWork::Prepare { .. });
        match done {
            Ok(()) if prepares => {
                if std::mem::take(&mut full) {
                    tracing::info!("the disk has room again");
                }
                shared.log.lock().prepared();
                shared.bell.ring();
            }
            Ok(()) => {}
            Err(error) if prepares && fault::is_full(&error) => {
                // Nothing is lost: what waits for the segment is not acknowledged, and the board shows a stalled disk. The
                // log plans anew, with a file that nobody needs any more if there is one by then.
                if !std::mem::replace(&mut full, true) {
                    tracing::error!(
                        "{}: {work:?}: {error}; tried again every {AGAIN:?}",
                        shared.log_dir.display()
                    );
                }
                std::thread::sleep(AGAIN);
                shared.log.lock().unprepared();
                shared.bell.ring();
            }
            Err(error) => {
                let what = format!("{}: {work:?}: {error}", shared.log_dir.display());
                return Err(Ended::Failed(fault::exit_of(&error), what));
            }
        }
    }
    Ok(())
}
