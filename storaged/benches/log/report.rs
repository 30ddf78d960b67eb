//! Medians, spreads and ratios.

use serde_json::json;
use std::fmt::Write;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Writes of the disk alone, beside entries of so many bytes.
    Raw { bytes: usize, blocks: usize },
    /// Appends, so many at a time.
    Append { bytes: usize, concurrent: usize },
}

impl Case {
    fn bytes(self) -> usize {
        match self {
            Case::Raw { bytes, .. } | Case::Append { bytes, .. } => bytes,
        }
    }

    fn name(self) -> String {
        match self {
            Case::Raw { blocks, .. } => format!("disk alone, writes of {} KiB", blocks >> 10),
            Case::Append { concurrent, .. } => format!("log, {concurrent} at a time"),
        }
    }
}

/// What a run found.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Appends, or writes, a second.
    pub rate: f64,
    /// Median of what one took.
    pub p50_us: f64,
    /// Of a hundred, one takes longer.
    pub p99_us: f64,
    /// Appends in a write.
    pub per_write: f64,
    /// Median of what a write took, as the shard sees it.
    pub write_p50_us: f64,
}

/// In microseconds.
pub fn percentile(took: &mut [u64], percent: usize) -> f64 {
    took.sort_unstable();
    let last = took.len().saturating_sub(1);
    took.get(last * percent / 100)
        .map_or(0.0, |ns| *ns as f64 / 1000.0)
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

fn spread(figures: &[Figure], of: impl Fn(&Figure) -> f64) -> Spread {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    Spread {
        median: values[(values.len() - 1) / 2],
        min: values[0],
        max: values[values.len() - 1],
    }
}

/// The median of the ratios of each repetition: what changes from one to the next stays out of it.
fn ratio(figures: &[(Case, Vec<Figure>)], of: &[Figure], to: impl Fn(Case) -> bool) -> Option<f64> {
    let (_, base) = figures.iter().find(|(case, _)| to(*case))?;
    let mut ratios: Vec<f64> = of.iter().zip(base).map(|(a, b)| a.rate / b.rate).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    ratios.get((ratios.len() - 1) / 2).copied()
}

fn to_disk(figures: &[(Case, Vec<Figure>)], case: Case, of: &[Figure]) -> Option<f64> {
    ratio(
        figures,
        of,
        |base| matches!(base, Case::Raw { bytes, .. } if bytes == case.bytes()),
    )
}

fn to_one(figures: &[(Case, Vec<Figure>)], case: Case, of: &[Figure]) -> Option<f64> {
    let Case::Append { bytes, .. } = case else {
        return None;
    };
    let one = Case::Append {
        bytes,
        concurrent: 1,
    };
    ratio(figures, of, |base| base == one)
}

/// A table.
pub fn table(figures: &[(Case, Vec<Figure>)]) -> String {
    let mut out = String::from(
        "| bytes | | a second | least to most | MB/s | p50 us | p99 us | a write, p50 us | appends a write | to the disk alone | to one at a time |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let shown = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    for (case, of) in figures {
        let rate = spread(of, |figure| figure.rate);
        let bytes = match case {
            Case::Raw { blocks, .. } => *blocks,
            Case::Append { bytes, .. } => *bytes,
        };
        let _ = writeln!(
            out,
            "| {} | {} | {:.0} | {:.0} to {:.0} | {:.1} | {:.0} | {:.0} | {:.0} | {:.1} | {} | {} |",
            case.bytes(),
            case.name(),
            rate.median,
            rate.min,
            rate.max,
            rate.median * bytes as f64 / 1e6,
            spread(of, |figure| figure.p50_us).median,
            spread(of, |figure| figure.p99_us).median,
            spread(of, |figure| figure.write_p50_us).median,
            spread(of, |figure| figure.per_write).median,
            shown(to_disk(figures, *case, of)),
            shown(to_one(figures, *case, of)),
        );
    }
    out
}

/// The same for programs.
pub fn json(figures: &[(Case, Vec<Figure>)]) -> String {
    let rows: Vec<_> = figures
        .iter()
        .map(|(case, of)| {
            let rate = spread(of, |figure| figure.rate);
            json!({
                "name": case.name(),
                "entry_bytes": case.bytes(),
                "per_second": { "median": rate.median, "min": rate.min, "max": rate.max },
                "p50_us": spread(of, |figure| figure.p50_us).median,
                "p99_us": spread(of, |figure| figure.p99_us).median,
                "write_p50_us": spread(of, |figure| figure.write_p50_us).median,
                "appends_per_write": spread(of, |figure| figure.per_write).median,
                "to_disk_alone": to_disk(figures, *case, of),
                "to_one_at_a_time": to_one(figures, *case, of),
            })
        })
        .collect();
    serde_json::to_string_pretty(&rows).expect("figures are plain data") + "\n"
}
