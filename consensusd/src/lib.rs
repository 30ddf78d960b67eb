//! The consensus daemon: replication groups, formation of the cluster, the view of it.
//!
//! Deliberately absent: sockets and files. It sees the world through rings only, so that a simulation can bring another.

pub mod client;
pub mod clock;
pub mod exchange;
pub mod formation;
pub mod frames;
pub mod heard;
pub mod host;
pub mod incoming;
pub mod log_link;
#[cfg(test)]
mod model;
pub mod offsets;
pub mod peers;
mod planted;
pub mod proposals;
pub mod raft;
pub mod reads;
pub mod replica;
pub mod rise;
pub mod rt;
pub mod start;
pub mod succession;
pub mod takes;
pub mod tenure;
pub mod view;
pub mod wake;

use host::{Host, Lanes};
use mareedb_config::Config;
use mareedb_ipc::{
    BoardWriter, Cell, CorruptLink, ExitCode, Gauge, Inheritance, Lane, RingError, Role, Waiter,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use wake::Wake;

/// The main loop turns at least so often; it also is how often it beats.
const TICK: Duration = Duration::from_millis(20);
/// How long a graceful stop waits for others to take over leadership.
const HAND_OVER: Duration = Duration::from_millis(600);

/// Runs consensusd until it is told to stop.
pub fn run(inheritance: Inheritance) -> ExitCode {
    let board = inheritance.board();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return last_words(&board, ExitCode::Failed, &error.to_string()),
    };
    match runtime.block_on(serve(inheritance)) {
        Ok(exit) => exit,
        Err(Ended::Ring(RingError::Corrupt { link, blame, what })) => {
            board.put(
                Cell::CorruptLink,
                &CorruptLink {
                    link,
                    blame,
                    what: what.clone(),
                },
            );
            last_words(
                &board,
                ExitCode::LinkCorrupt,
                &format!("link {link}: {what}"),
            )
        }
        Err(Ended::Ring(error)) => last_words(&board, ExitCode::Internal, &error.to_string()),
        Err(Ended::Other(exit, why)) => last_words(&board, exit, &why),
    }
}

fn last_words(board: &BoardWriter, exit: ExitCode, why: &str) -> ExitCode {
    tracing::error!("{why}");
    board.put(Cell::LastWords, &why.to_owned());
    exit
}

enum Ended {
    Ring(RingError),
    Other(ExitCode, String),
}
#[cfg(test)]
impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ended::Ring(error) => error.fmt(f),
            Ended::Other(exit, why) => write!(f, "{exit:?}: {why}"),
        }
    }
}
impl From<RingError> for Ended {
    fn from(error: RingError) -> Self {
        Ended::Ring(error)
    }
}

async fn serve(mut inheritance: Inheritance) -> Result<ExitCode, Ended> {
    let failed =
        |exit: ExitCode| move |error: &dyn std::fmt::Display| Ended::Other(exit, error.to_string());
    let config: Config = serde_json::from_str(inheritance.config_json())
        .map_err(|error| failed(ExitCode::Config)(&error))?;
    let name = match &config.cluster.node_id {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()
            .map_err(|error| failed(ExitCode::Failed)(&error))?
            .to_string_lossy()
            .into_owned(),
    };
    let wake = Arc::new(Wake::default());
    let bell = inheritance.bell(Waiter::Consensus);
    let lanes = Lanes {
        from_storage: inheritance.receiver(Role::Storage, Lane::Log(0)),
        to_client: inheritance.sender(Role::Gateway, Lane::Client),
        from_client: inheritance.receiver(Role::Gateway, Lane::Client),
        to_peer: inheritance.sender(Role::Gateway, Lane::Peer),
        from_peer: inheritance.receiver(Role::Gateway, Lane::Peer),
        to_bulk: inheritance.sender(Role::Gateway, Lane::Bulk),
        from_bulk: inheritance.receiver(Role::Gateway, Lane::Bulk),
    };
    let mut host = Host::new(
        config,
        name,
        inheritance.board(),
        inheritance.peer_board(Role::Storage),
        lanes,
        inheritance.sender(Role::Storage, Lane::Log(0)),
        wake.clone(),
    );
    // SAFETY: the bell owns its descriptor and neither replaces nor closes it while `AsyncFd` owns the bell.
    let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }
        .map_err(|error| failed(ExitCode::Failed)(&error))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| failed(ExitCode::Failed)(&error))?;
    let mut hand_over =
        signal(SignalKind::user_defined1()).map_err(|error| failed(ExitCode::Failed)(&error))?;
    let board = inheritance.board();
    inheritance.ring_all_bells();
    host.hello();
    let mut stop_at = None;
    let mut handing_over = false;
    loop {
        let quiet = host.turn()?;
        if stop_at.is_some_and(|at| tokio::time::Instant::now() >= at || !host.leads()) {
            return Ok(ExitCode::Done);
        }
        if handing_over && !host.leads() {
            // The answer to the supervisor, which waits for it, bounded.
            board.set(Gauge::Ready, 0);
            handing_over = false;
        }
        if !quiet {
            // Tasks that were woken have their turn before more is taken.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            ready = bell.readable() => {
                let mut ready = ready.map_err(|error| failed(ExitCode::Failed)(&error))?;
                bell.get_ref().drain();
                ready.clear_ready();
            }
            () = wake.wait() => {}
            // Counted from the turn that has just been: one that was rung for is as good as one of its own.
            () = tokio::time::sleep(TICK) => {}
            // Before a stop, while gatewayd still carries what a hand-over has to say.
            _ = hand_over.recv() => {
                // From here to the stop nobody is to hand leadership to this node either.
                host.drain();
                match host.leave() {
                    Ok(to) => {
                        tracing::info!(to, "before a stop: leadership is handed over");
                        handing_over = true;
                    }
                    // Nothing to hand over, or nobody to take it: there is nothing to wait for.
                    Err(_) => board.set(Gauge::Ready, 0),
                }
            }
            _ = terminate.recv(), if stop_at.is_none() => {
                host.drain();
                let wait = match host.leave() {
                    Ok(to) => {
                        tracing::info!(to, "stopping: leadership is handed over");
                        HAND_OVER
                    }
                    Err(_) => Duration::ZERO,
                };
                stop_at = Some(tokio::time::Instant::now() + wait);
            }
        }
    }
}
