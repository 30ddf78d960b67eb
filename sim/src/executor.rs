//! One thread, virtual time, a seeded order: runs the tasks of all processes of all nodes.
//!
//! Which ready task runs next is drawn from the ready ones in the order of their numbers, so that the order in which they
//! were woken changes nothing: what a library leaves to chance there is shut out (ADR 18). Time passes by a little with each
//! step, and jumps to the next timer when nothing is ready.

use crate::rng::Rng;
use crate::trace::Trace;
use mareedb_ipc::world::{Fault, World};
use mareedb_ipc::{Role, Waiter};
use parking_lot::Mutex;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// Nanoseconds of virtual time that a step takes.
const STEP_NS: u64 = 1_000;
/// Virtual time begins here, so that clocks may be behind.
const BEGIN_NS: u64 = 1_000_000_000;
/// The wall clocks' begin, in milliseconds since 1970.
const WALL_BEGIN_MS: u64 = 1_750_000_000_000;

/// One life of a daemon of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The node.
    pub node: usize,
    /// The daemon.
    pub role: Role,
    /// How many there were before.
    pub life: u32,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of node{}", self.role, self.node + 1)
    }
}

/// Why a run ends before its time.
#[derive(Clone, Debug)]
pub struct Panicked {
    /// Whose task.
    pub process: Option<Process>,
    /// What it said.
    pub message: String,
}

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    process: Option<Process>,
    /// `None` while it runs.
    body: Option<Body>,
    waker: Waker,
}

struct TaskWaker {
    number: u64,
    woken: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.lock().push(self.number);
    }
}

enum Due {
    Wake(Waker),
    Call(Box<dyn FnOnce()>),
}

/// A node's clocks.
#[derive(Clone, Copy, Debug, Default)]
struct Clocks {
    /// How much faster than true the monotone one runs, in millionths.
    drift_ppm: i64,
    /// How far ahead the wall clock is, in milliseconds.
    wall_ms: i64,
}

impl Clocks {
    fn local(self, ns: u64) -> u64 {
        // Some hours times some percent: far from what 64 bits hold.
        let drift = ns.cast_signed() * self.drift_ppm / 1_000_000;
        ns.checked_add_signed(drift)
            .expect("a clock within its range")
    }

    /// The first moment at which the local clock shows this.
    fn global(self, local: u64) -> u64 {
        let rate = 1_000_000_u64.saturating_add_signed(self.drift_ppm);
        let (whole, part) = (local / rate, local % rate);
        let mut ns = whole * 1_000_000 + part * 1_000_000 / rate;
        // Rounding may have gone too far, or not far enough.
        while ns > 0 && self.local(ns - 1) >= local {
            ns -= 1;
        }
        while self.local(ns) < local {
            ns += 1;
        }
        ns
    }
}

/// A doorbell.
#[derive(Default)]
struct Bell {
    rung: Cell<bool>,
    waits: RefCell<Option<Waker>>,
}

/// The executor, and the world that its tasks live in.
pub struct Executor {
    base: Instant,
    now: Cell<u64>,
    order: RefCell<Rng>,
    entropy: RefCell<Rng>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    next_task: Cell<u64>,
    /// Ascending.
    ready: RefCell<Vec<u64>>,
    /// Ready tasks of processes that are stopped.
    held: RefCell<BTreeSet<u64>>,
    woken: Arc<Mutex<Vec<u64>>>,
    due: RefCell<BTreeMap<(u64, u64), Due>>,
    next_due: Cell<u64>,
    running: Cell<Option<Process>>,
    alive: RefCell<BTreeSet<Process>>,
    stopped: RefCell<BTreeSet<Process>>,
    clocks: RefCell<Vec<Clocks>>,
    bells: RefCell<BTreeMap<(usize, Waiter), Rc<Bell>>>,
    planted: Option<Fault>,
    steps: Cell<u64>,
    /// What happens.
    pub trace: Trace,
}

impl Executor {
    /// The world of a seed, with so many nodes.
    pub fn new(seed: u64, nodes: usize, planted: Option<Fault>) -> Rc<Executor> {
        Rc::new(Executor {
            base: Instant::now(),
            now: Cell::new(BEGIN_NS),
            order: RefCell::new(Rng::new(seed, 1)),
            entropy: RefCell::new(Rng::new(seed, 2)),
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            ready: RefCell::default(),
            held: RefCell::default(),
            woken: Arc::default(),
            due: RefCell::default(),
            next_due: Cell::new(0),
            running: Cell::new(None),
            alive: RefCell::default(),
            stopped: RefCell::default(),
            clocks: RefCell::new(vec![Clocks::default(); nodes]),
            bells: RefCell::default(),
            planted,
            steps: Cell::new(0),
            trace: Trace::new(),
        })
    }

    /// Nanoseconds since the simulation began.
    pub fn now_ns(&self) -> u64 {
        self.now.get() - BEGIN_NS
    }

    /// Milliseconds since the simulation began.
    pub fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Notes what happens.
    pub fn note(&self, what: impl FnOnce() -> String) {
        self.trace.note(self.now_ns(), what);
    }

    /// Sets how fast a node's monotone clock runs.
    pub fn set_drift(&self, node: usize, ppm: i64) {
        self.clocks.borrow_mut()[node].drift_ppm = ppm;
    }

    /// Sets how far ahead a node's wall clock is.
    pub fn set_wall(&self, node: usize, ahead_ms: i64) {
        self.clocks.borrow_mut()[node].wall_ms = ahead_ms;
    }

    /// A process begins.
    pub fn begin(&self, process: Process) {
        self.alive.borrow_mut().insert(process);
    }

    /// Whether it lives.
    pub fn is_alive(&self, process: Process) -> bool {
        self.alive.borrow().contains(&process)
    }

    /// A process is killed: its tasks are gone.
    pub fn kill(&self, process: Process) {
        self.alive.borrow_mut().remove(&process);
        self.stopped.borrow_mut().remove(&process);
        let dead: Vec<Task> = {
            let mut tasks = self.tasks.borrow_mut();
            let numbers: Vec<u64> = tasks
                .iter()
                .filter(|(_, task)| task.process == Some(process))
                .map(|(number, _)| *number)
                .collect();
            numbers
                .iter()
                .filter_map(|number| tasks.remove(number))
                .collect()
        };
        let before = self.running.replace(Some(process));
        drop(dead);
        self.running.set(before);
    }

    /// A process gets no time any more.
    pub fn stop(&self, process: Process) {
        if self.is_alive(process) {
            self.stopped.borrow_mut().insert(process);
        }
    }

    /// Whether it gets no time.
    pub fn is_stopped(&self, process: Process) -> bool {
        self.stopped.borrow().contains(&process)
    }

    /// A stopped process gets time again.
    pub fn resume(&self, process: Process) {
        if self.stopped.borrow_mut().remove(&process) {
            self.woken
                .lock()
                .extend(std::mem::take(&mut *self.held.borrow_mut()));
        }
    }

    /// Runs a task of a process, or of the simulation itself.
    pub fn spawn(&self, process: Option<Process>, body: impl Future<Output = ()> + 'static) {
        self.add(process, Box::pin(body));
    }

    fn add(&self, process: Option<Process>, body: Body) {
        if process.is_some_and(|process| !self.is_alive(process)) {
            // Something of it is just being dropped.
            return;
        }
        let number = self.next_task.get();
        self.next_task.set(number + 1);
        let waker = Waker::from(Arc::new(TaskWaker {
            number,
            woken: self.woken.clone(),
        }));
        let task = Task {
            process,
            body: Some(body),
            waker,
        };
        self.tasks.borrow_mut().insert(number, task);
        self.woken.lock().push(number);
    }

    /// Calls at a time, in nanoseconds from now.
    pub fn after(&self, ns: u64, call: impl FnOnce() + 'static) {
        self.put(self.now.get() + ns, Due::Call(Box::new(call)));
    }

    fn put(&self, at: u64, due: Due) -> (u64, u64) {
        let number = self.next_due.get();
        self.next_due.set(number + 1);
        self.due.borrow_mut().insert((at, number), due);
        (at, number)
    }

    /// Rings somebody's doorbell.
    pub fn ring_bell(&self, node: usize, waiter: Waiter) {
        let bell = self.bell(node, waiter);
        bell.rung.set(true);
        if let Some(waker) = bell.waits.take() {
            waker.wake();
        }
    }

    fn bell(&self, node: usize, waiter: Waiter) -> Rc<Bell> {
        let mut bells = self.bells.borrow_mut();
        bells.entry((node, waiter)).or_default().clone()
    }

    /// Waits until somebody rings.
    pub fn rung(&self, node: usize, waiter: Waiter) -> impl Future<Output = ()> + use<> {
        let bell = self.bell(node, waiter);
        std::future::poll_fn(move |context| {
            if bell.rung.replace(false) {
                return Poll::Ready(());
            }
            bell.waits.replace(Some(context.waker().clone()));
            Poll::Pending
        })
    }

    /// Runs until so many nanoseconds have passed, or until `done`, which is asked after each jump of time.
    ///
    /// # Errors
    /// A task panicked.
    pub fn run(&self, ns: u64, done: &dyn Fn() -> bool) -> Result<(), Panicked> {
        let end = self.now.get() + ns;
        loop {
            self.take_woken();
            if let Some(number) = self.draw_ready() {
                self.step(number)?;
                self.now.set(self.now.get() + STEP_NS);
                self.fire();
                continue;
            }
            if done() {
                return Ok(());
            }
            let next = self.due.borrow().keys().next().map(|(at, _)| *at);
            match next {
                Some(at) if at <= end => {
                    self.now.set(at.max(self.now.get()));
                    self.fire();
                }
                _ => {
                    self.now.set(end.max(self.now.get()));
                    return Ok(());
                }
            }
        }
    }

    fn take_woken(&self) {
        let woken = std::mem::take(&mut *self.woken.lock());
        let mut ready = self.ready.borrow_mut();
        for number in woken {
            if let Err(at) = ready.binary_search(&number) {
                ready.insert(at, number);
            }
        }
    }

    fn draw_ready(&self) -> Option<u64> {
        loop {
            let number = {
                let mut ready = self.ready.borrow_mut();
                if ready.is_empty() {
                    return None;
                }
                let at = if ready.len() == 1 {
                    0
                } else {
                    self.order.borrow_mut().index(ready.len())
                };
                ready.remove(at)
            };
            let process = match self.tasks.borrow().get(&number) {
                Some(task) => task.process,
                None => continue,
            };
            let stopped = process.is_some_and(|process| self.stopped.borrow().contains(&process));
            if stopped {
                self.held.borrow_mut().insert(number);
            } else {
                return Some(number);
            }
        }
    }

    fn step(&self, number: u64) -> Result<(), Panicked> {
        let (process, mut body, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks.get_mut(&number).expect("it was drawn");
            let body = task.body.take().expect("it does not run");
            (task.process, body, task.waker.clone())
        };
        self.steps.set(self.steps.get() + 1);
        self.trace.mix(number ^ self.now.get().rotate_left(20));
        self.running.set(process);
        let mut context = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| body.as_mut().poll(&mut context)));
        let ended = match polled {
            Ok(Poll::Pending) => {
                let mut tasks = self.tasks.borrow_mut();
                match tasks.get_mut(&number) {
                    Some(task) => {
                        task.body = Some(body);
                        None
                    }
                    // Its process was killed while it ran.
                    None => Some(body),
                }
            }
            Ok(Poll::Ready(())) => {
                self.tasks.borrow_mut().remove(&number);
                Some(body)
            }
            Err(payload) => {
                let message = crate::hook::said(&*payload);
                self.running.set(None);
                // What it holds may be in any state.
                let dropped = catch_unwind(AssertUnwindSafe(|| drop(body)));
                drop(dropped);
                return Err(Panicked { process, message });
            }
        };
        drop(ended);
        self.running.set(None);
        Ok(())
    }

    fn fire(&self) {
        loop {
            let due = {
                let mut due = self.due.borrow_mut();
                match due.first_entry() {
                    Some(first) if first.key().0 <= self.now.get() => first.remove_entry(),
                    _ => return,
                }
            };
            match due {
                (_, Due::Wake(waker)) => waker.wake(),
                (_, Due::Call(call)) => call(),
            }
        }
    }

    /// Drops all tasks, in an order that follows from the seed.
    pub fn clear(&self) {
        let alive: Vec<Process> = self.alive.borrow().iter().copied().collect();
        for process in alive {
            self.kill(process);
        }
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        let due = std::mem::take(&mut *self.due.borrow_mut());
        drop(due);
    }

    fn clocks_of(&self, process: Option<Process>) -> Clocks {
        process.map_or_else(Clocks::default, |process| {
            self.clocks.borrow()[process.node]
        })
    }
}

impl World for Executor {
    fn now(&self) -> Instant {
        let local = self.clocks_of(self.running.get()).local(self.now.get());
        self.base + Duration::from_nanos(local)
    }

    fn wall_ms(&self) -> u64 {
        let ahead = self.clocks_of(self.running.get()).wall_ms;
        (WALL_BEGIN_MS + self.now_ms()).saturating_add_signed(ahead)
    }

    fn draw(&self, bytes: &mut [u8]) {
        let mut entropy = self.entropy.borrow_mut();
        for part in bytes.chunks_mut(8) {
            let number = entropy.draw().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.add(self.running.get(), task);
    }

    fn wake_at(&self, at: Instant, waker: &Waker) -> (u64, u64) {
        let local = at.saturating_duration_since(self.base).as_nanos();
        let local = u64::try_from(local).expect("a clock within its range");
        let at = self.clocks_of(self.running.get()).global(local);
        self.put(at, Due::Wake(waker.clone()))
    }

    fn cancel(&self, timer: (u64, u64)) {
        self.due.borrow_mut().remove(&timer);
    }

    fn ring(&self, waiter: Waiter) {
        if let Some(process) = self.running.get() {
            self.ring_bell(process.node, waiter);
        }
    }

    fn planted(&self, fault: Fault) -> bool {
        self.planted == Some(fault)
    }
}

/// What a panic said.
pub(crate) fn text(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".into())
}

/// Lets the other ready tasks run.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
