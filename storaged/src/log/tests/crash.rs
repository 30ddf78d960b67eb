//! DUR-2: lives of a log, each ended by a crash, over a disk that loses, tears, reorders, fails, is full and rots.

use super::seeds;
use super::world::{Tally, World};

pub(super) const SEEDS: u64 = 200;

/// Ten lives.
pub(super) fn run(seed: u64, total: &mut Tally) {
    let mut world = World::new(seed);
    for _ in 0..10 {
        world.live_and_crash(120);
    }
    total.add(&world.tally);
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.rolls += other.rolls;
        self.moves += other.moves;
        self.redelivered += other.redelivered;
        self.failed += other.failed;
        self.full += other.full;
        self.interrupted += other.interrupted;
        self.rotten += other.rotten;
        self.excused += other.excused;
    }
}

#[test]
fn nothing_acknowledged_is_lost_in_hundreds_of_crashes() {
    let mut met = Tally::default();
    let seeds = seeds(SEEDS);
    let all = seeds.clone().count() as u64 >= SEEDS;
    for seed in seeds {
        run(seed, &mut met);
    }
    // Otherwise the crashes hit little.
    let often = |what: &str, count: u64, least: u64| {
        assert!(!all || count > least, "{what}: only {count}");
        eprintln!("{what}: {count}");
    };
    often("segments begun", met.rolls, 500);
    often("records moved", met.moves, 50);
    often("operations lost and delivered again", met.redelivered, 500);
    often("writes failed", met.failed, 20);
    often("segments without room", met.full, 50);
    often("recoveries interrupted", met.interrupted, 300);
    often("bits rotten", met.rotten, 300);
    often("bits of the unconfirmed end rotten", met.excused, 5);
}
