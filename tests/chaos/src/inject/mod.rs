//! Carries faults out: each begins, lasts, and is undone, and what happened is told.

mod data;
mod disk;
mod memory;
mod net;
mod process;
mod ring;
mod seam;

use crate::bed::Bed;
use crate::fault::{Action, Need};
use crate::gaps::Happened;
use crate::random::Random;
use crate::schedule::{Injection, Place};
use seam::Seam;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A fault that is under way.
pub(crate) struct Strike<'a> {
    bed: &'a Bed,
    /// The node that is struck.
    at: usize,
    lasts: Duration,
    random: Random,
}

impl Strike<'_> {
    /// Bit of a node.
    fn bit(at: usize) -> u64 {
        1 << at
    }

    async fn last(&self) {
        tokio::time::sleep(self.lasts).await;
    }
}

/// Which node a place is at this moment.
fn resolve(bed: &Bed, place: Place) -> usize {
    let count = bed.count();
    match place {
        Place::Leader => bed.leader(),
        Place::Follower(number) => (bed.leader() + 1 + number) % count,
        Place::Node(number) => number % count,
    }
}

/// Whether a fault can be carried out here.
pub fn possible(bed: &Bed, injection: &Injection) -> bool {
    match injection.fault.need {
        Need::Nothing => true,
        Need::Network => bed.network.is_some(),
        Need::Disk => bed.disk(0).is_some(),
        Need::Groups => memory::possible(),
        Need::Seam => bed.seam,
    }
}

/// Waits for the fault's time, and carries it out. `None`: what it would have struck was not there.
pub async fn carry_out(bed: Arc<Bed>, injection: Injection, began: Instant) -> Option<Happened> {
    tokio::time::sleep_until((began + Duration::from_millis(injection.at_ms)).into()).await;
    let now_ms = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let node = resolve(&bed, injection.place);
    let mut strike = Strike {
        bed: &bed,
        at: node,
        lasts: Duration::from_millis(injection.for_ms),
        random: Random::new(injection.salt),
    };
    let began_ms = now_ms();
    let victims = match injection.fault.action {
        Action::Kill(daemon) => strike.kill(daemon).await,
        Action::KillDaemons => strike.kill_daemons().await,
        Action::Stop(daemon) => strike.stop(daemon).await,
        Action::CrashLoop(daemon) => strike.crash_loop(daemon).await,
        Action::StopSupervisor => strike.stop_supervisor().await,
        Action::KillNode => strike.kill_nodes(&[strike.at]).await,
        Action::RestartNode => strike.restart().await,
        Action::StopNode => strike.stop_node().await,
        Action::KillAll => {
            let all: Vec<usize> = (0..bed.count()).collect();
            strike.kill_nodes(&all).await
        }
        Action::KillMajority => {
            let some: Vec<usize> = (0..=bed.count() / 2)
                .map(|step| (strike.at + step) % bed.count())
                .collect();
            // Without a quorum nobody is served, whoever is alive.
            strike.kill_nodes(&some).await.map(|_| u64::MAX)
        }
        Action::StallDisk => strike.stall_disk().await,
        Action::StutterDisk => strike.stutter_disk().await,
        Action::FillDisk => strike.fill_disk().await,
        Action::SlowWrites => strike.slow_or_full(Seam::Slow).await,
        Action::FailCreate => strike.slow_or_full(Seam::Full).await,
        Action::FailWrite => strike.fail_write().await,
        Action::TearWrite => strike.spoil_write("tear").await,
        Action::LoseWrite => strike.spoil_write("lose").await,
        Action::JumpClock => strike.jump_clock().await,
        Action::CorruptRing => strike.corrupt_ring().await,
        Action::FillRing => strike.fill_ring().await,
        Action::LimitMemory => strike.limit_memory().await,
        Action::RemoveData => strike.remove_data().await,
        action => match &bed.network {
            Some(network) => strike.disturb(&network.switch, action).await,
            None => None,
        },
    }?;
    Some(Happened {
        kind: injection.fault.name,
        node,
        victims,
        began_ms,
        ended_ms: now_ms(),
    })
}
