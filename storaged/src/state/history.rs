//! How long superseded versions can be read: by logged time, since a revision clock that jumps would end the past early, or, when the
//! jump is taken back, keep it until the wall clock has caught up.

use super::records::System;
use mareedb_ipc::wire::Revision;

/// Marks in the time that versions are kept: they are kept for an eighth longer at most.
const MARKS: u64 = 8;
/// Marks that are kept at most, whatever settings there were.
const MARKS_MAX: usize = 32;

/// Whether a state that came from elsewhere can be: else old versions would be kept for ever, or none would be readable.
pub(super) fn is_sound(system: &System) -> bool {
    let marks = &system.marks;
    let grow = marks.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
    let last = marks
        .last()
        .is_none_or(|(at, revision)| *at <= system.ms && *revision <= system.clock);
    marks.len() <= MARKS_MAX && grow && last && system.oldest <= system.clock
}

/// After an entry: moves the oldest revision that may be read. It never goes back, since what lies before it may be gone already (SM-6).
///
/// `before`: logged time and revision before the entry. What was written before a long pause goes as soon as the pause is over.
pub(super) fn advance(system: &mut System, before: (u64, Revision)) {
    let (now, keep) = (system.ms, system.rules.history_ms);
    let since = system.marks.last().map(|(at, _)| now.saturating_sub(*at));
    if since.is_none_or(|since| since >= (keep / MARKS).max(1)) {
        match system.marks.last_mut() {
            Some(last) if last.0 == before.0 => last.1 = before.1,
            Some(last) if last.0 < before.0 && before.0 < now => system.marks.push(before),
            _ => {}
        }
        system.marks.push((now, system.clock));
    }
    let past = |at: &u64| now.saturating_sub(*at) >= keep;
    if let Some(newest) = system.marks.iter().rposition(|(at, _)| past(at)) {
        system.oldest = system.oldest.max(system.marks[newest].1);
        system.marks.drain(..newest);
    }
    let many = system.marks.len().saturating_sub(MARKS_MAX);
    system.marks.drain(..many);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::command::Rules;

    /// Whatever the entries' times: all of the last `keep` can be read, and no more than an eighth longer is kept.
    #[test]
    fn the_past_is_kept_for_its_time_and_not_much_longer() {
        let keep = 800;
        let rules = Rules {
            history_ms: keep,
            ..Rules::default()
        };
        let mut system = System::first(&rules);
        // Times at which there was a new revision: those before it were superseded then.
        let mut revisions: Vec<(u64, Revision)> = Vec::new();
        let mut random = 1u64;
        for entry in 0..20_000u64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let elapsed = match random >> 60 {
                0 => 0,
                15 if entry % 50 == 0 => 10 * keep,
                by => by * by,
            };
            let before = (system.ms, system.clock);
            system.ms += elapsed;
            // The revision clock may leap and stand still.
            system.clock = Revision(system.clock.0 + 1 + (random >> 40) % 100_000);
            advance(&mut system, before);
            assert!(is_sound(&system));
            revisions.push((system.ms, system.clock));
            // The state as of `keep` ago is the one of the last revision up to then.
            let then = system.ms.saturating_sub(keep);
            let at = revisions.partition_point(|(at, _)| *at <= then);
            if let Some((_, readable)) = at.checked_sub(1).map(|at| revisions[at]) {
                assert!(system.oldest <= readable, "entry {entry}");
            }
            // An entry's time passes before it: what was there at `keep` and an eighth before the last pause is gone.
            let long_ago = before.0.saturating_sub(keep + keep / MARKS + 1);
            let at = revisions.partition_point(|(at, _)| *at < long_ago);
            if let Some((_, gone)) = at.checked_sub(1).map(|at| revisions[at]) {
                assert!(system.oldest >= gone, "entry {entry}");
            }
        }
    }
}
