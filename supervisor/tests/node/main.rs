//! A node whose daemons do as they are told, so that the supervisor is tested with real processes.
//!
//! Started without an inheritance it is the supervisor: its arguments are the file with the configuration (JSON) and the restart policy's
//! figures as `name=value`. Started by a supervisor it is a test daemon. It tells what happens to it in datagrams to `events` in the
//! directory MAREEDB_TEST_DIR, reads what to do at its start from `<role>.script`, and takes commands from the socket `<role>` there.

use mareedb_config::Config;
use mareedb_ipc::{Cell, CorruptLink, ExitCode, Gauge, Inheritance, Lane, Role};
use mareedb_supervisor::Options;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

fn main() -> std::process::ExitCode {
    if Inheritance::present() {
        Daemon::attach().run()
    } else {
        supervise().into()
    }
}

fn supervise() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("the configuration");
    let text = std::fs::read_to_string(path).expect("the configuration");
    let config: Config = serde_json::from_str(&text).expect("the configuration");
    let mut options = Options {
        reload: Some(Box::new(|| Ok("debug".to_owned()))),
        ..Options::default()
    };
    for argument in arguments {
        let (name, value) = argument.split_once('=').expect("name=value");
        let value: u64 = value.parse().expect("a number");
        match name {
            "budget" => options.policy.budget = usize::try_from(value).expect("small"),
            "backoff_min_ms" => options.policy.backoff_min_ms = value,
            "backoff_max_ms" => options.policy.backoff_max_ms = value,
            "wait_limit_ms" => options.wait_limit_ms = value,
            other => panic!("no option {other}"),
        }
    }
    mareedb_supervisor::run(config, options)
}

struct Daemon {
    inheritance: Inheritance,
    role: Role,
    dir: PathBuf,
    events: UnixDatagram,
    listener: Option<TcpListener>,
    /// Beats while true.
    lively: bool,
    /// SIGTERM is obeyed.
    obedient: bool,
    /// What it ends with then.
    stops_with: u8,
}

impl Daemon {
    fn attach() -> Daemon {
        let mut inheritance = Inheritance::from_env().expect("started by the supervisor");
        let role = inheritance.role();
        let board = inheritance.board();
        board.set(Gauge::Ready, 0);
        board.put(Cell::LastWords, &String::new());
        let dir = PathBuf::from(std::env::var_os("MAREEDB_TEST_DIR").expect("set by the test"));
        let events = UnixDatagram::unbound().expect("a socket");
        events
            .connect(dir.join("events"))
            .expect("the test listens");
        // The generation tells whether links were replaced.
        let generation = match role {
            Role::Storage => inheritance
                .receiver(Role::Consensus, Lane::Log(0))
                .generation(),
            Role::Consensus => inheritance.sender(Role::Storage, Lane::Log(0)).generation(),
            _ => inheritance
                .sender(Role::Consensus, Lane::Client)
                .generation(),
        };
        inheritance.ring_all_bells();
        let listener = inheritance
            .listeners()
            .map(|listeners| TcpListener::from(listeners.rest));
        let port = listener
            .as_ref()
            .map_or(0, |l| l.local_addr().expect("bound").port());
        let daemon = Daemon {
            inheritance,
            role,
            dir,
            events,
            listener,
            lively: true,
            obedient: true,
            stops_with: ExitCode::Done.code(),
        };
        let foreign = std::env::var_os("NOTIFY_SOCKET").is_some();
        let pid = std::process::id();
        daemon.tell(&format!(
            "start {role} {pid} {generation} {port} notify={foreign}"
        ));
        daemon
    }

    fn tell(&self, event: &str) {
        // The test may be gone already; then nobody needs to know.
        let _ = self.events.send(event.as_bytes());
    }

    fn run(mut self) -> std::process::ExitCode {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGHUP);
        mask.add(Signal::SIGUSR1);
        mask.thread_block().expect("blocked");
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).expect("a signalfd");
        let path = self.dir.join(self.role.name());
        // Left by the predecessor.
        let _ = std::fs::remove_file(&path);
        let commands = UnixDatagram::bind(&path).expect("bound");
        commands.set_nonblocking(true).expect("nonblocking");
        let script = self.dir.join(format!("{}.script", self.role));
        let script = std::fs::read_to_string(script).unwrap_or_else(|_| "serve".to_owned());
        for line in script.lines() {
            self.obey(line);
        }
        loop {
            if self.lively {
                self.inheritance.board().beat();
            }
            self.sleep(&commands, &signals);
            while let Ok(Some(info)) = signals.read_signal() {
                let number = i32::try_from(info.ssi_signo).expect("a small number");
                let signal = Signal::try_from(number).expect("one of the mask");
                let what = match signal {
                    Signal::SIGHUP => "hup",
                    Signal::SIGUSR1 => "handover",
                    _ => "term",
                };
                self.tell(&format!("{what} {} {}", self.role, std::process::id()));
                match signal {
                    Signal::SIGUSR1 => self.inheritance.board().set(Gauge::Ready, 0),
                    Signal::SIGTERM if self.obedient => return self.stops_with.into(),
                    _ => {}
                }
            }
            let mut buffer = [0u8; 256];
            while let Ok(length) = commands.recv(&mut buffer) {
                let command = String::from_utf8_lossy(&buffer[..length]).into_owned();
                self.obey(&command);
            }
            if let Some(listener) = self.listener.as_ref().filter(|_| self.lively) {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = writeln!(stream, "{}", std::process::id());
                }
            }
        }
    }

    fn sleep(&self, commands: &UnixDatagram, signals: &SignalFd) {
        let mut fds = vec![
            PollFd::new(commands.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(listener) = self.listener.as_ref().filter(|_| self.lively) {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut fds, PollTimeout::from(20u8));
    }

    fn obey(&mut self, command: &str) {
        let (verb, argument) = command.split_once(' ').unwrap_or((command, ""));
        let board = self.inheritance.board();
        match verb {
            "serve" => board.set(Gauge::Ready, 1),
            "wait" => {}
            "hang" => self.lively = false,
            "disobey" => self.obedient = false,
            "stop-with" => self.stops_with = argument.parse().expect("a code"),
            "fault" => {
                // And then it waits for the disk.
                board.set(Gauge::DiskFault, 1);
                self.tell("fault");
            }
            "exit" => {
                let code: i32 = argument.parse().expect("a code");
                board.put(Cell::LastWords, &format!("told to exit {code}"));
                board.beat();
                std::process::exit(code);
            }
            "corrupt" => {
                // As if the other end had written the bad word.
                let link = mareedb_ipc::LinkId {
                    from: Role::Consensus,
                    to: Role::Storage,
                    lane: Lane::Log(0),
                };
                let report = CorruptLink {
                    link,
                    blame: Role::Consensus,
                    what: "a test".to_owned(),
                };
                board.put(Cell::CorruptLink, &report);
                std::process::exit(ExitCode::LinkCorrupt.code().into());
            }
            "ready" => {
                let node = self.inheritance.peer_board(Role::Supervisor);
                self.tell(&format!("ready {}", node.get(Gauge::Ready)));
            }
            "status" => {
                let node = self.inheritance.peer_board(Role::Supervisor);
                for role in Role::DAEMONS {
                    let status: Option<mareedb_ipc::DaemonStatus> = node.read(Cell::Daemon(role));
                    let json = serde_json::to_string(&status).expect("plain data");
                    self.tell(&format!("status {role} {json}"));
                }
            }
            other => panic!("no command {other}"),
        }
    }
}
