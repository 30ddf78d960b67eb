//! The task's loop, and its end.

use super::{Ended, Keep, Next, Quiet, Steps, Writer, hand};
use crate::log::unit::RECORD_EXTRA_BYTES;
use futures::StreamExt;
use futures::channel::mpsc::Receiver;
use mareedb_ipc::world::now;
use mareedb_ipc::{ExitCode, Gauge};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The task turns at least so often, to prove that it runs.
const TURN: Duration = Duration::from_millis(40);
/// So often it turns before others have theirs.
const TURNS_IN_A_ROW: u32 = 4;
/// Latencies are shown so often.
const SHOW: Duration = Duration::from_millis(500);

impl Steps<Writer> {
    pub(in crate::shard) async fn run(mut self, mut rung: Receiver<()>) -> Ended {
        let ended = self.turns(&mut rung).await;
        if matches!(ended, Ended::Failed(ExitCode::Io | ExitCode::DiskFault, _)) {
            self.board.add(Gauge::IoErrors, 1);
        }
        ended
    }

    async fn turns(&mut self, rung: &mut Receiver<()>) -> Ended {
        self.begin();
        let mut quiet = Quiet::new();
        let mut in_a_row = 0;
        let mut shown = now();
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            let turned = match self.turn().await {
                Ok(turned) => turned,
                Err(ended) => return ended,
            };
            if now().saturating_duration_since(shown) > SHOW {
                shown = now();
                self.latencies.show(&self.board);
            }
            if self.stop.load(Ordering::Acquire) && self.log.lock().unfinished() == 0 {
                return match self.close(rung).await {
                    Ok(()) => Ended::Stopped,
                    Err(ended) => ended,
                };
            }
            quiet.look(&self.log.lock());
            if turned == Next::Turn {
                in_a_row += 1;
                // What is begun is submitted when this task waits. Each pass through the executor costs several system calls,
                // so that it only is let in between when there is no end.
                if in_a_row == TURNS_IN_A_ROW {
                    in_a_row = 0;
                    glommio::executor().yield_task_queue_now().await;
                }
                continue;
            }
            in_a_row = 0;
            match self.close_quiet(&mut quiet).await {
                Ok(Next::Wait) => {}
                Ok(Next::Turn) => continue,
                Err(ended) => return ended,
            }
            wait(rung).await;
        }
    }

    /// Ends gracefully: the mark says how far the log is durable, and the state machines are flushed.
    async fn close(&mut self, rung: &mut Receiver<()>) -> Result<(), Ended> {
        // Not before the entries that they are about.
        let notes = if self.pending.is_none() {
            self.notes()
        } else {
            Vec::new()
        };
        let closing = {
            let mut log = self.log.lock();
            if !notes.is_empty() && log.fits(RECORD_EXTRA_BYTES * notes.len()) {
                Some(log.take(notes).map_err(Ended::broken)?)
            } else {
                log.closing()
            }
        };
        if let Some(write) = closing {
            self.write(write).await?;
        }
        hand(&self.threads.keep, Keep::Finish)?;
        loop {
            self.turns.fetch_add(1, Ordering::Relaxed);
            self.hear()?;
            self.end_writes()?;
            if self.reports.lock().finished && self.log.lock().unfinished() == 0 {
                self.latencies.show(&self.board);
                return Ok(());
            }
            wait(rung).await;
        }
    }
}

/// Waits until somebody rings, or a turn is due. Several rings are one wake.
async fn wait(rung: &mut Receiver<()>) {
    let wake = glommio::timer::timeout(TURN, async {
        Ok::<_, glommio::GlommioError<()>>(rung.next().await)
    });
    if wake.await.is_ok() {
        while rung.try_recv().is_ok() {}
    }
}
