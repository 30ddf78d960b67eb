//! Counters of this gateway, in the text format that Prometheus reads.

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Requests by what and how they ended, and how long they took.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    durations: Mutex<Option<Histogram<u64>>>,
}

impl Metrics {
    /// Counts a request.
    pub fn count(&self, what: &'static str, code: &'static str, took: Duration) {
        *self.requests.lock().entry((what, code)).or_default() += 1;
        let mut durations = self.durations.lock();
        if durations.is_none() {
            // Bounds that are constant and valid: the error cannot happen.
            *durations = Histogram::new_with_bounds(1, 120_000_000, 2).ok();
        }
        if let Some(durations) = durations.as_mut() {
            durations.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// Requests so far.
    pub fn total(&self) -> u64 {
        self.requests.lock().values().sum()
    }

    /// The text, with further gauges.
    pub fn text(&self, gauges: &[(&str, &str, u64)]) -> String {
        let mut out = String::new();
        out.push_str("# HELP mareedb_requests_total Client requests by operation and code.\n");
        out.push_str("# TYPE mareedb_requests_total counter\n");
        for ((what, code), count) in &*self.requests.lock() {
            let _ = writeln!(
                out,
                "mareedb_requests_total{{operation=\"{what}\",code=\"{code}\"}} {count}"
            );
        }
        out.push_str("# HELP mareedb_request_seconds Duration of client requests.\n");
        out.push_str("# TYPE mareedb_request_seconds summary\n");
        if let Some(durations) = &*self.durations.lock() {
            for quantile in [0.5, 0.9, 0.99, 0.999] {
                let seconds = durations.value_at_quantile(quantile) as f64 / 1e6;
                let _ = writeln!(
                    out,
                    "mareedb_request_seconds{{quantile=\"{quantile}\"}} {seconds}"
                );
            }
            let _ = writeln!(out, "mareedb_request_seconds_count {}", durations.len());
        }
        for (name, help, value) in gauges {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
            );
        }
        out
    }
}
