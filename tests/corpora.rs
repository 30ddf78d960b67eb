//! The fuzz targets over their committed corpora and their seeds: what was ever found stays mended, and each input still gets
//! to where it got.

// The fuzzer alone needs some of it.
#[allow(dead_code)]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

#[test]
fn every_input_of_the_corpora_is_borne() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for target in targets::TARGETS {
        let dir = corpora.join(target.name);
        let mut inputs: Vec<_> = std::fs::read_dir(&dir)
            .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        assert!(!inputs.is_empty(), "{}", dir.display());
        inputs.sort();
        for input in inputs {
            // Seen when it panics.
            eprintln!("{}", input.display());
            (target.run)(&std::fs::read(&input).expect("an input"));
        }
        for seed in (target.seeds)() {
            (target.run)(&seed);
        }
    }
}
