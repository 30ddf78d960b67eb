//! The executable as the supervisor starts it: what every daemon needs before its own code runs.
//!
//! **Invariants.** A panic in any thread ends the process, in every build profile, with its text as last words on the board: a daemon
//! with a broken invariant must not go on. The board says from the first heartbeat on what is true of *this* process.

use super::logging::{self, Level};
use super::output::Output;
use mareedb_config::Config;
use mareedb_ipc::{BoardWriter, ExitCode, Gauge, InheritError, Inheritance, Role};
use mareedb_supervisor::level::SharedLevel;
use nix::sys::prctl;
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::CString;
use std::io::Write;
use std::panic::PanicHookInfo;

/// Runs the daemon that this process was started as.
pub fn run() -> ExitCode {
    // First of all: the default action of SIGHUP would end the process, and threads inherit the mask.
    let mut hangup = SigSet::empty();
    hangup.add(Signal::SIGHUP);
    if let Err(errno) = hangup.thread_block().and_then(|()| disposition()) {
        return complain(
            ExitCode::Internal,
            &format!("cannot set up signals: {errno}"),
        );
    }
    let inheritance = match Inheritance::from_env() {
        Ok(inheritance) => inheritance,
        Err(error @ InheritError::Ring(_)) => {
            return complain(ExitCode::LinkCorrupt, &error.to_string());
        }
        Err(error) => return complain(ExitCode::Internal, &error.to_string()),
    };
    let role = inheritance.role();
    let board = inheritance.board();
    board.set(Gauge::Ready, 0);
    board.last_words("");
    board.beat();
    // Without a descriptor for it a panic ends with its last words only.
    let output = Output::stderr().ok();
    std::panic::set_hook(Box::new(panic_hook(board.clone(), output)));
    if let Err(words) = name_process(role).and_then(|()| start_log(role, &inheritance)) {
        board.last_words(&words);
        return complain(ExitCode::Internal, &words);
    }
    let code = dispatch(role, inheritance);
    if code == ExitCode::Done {
        tracing::info!("{role} stopped");
    } else {
        tracing::error!(code = code.code(), "{role} ends: {}", code.meaning());
    }
    code
}

fn dispatch(role: Role, inheritance: Inheritance) -> ExitCode {
    match role {
        Role::Consensus => mareedb_consensusd::run(inheritance),
        Role::Storage => mareedb_storaged::run(inheritance),
        Role::Gateway => mareedb_gatewayd::run(inheritance),
        Role::Supervisor => complain(
            ExitCode::Internal,
            "an inheritance that makes this process a supervisor",
        ),
    }
}

/// SIGINT is the supervisor's business, a closed pipe is an error of a write, and the parent's death is ours.
fn disposition() -> nix::Result<()> {
    for ignored in [Signal::SIGINT, Signal::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code of ours in a handler.
        unsafe { signal(ignored, SigHandler::SigIgn)? };
    }
    // The supervisor has asked for it before exec; exec forgets it when the file has capabilities (SUP-2).
    prctl::set_pdeathsig(Signal::SIGKILL)
}

fn name_process(role: Role) -> Result<(), String> {
    let name = CString::new(role.name()).map_err(|error| error.to_string())?;
    prctl::set_name(&name).map_err(|errno| errno.to_string())
}

fn start_log(role: Role, inheritance: &Inheritance) -> Result<(), String> {
    let config: Config = serde_json::from_str(inheritance.config_json())
        .map_err(|error| format!("the inherited configuration: {error}"))?;
    let shared = SharedLevel::from_env();
    let text = shared
        .as_ref()
        .and_then(|shared| shared.get().ok())
        .unwrap_or_else(|| config.log.level.clone());
    let level = logging::install(role.name(), &config.log, &text)?;
    if let Some(shared) = shared {
        // The thread takes no signal but SIGHUP: a daemon that reads SIGTERM from a descriptor blocks it in its own threads only, and
        // one thread that does not would be where the kernel delivers it. A thread has its creator's mask from its first instruction on.
        let mask = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(|errno| errno.to_string())?;
        let thread = std::thread::Builder::new()
            .name("log-level".to_owned())
            .spawn(move || follow(&shared, &level));
        mask.thread_set_mask().map_err(|errno| errno.to_string())?;
        thread.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Waits for SIGHUP, for ever, and takes over the level that the supervisor has set.
fn follow(shared: &SharedLevel, level: &Level) {
    let mut hangup = SigSet::empty();
    hangup.add(Signal::SIGHUP);
    while hangup.wait().is_ok() {
        let outcome = shared
            .get()
            .map_err(|error| error.to_string())
            .and_then(|text| level.set(&text).map(|()| text));
        match outcome {
            Ok(text) => tracing::info!("log.level is {text:?}"),
            Err(error) => tracing::error!("the log level stays: {error}"),
        }
    }
}

/// Ends the process. Nothing here may wait: a full stderr, to which the standard hook would write, must not keep a thread that broke
/// an invariant from taking the process with it.
fn panic_hook(
    board: BoardWriter,
    output: Option<Output>,
) -> impl Fn(&PanicHookInfo<'_>) + Send + Sync + 'static {
    move |info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let words = match (info.payload_as_str(), info.location()) {
            (Some(text), Some(place)) => format!("thread {name} panicked at {place}: {text}"),
            (text, _) => format!("thread {name} panicked: {}", text.unwrap_or("no text")),
        };
        show_end(&board, &words);
        if let Some(mut output) = output.clone() {
            // Captured only if the environment asks for it (RUST_BACKTRACE).
            let trace = Backtrace::capture();
            let trace = match trace.status() {
                BacktraceStatus::Captured => format!("\n{trace}"),
                _ => String::new(),
            };
            // It never fails: what finds no room is dropped.
            let _ = output.write(format!("{words}{trace}\n").as_bytes());
        }
        std::process::abort();
    }
}

/// What the board shows of a process that is about to abort. It serves no more: while the kernel writes the core it does not beat, and
/// would be killed over that after the short time that a daemon may be silent while it serves.
fn show_end(board: &BoardWriter, words: &str) {
    board.last_words(words);
    board.set(Gauge::Ready, 0);
}

/// For the time before there is a log.
fn complain(code: ExitCode, text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "maree-db-server: {text}");
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::RandomId;
    use mareedb_ipc::{Cell, NodeMemory, RingSizes, Topology};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    const CHILD: &str = "MAREEDB_TEST_PANIC";

    fn memory() -> NodeMemory {
        let topology = Topology {
            shards: 1,
            readers: 1,
            sizes: RingSizes::each(1 << 16),
        };
        NodeMemory::create(topology, "{}", RandomId::draw()).unwrap()
    }

    #[test]
    fn one_that_aborts_serves_no_more() {
        let memory = memory();
        let board = memory.board();
        board.set(Gauge::Ready, 1);
        show_end(&board, "a test");
        let reader = memory.read_board(Role::Supervisor);
        assert_eq!(reader.get(Gauge::Ready), 0);
        assert_eq!(reader.read(Cell::LastWords), Some("a test".to_owned()));
    }

    /// Runs itself as a process whose stderr is full and that nobody reads.
    #[test]
    fn a_panic_ends_the_process_though_stderr_is_full() {
        if std::env::var_os(CHILD).is_some() {
            let hook = panic_hook(memory().board(), Output::stderr().ok());
            std::panic::set_hook(Box::new(hook));
            // Not the thread that the tests' runner waits for: here the process has to be ended by the hook.
            let _ = std::thread::spawn(|| panic!("a test")).join();
            return;
        }
        let (reader, writer) = std::io::pipe().unwrap();
        let mut filler = Output::over(writer.try_clone().unwrap().into());
        for _ in 0..2000 {
            filler.write_all(&[b'x'; 1024]).unwrap();
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("daemon::tests::a_panic_ends_the_process_though_stderr_is_full")
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .unwrap();
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > Duration::from_secs(60) {
                child.kill().unwrap();
                panic!("it waits for room: {:?}", child.wait());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{status}");
        drop(reader);
    }
}
