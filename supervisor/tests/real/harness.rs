//! A supervisor with test daemons, and what they tell.

use mareedb_config::Config;
use mareedb_ipc::{DaemonStatus, Role};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;
use tempfile::TempDir;

/// Long enough for a machine that is busy with other things; nothing is ever slept through.
const PATIENCE: Duration = Duration::from_secs(30);

pub const EXECUTABLE: &str = env!("CARGO_BIN_EXE_mareedb-testnode");

/// What a daemon says of its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub role: Role,
    pub pid: u32,
    pub generation: String,
    pub port: u16,
    pub has_notify_socket: bool,
}

/// How a node is to be started.
pub struct Setup {
    pub dir: TempDir,
    pub config: Config,
    pub options: Vec<String>,
    pub variables: Vec<(String, String)>,
    pub executable: PathBuf,
}

impl Setup {
    pub fn new() -> Setup {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.server.data_dir = dir.path().join("data").display().to_string();
        config.server.listen_addr = "127.0.0.1".to_owned();
        config.server.rest_port = 0;
        config.cluster.consensus_port = 0;
        // So generous that a busy machine is not taken for a hang; the tests of hangs set their own.
        config.server.hang_limit_ms = 20_000;
        config.ipc.log_ring_bytes = 1 << 16;
        config.ipc.client_ring_bytes = 1 << 16;
        config.ipc.peer_ring_bytes = 1 << 16;
        config.ipc.bulk_ring_bytes = 1 << 16;
        config.ipc.read_ring_bytes = 1 << 16;
        Setup {
            dir,
            config,
            options: Vec::new(),
            variables: Vec::new(),
            executable: EXECUTABLE.into(),
        }
    }

    pub fn option(mut self, text: &str) -> Setup {
        self.options.push(text.to_owned());
        self
    }

    /// What a daemon does at its starts.
    pub fn script(self, role: Role, lines: &str) -> Setup {
        std::fs::write(self.dir.path().join(format!("{role}.script")), lines).unwrap();
        self
    }

    pub fn start(self) -> Node {
        let path = self.dir.path().join("events");
        let events = UnixDatagram::bind(path).expect("a socket");
        events.set_read_timeout(Some(PATIENCE)).unwrap();
        let supervisor = self.supervisor();
        Node {
            setup: self,
            events,
            supervisor,
        }
    }

    /// Only the supervisor.
    pub fn supervisor(&self) -> Child {
        let config = self.dir.path().join("config.json");
        std::fs::write(&config, serde_json::to_string(&self.config).unwrap()).unwrap();
        let mut command = Command::new(&self.executable);
        command
            .arg(config)
            .args(&self.options)
            .env("MAREEDB_TEST_DIR", self.dir.path())
            .envs(self.variables.iter().cloned())
            .process_group(0);
        // SAFETY: only a system call between fork and exec. A test that dies takes its node with it.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        command.spawn().expect("started")
    }
}

pub struct Node {
    pub setup: Setup,
    events: UnixDatagram,
    pub supervisor: Child,
}

impl Node {
    /// The next event of any daemon.
    pub fn event(&self) -> String {
        let mut buffer = [0u8; 4096];
        let length = self.events.recv(&mut buffer).expect("an event in time");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// The next event, which must be the start of a daemon.
    pub fn next_start(&self) -> Start {
        let event = self.event();
        parse_start(&event).unwrap_or_else(|| panic!("expected a start, got {event}"))
    }

    /// The starts of all three, in the order of [`Role::DAEMONS`].
    pub fn all_started(&self) -> [Start; 3] {
        let mut starts = [self.next_start(), self.next_start(), self.next_start()];
        starts.sort_by_key(|start| start.role);
        assert_eq!(starts.each_ref().map(|start| start.role), Role::DAEMONS);
        starts
    }

    pub fn command(&self, role: Role, text: &str) {
        let path = self.setup.dir.path().join(role.name());
        let socket = UnixDatagram::unbound().unwrap();
        // The daemon tells its start before it listens for commands.
        let mut attempts = 0;
        while let Err(error) = socket.send_to(text.as_bytes(), &path) {
            attempts += 1;
            assert!(attempts < 3000, "{role} takes no commands: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn status(&self, from: Role, of: Role) -> DaemonStatus {
        self.command(from, "status");
        let mut found = None;
        for _ in Role::DAEMONS {
            let event = self.event();
            let rest = event
                .strip_prefix("status ")
                .unwrap_or_else(|| panic!("expected a status, got {event}"));
            let (role, json) = rest.split_once(' ').unwrap();
            if role == of.name() {
                found = serde_json::from_str(json).unwrap();
            }
        }
        found.expect("published")
    }

    /// Asks until the status is as wanted: what is published comes a moment after what happened.
    pub fn status_when(
        &self,
        from: Role,
        of: Role,
        wanted: impl Fn(&DaemonStatus) -> bool,
    ) -> DaemonStatus {
        for _ in 0..3000 {
            let status = self.status(from, of);
            if wanted(&status) {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("never: {:?}", self.status(from, of));
    }

    /// Until the supervisor has seen all three serve.
    pub fn wait_until_serving(&self) {
        for _ in 0..3000 {
            self.command(Role::Storage, "ready");
            match self.event().as_str() {
                "ready 1" => return,
                "ready 0" => std::thread::sleep(Duration::from_millis(10)),
                other => panic!("expected readiness, got {other}"),
            }
        }
        panic!("the node never serves");
    }

    pub fn signal_supervisor(&self, signal: Signal) {
        send(self.supervisor.id(), signal);
    }

    /// Waits for the supervisor's end.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.supervisor.wait().expect("our child").code()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    kill(pid, signal).expect("a process of this test");
}

/// Where a descriptor of a process leads, for all of them.
pub fn descriptors(pid: u32) -> Vec<String> {
    std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))
        .expect("it runs")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect()
}

fn parse_start(event: &str) -> Option<Start> {
    let mut words = event.strip_prefix("start ")?.split(' ');
    let name = words.next()?;
    Some(Start {
        role: Role::DAEMONS.into_iter().find(|r| r.name() == name)?,
        pid: words.next()?.parse().ok()?,
        generation: words.next()?.to_owned(),
        port: words.next()?.parse().ok()?,
        has_notify_socket: words.next()? == "notify=true",
    })
}
