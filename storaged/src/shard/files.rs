//! The thread that makes, renames and removes segment files, one after the other.

use super::end::Ended;
use super::threads::Shared;
use crate::io::StdDisk;
use crate::log::FileWork;
use crossbeam::channel::Receiver;
use mareedb_ipc::ExitCode;
use std::io::ErrorKind;
use std::time::Duration;

/// A full disk is tried again so often.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) fn serve(shared: &Shared, works: &Receiver<FileWork>) -> Result<(), Ended> {
    let mut disk = StdDisk::unlocked(&shared.log_dir);
    for work in works {
        let mut told = false;
        while let Err(error) = work.run(&mut disk) {
            let full = matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            );
            let what = format!("{}: {work:?}: {error}", shared.log_dir.display());
            if !full {
                return Err(Ended::Failed(ExitCode::Io, what));
            }
            // Nothing is lost: what waits for the segment is not acknowledged, and the board shows a stalled disk.
            if !told {
                tracing::error!("{what}; tried again every {AGAIN:?}");
                told = true;
            }
            std::thread::sleep(AGAIN);
        }
        if told {
            tracing::info!("the disk has room again");
        }
        if matches!(work, FileWork::Prepare { .. }) {
            shared.log.lock().prepared();
            shared.bell.ring();
        }
    }
    Ok(())
}
