//! What many seeds come to.

use crate::run::Report;
use std::fmt;
use std::time::{Duration, Instant};

/// Sums over reports.
#[derive(Clone, Debug)]
pub struct Summary {
    began: Instant,
    /// Seeds that were run.
    pub seeds: u64,
    failures: u64,
    virtual_ns: u128,
    steps: u64,
    operations: usize,
    answered: usize,
    faults: u64,
    elections: u64,
    committed: u64,
    undecided: u64,
    healed_ns: Vec<u64>,
}

impl Summary {
    /// Of no seed yet.
    #[expect(clippy::new_without_default, reason = "it begins now")]
    pub fn new() -> Summary {
        Summary {
            began: Instant::now(),
            seeds: 0,
            failures: 0,
            virtual_ns: 0,
            steps: 0,
            operations: 0,
            answered: 0,
            faults: 0,
            elections: 0,
            committed: 0,
            undecided: 0,
            healed_ns: Vec::new(),
        }
    }

    /// Takes a report in.
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.failures += u64::from(report.violation.is_some());
        self.virtual_ns += u128::from(report.virtual_ns);
        self.steps += report.steps;
        self.operations += report.operations;
        self.answered += report.answered;
        self.faults += report.faults;
        self.elections += report.elections;
        self.committed += report.committed;
        self.undecided += report.undecided.len() as u64;
        self.healed_ns.extend(report.healed_ns);
    }

    /// How long it took so far.
    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut healed = self.healed_ns.clone();
        healed.sort_unstable();
        let at = |share: usize| {
            let last = healed.len().saturating_sub(1);
            healed
                .get(last * share / 100)
                .map_or(0, |ns| ns / 1_000_000)
        };
        let seconds = self.virtual_ns / 1_000_000_000;
        write!(
            f,
            "{} seeds, {} failed; {}.{:02} h simulated in {:.1} s; {} faults, {} elections, {} operations ({} answered, {} objects undecided), {} \
             entries, {} steps; healed in {} ms p50, {} ms p99, {} ms at most",
            self.seeds,
            self.failures,
            seconds / 3600,
            seconds % 3600 / 36,
            self.took().as_secs_f64(),
            self.faults,
            self.elections,
            self.operations,
            self.answered,
            self.undecided,
            self.committed,
            self.steps,
            at(50),
            at(99),
            at(100),
        )
    }
}
