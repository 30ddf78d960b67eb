//! The world's tasks and timers in a thread that has entered one, tokio's in any other.

use futures::channel::oneshot;
use futures::future::{Either, select};
use mareedb_ipc::world::{self, Timer};
use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Ends at some time.
pub enum Sleep {
    /// In a world.
    World(Timer),
    /// By tokio.
    Tokio(Pin<Box<tokio::time::Sleep>>),
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut *self {
            Sleep::World(timer) => Pin::new(timer).poll(context),
            Sleep::Tokio(sleep) => sleep.as_mut().poll(context),
        }
    }
}

/// Runs a task that nobody waits for.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    match world::current() {
        Some(world) => world.spawn(Box::pin(task)),
        None => drop(tokio::spawn(task)),
    }
}

/// Ends after so long.
pub fn sleep(duration: Duration) -> Sleep {
    match world::clock() {
        Some(_) => Sleep::World(Timer::after(duration)),
        None => Sleep::Tokio(Box::pin(tokio::time::sleep(duration))),
    }
}

/// Ends at a time.
pub fn sleep_until(at: Instant) -> Sleep {
    match world::clock() {
        Some(_) => Sleep::World(Timer::at(at)),
        None => Sleep::Tokio(Box::pin(tokio::time::sleep_until(at.into()))),
    }
}

/// The time was over first.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub struct Elapsed;

/// Waits for a future, but not longer than this.
///
/// # Errors
/// The time was over first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    first(future, sleep(duration)).await
}

async fn first<F: Future>(future: F, sleep: Sleep) -> Result<F::Output, Elapsed> {
    match select(pin!(future), sleep).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right(((), _)) => Err(Elapsed),
    }
}

/// openraft's instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Instant);

impl openraft::Instant for Moment {
    fn now() -> Self {
        // tokio's own follows its clock, which tests may pause.
        Moment(world::clock().unwrap_or_else(|| tokio::time::Instant::now().into_std()))
    }
}
impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Moment(self.0 + duration)
    }
}
impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}
impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Moment(self.0 - duration)
    }
}
impl Sub for Moment {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.0 - earlier.0
    }
}
impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

/// The end of a task of openraft.
pub enum Handle<T> {
    /// In a world.
    World(oneshot::Receiver<T>),
    /// By tokio.
    Tokio(tokio::task::JoinHandle<T>),
}

/// A task has no result.
#[derive(Debug, thiserror::Error)]
#[error("the task {}", if *panicked { "panicked" } else { "was dropped" })]
pub struct NoResult {
    panicked: bool,
}

impl<T> Future for Handle<T> {
    type Output = Result<T, NoResult>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            // A panic ends the world.
            Handle::World(end) => Pin::new(end)
                .poll(context)
                .map_err(|_| NoResult { panicked: false }),
            Handle::Tokio(task) => Pin::new(task).poll(context).map_err(|error| NoResult {
                panicked: error.is_panic(),
            }),
        }
    }
}

/// A timeout of openraft.
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.sleep)
            .poll(context)
            .map(|()| Err(Elapsed))
    }
}

/// openraft's runtime. Channels and locks are tokio's in either case: they need no runtime.
pub struct Runtime(TokioRuntime);

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = NoResult;
    type JoinHandle<T: OptionalSend + 'static> = Handle<T>;
    type Sleep = Sleep;
    type Instant = Moment;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Handle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let Some(world) = world::current() else {
            return Handle::Tokio(tokio::spawn(future));
        };
        let (tell, told) = oneshot::channel();
        world.spawn(Box::pin(async move {
            // Nobody may wait for it.
            let _ = tell.send(future.await);
        }));
        Handle::World(told)
    }

    fn sleep(duration: Duration) -> Sleep {
        sleep(duration)
    }

    fn sleep_until(deadline: Moment) -> Sleep {
        sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: sleep(duration),
        }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Moment,
        future: F,
    ) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: sleep_until(deadline.0),
        }
    }

    fn is_panic(error: &NoResult) -> bool {
        error.panicked
    }

    fn thread_rng() -> SmallRng {
        let mut seed = [0; 8];
        world::draw(&mut seed);
        SmallRng::seed_from_u64(u64::from_le_bytes(seed))
    }

    fn new(threads: usize) -> Self {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
