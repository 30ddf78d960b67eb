//! Connections to nodes: the first endpoint that answers, and repeats of what a broken connection left open.

use crate::failure::{Failure, from_status};
use mareedb_api::v1::cluster_client::ClusterClient;
use mareedb_api::v1::kv_client::KvClient;
use mareedb_api::v1::node_client::NodeClient;
use std::future::Future;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Repeats of a request whose connection broke.
const REPEATS: usize = 3;
/// The largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The endpoints, and how long a request may take.
pub struct Connection {
    endpoints: Vec<String>,
    timeout: Duration,
}

impl Connection {
    /// Nothing is connected yet.
    pub fn new(endpoints: Vec<String>, timeout: Duration) -> Connection {
        Connection { endpoints, timeout }
    }

    /// How long a request may take, in milliseconds.
    pub fn timeout_ms(&self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    async fn channel(&self) -> Result<(String, Channel), Failure> {
        let mut tried = Vec::new();
        for endpoint in &self.endpoints {
            let connected = async {
                let parsed = Endpoint::from_shared(format!("http://{endpoint}"))
                    .map_err(|error| error.to_string())?;
                parsed
                    .connect_timeout(self.timeout)
                    .connect()
                    .await
                    .map_err(|error| chain(&error))
            };
            match connected.await {
                Ok(channel) => return Ok((endpoint.clone(), channel)),
                Err(why) => tried.push((endpoint.clone(), why)),
            }
        }
        Err(Failure::NoConnection(tried))
    }

    /// Sends a request; one whose connection broke is sent again, over any endpoint. The request must be repeatable: a
    /// read, or a write with an idempotency key.
    ///
    /// # Errors
    /// What the node answered, or why none could be reached.
    pub async fn call<T, F>(&self, mut request: impl FnMut(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, tonic::Status>>,
    {
        let mut repeats = 0;
        loop {
            let (endpoint, channel) = self.channel().await?;
            // The node ends the request by its own timeout; this one is for a node that does not answer at all.
            let limit = self.timeout + Duration::from_secs(1);
            let answer = match tokio::time::timeout(limit, request(channel)).await {
                Ok(answer) => answer,
                Err(_) => Err(tonic::Status::deadline_exceeded("no answer")),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => match from_status(&endpoint, &status) {
                    Failure::NoConnection(_) if repeats < REPEATS => repeats += 1,
                    failure => return Err(failure),
                },
            }
        }
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
