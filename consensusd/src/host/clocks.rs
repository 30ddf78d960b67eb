//! Wall clocks: told to the others, judged by what they tell, and what follows when this node's is ahead (ADR 20).

use super::{Host, LEADERLESS_MS, SETTLE_MS};
use crate::formation::Formation;
use crate::frames::Frame;
use crate::offsets::{Offsets, Standing};
use crate::replica::Replica;
use crate::view::metrics;
use mareedb_ipc::Gauge;
use openraft::ServerState;

/// What is known of this node's wall clock, and what follows from it.
#[derive(Default)]
pub(super) struct ClockWatch {
    /// The others' clocks.
    pub(super) offsets: Offsets,
    /// What it is ahead of a majority's by, while that is too much.
    pub(super) ahead_ms: Option<u64>,
    /// That keeps this node from standing for election.
    pub(super) barred: bool,
    /// How many groups this node leads.
    led: usize,
    /// When it last came to lead one.
    settling_since: u64,
}

impl ClockWatch {
    /// What a predecessor of this process knew holds until a majority has told that it does not.
    pub(super) fn knowing(ahead_ms: Option<u64>) -> ClockWatch {
        ClockWatch {
            ahead_ms,
            ..ClockWatch::default()
        }
    }
}

impl Host {
    /// A leader whose wall clock is ahead of a majority's by more than `cluster.max_clock_offset_ms` hands over, and stands for no
    /// election before it is not: revisions would follow it, and those of all that comes after.
    pub(super) fn mind_the_clock(&mut self, now: u64) {
        let ahead = self.judge_the_clock(now);
        self.wall.ahead_ms = ahead;
        let held_ms = self.clock.watch(ahead);
        self.board.set(Gauge::ClockHeldMs, held_ms);
        // Better a leader whose clock is wrong, and which no revision follows, than none.
        let has_leader = |replica: &Replica| {
            metrics(replica).state == ServerState::Leader
                || replica.leader_silence_ms() < u128::from(LEADERLESS_MS)
        };
        let barred = ahead.is_some() && self.replicas.values().all(has_leader);
        if barred != self.wall.barred {
            self.wall.barred = barred;
            self.let_stand();
        }
        let leads = |replica: &&Replica| metrics(replica).state == ServerState::Leader;
        let led = self.replicas.values().filter(leads).count();
        if led == 0 || led > self.wall.led {
            self.wall.settling_since = now;
        }
        self.wall.led = led;
        if ahead.is_some() && now.saturating_sub(self.wall.settling_since) > SETTLE_MS {
            self.give_up_leading("the clock is ahead", now);
        }
    }

    /// What this node's clock is ahead of a majority's by, if that is too much; says so when it changes.
    fn judge_the_clock(&self, now: u64) -> Option<u64> {
        let limit = self.config.cluster.max_clock_offset_ms;
        let members = self.formation.as_ref().and_then(Formation::formed);
        let me = self.formation.as_ref().and_then(Formation::my_id);
        let others: Vec<&str> = members
            .iter()
            .flat_map(|formed| &formed.members)
            .filter(|member| Some(member.id) != me)
            .map(|member| member.facts.addr.as_str())
            .collect();
        // A clock at the limit would make leadership go back and forth.
        let limit = if self.wall.ahead_ms.is_some() {
            limit / 2
        } else {
            limit
        };
        let offsets = &self.wall.offsets;
        let ahead = match offsets.standing(others.into_iter(), limit, now) {
            Standing::Ahead(ms) => Some(ms),
            // Before it knows who the others are it knows nothing of their clocks.
            Standing::Agrees if members.is_some() => None,
            Standing::Agrees => self.wall.ahead_ms,
            // Silence takes nothing back.
            Standing::Unknown => self.wall.ahead_ms,
        };
        match (self.wall.ahead_ms, ahead) {
            (None, Some(ms)) => tracing::warn!(
                ahead_ms = ms,
                "this node's clock is ahead of a majority's: it leads nothing until it is set right"
            ),
            (Some(_), None) => tracing::info!("this node's clock agrees with the others'"),
            _ => {}
        }
        ahead
    }

    /// Tells this node's wall clock, and what it was told, so that each node knows whether it is ahead.
    pub(super) fn tell_the_clock(&mut self, now: u64) {
        for addr in self.formation.iter().flat_map(Formation::targets) {
            let frame = Frame::Clock {
                wall_ms: self.clock.wall_ms(),
                back: self.wall.offsets.held(&addr, now),
                ahead: self.wall.ahead_ms.is_some(),
            };
            self.exchange.tell(&addr, &frame);
        }
    }
}
