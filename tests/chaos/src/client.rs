//! A client of the public contract: REST or gRPC, one request at a time, to one node after the other.
//!
//! Invariant: it sends a write again only with the same idempotency key, and tells "certainly without effect" only when no attempt can
//! have had one.

mod grpc;
mod rest;

use crate::gaps::Acks;
use crate::random::Random;
use mareedb_api::ErrorCode;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a node may take for an answer.
pub const TIMEOUT_MS: u64 = 1500;
/// How long a client waits for it; a stopped node says nothing.
pub const PATIENCE: Duration = Duration::from_millis(2200);
/// No attempt begins after so long.
const GIVE_UP: Duration = Duration::from_millis(3500);
const ATTEMPTS: u32 = 4;

/// A key as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Revision of its last write.
    pub revision: u64,
    /// Writes since its creation.
    pub version: u64,
}

/// What must hold for a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    None,
    /// The key is absent.
    Absent,
    /// The key's revision is this.
    Revision(u64),
}

/// A comparison of a transaction.
#[derive(Clone, Debug)]
pub enum Compare {
    /// The key has this value.
    Value(String, String),
    /// The key has this mod_revision; 0: it is absent.
    Revision(String, u64),
}

/// An operation of a transaction.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes a key.
    Put(String, String),
    /// Reads a key.
    Get(String),
    /// Deletes a key.
    Delete(String),
}

/// A request.
#[derive(Clone, Debug)]
pub enum Request {
    /// Writes a key; answered with [`Reply::Written`].
    Put(String, String, Condition),
    /// Reads a key, as of a revision if one is given; answered with [`Reply::Items`] of one item or none.
    Get {
        /// The key.
        key: String,
        /// Without asking the leader.
        stale: bool,
        /// The moment; `None`: now.
        revision: Option<u64>,
    },
    /// Deletes a key; answered with [`Reply::Deleted`].
    Delete(String),
    /// Reads all keys with a prefix; answered with [`Reply::Items`].
    Range {
        /// The prefix.
        prefix: String,
        /// Without asking the leader.
        stale: bool,
    },
    /// A transaction without operations for the case that a comparison fails; answered with [`Reply::Done`].
    Txn(Vec<Compare>, Vec<Step>),
}

impl Request {
    fn is_read(&self) -> bool {
        match self {
            Request::Get { .. } | Request::Range { .. } => true,
            Request::Txn(_, steps) => steps.iter().all(|step| matches!(step, Step::Get(_))),
            Request::Put(..) | Request::Delete(_) => false,
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The revision of a put.
    Written(u64),
    /// Whether there was something to delete, and the revision if so.
    Deleted(bool, Option<u64>),
    /// What was read.
    Items(Vec<Item>),
    /// Of a transaction.
    Done {
        /// Whether all comparisons held.
        succeeded: bool,
        /// Its revision.
        revision: u64,
        /// For each step that was carried out, what a get read.
        read: Vec<Option<Item>>,
    },
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It certainly had no effect and will have none; a code of the contract, or that nobody listened.
    Certain(String),
    /// Nobody knows.
    Unknown(String),
    /// Nobody listened.
    Refused,
    /// There is an answer that nobody can read.
    Unreadable(String),
}

impl Trouble {
    fn of(code: ErrorCode) -> Trouble {
        let text = code.as_str().to_owned();
        match code {
            ErrorCode::OutcomeUnknown => Trouble::Unknown(text),
            _ => Trouble::Certain(text),
        }
    }
}

/// The interface that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// REST.
    Rest,
    /// gRPC.
    Grpc,
}

/// Where a node is reached.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// REST.
    pub rest: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
}

enum Connection {
    Rest(Box<mareedb_bench::http::Client>),
    Grpc(grpc::Connection),
}

/// A client.
pub struct Client {
    /// Its number, and the process of its history.
    pub number: u64,
    targets: Arc<Vec<Target>>,
    home: usize,
    at: usize,
    api: Api,
    connection: Connection,
    acks: Arc<Acks>,
    random: Random,
    /// First part of its idempotency keys, which no other run uses.
    label: String,
    keys_used: u64,
}

impl Client {
    /// A client that asks `targets[home]` first.
    pub fn new(
        number: u64,
        api: Api,
        home: usize,
        targets: Arc<Vec<Target>>,
        acks: Arc<Acks>,
        label: String,
        random: Random,
    ) -> Client {
        Client {
            number,
            connection: Connection::new(api, targets[home]),
            targets,
            home,
            at: home,
            api,
            acks,
            random,
            label,
            keys_used: 0,
        }
    }

    /// The node that is asked first.
    pub fn home(&self) -> usize {
        self.home
    }

    /// An answer was read, and makes no sense.
    pub fn makes_no_sense(&self, what: String) {
        self.acks.unreadable(what);
    }

    /// Asks its home and nobody else, until that answers.
    ///
    /// # Errors
    /// It does not within `limit`: what it said last.
    pub async fn ask_home(&mut self, request: &Request, limit: Duration) -> Result<Reply, Trouble> {
        let began = Instant::now();
        self.go_to(self.home);
        loop {
            match self.attempt(request, None).await {
                Err(_) if began.elapsed() < limit => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done,
            }
        }
    }

    /// Sends a request. With `keyed` it carries an idempotency key and is sent again, also to other nodes, until somebody knows; reads
    /// are sent again without.
    ///
    /// # Errors
    /// See [`Trouble`].
    pub async fn ask(&mut self, request: &Request, keyed: bool) -> Result<Reply, Trouble> {
        let key = (keyed && !request.is_read()).then(|| {
            self.keys_used += 1;
            format!("{}-{}-{}", self.label, self.number, self.keys_used)
        });
        let repeatable = key.is_some() || request.is_read();
        let began = Instant::now();
        let mut unknown = None;
        self.go_to(self.home);
        for attempt in 1..=ATTEMPTS {
            let answer = self.attempt(request, key.as_deref()).await;
            let trouble = match answer {
                Ok(reply) => {
                    if !request.is_read() {
                        self.acks.record(self.at);
                    }
                    return Ok(reply);
                }
                Err(trouble) => trouble,
            };
            let certain = match trouble {
                Trouble::Refused | Trouble::Unreadable(_) => {
                    unreachable!("noted, and told otherwise")
                }
                Trouble::Unknown(why) => {
                    unknown = Some(why);
                    false
                }
                // Decided by the state machine, and kept with the key: an attempt that is still under way gets the same answer.
                Trouble::Certain(code) if code == ErrorCode::PreconditionFailed.as_str() => {
                    return Err(Trouble::Certain(code));
                }
                Trouble::Certain(code) if attempt == ATTEMPTS || began.elapsed() > GIVE_UP => {
                    return Err(unknown.map_or(Trouble::Certain(code), Trouble::Unknown));
                }
                Trouble::Certain(_) => true,
            };
            let again = repeatable || (certain && unknown.is_none());
            if !again || attempt == ATTEMPTS || began.elapsed() > GIVE_UP {
                break;
            }
            let others = self.targets.len() as u64 - 1;
            if others > 0 {
                let step = 1 + usize::try_from(self.random.below(others)).expect("few nodes");
                self.go_to((self.at + step) % self.targets.len());
            }
            // Who was just refused by all of them would ask a hundred times before an election is over.
            tokio::time::sleep(Duration::from_millis(self.random.within((5, 60)))).await;
        }
        Err(Trouble::Unknown(
            unknown.unwrap_or_else(|| "given up".to_owned()),
        ))
    }

    fn go_to(&mut self, node: usize) {
        if self.at != node {
            self.at = node;
            self.connection = Connection::new(self.api, self.targets[node]);
        }
    }

    /// Sends a request once. What may not be met at all is noted.
    async fn attempt(&mut self, request: &Request, key: Option<&str>) -> Result<Reply, Trouble> {
        let answer = match &mut self.connection {
            Connection::Rest(client) => rest::ask(client, request, key).await,
            Connection::Grpc(connection) => connection.ask(request, key).await,
        };
        answer.map_err(|trouble| match trouble {
            Trouble::Refused => {
                self.acks.refused(self.at);
                Trouble::Certain("nobody listens".to_owned())
            }
            Trouble::Unreadable(why) => {
                self.acks.unreadable(format!("{request:?}: {why}"));
                Trouble::Unknown(format!("unreadable: {why}"))
            }
            known => known,
        })
    }
}

impl Connection {
    fn new(api: Api, target: Target) -> Connection {
        match api {
            Api::Rest => Connection::Rest(Box::new(mareedb_bench::http::Client::new(target.rest))),
            Api::Grpc => Connection::Grpc(grpc::Connection::new(target.grpc)),
        }
    }
}
