//! Medians, spreads and ratios.

use crate::job::{Case, Load, Transport};
use crate::load::Figure;
use serde::Serialize;
use std::fmt::Write;

/// Of several repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_unstable_by(f64::total_cmp);
        Spread {
            median: values[(values.len() - 1) / 2],
            min: values[0],
            max: values[values.len() - 1],
        }
    }
}

/// A row of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    #[serde(flatten)]
    case: Case,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages_per_second: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    megabytes_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_us: Option<Spread>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_us: Option<Spread>,
    /// How many times as good the ring is, published in batches: more messages, or less time.
    #[serde(skip_serializing_if = "Option::is_none")]
    ring_is_better_by: Option<f64>,
}

impl Row {
    /// The larger the better.
    fn merit(&self) -> Option<f64> {
        let rate = self.messages_per_second.map(|spread| spread.median);
        rate.or_else(|| self.p50_us.map(|spread| 1.0 / spread.median))
    }
}

/// Evaluates what was measured.
pub(crate) fn rows(cases: &[(Case, Vec<Figure>)]) -> Vec<Row> {
    let mut rows: Vec<Row> = cases
        .iter()
        .filter(|(_, figures)| !figures.is_empty())
        .map(|(case, figures)| row(*case, figures))
        .collect();
    for at in 0..rows.len() {
        let ring = rows.iter().find(|row| {
            row.case.load == rows[at].case.load && row.case.transport == Transport::Ring
        });
        let ratio = ring.and_then(|ring| Some(ring.merit()? / rows[at].merit()?));
        rows[at].ring_is_better_by = ratio;
    }
    rows
}

fn row(case: Case, figures: &[Figure]) -> Row {
    let (mut rates, mut p50s, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
    for figure in figures {
        match figure {
            Figure::Rate(rate) => rates.push(*rate),
            Figure::Latency { p50, p99 } => {
                p50s.push(*p50 as f64 / 1000.0);
                p99s.push(*p99 as f64 / 1000.0);
            }
        }
    }
    let spread = |values: Vec<f64>| (!values.is_empty()).then(|| Spread::of(values));
    let rate = spread(rates);
    Row {
        name: case.to_string(),
        case,
        messages_per_second: rate,
        megabytes_per_second: rate.map(|rate| rate.median * case.load.bytes() as f64 / 1e6),
        p50_us: spread(p50s),
        p99_us: spread(p99s),
        ring_is_better_by: None,
    }
}

/// The rows as two tables.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let ratio = |row: &Row| {
        row.ring_is_better_by
            .map_or(String::new(), |ratio| format!("{ratio:.2}"))
    };
    out.push_str("| message | carried by | messages/s | least to most | MB/s | ring / this |\n|---|---|---|---|---|---|\n");
    for row in rows {
        if let (Load::Flow { bytes }, Some(rate)) = (row.case.load, row.messages_per_second) {
            let _ = writeln!(
                out,
                "| {bytes} B | {} | {:.0} | {:.0} to {:.0} | {:.0} | {} |",
                row.case.transport.name(),
                rate.median,
                rate.min,
                rate.max,
                row.megabytes_per_second.unwrap_or_default(),
                ratio(row)
            );
        }
    }
    out.push_str("\n| waiting | carried by | p50 us | least to most | p99 us | least to most | p50: this / ring |\n|---|---|---|---|---|---|---|\n");
    for row in rows {
        if let (Load::RoundTrip { waiting }, Some(p50), Some(p99)) =
            (row.case.load, row.p50_us, row.p99_us)
        {
            let _ = writeln!(
                out,
                "| {} | {} | {:.2} | {:.2} to {:.2} | {:.2} | {:.2} to {:.2} | {} |",
                waiting.name(),
                row.case.transport.name(),
                p50.median,
                p50.min,
                p50.max,
                p99.median,
                p99.min,
                p99.max,
                ratio(row)
            );
        }
    }
    out
}
