//! `maree-db-history`: judges histories, turns them into other forms, and makes some to measure the checkers with.

// What it prints is what it is for.
#![allow(clippy::print_stdout)]

use clap::{Parser, Subcommand, ValueEnum};
use mareedb_history::check::{self, Options, Within};
use mareedb_history::generate::{Generator, Plan};
use mareedb_history::{Object, Report, Verdict, edn, json, pieces};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Judges histories of clients' operations.
///
/// Exit codes: 0 everything was checked and holds; 1 a promise was broken; 2 the file cannot be read or is no history; 3 nothing was
/// found wrong, and something could not be decided; 64 wrong arguments.
#[derive(Parser)]
#[command(name = "maree-db-history", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs all checkers over a file of JSON lines.
    Check {
        /// The history.
        file: PathBuf,
        /// Form of the output.
        #[arg(short, long, value_enum, default_value_t = Format::Text)]
        output: Format,
        /// Check it in this many pieces, to save memory; without it, as many as its size asks for.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        pieces: Option<u16>,
        /// How many positions the search for an order of one key's operations may visit.
        #[arg(long, default_value_t = Options::default().positions_max)]
        positions: usize,
        /// Keys lie in several replication groups: do not compare revisions across keys.
        #[arg(long)]
        many_groups: bool,
    },
    /// Writes a file of JSON lines as Jepsen's EDN to standard output.
    Edn {
        /// The history.
        file: PathBuf,
        /// Only one object, in the plain form that knossos and elle read: lists, register:NAME, set:NAME, counter:NAME or bank:NAME.
        #[arg(long, value_name = "OBJECT")]
        of: Option<String>,
    },
    /// Makes a history of a correct store, to measure the checkers with.
    Generate {
        /// Where it goes, as JSON lines.
        file: PathBuf,
        /// How many operations.
        #[arg(long, default_value_t = 1_000_000)]
        operations: u64,
        /// What all chance follows from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many clients.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
        clients: u32,
    },
}

/// Form of the output.
#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// What a check comes to.
#[derive(Serialize)]
struct Judgement {
    schema_version: u32,
    verdict: Verdict,
    reports: Vec<Report>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match command {
        Command::Check {
            file,
            output,
            pieces: asked,
            positions,
            many_groups,
        } => {
            let options = Options {
                positions_max: positions,
                revisions_grow: if many_groups {
                    Within::Key
                } else {
                    Within::Group
                },
            };
            let count = match asked {
                Some(count) => usize::from(count),
                None => pieces::advised(&file)
                    .map_err(|error| format!("{}: {error}", file.display()))?,
            };
            let reports = pieces::check(&file, count, &options)?;
            let verdict = check::verdict(&reports);
            match output {
                Format::Text => text(&reports, verdict),
                Format::Json => {
                    let judgement = Judgement {
                        schema_version: 1,
                        verdict,
                        reports,
                    };
                    println!("{}", serde_json::to_string(&judgement)?);
                }
            }
            Ok(ExitCode::from(match verdict {
                Verdict::Holds => 0,
                Verdict::Violated => 1,
                Verdict::Undecided => 3,
            }))
        }
        Command::Edn { file, of } => {
            let scope = match &of {
                None => edn::Scope::All,
                Some(name) => edn::Scope::One(object(name)?),
            };
            let history = json::read(&file)?;
            let mut out = BufWriter::new(io::stdout().lock());
            edn::write(&mut out, &history, scope)?;
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Generate {
            file,
            operations,
            seed,
            clients,
        } => {
            let mut out = BufWriter::new(File::create(&file)?);
            let plan = Plan {
                clients,
                ..Plan::new(seed, operations)
            };
            for operation in Generator::new(plan) {
                json::write(&mut out, &operation)?;
            }
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn object(name: &str) -> Result<Object<'_>, String> {
    match name.split_once(':') {
        None if name == "lists" => Ok(Object::Lists),
        Some(("register", name)) => Ok(Object::Register(name)),
        Some(("set", name)) => Ok(Object::Set(name)),
        Some(("counter", name)) => Ok(Object::Counter(name)),
        Some(("bank", name)) => Ok(Object::Bank(name)),
        _ => Err(format!(
            "'{name}' is no object: lists, register:NAME, set:NAME, counter:NAME or bank:NAME"
        )),
    }
}

fn text(reports: &[Report], verdict: Verdict) {
    println!(
        "{:<10} {:>9} {:>11} {:>11} {:>10}",
        "checker", "objects", "operations", "violations", "undecided"
    );
    for report in reports {
        println!(
            "{:<10} {:>9} {:>11} {:>11} {:>10}",
            report.checker,
            report.objects,
            report.operations,
            report.violations_total,
            report.undecided_total
        );
    }
    for report in reports {
        for violation in &report.violations {
            println!(
                "\n{}: {}: {}",
                violation.object, violation.anomaly, violation.explanation
            );
            for (at, operation) in violation.operations.iter().enumerate() {
                let line = serde_json::to_string(operation).unwrap_or_default();
                println!("  T{}: {line}", at + 1);
            }
        }
        for undecided in &report.undecided {
            println!("\n{}: undecided: {}", undecided.object, undecided.why);
        }
    }
    println!(
        "\n{}",
        match verdict {
            Verdict::Holds => "Everything was checked and holds.",
            Verdict::Undecided => "Nothing was found wrong; not everything could be decided.",
            Verdict::Violated => "A promise was broken.",
        }
    );
}
