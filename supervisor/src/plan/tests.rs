//! The rules one by one.

use super::*;

const G: Role = Role::Gateway;
const C: Role = Role::Consensus;
const S: Role = Role::Storage;

pub(super) struct Trial {
    pub(super) state: State,
    pub(super) now: Millis,
}

impl Trial {
    fn started() -> Trial {
        let mut trial = Trial {
            state: State::new(Policy::default()),
            now: 0,
        };
        let actions = trial.event(Event::Tick);
        assert_eq!(
            actions,
            [Action::Spawn(S), Action::Spawn(C), Action::Spawn(G)]
        );
        trial
    }

    pub(super) fn event(&mut self, event: Event) -> Vec<Action> {
        let (state, actions) = decide(self.state.clone(), event, self.now);
        self.state = state;
        actions
    }

    fn crash(&mut self, role: Role) -> Vec<Action> {
        self.event(Event::Exited(role, Cause::Crash))
    }

    fn is_backing_off(&self, role: Role) -> bool {
        matches!(self.state.daemons[index_of(role)].phase, Phase::Down { due } if due > self.now)
    }

    /// Lets time pass until the policy asks for a tick.
    fn wait(&mut self) -> (Millis, Vec<Action>) {
        let before = self.now;
        self.now = self.state.wake_at().expect("something is due").max(before);
        let actions = self.event(Event::Tick);
        (self.now - before, actions)
    }

    fn serve(&mut self, role: Role, ms: Millis) {
        self.event(Event::Serving(role));
        self.now += ms;
    }
}

#[test]
fn the_first_restart_is_immediate() {
    let mut trial = Trial::started();
    trial.now = 5;
    assert_eq!(trial.crash(G), [Action::Spawn(G)]);
}

#[test]
fn brief_lives_are_backed_off_from_up_to_the_cap() {
    let mut trial = Trial::started();
    assert_eq!(trial.crash(C), [Action::Spawn(C)]);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(trial.crash(C), []);
        assert!(trial.is_backing_off(C));
        let (pause, actions) = trial.wait();
        assert_eq!(actions, [Action::Spawn(C)]);
        pauses.push(pause);
    }
    assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000, 2000]);
}

#[test]
fn a_second_of_service_forgives() {
    let mut trial = Trial::started();
    for _ in 0..5 {
        trial.crash(S);
        if trial.state.wake_at().is_some() {
            trial.wait();
        }
    }
    trial.serve(S, 1000);
    assert_eq!(trial.crash(S), [Action::Spawn(S)]);
    // One who runs long but never serves is not forgiven.
    assert_eq!(trial.crash(S), [Action::Spawn(S)]);
    trial.now += 60_000;
    assert_eq!(trial.crash(S), []);
}

#[test]
fn twenty_deaths_in_a_minute_restart_all_three_over_new_links_and_again_end_the_node() {
    let mut trial = Trial::started();
    for _ in 0..19 {
        trial.serve(G, 1500);
        assert_eq!(trial.crash(G), [Action::Spawn(G)]);
    }
    trial.serve(G, 1500);
    assert_eq!(
        trial.crash(G),
        [
            Action::Escalate(G),
            Action::Kill(S, Why::Escalation),
            Action::Kill(C, Why::Escalation),
        ]
    );
    assert_eq!(trial.crash(S), [Action::RenewLinks(S, G)]);
    assert_eq!(
        trial.crash(C),
        [
            Action::RenewLinks(S, C),
            Action::RenewLinks(C, G),
            Action::Spawn(S),
            Action::Spawn(C),
            Action::Spawn(G),
        ]
    );
    for _ in 0..19 {
        trial.serve(C, 1500);
        assert_eq!(trial.crash(C), [Action::Spawn(C)]);
    }
    trial.serve(C, 1500);
    assert_eq!(trial.crash(C), [Action::Terminate(G)]);
    assert_eq!(trial.crash(G), [Action::Terminate(S)]);
    assert_eq!(trial.crash(S), [Action::Finish(ExitCode::CrashLoop)]);
}

#[test]
fn deaths_outside_the_window_do_not_count() {
    let mut trial = Trial::started();
    for _ in 0..100 {
        trial.serve(G, 3200);
        assert_eq!(trial.crash(G), [Action::Spawn(G)]);
    }
}

#[test]
fn an_escalation_long_ago_is_not_a_relapse() {
    let mut trial = Trial::started();
    for round in 0..3 {
        for _ in 0..19 {
            trial.serve(G, 1500);
            trial.crash(G);
        }
        trial.serve(G, 1500);
        assert_eq!(trial.crash(G)[0], Action::Escalate(G), "round {round}");
        trial.crash(S);
        trial.crash(C);
        trial.now += 600_000;
    }
}

#[test]
fn a_corrupt_link_takes_both_ends_down_before_it_is_replaced() {
    let mut trial = Trial::started();
    let cause = Cause::CorruptLink {
        blamed: C,
        other: S,
    };
    assert_eq!(
        trial.event(Event::Exited(S, cause)),
        [Action::Kill(C, Why::LinkReplaced)]
    );
    assert_eq!(trial.event(Event::Tick), []);
    assert_eq!(
        trial.crash(C),
        [Action::RenewLinks(C, S), Action::Spawn(S), Action::Spawn(C)]
    );
    assert_eq!(trial.state.daemons[index_of(C)].deaths.len(), 1);
    assert_eq!(trial.state.daemons[index_of(S)].deaths.len(), 0);
}

#[test]
fn both_ends_may_report_the_same_link() {
    let mut trial = Trial::started();
    let cause = Cause::CorruptLink {
        blamed: C,
        other: S,
    };
    trial.event(Event::Exited(S, cause));
    // consensusd was killed, but had already ended by itself with the same finding.
    let actions = trial.event(Event::Exited(C, cause));
    assert_eq!(actions[0], Action::RenewLinks(C, S));
    assert_eq!(
        actions
            .iter()
            .filter(|a| matches!(a, Action::RenewLinks(..)))
            .count(),
        1
    );
}

#[test]
fn one_that_cannot_even_attach_gets_all_its_links_replaced() {
    let mut trial = Trial::started();
    assert_eq!(
        trial.event(Event::Exited(C, Cause::CorruptAttach)),
        [
            Action::Kill(S, Why::LinkReplaced),
            Action::Kill(G, Why::LinkReplaced),
        ]
    );
    assert_eq!(trial.crash(G), [Action::RenewLinks(C, G), Action::Spawn(G)]);
    assert_eq!(
        trial.crash(S),
        [Action::RenewLinks(C, S), Action::Spawn(S), Action::Spawn(C)]
    );
}

#[test]
fn a_silent_daemon_is_killed_counted_once_and_restarted() {
    let mut trial = Trial::started();
    trial.serve(S, 5000);
    assert_eq!(
        trial.event(Event::Silent(S, 1000)),
        [Action::Kill(S, Why::Hung)]
    );
    assert_eq!(trial.event(Event::Silent(S, 1000)), []);
    assert_eq!(trial.crash(S), [Action::Spawn(S)]);
    assert_eq!(trial.state.daemons[index_of(S)].deaths.len(), 1);
}

#[test]
fn a_verdict_is_believed_the_second_time() {
    let mut trial = Trial::started();
    let verdict = Cause::Verdict(ExitCode::LogDamaged);
    assert_eq!(trial.event(Event::Exited(S, verdict)), [Action::Spawn(S)]);
    assert_eq!(
        trial.event(Event::Exited(S, verdict)),
        [Action::Terminate(G)]
    );
    trial.crash(G);
    assert_eq!(trial.crash(C), [Action::Finish(ExitCode::LogDamaged)]);
}

/// STO-FAULT
#[test]
fn a_fault_of_the_disk_is_believed_at_once() {
    let mut trial = Trial::started();
    trial.serve(S, 5000);
    let verdict = Cause::Verdict(ExitCode::DiskFault);
    assert_eq!(
        trial.event(Event::Exited(S, verdict)),
        [Action::Terminate(G)]
    );
    trial.crash(G);
    assert_eq!(trial.crash(C), [Action::Finish(ExitCode::DiskFault)]);
}

/// STO-FAULT
#[test]
fn a_fault_of_the_disk_is_believed_of_one_that_was_being_stopped_or_killed() {
    let verdict = Cause::Verdict(ExitCode::DiskFault);
    // In the closing flush.
    let mut trial = Trial::started();
    trial.event(Event::Stop);
    trial.crash(G);
    assert_eq!(trial.crash(C), [Action::Terminate(S)]);
    assert_eq!(
        trial.event(Event::Exited(S, verdict)),
        [Action::Finish(ExitCode::DiskFault)]
    );
    // Killed while it left its mark on a sick disk.
    let orders = [
        Event::Silent(S, 60_000),
        Event::Exited(C, Cause::CorruptAttach),
    ];
    for order in orders {
        let mut trial = Trial::started();
        assert!(matches!(trial.event(order)[..], [Action::Kill(S, _), ..]));
        let actions = trial.event(Event::Exited(S, verdict));
        assert!(trial.state.is_ending(), "{order:?}");
        assert!(!actions.contains(&Action::Spawn(S)), "{actions:?}");
    }
    // A second request to stop.
    let mut trial = Trial::started();
    trial.event(Event::Stop);
    trial.event(Event::Stop);
    trial.event(Event::Exited(S, verdict));
    trial.crash(G);
    assert_eq!(trial.crash(C), [Action::Finish(ExitCode::DiskFault)]);
}

/// STO-FAULT: systemd starts a node again that ended with 80.
#[test]
fn a_fault_of_the_disk_replaces_the_code_of_a_crash_loop() {
    let mut trial = Trial::started();
    while !trial.state.is_ending() {
        if trial.crash(G).contains(&Action::Escalate(G)) {
            trial.crash(S);
            trial.crash(C);
        } else if trial.is_backing_off(G) {
            trial.wait();
        }
    }
    assert_eq!(trial.crash(C), [Action::Terminate(S)]);
    assert_eq!(
        trial.event(Event::Exited(S, Cause::Verdict(ExitCode::DiskFault))),
        [Action::Finish(ExitCode::DiskFault)]
    );
}

#[test]
fn a_slow_crash_loop_escalates_and_ends_the_node() {
    // It dies 1.8 s after its start, back-off 2 s: sixteen deaths in a minute. The second one takes a minute to die, so that its
    // twenty lives are longer than the time of a relapse.
    for life_ms in [1800, 61_000] {
        let mut trial = Trial::started();
        let (mut deaths, mut escalations) = (0, 0);
        while !trial.state.is_ending() {
            trial.now += life_ms;
            let mut actions = trial.crash(G);
            deaths += 1;
            if actions.contains(&Action::Escalate(G)) {
                escalations += 1;
                trial.crash(S);
                actions = trial.crash(C);
            }
            if !trial.state.is_ending() && !actions.contains(&Action::Spawn(G)) {
                trial.wait();
            }
            assert!(deaths < 100, "it goes on for ever");
        }
        assert_eq!((deaths, escalations), (40, 1), "{life_ms}");
    }
}

#[test]
fn silence_is_no_service() {
    let mut trial = Trial::started();
    for silent in 0..3 {
        trial.serve(C, 300 + 5000);
        let brief = trial.state.daemons[index_of(C)].brief;
        assert_eq!(brief, silent);
        trial.event(Event::Silent(C, 5000));
        trial.crash(C);
        if trial.is_backing_off(C) {
            trial.wait();
        }
    }
    // One that beat for a second before is forgiven.
    trial.serve(C, 1000 + 5000);
    trial.event(Event::Silent(C, 5000));
    assert_eq!(trial.crash(C), [Action::Spawn(C)]);
}

#[test]
fn long_service_forgives_however_it_ends() {
    let verdict = Cause::Verdict(ExitCode::OsUnfit);
    for ends in 0..3 {
        let mut trial = Trial::started();
        assert_eq!(trial.event(Event::Exited(S, verdict)), [Action::Spawn(S)]);
        trial.serve(S, 60_000);
        match ends {
            0 => assert_eq!(trial.crash(S), [Action::Spawn(S)]),
            1 => {
                trial.event(Event::Silent(S, 1000));
                trial.crash(S);
            }
            // Killed for the sake of a link.
            _ => {
                trial.event(Event::Exited(C, Cause::CorruptAttach));
                trial.crash(S);
                trial.crash(G);
            }
        }
        let actions = trial.event(Event::Exited(S, verdict));
        assert_eq!(actions, [Action::Spawn(S)], "{ends}");
    }
}

#[test]
fn a_verdict_after_service_is_new() {
    let mut trial = Trial::started();
    let verdict = Cause::Verdict(ExitCode::OsUnfit);
    for _ in 0..3 {
        trial.serve(S, 1000);
        assert_eq!(trial.event(Event::Exited(S, verdict)), [Action::Spawn(S)]);
    }
}

#[test]
fn a_stop_goes_from_the_network_to_the_disk() {
    let mut trial = Trial::started();
    assert_eq!(trial.event(Event::Stop), [Action::Terminate(G)]);
    assert_eq!(trial.crash(G), [Action::Terminate(C)]);
    assert_eq!(trial.crash(C), [Action::Terminate(S)]);
    assert_eq!(trial.crash(S), [Action::Finish(ExitCode::Done)]);
    assert_eq!(trial.event(Event::Tick), []);
}

#[test]
fn leaderships_are_handed_over_while_the_gateway_still_runs() {
    let mut trial = Trial::started();
    trial.event(Event::Serving(C));
    assert_eq!(trial.event(Event::Stop), [Action::HandOver(C)]);
    assert_eq!(trial.event(Event::Tick), []);
    assert_eq!(trial.event(Event::HandedOver), [Action::Terminate(G)]);
    // Without an answer it goes on after a tenth of the limit, or when the daemon dies over it.
    for dies in [false, true] {
        let mut trial = Trial::started();
        trial.event(Event::Serving(C));
        trial.event(Event::Stop);
        if dies {
            assert_eq!(trial.crash(C), [Action::Terminate(G)]);
        } else {
            assert_eq!(trial.wait(), (1000, vec![Action::Terminate(G)]));
        }
    }
}

#[test]
fn a_stop_has_an_end_and_each_daemon_its_share() {
    let mut trial = Trial::started();
    trial.event(Event::Stop);
    let mut killed = Vec::new();
    for role in [G, C, S] {
        let (_, actions) = trial.wait();
        assert_eq!(actions, [Action::Kill(role, Why::StopLimit)]);
        killed.push(trial.now);
        trial.crash(role);
    }
    assert_eq!(killed, [4000, 7000, 10_000]);
}

#[test]
fn a_process_that_survives_sigkill_does_not_hold_the_node() {
    let mut trial = Trial::started();
    trial.event(Event::Stop);
    let mut all = Vec::new();
    while !all.contains(&Action::Finish(ExitCode::Done)) {
        all.extend(trial.wait().1);
        assert!(trial.now < 60_000 && all.len() < 20, "{all:?}");
    }
}

#[test]
fn asking_twice_kills_at_once() {
    let mut trial = Trial::started();
    trial.event(Event::Stop);
    assert_eq!(
        trial.event(Event::Stop),
        [
            Action::Kill(G, Why::StopLimit),
            Action::Kill(C, Why::StopLimit),
            Action::Kill(S, Why::StopLimit),
        ]
    );
    trial.crash(G);
    trial.crash(S);
    assert_eq!(trial.crash(C), [Action::Finish(ExitCode::Done)]);
}

#[test]
fn a_pause_of_the_machine_kills_nobody() {
    let limits = Limits {
        tick_ms: 50,
        serving_ms: 1000,
        starting_ms: 60_000,
    };
    let mut heart = Heart::new(7);
    assert!(!heart.tick(8, true, &limits));
    // An hour passes between these two ticks: still one tick.
    assert!(!heart.tick(8, true, &limits));
    assert!(!heart.tick(9, true, &limits));
    let silent: Vec<bool> = (0..20).map(|_| heart.tick(9, true, &limits)).collect();
    assert_eq!(silent.iter().position(|s| *s), Some(19));
}

#[test]
fn recovery_may_take_longer_than_a_hang() {
    let limits = Limits {
        tick_ms: 50,
        serving_ms: 1000,
        starting_ms: 60_000,
    };
    let mut heart = Heart::new(7);
    // `serving` is what the predecessor left on the board.
    assert!((0..1199).all(|_| !heart.tick(7, true, &limits)));
    assert!(!heart.is_alive());
    assert!(heart.tick(7, true, &limits));
}
