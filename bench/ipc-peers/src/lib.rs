//! Messages between two processes: Maree-DB's rings, a Unix socket, and iceoryx2, in one run: `cargo bench-ipc`.
//!
//! *Flow*: one process sends as fast as it can, the other one receives; messages a second. *Round trip*: one request in
//! flight, answered with as many bytes. In the rows *asleep* whoever waits sleeps, as the daemons do; in those *polled* both
//! sides look without end. Each side stays on a core, the other one or the same.
//!
//! Each run is a fresh pair of processes, which are this executable. Every message carries its number and a checksum, and
//! the receiver checks both, so that nothing is lost, repeated or optimized away. The runs of a repetition go through all
//! transports before the next repetition begins, so that a machine that becomes slower becomes so for all of them.

mod iceoryx;
mod job;
mod load;
mod message;
mod report;
mod ring;
mod run;
mod socket;

use clap::{Parser, ValueEnum};
use job::{Case, Job};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Anything that ends a run.
type Error = Box<dyn std::error::Error>;

/// Compares Maree-DB's rings with a Unix socket and iceoryx2
#[derive(Parser)]
struct Arguments {
    /// Repetitions; each runs every case once
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Milliseconds that a run measures
    #[arg(long, default_value_t = 300)]
    ms: u64,
    /// Only cases whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// How the figures are shown
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// The whole program: the parent, or one of the processes that it starts.
pub fn main() -> ExitCode {
    let done = match Job::inherited() {
        Some(job) => run::child(&job),
        None => parent(&Arguments::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The parent shows it, too.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn parent(arguments: &Arguments) -> Result<(), Error> {
    let mut cases: Vec<(Case, Vec<load::Figure>)> = Case::all()
        .into_iter()
        .filter(|case| {
            let only = arguments.only.as_deref();
            only.is_none_or(|only| case.to_string().contains(only))
        })
        .map(|case| (case, Vec::new()))
        .collect();
    let took = Duration::from_millis(arguments.ms);
    for _ in 0..arguments.repeat {
        for (case, figures) in &mut cases {
            let figure = run::pair(*case, took).map_err(|error| format!("{case}: {error}"))?;
            figures.push(figure);
        }
    }
    let rows = report::rows(&cases);
    let text = match arguments.output {
        Output::Table => report::table(&rows),
        Output::Json => serde_json::to_string_pretty(&rows)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
