//! Durable appends a second: `cargo bench -p mareedb-storaged --bench log [-- --repeat N --ms N -o json]`.
//!
//! A real storaged, in a process of its own, on a directory of the current file system; this process is its consensusd. So
//! many appends are kept open: each is a message with one entry on the log ring, and is done when the ring's head has passed
//! it, which is the product's acknowledgement. Beside it, in the same run and on the same file system, the disk alone: one
//! write after the other, O_DSYNC and O_DIRECT, of as many bytes as a unit with one such entry takes, into a file that was
//! written before. A repetition runs all cases before the next one begins.

mod appender;
mod raw;
mod report;

use appender::Appender;
use mareedb_ipc::Inheritance;
use raw::Raw;
use report::{Case, Figure};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Bytes of an entry, and of the blocks of a unit that holds one.
const SIZES: [(usize, usize); 2] = [(256, 4096), (16 << 10, 20 << 10)];
const CONCURRENT: [usize; 4] = [1, 8, 64, 512];

struct Arguments {
    repeat: usize,
    time: Duration,
    json: bool,
    only: Option<usize>,
}

impl Arguments {
    fn parse() -> Result<Arguments, String> {
        let mut arguments = Arguments {
            repeat: 5,
            time: Duration::from_millis(500),
            json: false,
            only: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word}: a value is missing"));
            let number = |text: String| {
                text.parse()
                    .map_err(|error| format!("{word} {text}: {error}"))
            };
            match word.as_str() {
                // What `cargo bench` adds.
                "--bench" => {}
                "--repeat" => arguments.repeat = number(value()?)?,
                "--ms" => arguments.time = Duration::from_millis(number(value()?)? as u64),
                "--only" => arguments.only = Some(number(value()?)?),
                "-o" | "--output" => arguments.json = value()? == "json",
                _ => {
                    return Err(format!(
                        "{word}: known are --repeat N, --ms N, --only CONCURRENT, -o json"
                    ));
                }
            }
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    if Inheritance::present() {
        let exit = match Inheritance::from_env() {
            Ok(inheritance) => mareedb_storaged::run(inheritance).code(),
            Err(_) => 1,
        };
        return ExitCode::from(exit);
    }
    let text = match Arguments::parse() {
        Ok(arguments) => measure(&arguments),
        Err(why) => {
            // Nothing else could be done about it.
            let _ = writeln!(std::io::stderr(), "{why}");
            return ExitCode::FAILURE;
        }
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .expect("standard output");
    ExitCode::SUCCESS
}

fn measure(arguments: &Arguments) -> String {
    let dir = tempfile::tempdir_in(".").expect("a directory on the disk");
    let mut appender = Appender::start(&dir.path().join("node"));
    let mut raws = SIZES.map(|(_, blocks)| Raw::create(&dir.path().join("raw"), blocks));
    // Segments are made, caches filled.
    for _ in 0..2 {
        appender.run(64, SIZES[0].0, arguments.time);
    }
    let mut figures: Vec<(Case, Vec<Figure>)> = Vec::new();
    for _ in 0..arguments.repeat {
        let mut note =
            |case: Case, figure: Figure| match figures.iter_mut().find(|(known, _)| *known == case)
            {
                Some((_, figures)) => figures.push(figure),
                None => figures.push((case, vec![figure])),
            };
        for ((bytes, blocks), raw) in SIZES.into_iter().zip(&mut raws) {
            note(Case::Raw { bytes, blocks }, raw.run(arguments.time));
            for concurrent in CONCURRENT {
                if arguments.only.is_none_or(|only| only == concurrent) {
                    let figure = appender.run(concurrent, bytes, arguments.time);
                    note(Case::Append { bytes, concurrent }, figure);
                }
            }
        }
    }
    if arguments.json {
        report::json(&figures)
    } else {
        report::table(&figures)
    }
}
