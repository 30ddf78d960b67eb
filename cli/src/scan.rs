//! scan: a range, page after page. A page that does not come is asked of the next endpoint, from the last key on and at the
//! revision of the first page, so that the whole still shows one moment.

use crate::client::{Connection, silent};
use crate::failure::{Exit, Failure, from_status};
use crate::kv::{consistency, document};
use crate::output::{self, Format, readable};
use crate::tries::Repeat;
use clap::Args;
use mareedb_api::keys::after_prefix;
use mareedb_api::{ErrorCode, v1};
use tokio::time::timeout;
use tonic::Streaming;

/// Lists the keys with a prefix.
#[derive(Args)]
pub struct Scan {
    /// The prefix; empty: all keys.
    #[arg(default_value = "")]
    prefix: String,
    /// At most so many; 0: all.
    #[arg(long, default_value_t = 0)]
    limit: u64,
    /// Only keys.
    #[arg(long)]
    keys_only: bool,
    /// As of this revision.
    #[arg(long)]
    revision: Option<u64>,
    /// Takes what the node itself has, which may be old.
    #[arg(long)]
    stale: bool,
}

impl Scan {
    pub async fn run(self, connection: Connection, format: Format) -> Result<Exit, Failure> {
        let mut request = v1::RangeRequest {
            prefix: Some(self.prefix.clone().into()),
            limit: self.limit,
            revision: self.revision.unwrap_or(0),
            keys_only: self.keys_only,
            consistency: consistency(self.stale),
            ..v1::RangeRequest::default()
        };
        let (mut page, mut pages) = open(&connection, &request).await?;
        while let Some(now) = page {
            for item in &now.items {
                self.show(item, format)?;
            }
            if rest(&mut request, &now) {
                return Ok(Exit::Done);
            }
            // The node answers for itself by its own timeout, which is shorter than this one.
            page = match timeout(connection.timeout(), pages.message()).await {
                Ok(Ok(next)) => next,
                Ok(Err(status)) => {
                    let failure = from_status(connection.endpoint(), &status);
                    again(&connection, &request, &mut pages, failure).await?
                }
                Err(_) => {
                    let failure = silent(connection.endpoint(), connection.timeout());
                    again(&connection, &request, &mut pages, failure).await?
                }
            };
        }
        Ok(Exit::Done)
    }

    fn show(&self, item: &v1::Item, format: Format) -> Result<Exit, Failure> {
        let key = || readable(&item.key);
        match format {
            Format::Table if self.keys_only => output::line(&key()),
            Format::Table => output::line(&format!("{}\t{}", key(), readable(&item.value))),
            Format::Json => output::line(&output::compact(&document(item)?)?),
        }
    }
}

/// Asks for what is left, and for its first page. Each time it either brings the scan a page further or ends it.
async fn open(
    connection: &Connection,
    request: &v1::RangeRequest,
) -> Result<(Option<v1::RangeResponse>, Streaming<v1::RangeResponse>), Failure> {
    connection
        .call(Repeat::Read, |channel, timeout_ms| {
            let mut request = request.clone();
            request.timeout_ms = timeout_ms;
            async move {
                let mut pages = Connection::kv(channel).range(request).await?.into_inner();
                // The headers say nothing: a node that answers has sent a page.
                Ok((pages.message().await?, pages))
            }
        })
        .await
}

/// The page that `failure` kept back, from the next endpoint if that may have it.
async fn again(
    connection: &Connection,
    request: &v1::RangeRequest,
    pages: &mut Streaming<v1::RangeResponse>,
    failure: Failure,
) -> Result<Option<v1::RangeResponse>, Failure> {
    match failure {
        Failure::NoConnection(_) => {}
        Failure::Api(ref error)
            if matches!(error.code, ErrorCode::NoQuorum | ErrorCode::NotReady) => {}
        failure => return Err(failure),
    }
    connection.turn();
    let page;
    (page, *pages) = open(connection, request).await?;
    Ok(page)
}

/// Makes of a request what is left of it after a page; true: nothing is.
fn rest(request: &mut v1::RangeRequest, page: &v1::RangeResponse) -> bool {
    request.revision = page.revision;
    if let Some(last) = page.items.last() {
        if let Some(prefix) = request.prefix.take() {
            request.end = after_prefix(&prefix);
        }
        request.start = [&last.key[..], &[0]].concat().into();
    }
    if request.limit == 0 {
        return false;
    }
    request.limit = request.limit.saturating_sub(page.items.len() as u64);
    request.limit == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[&[u8]]) -> v1::RangeResponse {
        let item = |key: &&[u8]| v1::Item {
            key: key.to_vec().into(),
            ..v1::Item::default()
        };
        v1::RangeResponse {
            items: keys.iter().map(item).collect(),
            revision: 77,
        }
    }

    #[test]
    fn what_is_left_begins_after_the_last_key_at_the_same_revision() {
        let mut request = v1::RangeRequest {
            prefix: Some("a\u{7f}".into()),
            limit: 3,
            ..v1::RangeRequest::default()
        };
        assert!(!rest(&mut request, &page(&[b"a\x7f1", b"a\x7f2"])));
        assert_eq!(request.prefix, None);
        assert_eq!(&request.start[..], b"a\x7f2\0");
        assert_eq!(&request.end[..], b"a\x80");
        assert_eq!((request.limit, request.revision), (1, 77));
        assert!(rest(&mut request, &page(&[b"a\x7f3"])), "the limit is met");
    }
}
