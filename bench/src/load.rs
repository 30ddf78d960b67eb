//! A constant load of writes whose every acknowledgement is remembered, and the check that nothing acknowledged is lost
//! and nothing was applied twice.
//!
//! Each client writes keys of its own, each key once, at a fixed rate in an open loop: a write that waits does not
//! delay the time at which the next one is due, so a stall shows with its whole length. Clients retry only a broken
//! connection, with the same Idempotency-Key; every other answer than 200 is a failure. A key's version says how often
//! it was written: 1, or something was applied twice.

use crate::http::{Broken, Client};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::Method;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// What the load is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// REST addresses; clients are spread over them evenly.
    pub targets: Vec<SocketAddr>,
    /// Clients in all.
    pub clients: usize,
    /// Writes a second, all clients together; at least one.
    pub rate: u32,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// First part of every key.
    pub prefix: String,
}

/// A load that runs until it is stopped.
pub struct Load {
    plan: Plan,
    began: Instant,
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<u64>>,
}

struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    retried: AtomicU64,
    failures: Mutex<Vec<String>>,
    clients: Vec<Progress>,
    latency_us: Mutex<Histogram<u64>>,
}

/// [`Progress::due_us`] of a client that has ended.
const ENDED: u64 = u64::MAX;

/// What a client is at. Times count from the beginning of the load.
#[derive(Default)]
struct Progress {
    /// Of the write that is not acknowledged yet.
    due_us: AtomicU64,
    acknowledged: AtomicU64,
    /// Longest delay of an acknowledged write since the last [`Progress::take`].
    longest_us: AtomicU64,
}

impl Progress {
    /// A write is due then, or was, and is the next to be acknowledged.
    fn due(&self, due: Duration) {
        self.due_us.store(micros(due), Ordering::Release);
    }

    /// The write was answered after so long; [`Progress::due`] or [`Progress::end`] follows.
    fn answered(&self, delay_us: u64) {
        self.longest_us.fetch_max(delay_us, Ordering::Relaxed);
    }

    /// No write follows.
    fn end(&self) {
        self.due_us.store(ENDED, Ordering::Release);
    }

    /// The longest delay since the last call, and begins anew. A write that still waits counts with its age.
    fn take(&self, now: Duration) -> Duration {
        // First: a write that is answered in between has been counted then.
        let age = micros(now).saturating_sub(self.due_us.load(Ordering::Acquire));
        Duration::from_micros(age.max(self.longest_us.swap(0, Ordering::Relaxed)))
    }

    fn acknowledged(&self) -> Option<u64> {
        let ended = self.due_us.load(Ordering::Acquire) == ENDED;
        (!ended).then(|| self.acknowledged.load(Ordering::Relaxed))
    }
}

/// What a load did in all.
#[derive(Debug)]
pub struct Summary {
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Repeats after a broken connection.
    pub retried: u64,
    /// What each failed request got.
    pub failures: Vec<String>,
    /// Acknowledged writes of each client: its keys are numbered from 0.
    pub by_client: Vec<u64>,
    /// From the time that a write was due to its acknowledgement.
    pub latency_us: Histogram<u64>,
}

/// What the check of a load found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Keys that were found.
    pub found: u64,
    /// Acknowledged keys that are absent or hold another value.
    pub lost: Vec<String>,
    /// Keys with another version than 1.
    pub twice: Vec<String>,
}

impl Load {
    /// Starts the clients.
    pub fn start(plan: Plan) -> Load {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            failures: Mutex::new(Vec::new()),
            clients: (0..plan.clients).map(|_| Progress::default()).collect(),
            latency_us: Mutex::new(histogram()),
        });
        let began = Instant::now();
        let tasks = (0..plan.clients)
            .map(|client| tokio::spawn(run(plan.clone(), client, began, shared.clone())))
            .collect();
        Load {
            plan,
            began,
            shared,
            tasks,
        }
    }

    /// Acknowledged writes so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Failed requests so far.
    pub fn failed(&self) -> usize {
        self.shared.failures.lock().expect("not poisoned").len()
    }

    /// Acknowledged writes of each client so far; `None`: it has ended with a failure.
    pub fn by_client(&self) -> Vec<Option<u64>> {
        let clients = self.shared.clients.iter();
        clients.map(Progress::acknowledged).collect()
    }

    /// The longest delay of each client since the last call, and begins anew. A write that still waits counts with the time that it has
    /// waited so far, and again once it is acknowledged.
    pub fn take_window(&self) -> Vec<Duration> {
        let now = self.began.elapsed();
        let clients = self.shared.clients.iter();
        clients.map(|client| client.take(now)).collect()
    }

    /// Stops the clients after the writes that they are at.
    pub async fn stop(self) -> Summary {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut by_client = Vec::new();
        for task in self.tasks {
            by_client.push(task.await.expect("a client does not panic"));
        }
        let latency_us = self.shared.latency_us.lock().expect("not poisoned").clone();
        Summary {
            acknowledged: self.shared.acknowledged.load(Ordering::Relaxed),
            retried: self.shared.retried.load(Ordering::Relaxed),
            failures: self.shared.failures.lock().expect("not poisoned").clone(),
            by_client,
            latency_us,
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// Microseconds, up to two minutes, three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("constant bounds are valid")
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn key(plan: &Plan, client: usize, number: u64) -> String {
    format!("{}{client:03}-{number:08}", plan.prefix)
}

fn value(plan: &Plan, client: usize, number: u64) -> Bytes {
    let mut value = format!("{client}:{number}:").into_bytes();
    value.resize(plan.value_bytes.max(value.len()), b'.');
    Bytes::from(value)
}

/// Writes until told to stop; returns how many of its keys, from 0, are acknowledged.
async fn run(plan: Plan, client: usize, began: Instant, shared: Arc<Shared>) -> u64 {
    let interval = Duration::from_secs_f64(plan.clients as f64 / f64::from(plan.rate));
    let offset = interval.mul_f64(client as f64 / plan.clients as f64);
    let mut connection = Client::new(plan.targets[client % plan.targets.len()]);
    let progress = &shared.clients[client];
    let mut number = 0u64;
    loop {
        let after = offset + interval.mul_f64(number as f64);
        progress.due(after);
        let due = began + after;
        tokio::time::sleep_until(due.into()).await;
        if shared.stop.load(Ordering::Relaxed) {
            return number;
        }
        let written = write(&plan, client, number, &mut connection, &shared).await;
        let delay = micros(due.elapsed());
        progress.answered(delay);
        shared
            .latency_us
            .lock()
            .expect("not poisoned")
            .saturating_record(delay);
        match written {
            Ok(()) => {
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                progress.acknowledged.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
            Err(why) => {
                shared.failures.lock().expect("not poisoned").push(why);
                // After the failure can be seen: who sees an end looks for its reason.
                progress.end();
                // The key's fate is unknown, so that the client's count of acknowledged keys ends here.
                return number;
            }
        }
    }
}

async fn write(
    plan: &Plan,
    client: usize,
    number: u64,
    connection: &mut Client,
    shared: &Shared,
) -> Result<(), String> {
    let key = key(plan, client, number);
    let path = format!("/v1/kv/{key}?timeout_ms=20000");
    let headers = [("idempotency-key", key.as_str())];
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = connection
            .request(
                Method::PUT,
                &path,
                &headers,
                value(plan, client, number),
                Duration::from_secs(25),
            )
            .await;
        match answer {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => {
                return Err(format!(
                    "{key}: {} {}",
                    answer.status,
                    String::from_utf8_lossy(&answer.body)
                ));
            }
            Err(Broken::TimedOut) => return Err(format!("{key}: no answer in time")),
            Err(broken) if Instant::now() >= end => return Err(format!("{key}: {broken}")),
            Err(Broken::Connect(_)) => {
                // Nobody listens there: the node is gone. Waiting is all that a client of one node can do.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(Broken::Lost(_)) => {
                shared.retried.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Reads all keys of a stopped load back through `addr`, page by page, and compares.
///
/// # Errors
/// A page could not be read.
pub async fn check(plan: &Plan, summary: &Summary, addr: SocketAddr) -> Result<Verdict, String> {
    let mut client = Client::new(addr);
    let mut verdict = Verdict::default();
    let mut expected = std::collections::BTreeMap::new();
    for (at, count) in summary.by_client.iter().enumerate() {
        for number in 0..*count {
            expected.insert(key(plan, at, number), value(plan, at, number));
        }
    }
    let mut token = String::new();
    loop {
        let path = format!(
            "/v1/kv?prefix={}&limit=1000&encoding=utf8&page_token={token}",
            plan.prefix
        );
        let answer = client.get(&path).await.map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!(
                "{}: {}",
                answer.status,
                String::from_utf8_lossy(&answer.body)
            ));
        }
        let page = answer.json();
        for item in page["items"].as_array().into_iter().flatten() {
            let name = item["key"].as_str().unwrap_or_default().to_owned();
            if number(&item["version"]) != Some(1) {
                verdict.twice.push(name.clone());
            }
            if let Some(value) = expected.remove(&name) {
                if item["value"].as_str().map(str::as_bytes) == Some(&value[..]) {
                    verdict.found += 1;
                } else {
                    verdict.lost.push(name);
                }
            }
        }
        match page["next_page_token"].as_str() {
            Some(next) if !next.is_empty() => token = percent(next),
            _ => break,
        }
    }
    verdict.lost.extend(expected.into_keys());
    Ok(verdict)
}

/// A number of the public JSON, which may stand in a string.
pub fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Percent-encodes everything but letters, digits and `-._~`.
pub fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_survives_the_query_string() {
        assert_eq!(percent("a+b/c="), "a%2Bb%2Fc%3D");
    }

    #[test]
    fn numbers_of_the_public_json_come_in_both_forms() {
        assert_eq!(
            number(&serde_json::json!("18446744073709551615")),
            Some(u64::MAX)
        );
        assert_eq!(number(&serde_json::json!(7)), Some(7));
        assert_eq!(number(&serde_json::json!("x")), None);
    }

    #[test]
    fn keys_of_clients_never_meet() {
        let plan = Plan {
            targets: vec![],
            clients: 2,
            rate: 1,
            value_bytes: 16,
            prefix: "p/".into(),
        };
        assert_ne!(key(&plan, 1, 11), key(&plan, 11, 1));
        assert_eq!(value(&plan, 0, 0).len(), 16);
    }

    #[test]
    fn a_write_that_still_waits_counts_with_its_age() {
        let ms = Duration::from_millis;
        let client = Progress::default();
        client.due(ms(10));
        assert_eq!(client.take(ms(5)), ms(0), "not due yet");
        assert_eq!(client.take(ms(110)), ms(100));
        client.answered(micros(ms(150)));
        client.due(ms(43));
        assert_eq!(client.take(ms(160)), ms(150), "longer than its successor");
        assert_eq!(client.take(ms(160)), ms(117), "which waits, too");
        client.answered(micros(ms(120)));
        client.acknowledged.fetch_add(1, Ordering::Relaxed);
        client.due(ms(1000));
        assert_eq!(client.acknowledged(), Some(1));
        client.end();
        assert_eq!(client.acknowledged(), None);
        assert_eq!(client.take(ms(5000)), ms(120));
        assert_eq!(client.take(ms(5000)), ms(0), "nothing waits any more");
    }
}
