//! What became of a call, as its headers or trailers say it.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use mareedb_api::{ApiError, ErrorCode};

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

impl Answer {
    /// Reads the block of headers that ends an answer, compressed as HTTP/2 does it, without a table that came before.
    pub fn decode(block: &[u8]) -> Answer {
        let decoded = match loona_hpack::Decoder::new().decode(block) {
            Ok(decoded) => decoded,
            Err(error) => return Answer::Other(format!("unreadable headers: {error}")),
        };
        let headers = decoded.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name).ok()?;
            Some((name, HeaderValue::from_bytes(value).ok()?))
        });
        judge(&headers.collect())
    }
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

    fn block(status: &tonic::Status) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        let fields = headers
            .iter()
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        loona_hpack::Encoder::new().encode(fields)
    }

    #[test]
    fn answers_are_told_apart() {
        let overloaded = ApiError::new(ErrorCode::Overloaded, "full").to_status();
        let other = ApiError::new(ErrorCode::NoQuorum, "none").to_status();
        assert_eq!(
            Answer::decode(&block(&tonic::Status::ok(""))),
            Answer::Accepted
        );
        assert_eq!(
            Answer::decode(&block(&overloaded)),
            Answer::Overloaded { retry_after: true }
        );
        assert_eq!(
            Answer::decode(&block(&other)),
            Answer::Other("NO_QUORUM".into())
        );
        assert_eq!(
            Answer::decode(&block(&tonic::Status::unavailable(""))),
            Answer::Other("Unavailable".into())
        );
        assert!(matches!(Answer::decode(&[0x80]), Answer::Other(_)));
    }
}
