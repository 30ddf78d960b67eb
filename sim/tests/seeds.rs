//! What a seed does follows from the seed alone, and nothing that it does breaks a promise.

use mareedb_sim::run::{Options, run};

/// Seeds of this test: of three and of five nodes, with few and with many faults.
const SEEDS: std::ops::Range<u64> = 0..12;

#[test]
fn the_same_seed_is_the_same_life() {
    mareedb_sim::hook::install();
    for seed in SEEDS {
        let first = run(seed, &Options::default());
        // In another thread: nothing of the first life is left there.
        let second = std::thread::spawn(move || run(seed, &Options::default()));
        let second = second.join().expect("a panic is a report, too");
        let told = first.violation.as_ref().map(|violation| &violation.what);
        assert!(told.is_none(), "seed {seed}: {told:?}\n{}", first.tail);
        let open = &first.undecided;
        assert!(open.is_empty(), "seed {seed}: {open:?}");
        assert_eq!(
            (first.digest, first.steps, first.virtual_ns),
            (second.digest, second.steps, second.virtual_ns),
            "seed {seed}: two lives"
        );
        assert!(
            first.committed > 20,
            "seed {seed}: hardly anything happened"
        );
    }
}

#[test]
fn other_seeds_are_other_lives() {
    let digests: Vec<u64> = [1, 4]
        .into_iter()
        .map(|seed| run(seed, &Options::default()).digest)
        .collect();
    assert_ne!(digests[0], digests[1]);
}
