//! Requests over gRPC.

use super::{Compare, Condition, Item, PATIENCE, Reply, Request, Step, TIMEOUT_MS, Trouble};
use bytes::Bytes;
use mareedb_api::v1::kv_client::KvClient;
use mareedb_api::{ApiError, v1};
use std::net::SocketAddr;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// A connection, made when it is needed.
pub(super) struct Connection {
    addr: SocketAddr,
    client: Option<KvClient<Channel>>,
}

impl Connection {
    pub(super) fn new(addr: SocketAddr) -> Connection {
        Connection { addr, client: None }
    }

    /// Sends one request once.
    pub(super) async fn ask(
        &mut self,
        request: &Request,
        key: Option<&str>,
    ) -> Result<Reply, Trouble> {
        let client = self.client().await?;
        let asked = tokio::time::timeout(PATIENCE, send(client, request, key)).await;
        let status = match asked {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(status)) => status,
            Err(_) => {
                self.client = None;
                return Err(Trouble::Unknown("no answer in time".to_owned()));
            }
        };
        match ApiError::from_status(&status) {
            Some(error) => Err(Trouble::of(error.code)),
            None if status.code() == tonic::Code::DataLoss => {
                Err(Trouble::Unreadable(status.message().to_owned()))
            }
            // The channel would connect again by itself, and then nobody could say whether a request had left.
            None => {
                self.client = None;
                Err(Trouble::Unknown(format!(
                    "{:?}: {}",
                    status.code(),
                    status.message()
                )))
            }
        }
    }

    async fn client(&mut self) -> Result<&mut KvClient<Channel>, Trouble> {
        if self.client.is_none() {
            let unconnected = |why: &dyn std::fmt::Display| {
                Trouble::Certain(format!("not connected: {}: {why}", self.addr))
            };
            let endpoint = Endpoint::from_shared(format!("http://{}", self.addr))
                .map_err(|error| unconnected(&error))?
                .tcp_nodelay(true)
                .connect_timeout(Duration::from_secs(1));
            let channel = tokio::time::timeout(PATIENCE, endpoint.connect())
                .await
                .map_err(|error| unconnected(&error))?
                .map_err(|error| unconnected(&error))?;
            self.client = Some(KvClient::new(channel));
        }
        Ok(self.client.as_mut().expect("set above"))
    }
}

async fn send(
    client: &mut KvClient<Channel>,
    request: &Request,
    key: Option<&str>,
) -> Result<Reply, tonic::Status> {
    let idempotency_key = key.unwrap_or_default().to_owned();
    match request.clone() {
        Request::Put(key, value, condition) => {
            let request = v1::PutRequest {
                key: key.into(),
                value: value.into(),
                if_mod_revision: match condition {
                    Condition::Revision(revision) => Some(revision),
                    Condition::None | Condition::Absent => None,
                },
                if_absent: condition == Condition::Absent,
                idempotency_key,
                timeout_ms: TIMEOUT_MS,
            };
            let done = client.put(request).await?.into_inner();
            Ok(Reply::Written(done.revision))
        }
        Request::Get {
            key,
            stale,
            revision,
        } => {
            let request = v1::GetRequest {
                key: key.into(),
                revision: revision.unwrap_or(0),
                consistency: consistency(stale),
                timeout_ms: TIMEOUT_MS,
            };
            let got = client.get(request).await?.into_inner();
            let items = got.item.into_iter().map(item);
            Ok(Reply::Items(items.collect::<Result<_, _>>()?))
        }
        Request::Delete(key) => {
            let request = v1::DeleteRequest {
                key: key.into(),
                if_mod_revision: None,
                idempotency_key,
                timeout_ms: TIMEOUT_MS,
            };
            let done = client.delete(request).await?.into_inner();
            Ok(Reply::Deleted(
                done.deleted,
                done.revision.filter(|_| done.deleted),
            ))
        }
        Request::Range { prefix, stale } => {
            let request = v1::RangeRequest {
                prefix: Some(prefix.into()),
                consistency: consistency(stale),
                timeout_ms: TIMEOUT_MS,
                ..v1::RangeRequest::default()
            };
            let mut parts = client.range(request).await?.into_inner();
            let mut items = Vec::new();
            while let Some(part) = parts.message().await? {
                for got in part.items {
                    items.push(item(got)?);
                }
            }
            Ok(Reply::Items(items))
        }
        Request::Txn(compare, steps) => {
            let request = v1::TxnRequest {
                compare: compare.into_iter().map(comparison).collect(),
                success: steps.into_iter().map(operation).collect(),
                failure: Vec::new(),
                idempotency_key,
                timeout_ms: TIMEOUT_MS,
            };
            let done = client.txn(request).await?.into_inner();
            let mut read = Vec::new();
            for result in done.results {
                read.push(match result.result {
                    Some(v1::op_result::Result::Get(got)) => got.item.map(item).transpose()?,
                    _ => None,
                });
            }
            Ok(Reply::Done {
                succeeded: done.succeeded,
                revision: done.revision,
                read,
            })
        }
    }
}

fn consistency(stale: bool) -> i32 {
    if stale {
        v1::Consistency::Stale.into()
    } else {
        v1::Consistency::Linearizable.into()
    }
}

fn comparison(compare: Compare) -> v1::Compare {
    use v1::compare::{Operator, Target};
    let (key, target) = match compare {
        Compare::Value(key, value) => (key, Target::Value(value.into())),
        Compare::Revision(key, revision) => (key, Target::ModRevision(revision)),
    };
    v1::Compare {
        key: key.into(),
        op: Operator::Equal.into(),
        target: Some(target),
    }
}

fn operation(step: Step) -> v1::Op {
    use v1::op;
    let op = match step {
        Step::Put(key, value) => op::Op::Put(op::Put {
            key: key.into(),
            value: value.into(),
        }),
        Step::Get(key) => op::Op::Get(op::Get { key: key.into() }),
        Step::Delete(key) => op::Op::Delete(op::Delete { key: key.into() }),
    };
    v1::Op { op: Some(op) }
}

fn item(item: v1::Item) -> Result<Item, tonic::Status> {
    let text = |bytes: Bytes| {
        String::from_utf8(bytes.into())
            .map_err(|error| tonic::Status::data_loss(format!("not what was written: {error}")))
    };
    Ok(Item {
        key: text(item.key)?,
        value: text(item.value)?,
        revision: item.mod_revision,
        version: item.version,
    })
}
