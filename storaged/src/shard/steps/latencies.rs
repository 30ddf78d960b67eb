//! How long durable log writes take, for the status board.

use mareedb_ipc::{BoardWriter, Cell, Gauge, Histogram};
use std::collections::VecDeque;
use std::time::Duration;

/// Recent durations of writes.
#[derive(Default)]
pub(super) struct Latencies {
    recent: VecDeque<u64>,
    all: Histogram,
}

impl Latencies {
    pub(super) fn record(&mut self, took: Duration) {
        self.all.record(took);
        if self.recent.len() == 1024 {
            self.recent.pop_front();
        }
        self.recent
            .push_back(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn show(&self, board: &BoardWriter) {
        board.put(Cell::LogWrites, &self.all.counted());
        let mut sorted: Vec<u64> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        if let Some(last) = sorted.len().checked_sub(1) {
            board.set(Gauge::FsyncUsP50, sorted[last / 2]);
            board.set(Gauge::FsyncUsP99, sorted[last * 99 / 100]);
        }
    }
}
