//! A shard: the executor that owns a log, and the threads beside it.
//!
//! The ring from consensusd is one ordered stream. Operations that came together are written as one unit; the ring's head
//! moves past a message once everything logged before it is durable, which is the acknowledgement. Requests are dispatched
//! when the head reaches them, so that they see, and apply, durable entries only.

mod answers;
mod steps;
mod work;
mod writer;

pub use answers::Answers;

use crate::io::StdDisk;
use crate::log::Log;
use crate::state::Store;
use glommio::net::UnixStream;
use glommio::{LocalExecutorBuilder, Placement};
use mareedb_config::Config;
use mareedb_ipc::{Bell, BoardWriter, ExitCode, Receiver, RingError};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What a shard is made of.
pub struct Parts {
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
    /// Its segments.
    pub disk: StdDisk,
    /// Their directory.
    pub log_dir: PathBuf,
    /// Configuration.
    pub config: Config,
    /// Board.
    pub board: BoardWriter,
    /// Counts turns: proof that the executor runs.
    pub turns: Arc<AtomicU64>,
    /// Ask for the end.
    pub stop: Arc<AtomicBool>,
    /// Whether the log was empty at the start.
    pub fresh: bool,
}

/// Why a shard ended.
#[derive(Debug)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// A ring is corrupt.
    Ring(RingError),
    /// Something else, with the exit code that says what.
    Failed(ExitCode, String),
}
impl From<RingError> for Ended {
    fn from(error: RingError) -> Self {
        Ended::Ring(error)
    }
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
                ExitCode::OsUnfit,
                format!("io_uring gives no executor: {error}; see docs/install.md"),
            );
        }
    };
    executor.run(async move {
        let bell = parts.bell;
        let (ring, rung) = futures::channel::mpsc::unbounded();
        // SAFETY: the bell owned this stream socket, gives it away here, and nobody else uses it.
        let stream = unsafe { UnixStream::from_raw_fd(bell.into_fd().into_raw_fd()) };
        let ears = glommio::spawn_local(listen(stream, ring.clone())).detach();
        let work = work::Shared {
            store: parts.store.clone(),
            answers: parts.answers.clone(),
            bell: parts.ringer,
            board: parts.board.clone(),
            unflushed_bytes_max: parts.config.storage.unflushed_bytes_max,
            log_dir: parts.log_dir.clone(),
        };
        let threads = work::start(&work);
        let ended = steps::Steps {
            receiver: parts.receiver,
            answers: parts.answers,
            store: parts.store,
            log: parts.log,
            disk: parts.disk,
            config: parts.config,
            board: parts.board,
            turns: parts.turns,
            stop: parts.stop,
            fresh: parts.fresh,
            threads,
            writer: writer::Writer::new(ring),
            queue: std::collections::VecDeque::new(),
            pending: None,
            next: std::collections::BTreeMap::new(),
            spare_asked: false,
            recycle_due: true,
        }
        .run(rung)
        .await;
        ears.cancel();
        ended
    })
}

/// Turns rings of the doorbell into wakes of the executor.
async fn listen(mut stream: UnixStream, ring: futures::channel::mpsc::UnboundedSender<()>) {
    use futures::AsyncReadExt;
    let mut bytes = [0; 512];
    // The supervisor keeps the other end open, so that the end of file never comes.
    while let Ok(1..) = stream.read(&mut bytes).await {
        if ring.unbounded_send(()).is_err() {
            return;
        }
    }
}
