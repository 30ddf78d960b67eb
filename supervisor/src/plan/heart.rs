//! Hang judgement by heartbeats, counted in the supervisor's own ticks.
//!
//! A tick counts once, however late it comes: when the whole machine (or only the supervisor) was paused, no daemon has missed more ticks
//! than the supervisor has made, so a pause kills nobody. A heartbeat proves only that the main loop runs.

use super::Millis;

/// How long a daemon may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time between two ticks.
    pub tick_ms: Millis,
    /// While it serves.
    pub serving_ms: Millis,
    /// Before it serves: recovery reads the log, which takes as long as it takes, but not for ever.
    pub starting_ms: Millis,
}

/// Watches one process of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heart {
    beats: u64,
    alive: bool,
    silent_ticks: u64,
}

impl Heart {
    /// For a process that is about to start, with the counter that its predecessor left.
    pub fn new(beats: u64) -> Self {
        Heart {
            beats,
            alive: false,
            silent_ticks: 0,
        }
    }

    /// A tick: `beats` is the counter, `serving` what the daemon says. Returns whether it has been silent for too long.
    pub fn tick(&mut self, beats: u64, serving: bool, limits: &Limits) -> bool {
        if beats != self.beats {
            self.beats = beats;
            self.alive = true;
            self.silent_ticks = 0;
            return false;
        }
        self.silent_ticks += 1;
        let limit_ms = if self.alive && serving {
            limits.serving_ms
        } else {
            limits.starting_ms
        };
        self.silent_for_ms(limits.tick_ms) >= limit_ms
    }

    /// Whether this process has beaten at all.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Whether this process has beaten, given a counter that is fresher than the last tick's.
    pub fn has_beaten(&self, beats: u64) -> bool {
        self.alive || beats != self.beats
    }

    /// Length of the silence in the supervisor's ticks.
    pub fn silent_for_ms(&self, tick_ms: Millis) -> Millis {
        self.silent_ticks * tick_ms
    }
}
