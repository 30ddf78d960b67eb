//! Runs a case: starts its two processes, and is one of them.

use crate::job::{Case, FLIGHT_BYTES, Job, Load, Side, Transport};
use crate::load::Figure;
use crate::{Error, iceoryx, ring, socket};
use mareedb_ipc::wire::RandomId;
use mareedb_ipc::{Extras, NodeMemory, RingSizes, Role, Topology};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A pair that has not ended by then is stuck.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs both sides of a case and returns what they found.
pub(crate) fn pair(case: Case, time: Duration) -> Result<Figure, Error> {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let job = |side| Job {
        case,
        side,
        ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        name: format!("mareedb-bench-{}-{run}", std::process::id()),
    };
    let mut ends = Ends::new(case.transport)?;
    let sink = ends.start(&job(Side::Sink))?;
    let source = ends.start(&job(Side::Source))?;
    // Whoever still held them would keep a pair alive of which one has died.
    drop(ends);
    let texts = finish([sink, source])?;
    texts
        .iter()
        .find_map(|text| serde_json::from_str::<Figure>(text).ok())
        .ok_or_else(|| "neither side has found anything".into())
}

/// What is made for a pair before it is started.
enum Ends {
    Ring(NodeMemory),
    Socket(Vec<OwnedFd>),
    Nothing,
}

impl Ends {
    fn new(transport: Transport) -> Result<Ends, Error> {
        match transport {
            Transport::Ring | Transport::RingEach => {
                let topology = Topology {
                    shards: 1,
                    readers: 1,
                    sizes: RingSizes::each(FLIGHT_BYTES as u64),
                };
                let memory = NodeMemory::create(topology, "{}", RandomId::draw())?;
                Ok(Ends::Ring(memory))
            }
            Transport::Socket => {
                let (one, other) = UnixStream::pair()?;
                Ok(Ends::Socket(vec![one.into(), other.into()]))
            }
            Transport::Iceoryx | Transport::IceoryxEvent => Ok(Ends::Nothing),
        }
    }

    fn start(&mut self, job: &Job) -> Result<Child, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        let (name, value) = job.env();
        command.env(name, value).stdout(Stdio::piped());
        match self {
            Ends::Ring(memory) => {
                let role = match job.side {
                    Side::Source => Role::Gateway,
                    Side::Sink => Role::Consensus,
                };
                let plan = memory.plan(role, &Extras::default());
                command.env(plan.env.0, plan.env.1);
                let pass = |flags: FdFlag| -> nix::Result<()> {
                    for fd in &plan.fds {
                        // SAFETY: `memory` owns the descriptors of its plan and is borrowed until the end of this function.
                        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                        fcntl(fd, FcntlArg::F_SETFD(flags))?;
                    }
                    Ok(())
                };
                // This process has one thread, so that no other child is started meanwhile.
                pass(FdFlag::empty())?;
                let child = command.spawn();
                pass(FdFlag::FD_CLOEXEC)?;
                Ok(child?)
            }
            Ends::Socket(ends) => {
                let end = ends.pop().ok_or("a socket has two ends")?;
                Ok(command.stdin(end).spawn()?)
            }
            Ends::Nothing => Ok(command.spawn()?),
        }
    }
}

/// Waits for both processes, and returns what they said.
fn finish(mut children: [Child; 2]) -> Result<Vec<String>, Error> {
    let end = Instant::now() + LIMIT;
    let mut failed = None;
    while failed.is_none() {
        let mut running = false;
        for child in &mut children {
            match child.try_wait()? {
                None => running = true,
                Some(status) if !status.success() => failed = Some(format!("a side: {status}")),
                Some(_) => {}
            }
        }
        if !running {
            break;
        }
        if Instant::now() > end {
            failed = Some(format!("no end after {LIMIT:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if let Some(why) = failed {
        for child in &mut children {
            // It may have ended by itself.
            let _ = child.kill();
            child.wait()?;
        }
        return Err(why.into());
    }
    let mut texts = Vec::new();
    for child in children {
        texts.push(String::from_utf8(child.wait_with_output()?.stdout)?);
    }
    Ok(texts)
}

/// Stays on one core: left alone, a pair may meet on one core in this run and not in the next, which changes more than
/// what carries the messages does.
fn settle(job: &Job) {
    let core = usize::from(job.side == Side::Sink && !job.case.load.shares_core());
    let mut cores = CpuSet::new();
    // A machine with one core, or one that gives this process others, runs it where it likes.
    if cores.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &cores);
    }
}

/// One of the two processes.
pub(crate) fn child(job: &Job) -> Result<(), Error> {
    settle(job);
    let found = match job.case.transport {
        Transport::Ring | Transport::RingEach => ring::run(job)?,
        Transport::Socket => socket::run(job)?,
        Transport::Iceoryx | Transport::IceoryxEvent => iceoryx::run(job)?,
    };
    let says = match job.case.load {
        Load::Flow { .. } => Side::Sink,
        Load::RoundTrip { .. } => Side::Source,
    };
    if job.side == says {
        let figure = found.ok_or("nothing was found")?;
        let text = serde_json::to_string(&figure)?;
        std::io::stdout().write_all(text.as_bytes())?;
    }
    Ok(())
}
