//! Faults that an executable built for tests carries out itself when a file in its data directory asks for them: of the storage's
//! writes (storaged/src/io/faults.rs) and of the wall clock (consensusd/src/clock.rs).

use super::Strike;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::block_in_place;

/// The file that says that a segment could not be made.
const ACTED: &str = "faults.acted";
/// A write that is to be spoilt comes before that, under load.
const SPOILT_WITHIN: Duration = Duration::from_secs(2);
/// A node that has to end does so before that.
const ENDED_WITHIN: Duration = Duration::from_secs(6);

/// Replaces a file whole: it is read at any moment. Another fault may have the file system stand still, and the runner must not.
fn ask_for(data: &Path, name: &str, text: &str) -> bool {
    let new = data.join(format!("{name}.new"));
    block_in_place(|| fs::write(&new, text).is_ok() && fs::rename(new, data.join(name)).is_ok())
}

fn ask_no_more(data: &Path, name: &str) {
    // Who was asked may have lost its directory to another fault.
    let _ = block_in_place(|| fs::remove_file(data.join(name)));
}

impl Strike<'_> {
    /// Has storaged do something to its writes for as long as the fault lasts.
    pub(super) async fn slow_or_full(&mut self, what: Seam) -> Option<u64> {
        let data = self.bed.node(self.at).data.clone();
        ask_no_more(&data, ACTED);
        let text = match what {
            Seam::Slow => format!("delay_ms={}\n", self.random.within((20, 2500))),
            Seam::Full => "fail_create\n".to_owned(),
        };
        if !ask_for(&data, "faults", &text) {
            return None;
        }
        self.last().await;
        ask_no_more(&data, "faults");
        // Under load there is always a write; a segment is often a used one, and none has to be made.
        let took_place = what == Seam::Slow || block_in_place(|| data.join(ACTED).exists());
        took_place.then_some(Self::bit(self.at))
    }

    /// Half of a write is made, or none of it, and storaged is gone.
    pub(super) async fn spoil_write(&self, how: &str) -> Option<u64> {
        let data = self.bed.node(self.at).data.clone();
        let before = self.bed.node(self.at).daemon_pid("storaged")?;
        if !ask_for(&data, "faults", &format!("{how}\n")) {
            return None;
        }
        let end = Instant::now() + SPOILT_WITHIN;
        let mut gone = false;
        while !gone && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(2)).await;
            gone = self.bed.node(self.at).daemon_pid("storaged") != Some(before);
        }
        ask_no_more(&data, "faults");
        self.last().await;
        gone.then_some(Self::bit(self.at))
    }

    /// A write fails with EIO: the node must end and stay away until somebody has looked (STO-FAULT); then it is started again.
    pub(super) async fn fail_write(&self) -> Option<u64> {
        let (bed, at) = (self.bed, self.at);
        let _alone = bed.operator.try_lock().ok()?;
        let data = bed.node(at).data.clone();
        bed.node(at).pid()?;
        bed.hold(at);
        let asked = ask_for(&data, "faults", "fail_write\n");
        let end = Instant::now() + ENDED_WITHIN;
        while bed.node(at).pid().is_some() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let ended = bed.node(at).pid().is_none();
        self.last().await;
        ask_no_more(&data, "faults");
        // The operator has looked: all that was written is there.
        ask_no_more(&data, "DISK_FAULT");
        bed.release(at);
        self.await_serving(&[at]).await;
        (asked && ended).then_some(Self::bit(at))
    }

    /// The wall clock of a node jumps, a little most of the time, and back at the end.
    pub(super) async fn jump_clock(&mut self) -> Option<u64> {
        let data = self.bed.node(self.at).data.clone();
        let far = match self.random.below(10) {
            0..=5 => self.random.within((10, 900)),
            6..=8 => self.random.within((1_000, 60_000)),
            _ => self.random.within((60_000, 24 * 3_600_000)),
        };
        let off_by_ms = if self.random.percent(50) {
            far.cast_signed()
        } else {
            -far.cast_signed()
        };
        if !ask_for(&data, "clock", &off_by_ms.to_string()) {
            return None;
        }
        self.last().await;
        ask_no_more(&data, "clock");
        Some(Self::bit(self.at))
    }
}

/// What storaged does as long as it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seam {
    /// Each write takes longer.
    Slow,
    /// No segment can be made.
    Full,
}
