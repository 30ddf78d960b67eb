//! Faults of a node's disk: it stands still, or it is full.

use super::Strike;
use std::time::Duration;

impl Strike<'_> {
    /// No write comes to an end for a while.
    pub(super) async fn stall_disk(&self) -> Option<u64> {
        let disk = self.bed.disk(self.at)?;
        // It waits for writes that are under way; that may take as long as they do.
        tokio::task::block_in_place(|| disk.freeze()).ok()?;
        self.last().await;
        // An error says that somebody else has thawed it.
        let _ = tokio::task::block_in_place(|| disk.thaw());
        Some(Self::bit(self.at))
    }

    /// Writes come in bursts: it stands still again and again.
    pub(super) async fn stutter_disk(&mut self) -> Option<u64> {
        let disk = self.bed.disk(self.at)?;
        let end = std::time::Instant::now() + self.lasts;
        while std::time::Instant::now() < end {
            tokio::task::block_in_place(|| disk.freeze()).ok()?;
            tokio::time::sleep(Duration::from_millis(self.random.within((10, 250)))).await;
            let _ = tokio::task::block_in_place(|| disk.thaw());
            tokio::time::sleep(Duration::from_millis(self.random.within((1, 40)))).await;
        }
        Some(Self::bit(self.at))
    }

    /// There is no room, or so little that it soon is none.
    pub(super) async fn fill_disk(&mut self) -> Option<u64> {
        let disk = self.bed.disk(self.at)?;
        let files = self.bed.take_files(self.at)?;
        let left = if self.random.percent(60) {
            0
        } else {
            self.random.within((4096, 2 << 20))
        };
        if let Err(error) = tokio::task::block_in_place(|| disk.fill(left, &files)) {
            self.bed
                .blame("RUNNER", format!("cannot fill a disk: {error}"));
        }
        self.last().await;
        // Another fault may have it stand still.
        tokio::task::block_in_place(|| disk.empty());
        Some(Self::bit(self.at))
    }
}
