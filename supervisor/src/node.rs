//! The node while it runs: the main thread, one epoll, no waiting for a child.
//!
//! It watches signals, a tick, and the pidfd of each daemon, turns what it sees into [`Event`]s, and does the [`Action`]s that the policy
//! answers. Everything that must outlive a daemon is held here: rings, boards, sockets, the lock.

use crate::exits::{final_code, judge, reason_of};
use crate::level::{LEVEL_FD, SharedLevel};
use crate::lock::DirLock;
use crate::notify::Notifier;
use crate::plan::{Action, Event, Limits, Millis, START_ORDER, State, decide, index_of};
use crate::signals::{Request, Signals};
use crate::slot::Slot;
use crate::sockets::Sockets;
use crate::spawn::{Ended, Executable, spawn};
use crate::{Options, Reload};
use mareedb_ipc::wire::RandomId;
use mareedb_ipc::world::wall_ms;
use mareedb_ipc::{BoardWriter, Cell, ExitCode, Extras, Gauge, NodeMemory, NodeStatus, Role};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

const TOKEN_SIGNALS: u64 = 100;
const TOKEN_TICK: u64 = 101;
/// Statuses are written at every change, and every so many ticks for what changes by itself.
const TICKS_PER_STATUS: u64 = 5;
/// Resident sets are read every so many ticks.
const TICKS_PER_MEASURE: u64 = 20;

/// What the node holds for its whole life.
pub(crate) struct Holdings {
    pub lock: DirLock,
    pub sockets: Sockets,
    pub memory: NodeMemory,
    pub signals: Signals,
    pub notifier: Notifier,
    pub level: SharedLevel,
    pub executable: Executable,
    pub start: RandomId,
}

pub(crate) struct Node {
    held: Holdings,
    board: BoardWriter,
    slots: [Slot; 3],
    state: State,
    limits: Limits,
    reload: Option<Reload>,
    epoll: Epoll,
    tick: TimerFd,
    ticks: u64,
    epoch: Instant,
    last_watchdog: Option<Instant>,
    /// All three daemons serve.
    serves: bool,
    finished: Option<ExitCode>,
}

impl Node {
    pub fn new(held: Holdings, hang_limit_ms: Millis, options: Options) -> io::Result<Node> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let tick = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        let every = TimeSpec::from_duration(Duration::from_millis(options.tick_ms));
        tick.set(Expiration::Interval(every), TimerSetTimeFlags::empty())?;
        epoll.add(
            &held.signals,
            EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_SIGNALS),
        )?;
        epoll.add(&tick, EpollEvent::new(EpollFlags::EPOLLIN, TOKEN_TICK))?;
        let board = held.memory.board();
        board.put(
            Cell::Node,
            &NodeStatus {
                start: held.start,
                pid: std::process::id(),
                started_unix_ms: wall_ms(),
                version: options.version.clone(),
            },
        );
        let slots = START_ORDER.map(|role| Slot::new(role, held.memory.read_board(role)));
        Ok(Node {
            board,
            slots,
            state: State::new(options.policy),
            limits: Limits {
                tick_ms: options.tick_ms,
                serving_ms: hang_limit_ms,
                starting_ms: options.start_limit_ms.max(hang_limit_ms),
            },
            reload: options.reload,
            epoll,
            tick,
            ticks: 0,
            epoch: Instant::now(),
            last_watchdog: None,
            serves: false,
            finished: None,
            held,
        })
    }

    /// Until the node ends. An error is one of the supervisor's own system calls, after which it can only end: the daemons go with it.
    pub fn run(&mut self) -> io::Result<ExitCode> {
        self.happen(Event::Tick)?;
        self.publish();
        let mut events = [EpollEvent::empty(); 8];
        loop {
            if let Some(code) = self.finished {
                return Ok(code);
            }
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            let mut ticked = false;
            for event in &events[..count] {
                match event.data() {
                    TOKEN_SIGNALS => self.signals()?,
                    TOKEN_TICK => ticked = true,
                    index => self.reap(usize::try_from(index).map_err(io::Error::other)?)?,
                }
            }
            // After the exits, so that a dead daemon is not taken for a silent one.
            if ticked {
                self.tick()?;
            }
            if self.state.wake_at().is_some_and(|at| at <= self.now()) {
                self.happen(Event::Tick)?;
            }
        }
    }

    fn now(&self) -> Millis {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn timeout(&self) -> EpollTimeout {
        match self.state.wake_at() {
            None => EpollTimeout::NONE,
            // One more, since a clock that is cut off to milliseconds may be a fraction early.
            Some(at) => {
                let ms = at.saturating_sub(self.now()).saturating_add(1).min(1000);
                EpollTimeout::try_from(Duration::from_millis(ms)).unwrap_or(EpollTimeout::ZERO)
            }
        }
    }

    /// Lets the policy decide about an event and does what it says, including what follows from it.
    fn happen(&mut self, event: Event) -> io::Result<()> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let was_ending = self.state.is_ending();
            let (state, actions) = decide(self.state.clone(), event, self.now());
            self.state = state;
            if self.state.is_ending() && !was_ending {
                self.held.notifier.stopping();
            }
            for action in actions {
                if let Some(next) = self.act(action)? {
                    events.push_back(next);
                }
            }
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> io::Result<Option<Event>> {
        match action {
            Action::Spawn(role) => return self.spawn(role),
            Action::Kill(role, why) => {
                let slot = &mut self.slots[index_of(role)];
                if let Some(process) = &slot.process {
                    let pid = process.pid();
                    let reason = reason_of(why);
                    tracing::warn!(child = %role, child_pid = pid, "killing {role}: {reason}");
                    slot.killed = Some(why);
                    process.signal(Signal::SIGKILL);
                }
            }
            Action::HandOver(role) => {
                // Only a daemon that serves is asked: by then it listens for this signal. Its answer is Ready = 0.
                if let Some(process) = &self.slots[index_of(role)].process {
                    tracing::info!(child = %role, "stopping: {role} hands over what it leads");
                    process.signal(Signal::SIGUSR1);
                }
            }
            Action::Terminate(role) => {
                if let Some(process) = &self.slots[index_of(role)].process {
                    tracing::info!(child = %role, child_pid = process.pid(), "stopping {role}");
                    process.signal(Signal::SIGTERM);
                }
            }
            Action::RenewLinks(a, b) => {
                tracing::warn!("new links between {a} and {b}");
                self.held.memory.renew_links(a, b)?;
            }
            Action::Escalate(role) => {
                tracing::error!(
                    child = %role,
                    "{role} died too often: all daemons are restarted together, over new links"
                );
            }
            Action::Finish(code) => {
                let code = final_code(code, self.slots.iter().map(|slot| &slot.board));
                let number = code.code();
                let meaning = code.meaning();
                if code == ExitCode::Done {
                    tracing::info!("stopped");
                } else {
                    tracing::error!(code = number, "the node gives up: {meaning}");
                }
                self.finished = Some(code);
            }
        }
        self.publish();
        Ok(None)
    }

    fn spawn(&mut self, role: Role) -> io::Result<Option<Event>> {
        let mut extras = Extras::default();
        match role {
            Role::Gateway => {
                extras.rest = Some(self.held.sockets.rest());
                extras.grpc = Some(self.held.sockets.grpc());
            }
            Role::Storage => extras.lock = Some(self.held.lock.fd()),
            _ => {}
        }
        let plan = self.held.memory.plan(role, &extras);
        let index = index_of(role);
        self.slots[index].starting();
        match spawn(
            &self.held.executable,
            role,
            plan,
            &[(LEVEL_FD, self.held.level.fd())],
        ) {
            Ok(process) => {
                let pid = process.pid();
                self.epoll
                    .add(&process, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
                self.slots[index].started(process);
                let restarts = self.slots[index].restarts();
                tracing::info!(child = %role, child_pid = pid, restarts, "started {role}");
                self.publish();
                Ok(None)
            }
            Err(error) => {
                tracing::error!(child = %role, "cannot start {role}: {error}");
                Ok(Some(Event::SpawnFailed(role)))
            }
        }
    }

    fn reap(&mut self, index: usize) -> io::Result<()> {
        let slot = &mut self.slots[index];
        let Some(process) = &slot.process else {
            return Ok(());
        };
        let Some(ended) = process.reap()? else {
            return Ok(());
        };
        let (role, pid) = (slot.role, process.pid());
        // Every daemon beats as soon as it has attached, so one without a beat wrote nothing on its board.
        let attached = slot.heart.has_beaten(slot.board.beats());
        let (cause, exit) = judge(role, ended, slot.killed, attached, &slot.board);
        // SIGTERM may come before a daemon listens for it.
        let stopped = [Ended::Code(0), Ended::Signal(Signal::SIGTERM as i32)];
        let expected = self.state.is_ending() && stopped.contains(&ended);
        if expected {
            tracing::info!(child = %role, child_pid = pid, "{role} stopped");
        } else {
            tracing::error!(child = %role, child_pid = pid, "{role} ended: {}", exit.reason);
        }
        slot.ended(exit);
        // RING-8: nothing of it runs any more, so a successor may attach to its rings.
        self.happen(Event::Exited(role, cause))?;
        self.publish();
        self.say();
        Ok(())
    }

    fn signals(&mut self) -> io::Result<()> {
        while let Some(request) = self.held.signals.next() {
            match request {
                Request::Stop => {
                    tracing::info!("stop requested");
                    self.happen(Event::Stop)?;
                    self.say();
                }
                Request::Reload => self.reload(),
            }
        }
        Ok(())
    }

    fn reload(&mut self) {
        self.held.notifier.reloading();
        let outcome = match &mut self.reload {
            Some(reload) => reload(),
            None => Err("this node was started without a configuration file".to_owned()),
        };
        match outcome.and_then(|level| {
            self.held
                .level
                .set(&level)
                .map_err(|error| error.to_string())?;
            Ok(level)
        }) {
            Ok(level) => {
                tracing::info!("reloaded: log.level is {level:?}; other settings need a restart");
                for slot in &mut self.slots {
                    match &slot.process {
                        // Before its first heartbeat SIGHUP might still kill it.
                        Some(process) if slot.heart.is_alive() => process.signal(Signal::SIGHUP),
                        _ => slot.missed_reload = true,
                    }
                }
            }
            Err(why) => tracing::error!("reload refused, nothing changed: {why}"),
        }
        self.held.notifier.reloaded();
    }

    /// One look at every board.
    fn tick(&mut self) -> io::Result<()> {
        // However many intervals have passed: this is one tick (see plan::Heart). WouldBlock means that it was taken already.
        let mut count = [0u8; 8];
        let _ = nix::unistd::read(&self.tick, &mut count);
        self.ticks += 1;
        self.board.beat();
        let mut changed = false;
        let mut seen = Vec::new();
        for slot in &mut self.slots {
            if slot.process.is_none() {
                continue;
            }
            let (silent, serving) = slot.look(&self.limits);
            if serving != slot.serving {
                slot.serving = serving;
                changed = true;
                if serving {
                    seen.push(Event::Serving(slot.role));
                } else if slot.role == Role::Consensus && self.state.is_ending() {
                    seen.push(Event::HandedOver);
                }
            }
            if slot.missed_reload
                && slot.heart.is_alive()
                && let Some(process) = &slot.process
            {
                process.signal(Signal::SIGHUP);
                slot.missed_reload = false;
            }
            if silent && slot.killed.is_none() {
                let for_ms = slot.heart.silent_for_ms(self.limits.tick_ms);
                seen.push(Event::Silent(slot.role, for_ms));
            }
        }
        for event in seen {
            self.happen(event)?;
        }
        if self.ticks.is_multiple_of(TICKS_PER_MEASURE) {
            for slot in &mut self.slots {
                slot.measure();
            }
        }
        if changed || self.ticks.is_multiple_of(TICKS_PER_STATUS) {
            self.publish();
        }
        self.say();
        self.watchdog();
        Ok(())
    }

    /// Writes the statuses on the supervisor's board.
    fn publish(&self) {
        let ending = self.state.is_ending();
        for slot in &self.slots {
            let status = slot.status(ending, self.limits.tick_ms);
            self.board.put(Cell::Daemon(slot.role), &status);
        }
        self.board.put(Cell::Links, &self.held.memory.usage());
    }

    /// Tells systemd, and whoever reads the board, how the node is.
    fn say(&mut self) {
        let text = self.summary();
        self.held.notifier.status(&text);
        let serves = !self.state.is_ending() && self.slots.iter().all(|slot| slot.serving);
        self.board.set(Gauge::Ready, u64::from(serves));
        let before = std::mem::replace(&mut self.serves, serves);
        if serves {
            if !before {
                let again = if self.held.notifier.is_ready() {
                    " again"
                } else {
                    ""
                };
                tracing::info!("the node serves{again}");
            }
            self.held.notifier.ready();
        }
    }

    fn summary(&self) -> String {
        let missing = |with_process: bool| {
            self.slots
                .iter()
                .filter(|slot| slot.process.is_some() == with_process && !slot.serving)
                .map(|slot| slot.role.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        };
        if self.state.is_ending() {
            let left: Vec<_> = self
                .slots
                .iter()
                .filter(|slot| slot.process.is_some())
                .map(|slot| slot.role.to_string())
                .collect();
            return format!("stopping: waiting for {}", left.join(", "));
        }
        let restarts: u64 = self.slots.iter().map(Slot::restarts).sum();
        let tail = match self.latest_exit() {
            Some((role, reason)) => format!("; {restarts} restarts, last: {role}: {reason}"),
            None => String::new(),
        };
        let (down, starting) = (missing(false), missing(true));
        let head = match (down.is_empty(), starting.is_empty()) {
            (true, true) => "serving".to_owned(),
            (true, false) => format!("waiting for {starting} to serve"),
            (false, _) => format!("restarting {down}"),
        };
        head + &tail
    }

    fn latest_exit(&self) -> Option<(Role, &str)> {
        self.slots
            .iter()
            .filter_map(|slot| Some((slot.role, slot.last_exit.as_ref()?)))
            .max_by_key(|(_, exit)| exit.at_unix_ms)
            .map(|(role, exit)| (role, exit.reason.as_str()))
    }

    fn watchdog(&mut self) {
        let Some(interval) = self.held.notifier.watchdog_interval() else {
            return;
        };
        if self.last_watchdog.is_none_or(|at| at.elapsed() >= interval) {
            self.last_watchdog = Some(Instant::now());
            self.held.notifier.watchdog();
        }
    }
}
