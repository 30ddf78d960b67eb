//! A random world that must never see a rule broken.

use super::tests::Trial;
use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

/// What the world may do next.
#[derive(Clone, Debug)]
enum Move {
    Crash(usize),
    Corrupt(usize, usize),
    Verdict(usize),
    DiskFault(usize),
    Silent(usize),
    Serve(usize),
    SpawnFails(usize),
    Pass(Millis),
    Stop,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let role = 0usize..3;
    let one = prop_oneof![
        8 => role.clone().prop_map(Move::Crash),
        2 => (role.clone(), role.clone()).prop_map(|(a, b)| Move::Corrupt(a, b)),
        1 => role.clone().prop_map(Move::Verdict),
        1 => role.clone().prop_map(Move::DiskFault),
        3 => role.clone().prop_map(Move::Silent),
        4 => role.clone().prop_map(Move::Serve),
        1 => role.prop_map(Move::SpawnFails),
        6 => (0u64..3000).prop_map(Move::Pass),
    ];
    let stop = prop::option::weighted(0.3, 0usize..120);
    (prop::collection::vec(one, 0..120), stop).prop_map(|(mut moves, stop)| {
        if let Some(at) = stop {
            let at = at.min(moves.len());
            moves.insert(at, Move::Stop);
        }
        moves
    })
}

/// Real processes, as far as the policy can tell: which run, which of them die by an order.
#[derive(Default)]
struct World {
    running: HashMap<usize, bool>,
    finished: Option<ExitCode>,
    stopped: bool,
    faulty: bool,
    renewals: u64,
}

impl World {
    /// Does what the policy says and checks that it may.
    fn obey(&mut self, actions: &[Action]) -> Result<(), TestCaseError> {
        for action in actions {
            prop_assert!(self.finished.is_none(), "after the end: {action:?}");
            match *action {
                Action::Spawn(role) => {
                    prop_assert!(!self.stopped, "started {role:?} after a stop");
                    prop_assert!(!self.faulty, "STO-FAULT: started {role:?}");
                    let old = self.running.insert(index_of(role), false);
                    prop_assert!(old.is_none(), "RING-8: {role:?} runs already");
                }
                Action::Kill(role, _) => {
                    let doomed = self.running.get_mut(&index_of(role));
                    prop_assert!(doomed.is_some(), "killed {role:?}, which does not run");
                    *doomed.unwrap() = true;
                }
                Action::Terminate(role) | Action::HandOver(role) => {
                    prop_assert!(self.running.contains_key(&index_of(role)));
                }
                Action::RenewLinks(a, b) => {
                    prop_assert!(!self.running.contains_key(&index_of(a)), "{a:?} is up");
                    prop_assert!(!self.running.contains_key(&index_of(b)), "{b:?} is up");
                    self.renewals += 1;
                }
                Action::Escalate(_) => {}
                Action::Finish(code) => {
                    self.finished = Some(code);
                    let said = code == ExitCode::DiskFault;
                    prop_assert_eq!(said, self.faulty, "STO-FAULT");
                    // Only one that SIGKILL did not end in time may be left.
                    let healthy = self.running.values().any(|doomed| !doomed);
                    prop_assert!(!healthy, "left {:?}", self.running);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_sequence_of_events_breaks_a_rule(moves in moves()) {
        let mut trial = Trial { state: State::new(Policy::default()), now: 0 };
        let mut world = World::default();
        let actions = trial.event(Event::Tick);
        world.obey(&actions)?;
        for step in moves {
            let event = match step {
                Move::Pass(ms) => { trial.now += ms; Event::Tick }
                Move::Stop => { world.stopped = true; Event::Stop }
                Move::Serve(i) => Event::Serving(START_ORDER[i]),
                Move::Silent(i) => Event::Silent(START_ORDER[i], 1000),
                Move::Crash(i) => Event::Exited(START_ORDER[i], Cause::Crash),
                Move::Verdict(i) => Event::Exited(START_ORDER[i], Cause::Verdict(ExitCode::LogDamaged)),
                Move::DiskFault(i) => Event::Exited(START_ORDER[i], Cause::Verdict(ExitCode::DiskFault)),
                Move::SpawnFails(i) => Event::SpawnFailed(START_ORDER[i]),
                Move::Corrupt(i, j) => {
                    let cause = Cause::CorruptLink { blamed: START_ORDER[j], other: START_ORDER[(j + 1) % 3] };
                    Event::Exited(START_ORDER[i], cause)
                }
            };
            if let Event::Exited(role, _) | Event::SpawnFailed(role) = event
                && world.running.remove(&index_of(role)).is_none() {
                    continue;
            }
            if matches!(step, Move::DiskFault(_)) && world.finished.is_none() {
                world.faulty = true;
            }
            let actions = trial.event(event);
            world.obey(&actions)?;
        }
        // From here on nothing goes wrong any more: ordered deaths happen, time passes. Either all three run, or the node has ended.
        for _ in 0..40 {
            if world.finished.is_some() {
                break;
            }
            let doomed: Vec<usize> = world.running.iter().filter(|(_, d)| **d || trial.state.is_ending()).map(|(i, _)| *i).collect();
            for index in doomed {
                world.running.remove(&index);
                let actions = trial.event(Event::Exited(START_ORDER[index], Cause::Crash));
                world.obey(&actions)?;
            }
            trial.now += 1000;
            let actions = trial.event(Event::Tick);
            world.obey(&actions)?;
        }
        prop_assert!(world.finished.is_some() || world.running.len() == 3, "stuck: {:?}", trial.state);
        prop_assert!(!world.stopped || world.finished.is_some(), "a stop does not end");
    }
}
