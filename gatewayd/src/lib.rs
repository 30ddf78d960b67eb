//! The gateway daemon: every byte from and to the network.
//!
//! Deliberately absent: the data directory. What must survive this process is with the client (an idempotency key), in the
//! state machine (sessions), or with consensusd.

pub mod admission;
pub mod answers;
pub mod bodies;
pub mod core;
pub mod elections;
pub mod gate;
pub mod grpc;
pub mod kv;
pub mod links;
pub mod metrics;
pub mod peer;
pub mod rest;
pub mod serve;
pub mod session;
pub mod status;

use crate::core::Core;
use links::{Calls, Lanes, Pump};
use mareedb_config::Config;
use mareedb_ipc::{
    Bell, BoardWriter, ExitCode, Gauge, Inheritance, Lane, Outbox, RingError, Role, Sender, Waiter,
};
use peer::Peers;
use serve::{Doors, serve};
use session::Sessions;
use status::Boards;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

/// The main loop turns at least so often; it also is how often it beats.
const TICK: Duration = Duration::from_millis(40);

/// Runs gatewayd until it is told to stop.
pub fn run(inheritance: Inheritance) -> ExitCode {
    let board = inheritance.board();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return board.ended(ExitCode::Failed, &error.to_string()),
    };
    match runtime.block_on(live(inheritance)) {
        Ok(()) => ExitCode::Done,
        Err(Ended::Ring(error)) => board.ended_by(&error),
        Err(Ended::Other(exit, why)) => board.ended(exit, &why),
    }
}

enum Ended {
    Ring(RingError),
    Other(ExitCode, String),
}
impl From<RingError> for Ended {
    fn from(error: RingError) -> Self {
        Ended::Ring(error)
    }
}

fn failed(exit: ExitCode, error: &dyn std::fmt::Display) -> Ended {
    Ended::Other(exit, error.to_string())
}

fn listener(fd: OwnedFd) -> Result<TcpListener, Ended> {
    let listener = std::net::TcpListener::from(fd);
    listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .map_err(|error| failed(ExitCode::Failed, &error))
}

async fn live(mut inheritance: Inheritance) -> Result<(), Ended> {
    let config: Config = serde_json::from_str(inheritance.config_json())
        .map_err(|error| failed(ExitCode::Config, &error))?;
    let listeners = inheritance.listeners().ok_or_else(|| {
        Ended::Other(
            ExitCode::Internal,
            "no listening sockets were inherited".into(),
        )
    })?;
    let (rest, grpc) = (listener(listeners.rest)?, listener(listeners.grpc)?);
    let wake = Arc::new(Notify::new());
    let mut reader_lanes = Vec::new();
    for number in 0..inheritance.topology().readers {
        let lane = Lane::Read(number);
        reader_lanes.push((
            inheritance.sender(Role::Storage, lane),
            inheritance.receiver(Role::Storage, lane),
        ));
    }
    let lanes = Lanes {
        to_client: inheritance.sender(Role::Consensus, Lane::Client),
        from_client: inheritance.receiver(Role::Consensus, Lane::Client),
        to_peer: inheritance.sender(Role::Consensus, Lane::Peer),
        from_peer: inheritance.receiver(Role::Consensus, Lane::Peer),
        to_bulk: inheritance.sender(Role::Consensus, Lane::Bulk),
        from_bulk: inheritance.receiver(Role::Consensus, Lane::Bulk),
        readers: reader_lanes,
    };
    let outbox = |sender: &Sender| {
        let wake = wake.clone();
        Outbox::before(sender, move || wake.notify_one())
    };
    let (client, peer, bulk) = (
        outbox(&lanes.to_client),
        outbox(&lanes.to_peer),
        outbox(&lanes.to_bulk),
    );
    let readers: Vec<_> = lanes
        .readers
        .iter()
        .map(|(sender, _)| outbox(sender))
        .collect();
    let calls = Calls::new(client.clone(), readers.clone());
    let peers = Peers::new(inheritance.start(), peer.clone(), bulk.clone());
    let core = Core::new(calls.clone(), peers.clone(), Sessions::new(), config);
    let boards = Arc::new(Boards {
        supervisor: inheritance.peer_board(Role::Supervisor),
        storage: inheritance.peer_board(Role::Storage),
    });
    let pump = Pump {
        lanes,
        calls,
        peers: peers.clone(),
        client,
        peer,
        bulk,
        readers,
    };
    let (stop, stopping) = watch::channel(false);
    let doors = Doors {
        core: core.clone(),
        peers,
        stop: stopping,
    };
    let rest_router = rest::router(rest::App {
        core: core.clone(),
        boards: boards.clone(),
    });
    let grpc_router = grpc::routes(&core, &boards).into_axum_router();
    let serving = tokio::spawn(async move {
        tokio::join!(
            serve(doors.clone(), rest, rest_router, false),
            serve(doors, grpc, grpc_router, true),
        );
    });
    let bell = inheritance.bell(Waiter::Gateway);
    inheritance.ring_all_bells();
    turns(
        pump,
        bell,
        &wake,
        &core,
        &inheritance.board(),
        stop,
        serving,
    )
    .await
}

/// The main loop: moves messages, beats, and ends when all connections have.
async fn turns(
    mut pump: Pump,
    bell: Bell,
    wake: &Notify,
    core: &Core,
    board: &BoardWriter,
    stop: watch::Sender<bool>,
    mut serving: tokio::task::JoinHandle<()>,
) -> Result<(), Ended> {
    // SAFETY: the bell owns its descriptor and neither replaces nor closes it while `AsyncFd` owns the bell.
    let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }
        .map_err(|error| failed(ExitCode::Failed, &error))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| failed(ExitCode::Failed, &error))?;
    pump.hello();
    let mut leaders = 0;
    loop {
        let now = core.leaders();
        if std::mem::replace(&mut leaders, now) != now {
            core.admission.forget();
        }
        board.beat();
        // Serving status is serving: a node that waits for others must not look dead to systemd.
        board.set(Gauge::Ready, u64::from(core.view().is_some()));
        if !pump.turn()? {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            ready = bell.readable() => {
                let mut ready = ready.map_err(|error| failed(ExitCode::Failed, &error))?;
                bell.get_ref().drain();
                ready.clear_ready();
            }
            () = wake.notified() => {}
            // Counted from the turn that has just been: one that was rung for is as good as one of its own.
            () = tokio::time::sleep(TICK) => {}
            _ = terminate.recv() => {
                tracing::info!("stopping: no new connections, what is in flight ends");
                stop.send_replace(true);
            }
            ended = &mut serving => {
                return ended.map_err(|error| failed(ExitCode::Internal, &error));
            }
        }
    }
}
