//! Nodes that behave as a test wants, for the client to talk to.

use mareedb_api::v1;
use mareedb_api::v1::cluster_server::{Cluster, ClusterServer};
use mareedb_api::v1::kv_server::{Kv, KvServer};
use mareedb_api::{ApiError, ErrorCode};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tonic::codegen::BoxStream;
use tonic::codegen::tokio_stream::{self, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// How a node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As asked; a range is [`KEYS`] in one page.
    Answers,
    /// As asked; a range never ends.
    Endless,
    /// It takes requests and never answers; of a range it sends the first page.
    Hangs,
    /// The connection breaks under each request.
    Breaks,
    /// It has no quorum.
    NoQuorum,
}

/// The keys that a fake node has.
pub const KEYS: [&str; 4] = ["k1", "k2", "k3", "k4"];
/// The revision of its answers.
pub const REVISION: u64 = 4711;

/// A node, which keeps what it was asked.
#[derive(Clone)]
pub struct Fake {
    mode: Mode,
    /// Writes.
    pub puts: Arc<Mutex<Vec<v1::PutRequest>>>,
    /// Ranges.
    pub ranges: Arc<Mutex<Vec<v1::RangeRequest>>>,
    /// Transfers of leadership.
    pub transfers: Arc<Mutex<Vec<v1::TransferLeadershipRequest>>>,
    /// Where it listens.
    pub endpoint: String,
}

impl Fake {
    /// Starts it, on a thread of its own.
    pub fn start(mode: Mode) -> Fake {
        let (listener, endpoint) = listen();
        listener.set_nonblocking(true).unwrap();
        let fake = Fake {
            mode,
            puts: Arc::default(),
            ranges: Arc::default(),
            transfers: Arc::default(),
            endpoint,
        };
        let node = fake.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                Server::builder()
                    .add_service(KvServer::new(node.clone()))
                    .add_service(ClusterServer::new(node))
                    .serve_with_incoming(TcpIncoming::from(listener))
                    .await
                    .unwrap();
            });
        });
        fake
    }

    async fn answer<T>(&self, answer: T) -> Result<Response<T>, Status> {
        match self.mode {
            Mode::Answers | Mode::Endless => Ok(Response::new(answer)),
            Mode::Hangs => std::future::pending().await,
            Mode::Breaks => Err(Status::unavailable("the connection broke")),
            Mode::NoQuorum => Err(ApiError::new(ErrorCode::NoQuorum, "two are down").into()),
        }
    }
}

/// A node whose processes are stopped: the kernel takes connections, and nobody reads from them.
pub fn stopped() -> (TcpListener, String) {
    listen()
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    (listener, endpoint)
}

/// The client, with its output in pipes.
pub fn cli(endpoints: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_maree-db-cli"));
    command
        .args(["--endpoint", &endpoints.join(",")])
        .args(arguments)
        .env_remove("MAREEDB_ENDPOINT")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn item(key: &str) -> v1::Item {
    v1::Item {
        key: key.to_owned().into(),
        value: "value".into(),
        ..v1::Item::default()
    }
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        self.puts.lock().unwrap().push(request.into_inner());
        self.answer(v1::PutResponse { revision: REVISION }).await
    }

    async fn get(
        &self,
        _request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let item = Some(item(KEYS[0]));
        self.answer(v1::GetResponse { item }).await
    }

    async fn delete(
        &self,
        _request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.answer(v1::DeleteResponse::default()).await
    }

    type RangeStream = BoxStream<v1::RangeResponse>;

    async fn range(
        &self,
        request: Request<v1::RangeRequest>,
    ) -> Result<Response<Self::RangeStream>, Status> {
        let request = request.into_inner();
        let page = |keys: &[&str]| {
            Ok(v1::RangeResponse {
                items: keys.iter().map(|key| item(key)).collect(),
                revision: REVISION,
            })
        };
        let wanted: Vec<&str> = KEYS
            .into_iter()
            .filter(|key| key.as_bytes() >= &request.start[..])
            .collect();
        self.ranges.lock().unwrap().push(request);
        let pages: Self::RangeStream = match self.mode {
            Mode::Endless => {
                let whole = page(&KEYS);
                Box::pin(tokio_stream::iter(std::iter::repeat_with(move || {
                    whole.clone()
                })))
            }
            Mode::Hangs => {
                let first = tokio_stream::once(page(&wanted[..2]));
                Box::pin(first.chain(tokio_stream::pending()))
            }
            _ => {
                let whole = self.answer(page(&wanted)).await?.into_inner();
                Box::pin(tokio_stream::once(whole))
            }
        };
        Ok(Response::new(pages))
    }

    async fn txn(
        &self,
        _request: Request<v1::TxnRequest>,
    ) -> Result<Response<v1::TxnResponse>, Status> {
        self.answer(v1::TxnResponse::default()).await
    }
}

#[tonic::async_trait]
impl Cluster for Fake {
    async fn status(
        &self,
        _request: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatusResponse>, Status> {
        // Any node tells this, whatever else it lacks.
        Ok(Response::new(v1::ClusterStatusResponse {
            verdict: "degraded".into(),
            ..v1::ClusterStatusResponse::default()
        }))
    }

    async fn elections(
        &self,
        _request: Request<v1::ElectionsRequest>,
    ) -> Result<Response<v1::ElectionsResponse>, Status> {
        self.answer(v1::ElectionsResponse::default()).await
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        self.transfers.lock().unwrap().push(request.into_inner());
        let leader = "node2".into();
        self.answer(v1::TransferLeadershipResponse { leader }).await
    }
}
