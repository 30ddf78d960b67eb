//! Faults of processes: killed, stopped, killed again and again.

use super::Strike;
use mareedb_bench::cluster::{DAEMONS, DaemonName};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// A daemon that is not back by then has other problems, which the end of the round will show.
const BACK: Duration = Duration::from_secs(3);
/// Deaths in a crash loop that stay below the supervisor's budget of 20 within a minute, with room for what other faults kill.
const LOOP_KILLS: u32 = 12;

fn send(pid: u32, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

impl Strike<'_> {
    fn signal_daemon(&self, daemon: DaemonName, signal: Signal) -> Option<u32> {
        self.bed.node(self.at).signal_daemon(daemon, signal)
    }

    /// Waits until a daemon runs under another pid.
    async fn await_back(&self, daemon: DaemonName, old: u32, limit: Duration) {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let pid = self.bed.node(self.at).daemon_pid(daemon);
            if pid.is_some_and(|pid| pid != old) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) async fn kill(&self, daemon: DaemonName) -> Option<u64> {
        let pid = self.signal_daemon(daemon, Signal::SIGKILL)?;
        self.await_back(daemon, pid, BACK).await;
        Some(0)
    }

    pub(super) async fn kill_daemons(&self) -> Option<u64> {
        let mut killed = Vec::new();
        for daemon in DAEMONS {
            killed.extend(
                self.signal_daemon(daemon, Signal::SIGKILL)
                    .map(|pid| (daemon, pid)),
            );
        }
        for (daemon, pid) in &killed {
            self.await_back(daemon, *pid, BACK).await;
        }
        (!killed.is_empty()).then_some(0)
    }

    pub(super) async fn stop(&self, daemon: DaemonName) -> Option<u64> {
        let pid = self.signal_daemon(daemon, Signal::SIGSTOP)?;
        self.last().await;
        send(pid, Signal::SIGCONT);
        Some(Self::bit(self.at))
    }

    pub(super) async fn crash_loop(&self, daemon: DaemonName) -> Option<u64> {
        let end = Instant::now() + self.lasts;
        let mut killed = None;
        for _ in 0..LOOP_KILLS {
            if let Some(pid) = self.signal_daemon(daemon, Signal::SIGKILL) {
                killed = Some(pid);
                self.await_back(daemon, pid, end.saturating_duration_since(Instant::now()))
                    .await;
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if Instant::now() >= end {
                break;
            }
        }
        let pid = killed?;
        self.await_back(daemon, pid, BACK).await;
        Some(Self::bit(self.at))
    }

    pub(super) async fn stop_supervisor(&mut self) -> Option<u64> {
        let pid = self.bed.node(self.at).pid()?;
        send(pid, Signal::SIGSTOP);
        if self.random.percent(50) {
            let daemon = *self.random.pick(&DAEMONS);
            self.signal_daemon(daemon, Signal::SIGKILL);
        }
        self.last().await;
        send(pid, Signal::SIGCONT);
        Some(Self::bit(self.at))
    }

    pub(super) async fn stop_node(&self) -> Option<u64> {
        let mut pids = Vec::new();
        {
            let node = self.bed.node(self.at);
            pids.push(node.pid()?);
            pids.extend(DAEMONS.iter().filter_map(|daemon| node.daemon_pid(daemon)));
        }
        for pid in &pids {
            send(*pid, Signal::SIGSTOP);
        }
        self.last().await;
        // The supervisor last: it judges daemons by their beats.
        for pid in pids.iter().rev() {
            send(*pid, Signal::SIGCONT);
        }
        Some(Self::bit(self.at))
    }

    /// Ends the struck node, which stays down until it is released.
    pub(super) async fn end(&self, signal: Signal) {
        self.bed.hold(self.at);
        self.bed.node(self.at).signal(signal);
        // A graceful stop takes its time; the keeper notices when it is over.
        let end = Instant::now() + Duration::from_secs(12);
        while self.bed.node(self.at).pid().is_some() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until nodes serve.
    pub(super) async fn await_serving(&self, nodes: &[usize]) {
        let end = Instant::now() + Duration::from_secs(10);
        for at in nodes {
            while Instant::now() < end && self.bed.ask(*at, "/readyz").await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Ends the struck node as an operator would, and lets it run again.
    pub(super) async fn restart(&self) -> Option<u64> {
        self.end(Signal::SIGTERM).await;
        self.last().await;
        self.bed.release(self.at);
        self.await_serving(&[self.at]).await;
        Some(Self::bit(self.at))
    }

    /// Kills nodes at once, and lets them run again later.
    pub(super) async fn kill_nodes(&self, nodes: &[usize]) -> Option<u64> {
        let mut victims = 0;
        for at in nodes {
            self.bed.hold(*at);
            self.bed.node(*at).signal(Signal::SIGKILL);
            victims |= Self::bit(*at);
        }
        self.last().await;
        for at in nodes {
            self.bed.release(*at);
        }
        // They are victims until they serve again.
        self.await_serving(nodes).await;
        Some(victims)
    }
}
