//! A node that comes back without its data: it must not take part, for it has forgotten what it has promised.

use super::Strike;
use crate::bed::Taken;
use nix::sys::signal::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::task::block_in_place;

/// A node without its data has found that out by then.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);

impl Strike<'_> {
    pub(super) async fn remove_data(&self) -> Option<u64> {
        let (bed, at) = (self.bed, self.at);
        let _alone = bed.operator.try_lock().ok()?;
        let files = bed.take_files(at)?;
        let data = bed.node(at).data.clone();
        let aside: PathBuf = data.with_extension("aside");
        self.end(Signal::SIGKILL).await;
        // Another fault may have the file system stand still.
        if !block_in_place(|| fs::create_dir_all(&aside).is_ok() && move_all(&data, &aside, &files))
        {
            bed.blame("RUNNER", format!("{} cannot be emptied", data.display()));
        }
        bed.release(at);
        let end = Instant::now() + REFUSED_WITHIN;
        let mut refused = false;
        while !refused && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let status = bed.ask(at, "/v1/node").await;
            refused = status.is_some_and(|status| status["state"] == "refused");
        }
        if !refused {
            let why = format!(
                "node{} came back without its data and was not refused",
                at + 1
            );
            bed.blame("FORM-1", why);
        }
        self.last().await;
        self.end(Signal::SIGKILL).await;
        // What it has made meanwhile goes.
        if !block_in_place(|| empty(&data) && move_all(&aside, &data, &files)) {
            bed.blame(
                "RUNNER",
                format!("{} cannot be brought back", data.display()),
            );
        }
        bed.release(at);
        self.await_serving(&[at]).await;
        Some(Self::bit(at))
    }
}

fn empty(dir: &Path) -> bool {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .all(|entry| {
            let path = entry.path();
            fs::remove_dir_all(&path).is_ok() || fs::remove_file(&path).is_ok()
        })
}

/// Moves what is in a directory; copies where it cannot be renamed. Names that a file system keeps for itself stay.
fn move_all(from: &Path, to: &Path, _: &Taken<'_>) -> bool {
    fs::read_dir(from)
        .into_iter()
        .flatten()
        .flatten()
        .all(|entry| {
            let (path, target) = (entry.path(), to.join(entry.file_name()));
            if entry.file_name() == "lost+found" || fs::rename(&path, &target).is_ok() {
                return true;
            }
            let copied = if path.is_dir() {
                crate::bed::copy_all(&path, &target).and_then(|()| fs::remove_dir_all(&path))
            } else {
                fs::copy(&path, &target).and_then(|_| fs::remove_file(&path))
            };
            copied.is_ok()
        })
}
