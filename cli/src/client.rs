//! Connections to nodes: the endpoints are tried in turn until one answers, all within the time that the request has.
//!
//! A node that takes a request and never answers costs its share of that time, not all of it. What may be sent again
//! after that is for [`Repeat`] to say.

use crate::failure::{Failure, from_status};
use crate::tries::{Repeat, Tries};
use mareedb_api::v1::cluster_client::ClusterClient;
use mareedb_api::v1::kv_client::KvClient;
use mareedb_api::v1::node_client::NodeClient;
use std::cell::Cell;
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint};

/// Tries beyond one of each endpoint, for connections that break.
const REPEATS: usize = 3;
/// The largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// A node is given so much less time than its answer is waited for: what it says at its deadline shall arrive.
const WAY_BACK_MAX: Duration = Duration::from_millis(500);

/// The endpoints, and how long a request may take.
pub struct Connection {
    endpoints: Vec<String>,
    timeout: Duration,
    /// The endpoint to begin with: the last one that answered.
    first: Cell<usize>,
}

impl Connection {
    /// Nothing is connected yet.
    pub fn new(endpoints: Vec<String>, timeout: Duration) -> Connection {
        Connection {
            endpoints,
            timeout,
            first: Cell::new(0),
        }
    }

    /// How long a request may take, with all its repeats.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The endpoint that the next request begins with.
    pub fn endpoint(&self) -> &str {
        &self.endpoints[self.first.get()]
    }

    /// From now on requests begin with the endpoint after this one.
    pub fn turn(&self) {
        self.first
            .set((self.first.get() + 1) % self.endpoints.len());
    }

    /// Sends a request, to each endpoint in turn until one answers. `request` is given the milliseconds that the node may
    /// take.
    ///
    /// # Errors
    /// What a node answered, why none could be reached, or that a write was sent and its outcome is not known.
    pub async fn call<T, F>(
        &self,
        repeat: Repeat<'_>,
        mut request: impl FnMut(Channel, u64) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, tonic::Status>>,
    {
        let deadline = Instant::now() + self.timeout;
        let count = self.endpoints.len();
        let mut tries = Tries::new(repeat);
        for number in 0..count + REPEATS {
            let (began, endpoint) = (Instant::now(), self.endpoint());
            if began >= deadline {
                break;
            }
            // What is left is shared by those that have not been tried in this round.
            let share = (deadline - began) / u32::try_from(count - number % count).unwrap_or(1);
            let mut until = began + share;
            match connect(endpoint, until).await {
                Err(why) => {
                    if tries.refused(endpoint, why) >= count {
                        break;
                    }
                }
                Ok(channel) => {
                    if !repeat.allowed() {
                        until = deadline;
                    }
                    let answer = timeout_at(until, request(channel, node_ms(until))).await;
                    let failure = match answer {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(status)) => from_status(endpoint, &status),
                        Err(_) => silent(endpoint, began.elapsed()),
                    };
                    if !tries.goes_on(failure, number + 1 < count) {
                        break;
                    }
                }
            }
            self.turn();
        }
        Err(tries.end())
    }

    /// A client of keys.
    pub fn kv(channel: Channel) -> KvClient<Channel> {
        KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
    }
    /// A client of the cluster's status.
    pub fn cluster(channel: Channel) -> ClusterClient<Channel> {
        ClusterClient::new(channel)
    }
    /// A client of a node's status.
    pub fn node(channel: Channel) -> NodeClient<Channel> {
        NodeClient::new(channel)
    }
}

/// A node that said nothing for so long.
pub fn silent(endpoint: &str, waited: Duration) -> Failure {
    let why = format!("no answer within {} ms", waited.as_millis());
    Failure::NoConnection(vec![(endpoint.to_owned(), why)])
}

async fn connect(endpoint: &str, until: Instant) -> Result<Channel, String> {
    let parsed =
        Endpoint::from_shared(format!("http://{endpoint}")).map_err(|error| error.to_string())?;
    match timeout_at(until, parsed.connect()).await {
        Ok(connected) => connected.map_err(|error| chain(&error)),
        Err(_) => Err("no connection in time".into()),
    }
}

/// The time that a node is given when its answer is waited for until then.
fn node_ms(until: Instant) -> u64 {
    let span = until.saturating_duration_since(Instant::now());
    let span = span - (span / 10).min(WAY_BACK_MAX);
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// An error with its sources, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// A key under which a write may be repeated.
pub fn idempotency_key() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Local(format!("no random bytes: {error}")))?;
    Ok(bytes.iter().fold(String::from("cli-"), |text, byte| {
        format!("{text}{byte:02x}")
    }))
}
