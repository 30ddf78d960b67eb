//! A shard: the executor that owns a log, and the threads beside it.
//!
//! The ring from consensusd is one ordered stream. Operations that came together are written as one unit; the ring's head
//! moves past a message once everything logged before it is durable, which is the acknowledgement. Requests are dispatched
//! when the head reaches them, so that they see, and apply, durable entries only.
//!
//! The executor never blocks for the disk and never holds the log across a wait: what blocks is done by the threads, each of
//! which locks the log for as long as it takes to look something up. A stalled disk therefore is shown as one, and is no
//! hang.

mod answers;
mod apply;
mod end;
mod files;
mod full;
mod keep;
mod requests;
#[cfg(any(test, feature = "simulation"))]
pub mod simulated;
mod steps;
mod threads;
mod writer;

pub use answers::Answers;
pub use end::{Ended, Ends};

use crate::io::StdDisk;
use crate::log::Log;
use crate::state::Store;
use futures::channel::mpsc;
use glommio::net::UnixStream;
use glommio::{LocalExecutorBuilder, Placement};
use mareedb_config::Config;
use mareedb_ipc::{Bell, BoardWriter, ExitCode, Receiver};
use parking_lot::Mutex;
use std::io::ErrorKind;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What a shard is made of.
pub struct Parts {
    /// Its number.
    pub number: u16,
    /// From consensusd.
    pub receiver: Receiver,
    /// To consensusd.
    pub answers: Arc<Answers>,
    /// The executor's doorbell.
    pub bell: Bell,
    /// Its ringing end, for the threads.
    pub ringer: Arc<Bell>,
    /// State machines.
    pub store: Store,
    /// The log, opened.
    pub log: Log,
    /// The directory of its segments.
    pub log_dir: PathBuf,
    /// Configuration.
    pub config: Config,
    /// Board.
    pub board: BoardWriter,
    /// What the board remembers of the logs.
    pub ends: Ends,
    /// Counts turns: proof that the executor runs.
    pub turns: Arc<AtomicU64>,
    /// Ask for the end.
    pub stop: Arc<AtomicBool>,
}

/// Runs the shard on this thread until it ends.
pub fn run(parts: Parts) -> Ended {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(1 << 20)
        .ring_depth(128)
        .make();
    let executor = match executor {
        Ok(executor) => executor,
        Err(error) => {
            return Ended::Failed(
                exit_of(error.raw_os_error()),
                format!("io_uring gives no executor: {error}; see docs/install.md"),
            );
        }
    };
    executor.run(async move {
        // Several rings are one.
        let (ring, rung) = mpsc::channel(1);
        // SAFETY: the bell owned this stream socket, gives it away here, and nobody else uses it.
        let stream = unsafe { UnixStream::from_raw_fd(parts.bell.into_fd().into_raw_fd()) };
        let ears = glommio::spawn_local(listen(stream, ring.clone())).detach();
        let shared = threads::Shared {
            store: parts.store,
            log: Arc::new(Mutex::new(parts.log)),
            answers: parts.answers,
            bell: parts.ringer,
            board: parts.board,
            unflushed_bytes_max: parts.config.storage.unflushed_bytes_max,
            disk: disk_at(&parts.log_dir),
            log_dir: parts.log_dir,
            reports: Arc::default(),
        };
        let steps = steps::StepsParts {
            number: parts.number,
            receiver: parts.receiver,
            config: parts.config,
            ends: parts.ends,
            turns: parts.turns,
            stop: parts.stop,
            threads: threads::start(&shared),
            writer: writer::Writer::new(StdDisk::unlocked(&shared.log_dir), ring),
        };
        let ended = steps::Steps::new(&shared, steps).run(rung).await;
        // Not heard any more: what ends the node is no fault of the doorbell.
        ears.cancel();
        ended
    })
}

/// What a shard without an executor ends with. Memory and descriptors that are short now may be there at the next start: only what
/// stays as it is makes the machine unfit, of which two starts, a moment apart, are proof.
fn exit_of(executor_error: Option<i32>) -> ExitCode {
    match executor_error {
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN) => ExitCode::Failed,
        _ => ExitCode::OsUnfit,
    }
}

/// The disk as the threads see it.
fn disk_at(log_dir: &Path) -> threads::Disks {
    let log_dir = log_dir.to_owned();
    Arc::new(move || Box::new(StdDisk::unlocked(&log_dir)))
}

/// Turns rings of the doorbell into wakes of the executor.
///
/// # Panics
/// The doorbell cannot be heard: without it the shard would only turn now and then.
async fn listen(mut stream: UnixStream, mut ring: mpsc::Sender<()>) {
    use futures::AsyncReadExt;
    let mut bytes = [0; 512];
    loop {
        match stream.read(&mut bytes).await {
            // The supervisor keeps the other end open, and so do the threads here.
            Ok(0) => panic!("a doorbell was closed"),
            Ok(_) => match ring.try_send(()) {
                Err(error) if error.is_disconnected() => return,
                // Where there is no room, a ring waits to be heard.
                _ => {}
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("a doorbell cannot be read: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_for_a_moment_makes_no_machine_unfit() {
        for short in [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EAGAIN] {
            assert_eq!(exit_of(Some(short)), ExitCode::Failed);
        }
        for lasting in [Some(libc::ENOSYS), Some(libc::EPERM), None] {
            assert_eq!(exit_of(lasting), ExitCode::OsUnfit);
        }
    }
}
