//! What is done to the cluster in a round, and when: a function of the seed.
//!
//! What a fault meets (who leads at that moment, which pid a daemon has) is not decided here, and no schedule could repeat it.

use crate::fault::{Fault, Reach};
use crate::random::Random;
use serde::{Serialize, Serializer};

/// No fault begins before; clients have to be under way.
const FIRST_MS: u64 = 300;

/// Which node is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Who leads when the time comes.
    Leader,
    /// One after the leader, in the order of the nodes.
    Follower(usize),
    /// A node by its number.
    Node(usize),
}

/// One fault.
#[derive(Clone, Debug, Serialize)]
pub struct Injection {
    /// When, in ms after the clients began.
    pub at_ms: u64,
    /// For how long.
    pub for_ms: u64,
    /// What.
    #[serde(serialize_with = "name")]
    pub fault: &'static Fault,
    /// Where.
    pub place: Place,
    /// What else has to be decided.
    pub salt: u64,
}

fn name<S: Serializer>(fault: &&'static Fault, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(fault.name)
}

/// How faults follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// One after the other, each with time to get over it.
    Alone,
    /// Two at a time.
    Pairs,
    /// As they come.
    Storm,
}

/// What a round does.
#[derive(Clone, Debug, Serialize)]
pub struct Schedule {
    /// The seed.
    pub seed: u64,
    /// How faults follow each other.
    pub manner: Manner,
    /// When clients stop, in ms.
    pub load_ms: u64,
    /// The faults, in order of time.
    pub injections: Vec<Injection>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn new(seed: u64, nodes: usize, load_ms: u64, faults: &[&'static Fault]) -> Schedule {
        let mut random = Random::new(seed).fork("schedule", 0);
        let manner = *random.pick(&[
            Manner::Alone,
            Manner::Alone,
            Manner::Pairs,
            Manner::Storm,
            Manner::Storm,
        ]);
        let mut injections = Vec::new();
        let mut at_ms = FIRST_MS;
        while !faults.is_empty() {
            let first = draw(&mut random, faults, nodes, at_ms);
            if first.at_ms + first.for_ms + 200 > load_ms {
                // One that fits nowhere in the rest of the round ends it; a shorter one may have been left out.
                break;
            }
            let ends_ms = first.at_ms + first.for_ms;
            let pause_ms = match (manner, first.fault.reach) {
                (Manner::Storm, _) => random.within((20, 600)),
                (_, Reach::Daemon) => random.within((550, 800)),
                (_, Reach::Node) => random.within((900, 2000)),
                (_, Reach::Cluster) => random.within((1500, 2500)),
            };
            if manner == Manner::Pairs {
                let meets_ms = at_ms + random.below(first.for_ms.max(60));
                let second = draw(&mut random, faults, nodes, meets_ms);
                if second.at_ms + second.for_ms + 200 <= load_ms {
                    injections.push(second);
                }
            }
            at_ms = match manner {
                Manner::Storm => at_ms + pause_ms,
                Manner::Alone | Manner::Pairs => {
                    let second = injections.last().map_or(0, |last| last.at_ms + last.for_ms);
                    ends_ms.max(second) + pause_ms
                }
            };
            injections.push(first);
        }
        injections.sort_by_key(|injection| injection.at_ms);
        Schedule {
            seed,
            manner,
            load_ms,
            injections,
        }
    }
}

fn draw(random: &mut Random, faults: &[&'static Fault], nodes: usize, at_ms: u64) -> Injection {
    let total: u64 = faults.iter().map(|fault| fault.weight).sum();
    let mut left = random.below(total);
    let fault = faults
        .iter()
        .find(|fault| {
            let here = left < fault.weight;
            left = left.saturating_sub(fault.weight);
            here
        })
        .expect("below the sum of all weights");
    let others = nodes.saturating_sub(1).max(1) as u64;
    let number =
        |bound: u64, random: &mut Random| usize::try_from(random.below(bound)).expect("few nodes");
    let place = match random.below(5) {
        0 | 1 => Place::Leader,
        2 | 3 => Place::Follower(number(others, random)),
        _ => Place::Node(number(nodes as u64, random)),
    };
    // Short ones are as interesting as long ones, and leave room for more.
    let (low, high) = fault.lasts_ms;
    let high = if random.percent(60) {
        low + (high - low) / 4
    } else {
        high
    };
    Injection {
        at_ms,
        for_ms: random.within((low, high)),
        fault,
        place,
        salt: random.draw(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::named;

    fn text(seed: u64, list: &str) -> String {
        let schedule = Schedule::new(seed, 3, 10_000, &named(list).unwrap());
        serde_json::to_string(&schedule).unwrap()
    }

    #[test]
    fn a_seed_has_one_schedule_and_another_seed_another() {
        assert_eq!(text(1, "all"), text(1, "all"));
        assert_ne!(text(1, "all"), text(2, "all"));
    }

    #[test]
    fn every_fault_is_over_before_clients_stop_and_every_kind_is_drawn() {
        let mut drawn = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let schedule = Schedule::new(seed, 5, 10_000, &named("all").unwrap());
            assert!(!schedule.injections.is_empty(), "seed {seed}");
            for injection in &schedule.injections {
                drawn.insert(injection.fault.name);
                assert!(injection.at_ms + injection.for_ms < schedule.load_ms);
            }
            assert!(
                schedule
                    .injections
                    .is_sorted_by_key(|injection| injection.at_ms)
            );
        }
        assert_eq!(drawn.len(), crate::fault::FAULTS.len());
    }

    #[test]
    fn alone_means_that_one_is_over_before_the_next_begins() {
        let alone = (0..50)
            .map(|seed| Schedule::new(seed, 3, 10_000, &named("all").unwrap()))
            .find(|schedule| schedule.manner == Manner::Alone)
            .unwrap();
        for pair in alone.injections.windows(2) {
            assert!(pair[0].at_ms + pair[0].for_ms + 500 < pair[1].at_ms);
        }
    }

    #[test]
    fn without_faults_there_is_only_load() {
        let schedule = Schedule::new(3, 3, 10_000, &[]);
        assert_eq!(schedule.injections.len(), 0);
    }
}
