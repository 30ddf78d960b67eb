//! What a daemon's death means: for its own next start, for its links, for all three, for the node.

use super::{
    Action, Cause, Millis, Phase, Policy, Renewal, START_ORDER, State, Why, ending, index_of, kill,
};
use mareedb_ipc::{ExitCode, Role};

/// The process is gone.
pub(super) fn exited(
    state: &mut State,
    role: Role,
    cause: Cause,
    now: Millis,
    actions: &mut Vec<Action>,
) {
    if cause == Cause::Verdict(ExitCode::DiskFault) {
        // Whatever the process was about to do, and whatever the node is ending for (STO-FAULT).
        state.daemon(role).phase = Phase::Down { due: now };
        ending::overrule(state, ExitCode::DiskFault, now);
        return;
    }
    match state.daemon(role).phase {
        // By our own order: whoever was to blame has been charged. `due` may already carry a back-off.
        Phase::Doomed { .. } | Phase::Stopping { .. } => down(state, role, now),
        Phase::Up { .. } => died(state, role, cause, now, actions),
        Phase::Down { .. } => {}
    }
}

/// A death that was not ordered, or a start that failed.
pub(super) fn died(
    state: &mut State,
    role: Role,
    cause: Cause,
    now: Millis,
    actions: &mut Vec<Action>,
) {
    if state.ending.is_some() {
        state.daemon(role).phase = Phase::Down { due: now };
        return;
    }
    forgive(state, role, now);
    match cause {
        Cause::Crash => charge(state, role, now, now, actions),
        Cause::Verdict(code) => {
            if state.daemon(role).verdict.replace(code) == Some(code) {
                state.daemon(role).phase = Phase::Down { due: now };
                ending::begin(state, code, now);
                return;
            }
            charge(state, role, now, now, actions);
        }
        Cause::CorruptLink { blamed, other } => {
            renew(state, (blamed, other), Why::LinkReplaced);
            charge(state, blamed, now, now, actions);
        }
        Cause::CorruptAttach => {
            for peer in START_ORDER.into_iter().filter(|peer| *peer != role) {
                renew(state, (role, peer), Why::LinkReplaced);
            }
            charge(state, role, now, now, actions);
        }
    }
    if !state.is_down(role) {
        down(state, role, now);
    }
}

/// It has not beaten for so long that it is taken for hung.
pub(super) fn fell_silent(
    state: &mut State,
    role: Role,
    for_ms: Millis,
    now: Millis,
    actions: &mut Vec<Action>,
) {
    if matches!(state.daemon(role).phase, Phase::Up { .. }) && state.ending.is_none() {
        // Charged now, so that the exit that follows is not counted a second time. Silence is no service.
        charge(state, role, now.saturating_sub(for_ms), now, actions);
        kill(state, role, Why::Hung, now, actions);
    }
}

fn down(state: &mut State, role: Role, now: Millis) {
    let due = now + backoff(&state.policy, state.daemons[index_of(role)].brief);
    state.daemon(role).phase = Phase::Down { due };
}

/// Long service wipes out what came before it, however it ends. Returns whether it was long, up to its end at `until`.
pub(super) fn forgive(state: &mut State, role: Role, until: Millis) -> bool {
    let brief_ms = state.policy.brief_ms;
    let daemon = state.daemon(role);
    let long = matches!(
        daemon.phase,
        Phase::Up { serving: Some(since) } if until.saturating_sub(since) >= brief_ms
    );
    if long {
        daemon.brief = 0;
        daemon.verdict = None;
        daemon.redeemed = true;
    }
    long
}

/// Counts a death against a daemon, which served until `until`, and escalates when its budget is used up.
fn charge(state: &mut State, role: Role, until: Millis, now: Millis, actions: &mut Vec<Action>) {
    let long = forgive(state, role, until);
    let policy = state.policy.clone();
    let daemon = state.daemon(role);
    daemon.brief += usize::from(!long);
    daemon
        .deaths
        .retain(|at| now.saturating_sub(*at) < policy.window_ms);
    daemon.deaths.push(now);
    if daemon.deaths.len().max(daemon.brief) < policy.budget {
        return;
    }
    let redeemed = daemon.redeemed;
    let relapsed = state
        .escalated_at
        .is_some_and(|at| now.saturating_sub(at) < policy.relapse_ms || !redeemed);
    if relapsed {
        ending::begin(state, ExitCode::CrashLoop, now);
        return;
    }
    state.escalated_at = Some(now);
    actions.push(Action::Escalate(role));
    for daemon in &mut state.daemons {
        daemon.deaths.clear();
        daemon.brief = 0;
        daemon.redeemed = false;
    }
    for ends in [
        (Role::Storage, Role::Consensus),
        (Role::Storage, Role::Gateway),
        (Role::Consensus, Role::Gateway),
    ] {
        renew(state, ends, Why::Escalation);
    }
}

fn renew(state: &mut State, ends: (Role, Role), why: Why) {
    let known = state
        .renewals
        .iter_mut()
        .find(|known| known.ends == ends || known.ends == (ends.1, ends.0));
    match known {
        // All three together is the wider reason.
        Some(known) if why == Why::Escalation => known.why = why,
        Some(_) => {}
        None => state.renewals.push(Renewal { ends, why }),
    }
}

/// Why a daemon that runs must go for the sake of links that are being replaced, if it must.
pub(super) fn must_go(state: &State, role: Role) -> Option<Why> {
    let up = matches!(state.daemons[index_of(role)].phase, Phase::Up { .. });
    state
        .renewals
        .iter()
        .find(|renewal| up && renewal.concerns(role))
        .map(|renewal| renewal.why)
}

/// No pause for the first restart, then doubling.
fn backoff(policy: &Policy, brief: usize) -> Millis {
    match brief {
        0 | 1 => 0,
        n => policy
            .backoff_min_ms
            .saturating_mul(1 << (n - 2).min(32))
            .min(policy.backoff_max_ms),
    }
}
