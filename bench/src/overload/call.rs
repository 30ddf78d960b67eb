//! One gRPC call as cheaply as it can be made: a generator that shares the machine with what it measures must not be what is measured.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mareedb_api::{ApiError, ErrorCode, v1};
use prost::Message;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Accepted,
    /// OVERLOADED; whether it says when to come again.
    Overloaded {
        /// In a header or trailer.
        retry_after: bool,
    },
    /// Another code, ours or gRPC's.
    Other(String),
}

/// A connection.
#[derive(Clone)]
pub struct Caller {
    sender: SendRequest<Full<Bytes>>,
    uri: http::Uri,
}

impl Caller {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there, or it speaks no HTTP/2.
    pub async fn connect(addr: SocketAddr) -> Result<Caller, String> {
        let told = |error: &dyn std::fmt::Display| format!("{addr}: {error}");
        let stream = TcpStream::connect(addr)
            .await
            .map_err(|error| told(&error))?;
        stream.set_nodelay(true).map_err(|error| told(&error))?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| told(&error))?;
        tokio::spawn(connection);
        Ok(Caller {
            sender,
            uri: format!("http://{addr}/mareedb.v1.Kv/Put")
                .parse()
                .map_err(|error| told(&error))?,
        })
    }

    /// Whether it is of no use any more.
    pub fn closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Puts a key.
    pub async fn put(mut self, request: v1::PutRequest) -> Answer {
        let request = Request::post(self.uri)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(framed(&request)));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Answer::Other(error.to_string()),
        };
        let broken = |_: hyper::Error| Answer::Other("connection lost".into());
        let answer = match self.sender.send_request(request).await {
            Ok(answer) => answer,
            Err(error) => return broken(error),
        };
        // An error without a message comes in the headers alone.
        if answer.headers().contains_key("grpc-status") {
            return judge(answer.headers());
        }
        match answer.into_body().collect().await {
            Ok(body) => body
                .trailers()
                .map_or_else(|| Answer::Other("no status".into()), judge),
            Err(error) => broken(error),
        }
    }
}

/// A message as gRPC carries it: not compressed, its length, itself.
fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(5 + len);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message
        .encode(&mut bytes)
        .expect("room for the whole message");
    bytes.freeze()
}

fn judge(headers: &HeaderMap) -> Answer {
    let Some(status) = tonic::Status::from_header_map(headers) else {
        return Answer::Other("no status".into());
    };
    if status.code() == tonic::Code::Ok {
        return Answer::Accepted;
    }
    match ApiError::from_status(&status) {
        Some(error) if error.code == ErrorCode::Overloaded => Answer::Overloaded {
            retry_after: headers.contains_key(header::RETRY_AFTER),
        },
        Some(error) => Answer::Other(error.code.as_str().to_owned()),
        None => Answer::Other(format!("{:?}", status.code())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let headers = |status: tonic::Status| {
            let mut headers = HeaderMap::new();
            status.add_header(&mut headers).unwrap();
            headers
        };
        let overloaded = ApiError::new(ErrorCode::Overloaded, "full").to_status();
        let other = ApiError::new(ErrorCode::NoQuorum, "none").to_status();
        assert_eq!(judge(&headers(tonic::Status::ok(""))), Answer::Accepted);
        assert!(matches!(
            judge(&headers(overloaded)),
            Answer::Overloaded { .. }
        ));
        assert_eq!(judge(&headers(other)), Answer::Other("NO_QUORUM".into()));
        assert_eq!(
            judge(&headers(tonic::Status::unavailable(""))),
            Answer::Other("Unavailable".into())
        );
    }

    #[test]
    fn a_frame_begins_with_its_length() {
        let request = v1::PutRequest {
            key: "k".into(),
            ..v1::PutRequest::default()
        };
        let bytes = framed(&request);
        assert_eq!(bytes[..5], [0, 0, 0, 0, 3]);
        assert_eq!(bytes.len(), 8);
    }
}
