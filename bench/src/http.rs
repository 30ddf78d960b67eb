//! A small HTTP/1.1 client whose connection is visible: callers must know whether an answer or the connection failed.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// One keep-alive connection to a node's REST port, made when it is needed.
pub struct Client {
    addr: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
    /// Connections made so far.
    pub connects: u64,
}

/// What a node answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// Headers.
    pub headers: http::HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Broken {
    /// No connection could be made.
    Connect(std::io::Error),
    /// The connection ended before the answer was whole.
    Lost(String),
    /// No answer came in time.
    TimedOut,
}
impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Connect(error) => write!(f, "no connection: {error}"),
            Broken::Lost(why) => write!(f, "connection lost: {why}"),
            Broken::TimedOut => write!(f, "no answer in time"),
        }
    }
}
impl std::error::Error for Broken {}

impl Client {
    /// A client of the node at `addr`; connects at the first request.
    pub fn new(addr: SocketAddr) -> Self {
        Client {
            addr,
            connection: None,
            connects: 0,
        }
    }

    /// Turns to another node; the connection is given up.
    pub fn retarget(&mut self, addr: SocketAddr) {
        self.addr = addr;
        self.connection = None;
    }

    /// Whether a connection is open.
    pub fn connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| !c.is_closed())
    }

    async fn ready(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, Broken> {
        let reusable = match self.connection.as_mut() {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !reusable {
            let stream = TcpStream::connect(self.addr)
                .await
                .map_err(Broken::Connect)?;
            stream.set_nodelay(true).map_err(Broken::Connect)?;
            let (sender, connection) = handshake(TokioIo::new(stream))
                .await
                .map_err(|error| Broken::Lost(error.to_string()))?;
            tokio::spawn(connection);
            self.connects += 1;
            self.connection = Some(sender);
        }
        Ok(self.connection.as_mut().expect("set above"))
    }

    /// Sends one request and waits for the whole answer. After an error the connection is given up.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
        timeout: Duration,
    ) -> Result<Answer, Broken> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.addr.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Broken::Lost(error.to_string()))?;
        let exchange = async {
            let answer = self
                .ready()
                .await?
                .send_request(request)
                .await
                .map_err(|error| Broken::Lost(error.to_string()))?;
            let (parts, body) = answer.into_parts();
            let body = body
                .collect()
                .await
                .map_err(|error| Broken::Lost(error.to_string()))?
                .to_bytes();
            Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        let result = tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(Broken::TimedOut));
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    /// `GET path` with a timeout of five seconds.
    pub async fn get(&mut self, path: &str) -> Result<Answer, Broken> {
        self.request(Method::GET, path, &[], Bytes::new(), Duration::from_secs(5))
            .await
    }

    /// `PUT /v1/kv/{key}` with a timeout of ten seconds. `key` is in its percent-encoded form.
    pub async fn put(&mut self, key: &str, value: &[u8]) -> Result<Answer, Broken> {
        self.request(
            Method::PUT,
            &format!("/v1/kv/{key}"),
            &[],
            Bytes::copy_from_slice(value),
            Duration::from_secs(10),
        )
        .await
    }
}
