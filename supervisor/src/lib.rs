//! The supervisor: spawns, watches and restarts the daemons of a node.
//!
//! **Purpose.** It owns what must outlive a daemon (listening sockets, rings, boards, the lock of the data directory) and keeps three
//! daemons running. A component that dies is not a node that dies.
//!
//! **Invariants.** SUP-1 (no connection is refused while it lives: [`sockets`]), SUP-2 (no daemon outlives it: [`spawn`]). All its work
//! is done by one thread, which never waits for a child; beside it there are only the allocator's, and at a start those that look names
//! up. The restart policy is a pure function ([`plan`]).
//!
//! **Non-goals.** No network protocol, no data files, no database logic, no async runtime.

pub mod address;
pub mod fault;
pub mod fitness;
pub mod level;
pub mod lock;
pub mod notify;
pub mod plan;
pub mod signals;
pub mod sockets;
pub mod spawn;

mod exits;
mod names;
mod node;
mod patience;
mod slot;

use fault::{StartError, StartFault};
use mareedb_config::{Config, bounds};
use mareedb_ipc::wire::RandomId;
use mareedb_ipc::{ExitCode, NodeMemory, RING_BYTES, RingSizes, Topology};
use node::{Holdings, Node};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// Reads the configuration again and returns its log level, or why nothing is changed.
pub type Reload = Box<dyn FnMut() -> Result<String, String>>;

/// What is not in the configuration.
pub struct Options {
    /// The version that status shows.
    pub version: String,
    /// The restart policy; its `stop_limit_ms` is taken from the configuration.
    pub policy: plan::Policy,
    /// Time between two looks at the boards.
    pub tick_ms: u64,
    /// How long a daemon may be silent before it serves; recovery reads the log.
    pub start_limit_ms: u64,
    /// How long a start waits for the lock and for each port.
    pub wait_limit_ms: u64,
    /// What SIGHUP does.
    pub reload: Option<Reload>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy: plan::Policy::default(),
            tick_ms: 50,
            start_limit_ms: 60_000,
            wait_limit_ms: 5000,
            reload: None,
        }
    }
}

/// Runs the node until it is stopped or gives up. Called from the main thread of a process that does nothing else.
///
/// # Panics
/// When it is not called from the main thread (SUP-2).
pub fn run(config: Config, options: Options) -> ExitCode {
    match start(&config, options) {
        Ok(mut node) => node.run().unwrap_or_else(|error| {
            tracing::error!("the supervisor cannot go on: {error}");
            ExitCode::Internal
        }),
        Err(StartError::Stopped) => {
            tracing::info!("stopped before the daemons were started");
            ExitCode::Done
        }
        Err(StartError::Fault(fault)) => {
            tracing::error!(code = fault.code.code(), "{fault}");
            if !tracing::enabled!(tracing::Level::ERROR) {
                // A refused start is said even to those who want no log.
                let _ = writeln!(std::io::stderr(), "maree-db-server: {fault}");
            }
            fault.code
        }
    }
}

fn start(config: &Config, mut options: Options) -> Result<Node, StartError> {
    let internal = |what: &str, error: &dyn std::fmt::Display| StartFault {
        code: ExitCode::Internal,
        what: what.to_owned(),
        why: error.to_string(),
        remedy: "free memory and descriptors; if there are enough, report this".to_owned(),
    };
    let signals =
        signals::Signals::take().map_err(|error| internal("cannot take over signals", &error))?;
    let mut notifier = notify::Notifier::from_env();
    notifier.status("starting: checks, lock, ports");
    let topology = topology_of(config);
    for warning in fitness::check(topology.shards, config.limits.connections_max)? {
        tracing::warn!("{warning}");
    }
    let wait = Duration::from_millis(options.wait_limit_ms);
    let executable = spawn::Executable::own().map_err(|error| StartFault {
        code: ExitCode::OsUnfit,
        what: "cannot open /proc/self/exe, which daemons are started from".to_owned(),
        why: error.to_string(),
        remedy: "mount /proc".to_owned(),
    })?;
    let lock = lock::DirLock::take(Path::new(&config.server.data_dir), wait, &signals)?;
    let sockets = sockets::Sockets::bind(
        &config.server.listen_addr,
        config.server.rest_port,
        config.cluster.consensus_port,
        wait,
        &signals,
    )?;
    let [rest, grpc] = sockets.addresses;
    let start = RandomId::draw();
    // What the daemons inherit is complete: none of them has to find out who it is.
    let mut inherited = config.clone();
    let address = address::find(config, wait, &signals)?;
    inherited.server.advertise_addr = Some(address.clone());
    let json = serde_json::to_string(&inherited)
        .map_err(|error| internal("cannot hand the configuration down", &error))?;
    let memory = NodeMemory::create(topology, &json, start)
        .map_err(|error| internal("cannot create the shared memory of the node", &error))?;
    let level = level::SharedLevel::new(&config.log.level)
        .map_err(|error| internal("cannot create shared memory", &error))?;
    tracing::info!(
        %start,
        data_dir = %config.server.data_dir,
        "REST on {rest}, gRPC and peers on {grpc}; others reach this node at {address}"
    );
    options.policy.stop_limit_ms = config.server.stop_limit_ms;
    let held = Holdings {
        lock,
        sockets,
        memory,
        signals,
        notifier,
        level,
        executable,
        start,
    };
    Node::new(held, config.server.hang_limit_ms, options)
        .map_err(|error| internal("cannot watch the daemons", &error).into())
}

const _: () = assert!(
    *RING_BYTES.start() <= bounds::RING_BYTES_MIN && bounds::RING_BYTES_MAX <= *RING_BYTES.end(),
    "every ring that a configuration may ask for can be made"
);

/// Shards, readers and ring sizes of the node.
fn topology_of(config: &Config) -> Topology {
    let count = |n: u32| u16::try_from(n.max(1)).unwrap_or(u16::MAX);
    Topology {
        // 0 means one: see ADR 12.
        shards: count(config.storage.shards),
        readers: count(config.storage.readers),
        sizes: RingSizes {
            log: config.ipc.log_ring_bytes,
            client: config.ipc.client_ring_bytes,
            peer: config.ipc.peer_ring_bytes,
            bulk: config.ipc.bulk_ring_bytes,
            read: config.ipc.read_ring_bytes,
        },
    }
}
