//! The way out: consensusd hands its leaderships over while gatewayd still carries its messages; then gatewayd ends, so that nothing new
//! comes in, then consensusd, then storaged.

use super::{Action, Millis, Phase, State, Why, index_of, kill};
use mareedb_ipc::{ExitCode, Role};

/// A process that survives SIGKILL for so long sits in the kernel; the node ends without it (it dies with its supervisor).
pub(super) const UNKILLABLE_MS: Millis = 3000;

/// The order of a graceful stop, and the part of the stop limit (in tenths) that has passed when each must be gone. Time that one leaves
/// unused is the next one's.
const STOP_ORDER: [(Role, u64); 3] = [
    (Role::Gateway, 4),
    (Role::Consensus, 7),
    (Role::Storage, 10),
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    code: ExitCode,
    since: Millis,
    /// Asked for from outside, so that a second request means "at once".
    requested: bool,
    /// consensusd is asked to hand over; nobody is stopped before it has, or this time has come.
    handing_over_until: Option<Millis>,
    finished: bool,
}

impl Ending {
    pub(super) fn handing_over_until(&self) -> Option<Millis> {
        self.handing_over_until
    }
}

/// consensusd leads nothing any more.
pub(super) fn handed_over(state: &mut State) {
    if let Some(ending) = &mut state.ending {
        ending.handing_over_until = None;
    }
}

/// The node ends with this code, unless it is ending already.
pub(super) fn begin(state: &mut State, code: ExitCode, now: Millis) -> &mut Ending {
    state.renewals.clear();
    state.ending.get_or_insert(Ending {
        code,
        since: now,
        requested: false,
        handing_over_until: None,
        finished: false,
    })
}

/// The node ends with this code, whatever it was ending with.
pub(super) fn overrule(state: &mut State, code: ExitCode, now: Millis) {
    begin(state, code, now).code = code;
}

pub(super) fn request(state: &mut State, now: Millis, actions: &mut Vec<Action>) {
    let first = state.ending.is_none();
    let leads = matches!(
        state.daemon(Role::Consensus).phase,
        Phase::Up { serving: Some(_) }
    );
    let until = now + state.policy.stop_limit_ms / 10;
    let ending = begin(state, ExitCode::Done, now);
    if first && leads {
        actions.push(Action::HandOver(Role::Consensus));
        ending.handing_over_until = Some(until);
    }
    if !std::mem::replace(&mut ending.requested, true) {
        return;
    }
    for (role, _) in STOP_ORDER {
        if matches!(
            state.daemon(role).phase,
            Phase::Up { .. } | Phase::Stopping { .. }
        ) {
            kill(state, role, Why::StopLimit, now, actions);
        }
    }
}

/// Goes on with what has become possible of the ending.
pub(super) fn advance(state: &mut State, ending: &Ending, now: Millis, actions: &mut Vec<Action>) {
    if ending.finished {
        return;
    }
    if let Some(until) = ending.handing_over_until {
        let alive = matches!(state.daemon(Role::Consensus).phase, Phase::Up { .. });
        if alive && now < until {
            return;
        }
        handed_over(state);
    }
    for (role, tenths) in STOP_ORDER {
        match state.daemons[index_of(role)].phase {
            Phase::Down { .. } => {}
            Phase::Up { .. } => {
                actions.push(Action::Terminate(role));
                let deadline = ending.since + state.policy.stop_limit_ms * tenths / 10;
                state.daemon(role).phase = Phase::Stopping { deadline };
                return;
            }
            Phase::Stopping { deadline } if now < deadline => return,
            Phase::Stopping { .. } => {
                kill(state, role, Why::StopLimit, now, actions);
                return;
            }
            Phase::Doomed { since } if now < since + UNKILLABLE_MS => return,
            // Given up: from here on it counts as gone, so that nobody waits for it again.
            Phase::Doomed { .. } => state.daemon(role).phase = Phase::Down { due: now },
        }
    }
    if let Some(ending) = &mut state.ending {
        ending.finished = true;
    }
    actions.push(Action::Finish(ending.code));
}
