//! `cargo sim`: runs seeds, prints what they come to, and for a failure how to repeat it.

#![expect(clippy::print_stdout, reason = "it is a command")]

use clap::Parser;
use mareedb_ipc::world::Fault;
use mareedb_sim::planted::{shows, signs};
use mareedb_sim::run::{Options, Report, run};
use mareedb_sim::{hook, summary::Summary};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Deterministic simulation of clusters. A seed is a whole cluster's life: same seed, same life.
#[derive(Parser)]
#[command(name = "cargo sim")]
struct Arguments {
    /// Seeds to run: `A..B`, without B, or one seed.
    #[arg(long, default_value = "0..100", value_parser = seeds)]
    seeds: Range<u64>,
    /// Seeds at a time, each in a thread of its own.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
    /// Prints each seed's digest.
    #[arg(long)]
    digest: bool,
    /// Prints what happens as it happens, the daemons' own words too; for one seed.
    #[arg(long)]
    verbose: bool,
    /// Goes on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Plants a fault in the code, and ends well when a seed finds the promise broken that it breaks; of several (A,B or all) one after
    /// the other.
    #[arg(long, value_parser = faults)]
    planted: Option<Planted>,
    /// Events that a failure shows.
    #[arg(long, default_value_t = 40)]
    tail: usize,
    /// Where the state machines' trees are kept; without it in memory, when there is a file system for that.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Ends after so many seconds, also if not all seeds were run.
    #[arg(long)]
    limit_s: Option<u64>,
}

/// As in the server; a simulation is much allocation.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Clone)]
struct Planted(Vec<Fault>);

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|error| format!("{text}: {error}"))
    };
    match text.split_once("..") {
        Some((from, "")) => Ok(number(from)?..u64::MAX),
        Some((from, to)) => Ok(number(from)?..number(to)?),
        None => number(text).map(|seed| seed..seed + 1),
    }
}

fn faults(text: &str) -> Result<Planted, String> {
    if text == "all" {
        return Ok(Planted(Fault::ALL.to_vec()));
    }
    let named = |name: &str| {
        let mut all = Fault::ALL.into_iter();
        all.find(|fault| format!("{fault:?}") == name)
            .ok_or_else(|| format!("'{name}' is none of {:?}, or all", Fault::ALL))
    };
    text.split(',')
        .map(named)
        .collect::<Result<_, _>>()
        .map(Planted)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    hook::install();
    if arguments.verbose {
        mareedb_sim::trace::listen();
    }
    match &arguments.planted {
        None => simulate(&arguments),
        Some(Planted(faults)) => find(&arguments, faults),
    }
}

/// What several threads share.
struct Shared {
    next: AtomicU64,
    end: u64,
    stop: AtomicBool,
    summary: Mutex<Summary>,
}

/// Runs the seeds on as many threads as were asked for. `each` is told of every report, and says whether to go on.
fn run_all(
    arguments: &Arguments,
    planted: Option<Fault>,
    each: &(dyn Fn(&Report, &mut Summary) -> bool + Sync),
) -> Summary {
    let shared = Shared {
        next: AtomicU64::new(arguments.seeds.start),
        end: arguments.seeds.end,
        stop: AtomicBool::new(false),
        summary: Mutex::new(Summary::new()),
    };
    let options = Options {
        planted,
        aloud: arguments.verbose,
        dir: arguments.dir.clone(),
    };
    let limit = arguments.limit_s.map(Duration::from_secs);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                while !shared.stop.load(Ordering::Relaxed) {
                    let seed = shared.next.fetch_add(1, Ordering::Relaxed);
                    if seed >= shared.end {
                        return;
                    }
                    let report = run(seed, &options);
                    let mut summary = shared.summary.lock().expect("no poison");
                    summary.add(&report);
                    let over = limit.is_some_and(|limit| summary.took() > limit);
                    if !each(&report, &mut summary) || over {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    shared.summary.into_inner().expect("no poison")
}

fn simulate(arguments: &Arguments) -> ExitCode {
    let failed = AtomicBool::new(false);
    let summary = run_all(arguments, None, &|report, summary| {
        if arguments.digest {
            println!("seed {}: digest {:016x}", report.seed, report.digest);
        }
        if let Some(why) = unsuccessful(report, arguments.tail) {
            failed.store(true, Ordering::Relaxed);
            println!("{why}");
            return arguments.keep_going;
        }
        if summary.seeds % 500 == 0 {
            println!("{summary}");
        }
        true
    });
    println!("{summary}");
    if failed.load(Ordering::Relaxed) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Why a seed is no success: a promise was broken, or of something nothing can be said.
fn unsuccessful(report: &Report, tail: usize) -> Option<String> {
    if report.violation.is_some() {
        return Some(failure(report, tail, ""));
    }
    let seed = report.seed;
    let open = report.undecided.join("\n  ");
    let told = format!("seed {seed} is undecided:\n  {open}\n  again: cargo sim --seeds {seed}\n");
    (!report.undecided.is_empty()).then_some(told)
}

/// What was seen, and how to see it again.
fn failure(report: &Report, tail: usize, options: &str) -> String {
    let lines: Vec<&str> = report.tail.lines().collect();
    let shown = &lines[lines.len().saturating_sub(tail)..];
    let what = report
        .violation
        .as_ref()
        .map_or_else(String::new, |violation| {
            format!("{}: {}", violation.id, violation.what)
        });
    format!(
        "seed {} fails: {what}\n  digest {:016x}; the last events, by seconds of virtual time:\n{}\n  again: cargo sim --seeds \
         {}{options} --verbose\n",
        report.seed,
        report.digest,
        shown.join("\n"),
        report.seed,
    )
}

/// What a search for a planted fault has come to.
#[derive(Default)]
struct Search {
    /// What showed it first, and of how many seeds.
    found: Option<(u64, String)>,
    /// What else was broken, and in how many seeds: the fault may do that, but it shows nothing.
    beside: BTreeMap<&'static str, u64>,
}

impl Search {
    /// Takes the report of the last of so many seeds. `true`: it was not found yet.
    fn add(&mut self, fault: Fault, report: &Report, seeds: u64) -> bool {
        if let Some(violation) = &report.violation {
            if shows(fault, violation) {
                let text = format!("seed {}: {}: {}", report.seed, violation.id, violation.what);
                self.found.get_or_insert((seeds, text));
            } else {
                *self.beside.entry(violation.id).or_default() += 1;
            }
        }
        self.found.is_none()
    }
}

/// Looks for a seed that finds each fault.
fn find(arguments: &Arguments, faults: &[Fault]) -> ExitCode {
    let mut missed = false;
    for fault in faults {
        let search = Mutex::new(Search::default());
        let summary = run_all(arguments, Some(*fault), &|report, summary| {
            let one = arguments.seeds.end - arguments.seeds.start == 1;
            if report.violation.is_some() && (arguments.verbose || one) {
                let options = format!(" --planted {fault:?}");
                println!("{}", failure(report, arguments.tail, &options));
            }
            let mut search = search.lock().expect("no poison");
            search.add(*fault, report, summary.seeds)
        });
        let Search { found, beside } = search.into_inner().expect("no poison");
        let beside = if beside.is_empty() {
            String::new()
        } else {
            format!("; of others: {beside:?}")
        };
        match found {
            Some((seeds, text)) => {
                println!("{fault:?}: found within {seeds} seeds; {text}{beside}");
            }
            None => {
                missed = true;
                let wanted = signs(*fault);
                println!("{fault:?}: NOT found, of {wanted:?}; {summary}{beside}");
            }
        }
    }
    if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_sim::checks::Violation;

    #[test]
    fn a_planted_fault_is_found_by_what_it_breaks_alone() {
        let report = |seed, id| Report {
            seed,
            violation: Some(Violation {
                id,
                what: String::new(),
            }),
            ..Report::default()
        };
        let mut search = Search::default();
        let mut goes_on = |report: &Report, seeds| search.add(Fault::ClockInApply, report, seeds);
        assert!(goes_on(&Report::default(), 1));
        assert!(goes_on(&report(1, "PANIC"), 2));
        assert!(goes_on(&report(2, "LIVE"), 3));
        assert!(!goes_on(&report(3, "DET-1"), 4));
        // Another thread was about to find it, too.
        assert!(!goes_on(&report(4, "DET-1"), 5));
        assert_eq!(search.found, Some((4, "seed 3: DET-1: ".to_owned())));
        assert_eq!(search.beside, BTreeMap::from([("LIVE", 1), ("PANIC", 1)]));
    }

    #[test]
    fn what_nothing_can_be_said_of_is_no_success() {
        let clean = Report::default();
        assert_eq!(unsuccessful(&clean, 10), None);
        let open = Report {
            seed: 7,
            undecided: vec!["register k1: no order was found".into()],
            ..clean
        };
        let told = unsuccessful(&open, 10).expect("no success");
        assert!(told.contains("seed 7 is undecided") && told.contains("register k1"));
    }
}
