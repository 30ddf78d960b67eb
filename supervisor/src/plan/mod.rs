//! The restart policy: a pure function of (state, event, now).
//!
//! **Purpose.** [`decide`] says what to do when a daemon exits, goes silent, or the node is asked to stop. It reads no clock, starts
//! no process and draws no random number, so every rule below is tested without a process.
//!
//! **Rules.**
//! - The first restart is immediate. A daemon that keeps dying before it has served for [`Policy::brief_ms`] is restarted with a
//!   back-off that doubles up to [`Policy::backoff_max_ms`]; one that served longer starts from zero again. Service lasts until the
//!   last heartbeat.
//! - [`Policy::budget`] deaths of one daemon within [`Policy::window_ms`], or as many brief lives in a row however long they take,
//!   are an *escalation*: all three daemons get fresh links and are restarted together, so that nothing in shared memory can be
//!   what kills them. The node ends with [`ExitCode::CrashLoop`] when the budget is used up again within [`Policy::relapse_ms`], or
//!   later by a daemon that has not served for `brief_ms` since.
//! - A daemon that met a corrupt link is right, the writer of the bad word is to blame: its death counts, both ends are restarted
//!   over links of a new generation. Links are renewed only while both ends are down, because memory is handed over at exec.
//! - A verdict that a restart cannot cure (damaged log, bad settings) is believed the second time: the node ends with the daemon's
//!   code. A disk's fault is believed at once, also of a process that was being stopped or killed, and replaces the code that the
//!   node was ending with: after it the kernel may show what the disk does not hold, and a second look would find all well
//!   (STO-FAULT).
//! - Before a stop consensusd hands its leaderships over, while gatewayd still carries its messages. The stop goes gatewayd,
//!   consensusd, storaged, each with its share of [`Policy::stop_limit_ms`], then SIGKILL. A second request kills at once. Nothing
//!   is started any more.
//!
//! **Non-goals.** Which processes exist, how they are signalled, and what is shown of them: the `node` module does that.

mod deaths;
mod ending;
mod heart;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;

pub use heart::{Heart, Limits};

use ending::Ending;
use mareedb_ipc::{ExitCode, Role};

/// Milliseconds of a monotonic clock.
pub type Millis = u64;

/// The daemons in the order in which they are started. They stop the other way round.
pub const START_ORDER: [Role; 3] = [Role::Storage, Role::Consensus, Role::Gateway];

/// The figures of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many deaths of a daemon within `window_ms`, or brief lives in a row, are an escalation.
    pub budget: usize,
    /// The window of the budget.
    pub window_ms: Millis,
    /// A daemon that dies before it has served for so long is backed off from.
    pub brief_ms: Millis,
    /// Pause before the second restart in a row; doubles from there.
    pub backoff_min_ms: Millis,
    /// Longest pause.
    pub backoff_max_ms: Millis,
    /// A second escalation within this time ends the node.
    pub relapse_ms: Millis,
    /// How long a graceful stop may take altogether.
    pub stop_limit_ms: Millis,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            budget: 20,
            window_ms: 60_000,
            brief_ms: 1000,
            backoff_min_ms: 50,
            backoff_max_ms: 2000,
            relapse_ms: 600_000,
            stop_limit_ms: 10_000,
        }
    }
}

/// Why a process ended, as far as the policy cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Any death that a restart may cure: a signal, a panic, an unexpected exit.
    Crash,
    /// It found a link corrupt; `blamed` wrote the bad word, `other` is the far end.
    CorruptLink {
        /// Who wrote the bad word.
        blamed: Role,
        /// The other end of the link.
        other: Role,
    },
    /// It found a link corrupt while it attached and could not say which: all its links are replaced.
    CorruptAttach,
    /// It says that it cannot run, for a reason that a restart does not cure.
    Verdict(ExitCode),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The supervisor is ready to start daemons; also any passing of time.
    Tick,
    /// The daemon says for the first time since its start that it serves.
    Serving(Role),
    /// The daemon's process is gone and reaped.
    Exited(Role, Cause),
    /// The daemon could not be started at all.
    SpawnFailed(Role),
    /// No heartbeat for so long that the daemon is taken for hung.
    Silent(Role, Millis),
    /// consensusd leads nothing any more, as it was asked.
    HandedOver,
    /// The node is asked to stop.
    Stop,
}

/// What to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the daemon.
    Spawn(Role),
    /// SIGKILL.
    Kill(Role, Why),
    /// Ask it to hand over what it leads.
    HandOver(Role),
    /// SIGTERM.
    Terminate(Role),
    /// New memory and a new generation for all links between the two, which are both down.
    RenewLinks(Role, Role),
    /// Say that this daemon used up its budget and all three start afresh.
    Escalate(Role),
    /// The supervisor exits with this code.
    Finish(ExitCode),
}

/// Why a daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No heartbeat.
    Hung,
    /// A link that it shares is replaced.
    LinkReplaced,
    /// All three are restarted together.
    Escalation,
    /// It did not stop in its time, or the stop was asked for twice.
    StopLimit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No process; to be started at `due`.
    Down { due: Millis },
    /// A process runs; `serving` since it said so.
    Up { serving: Option<Millis> },
    /// SIGTERM was sent.
    Stopping { deadline: Millis },
    /// SIGKILL was sent; its exit is already accounted for.
    Doomed { since: Millis },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Daemon {
    phase: Phase,
    /// Times of its deaths within the window.
    deaths: Vec<Millis>,
    /// Deaths in a row before it had served for `brief_ms`.
    brief: usize,
    /// The last verdict, until it has served.
    verdict: Option<ExitCode>,
    /// It has served for `brief_ms` since the last escalation.
    redeemed: bool,
}

/// A pair whose links are replaced once both are down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Renewal {
    ends: (Role, Role),
    /// Why an end that still runs is killed for it.
    why: Why,
}

impl Renewal {
    fn concerns(&self, role: Role) -> bool {
        self.ends.0 == role || self.ends.1 == role
    }
}

/// All that the policy remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    policy: Policy,
    /// In the order of [`START_ORDER`].
    daemons: [Daemon; 3],
    renewals: Vec<Renewal>,
    escalated_at: Option<Millis>,
    ending: Option<Ending>,
}

/// Index of a daemon in arrays of three.
///
/// # Panics
/// For the supervisor, which is nobody's daemon.
pub fn index_of(role: Role) -> usize {
    START_ORDER
        .iter()
        .position(|daemon| *daemon == role)
        .expect("a daemon's role")
}

impl State {
    /// All three down and due at once.
    pub fn new(policy: Policy) -> Self {
        let down = Daemon {
            phase: Phase::Down { due: 0 },
            deaths: Vec::new(),
            brief: 0,
            verdict: None,
            redeemed: false,
        };
        State {
            policy,
            daemons: [down.clone(), down.clone(), down],
            renewals: Vec::new(),
            escalated_at: None,
            ending: None,
        }
    }

    /// When [`decide`] wants to see an [`Event::Tick`] at the latest, if nothing else happens.
    pub fn wake_at(&self) -> Option<Millis> {
        self.daemons
            .iter()
            .enumerate()
            .filter_map(|(index, daemon)| match daemon.phase {
                Phase::Down { due } if self.ending.is_none() => {
                    (!self.awaits_renewal(START_ORDER[index])).then_some(due)
                }
                Phase::Stopping { deadline } => Some(deadline),
                Phase::Doomed { since } if self.ending.is_some() => {
                    Some(since + ending::UNKILLABLE_MS)
                }
                _ => None,
            })
            .chain(self.ending.as_ref().and_then(Ending::handing_over_until))
            .min()
    }

    /// Whether the node is on its way out.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    fn awaits_renewal(&self, role: Role) -> bool {
        self.renewals.iter().any(|renewal| renewal.concerns(role))
    }

    fn daemon(&mut self, role: Role) -> &mut Daemon {
        &mut self.daemons[index_of(role)]
    }

    fn is_down(&self, role: Role) -> bool {
        matches!(self.daemons[index_of(role)].phase, Phase::Down { .. })
    }
}

/// The policy.
pub fn decide(mut state: State, event: Event, now: Millis) -> (State, Vec<Action>) {
    let mut actions = Vec::new();
    match event {
        Event::Tick => {}
        Event::Serving(role) => {
            if let Phase::Up { serving } = &mut state.daemon(role).phase {
                serving.get_or_insert(now);
            }
        }
        Event::SpawnFailed(role) => deaths::died(&mut state, role, Cause::Crash, now, &mut actions),
        Event::Exited(role, cause) => deaths::exited(&mut state, role, cause, now, &mut actions),
        Event::Silent(role, for_ms) => {
            deaths::fell_silent(&mut state, role, for_ms, now, &mut actions);
        }
        Event::HandedOver => ending::handed_over(&mut state),
        Event::Stop => ending::request(&mut state, now, &mut actions),
    }
    settle(&mut state, now, &mut actions);
    (state, actions)
}

fn kill(state: &mut State, role: Role, why: Why, now: Millis, actions: &mut Vec<Action>) {
    actions.push(Action::Kill(role, why));
    state.daemon(role).phase = Phase::Doomed { since: now };
}

/// Does what has become possible: replace links whose ends are down, start what is due, go on with the ending.
fn settle(state: &mut State, now: Millis, actions: &mut Vec<Action>) {
    if let Some(ending) = state.ending.clone() {
        ending::advance(state, &ending, now, actions);
        return;
    }
    // Who still runs over links that are being replaced has to go as well.
    for role in START_ORDER {
        if let Some(why) = deaths::must_go(state, role) {
            deaths::forgive(state, role, now);
            kill(state, role, why, now, actions);
        }
    }
    let (ready, waiting): (Vec<_>, Vec<_>) = std::mem::take(&mut state.renewals)
        .into_iter()
        .partition(|renewal| state.is_down(renewal.ends.0) && state.is_down(renewal.ends.1));
    state.renewals = waiting;
    for Renewal { ends: (a, b), .. } in ready {
        actions.push(Action::RenewLinks(a, b));
    }
    for role in START_ORDER {
        if let Phase::Down { due } = state.daemon(role).phase
            && due <= now
            && !state.awaits_renewal(role)
        {
            state.daemon(role).phase = Phase::Up { serving: None };
            actions.push(Action::Spawn(role));
        }
    }
}
