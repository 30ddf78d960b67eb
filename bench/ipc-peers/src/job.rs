//! What is measured, and what a process is told to do.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The environment variable with a process's [`Job`].
const ENV: &str = "MAREEDB_BENCH_IPC_JOB";

/// Bytes that may be in flight, whatever carries them; a socket has its default buffers, which are smaller.
pub(crate) const FLIGHT_BYTES: usize = 1 << 20;

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    /// Maree-DB's ring, published and rung once a batch.
    Ring,
    /// The same, published after each message.
    RingEach,
    /// A stream socket between tokio processes.
    Socket,
    /// iceoryx2, whose receiver looks without end.
    Iceoryx,
    /// iceoryx2, whose receiver sleeps until an event comes, one a batch.
    IceoryxEvent,
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Ring => "ring",
            Transport::RingEach => "ring, published one by one",
            Transport::Socket => "Unix socket",
            Transport::Iceoryx => "iceoryx2, polled",
            Transport::IceoryxEvent => "iceoryx2, event a batch",
        }
    }
}

/// What the processes do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Load {
    /// Messages of so many bytes, in one direction.
    Flow {
        /// Bytes of a message.
        bytes: usize,
    },
    /// A request and its answer, one in flight.
    RoundTrip {
        /// How they are waited for.
        waiting: Waiting,
    },
}

/// How the two sides of a round trip wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Waiting {
    /// Asleep, both on one core: what a round trip costs without what an idle core takes to wake up.
    OneCore,
    /// Asleep, each on a core of its own.
    TwoCores,
    /// Looking without end, each on a core of its own.
    Polled,
}

impl Waiting {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Waiting::OneCore => "asleep, one core",
            Waiting::TwoCores => "asleep, a core each",
            Waiting::Polled => "polled, a core each",
        }
    }
}

impl Load {
    /// Bytes of a message.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Load::Flow { bytes } => bytes,
            Load::RoundTrip { .. } => crate::message::BYTES_MIN,
        }
    }

    /// Whether both sides run on the same core.
    pub(crate) fn shares_core(self) -> bool {
        self == Load::RoundTrip {
            waiting: Waiting::OneCore,
        }
    }

    /// Whether both sides of a round trip look without end.
    pub(crate) fn is_polled(self) -> bool {
        self == Load::RoundTrip {
            waiting: Waiting::Polled,
        }
    }

    /// Messages of a batch: what a daemon's outbox holds when it is flushed, 64 messages or 64 KiB.
    pub(crate) fn batch(self) -> u64 {
        (65_536 / self.bytes()).clamp(1, 64) as u64
    }

    /// Messages that may be in flight.
    pub(crate) fn flight(self) -> usize {
        FLIGHT_BYTES / self.bytes()
    }
}

/// One row of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) transport: Transport,
    pub(crate) load: Load,
}

impl Case {
    /// Everything that is measured, in the order of a repetition.
    pub(crate) fn all() -> Vec<Case> {
        use Transport::{Iceoryx, IceoryxEvent, Ring, RingEach, Socket};
        let flows = [64, 1024, 16_384].map(|bytes| Load::Flow { bytes });
        let flows = flows.into_iter().flat_map(|load| {
            [Ring, RingEach, Socket, Iceoryx, IceoryxEvent]
                .map(|transport| Case { transport, load })
        });
        let waitings = [Waiting::OneCore, Waiting::TwoCores, Waiting::Polled];
        let rounds = waitings.into_iter().flat_map(|waiting| {
            let load = Load::RoundTrip { waiting };
            let iceoryx = if load.is_polled() {
                Iceoryx
            } else {
                IceoryxEvent
            };
            [Ring, Socket, iceoryx].map(|transport| Case { transport, load })
        });
        flows.chain(rounds).collect()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.transport.name();
        match self.load {
            Load::Flow { bytes } => write!(f, "flow of {bytes} B, {name}"),
            Load::RoundTrip { waiting } => write!(f, "round trip {}, {name}", waiting.name()),
        }
    }
}

/// Which of the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Side {
    /// Sends, or asks.
    Source,
    /// Receives, or answers.
    Sink,
}

/// What a process is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) case: Case,
    pub(crate) side: Side,
    /// How long is measured.
    pub(crate) ms: u64,
    /// A name that no other run has.
    pub(crate) name: String,
}

impl Job {
    /// What this process was told, if it is not the parent.
    pub(crate) fn inherited() -> Option<Job> {
        let text = std::env::var(ENV).ok()?;
        Some(serde_json::from_str(&text).expect("the parent writes jobs"))
    }

    /// For a child's environment.
    pub(crate) fn env(&self) -> (&'static str, String) {
        let text = serde_json::to_string(self).expect("a job is plain data");
        (ENV, text)
    }
}
