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
#[expect(clippy::disallowed_methods, reason = "its time is the machine's")]
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
#[cfg(test)]
mod testing;
pub mod view;

use host::{Host, Lanes};
use mareedb_config::Config;
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::{ExitCode, Gauge, Inheritance, Lane, RingError, Role, Waiter};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

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
        Err(error) => return board.ended(ExitCode::Failed, &error.to_string()),
    };
    match runtime.block_on(serve(inheritance)) {
        Ok(exit) => exit,
        Err(Ended::Ring(error)) => board.ended_by(&error),
        Err(Ended::Other(exit, why)) => board.ended(exit, &why),
    }
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
    let wake = Arc::new(Notify::new());
    let bell = inheritance.bell(Waiter::Consensus);
    let lanes = Lanes::take(&mut inheritance);
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
    let mut stop_at: Option<Instant> = None;
    let mut handing_over = false;
    loop {
        let quiet = host.turn()?;
        if stop_at.is_some_and(|at| rt::now() >= at || !host.leads()) {
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
            () = wake.notified() => {}
            // Counted from the turn that has just been: one that was rung for is as good as one of its own.
            () = rt::sleep(TICK) => {}
            // Before a stop, while gatewayd still carries what a hand-over has to say.
            _ = hand_over.recv() => {
                handing_over = leave(&mut host);
                if !handing_over {
                    board.set(Gauge::Ready, 0);
                }
            }
            _ = terminate.recv(), if stop_at.is_none() => {
                let wait = if leave(&mut host) { HAND_OVER } else { Duration::ZERO };
                stop_at = Some(rt::now() + wait);
            }
        }
    }
}

/// Hands leadership over before a stop; from here on nobody is to hand any to this node either. `false`: there is nothing to hand over, or
/// nobody to take it, and so nothing to wait for.
fn leave(host: &mut Host) -> bool {
    host.drain();
    match host.leave() {
        Ok(to) => {
            tracing::info!(to, "stopping: leadership is handed over");
            true
        }
        Err(ConsensusError::NotLeader { .. }) => false,
        Err(error) => {
            tracing::warn!(%error, "stopping: leadership stays here");
            false
        }
    }
}
