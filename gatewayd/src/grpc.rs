//! The gRPC services.

use crate::answers;
use crate::core::Core;
use crate::elections;
use crate::status::{self, Boards};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryFutureExt};
use http::HeaderMap;
use mareedb_api::v1::cluster_server::{Cluster, ClusterServer};
use mareedb_api::v1::kv_server::{Kv, KvServer};
use mareedb_api::v1::node_server::{Node, NodeServer};
use mareedb_api::{ApiError, ErrorCode, v1};
use std::future::Future;
use std::sync::Arc;
use tonic::server::NamedService;
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Code, Request, Response, Status};
use tonic_health::ServingStatus;

/// How the paths of our services begin.
pub const PATHS: &str = "/mareedb.v1.";
/// Path of transfers of leadership.
pub(crate) const TRANSFER: &str = "/mareedb.v1.Cluster/TransferLeadership";

/// All services.
#[derive(Clone)]
pub struct Services {
    core: Arc<Core>,
    boards: Arc<Boards>,
}

/// The services as routes.
pub fn routes(core: &Arc<Core>, boards: &Arc<Boards>) -> Routes {
    let services = Services {
        core: core.clone(),
        boards: boards.clone(),
    };
    let limit = core.body_bytes_max();
    let (reporter, health) = tonic_health::server::health_reporter();
    let core = core.clone();
    tokio::spawn(async move {
        let mut view = core.calls().watch_view();
        loop {
            let ready = view
                .borrow_and_update()
                .as_ref()
                .is_some_and(|view| view.ready);
            let status = if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            // The empty name is the whole server's.
            for service in ["", <KvServer<Services> as NamedService>::NAME] {
                reporter.set_service_status(service, status).await;
            }
            if view.changed().await.is_err() {
                return;
            }
        }
    });
    let mut builder = RoutesBuilder::default();
    builder
        .add_service(KvServer::new(services.clone()).max_decoding_message_size(limit))
        .add_service(ClusterServer::new(services.clone()))
        .add_service(NodeServer::new(services))
        .add_service(health);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(mareedb_api::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    match reflection {
        Ok(reflection) => {
            builder.add_service(reflection);
        }
        Err(error) => tracing::error!(%error, "no gRPC reflection"),
    }
    builder.routes()
}

impl Services {
    fn counted<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, ApiError>>,
    ) -> impl Future<Output = Result<Response<T>, Status>> {
        let code = |error: &ApiError| error.code.as_str();
        let answer = self.core.metrics.counted(what, answer, code);
        answer.map_ok(Response::new).map_err(Status::from)
    }
}

/// What is still to come of a range.
#[derive(Debug)]
struct Rest {
    request: v1::RangeRequest,
    /// So many items at most.
    left: u64,
    /// Bytes of the page before, about; `None`: there was none.
    before: Option<usize>,
}

impl Rest {
    /// All of a range.
    fn of(request: v1::RangeRequest) -> Rest {
        let left = match request.limit {
            0 => u64::MAX,
            limit => limit,
        };
        Rest {
            request,
            left,
            before: None,
        }
    }

    /// One page, and what is left after it.
    async fn next_page(self, core: &Core) -> Result<(v1::RangeResponse, Option<Rest>), ApiError> {
        let Rest {
            mut request,
            left,
            before,
        } = self;
        let deadline = core.deadline(request.timeout_ms)?;
        // A stream that runs does not end for want of room at this moment, and no page of it is read in vain. What is taken here is given back
        // just before the page takes its own.
        let _room = match before {
            None => None,
            Some(bytes) => {
                let room = answers::room_for(&core.answers, bytes, deadline).await;
                Some(room.ok_or_else(answers::full)?)
            }
        };
        let limit = core.page_items(left);
        let page = core.page_by(&request, limit, deadline).await?;
        let bytes: usize = page.items.iter().map(bytes_of).sum();
        let left = left.saturating_sub(page.items.len() as u64);
        let rest = page.next.filter(|_| left > 0).map(|next| {
            crate::kv::go_on(&mut request, page.revision, next);
            Rest {
                request,
                left,
                before: Some(bytes),
            }
        });
        let response = v1::RangeResponse {
            items: page.items,
            revision: page.revision,
        };
        Ok((response, rest))
    }
}

/// Bytes of an item in a message, about.
fn bytes_of(item: &v1::Item) -> usize {
    const NUMBERS: usize = 40;
    item.key.len() + item.value.len() + NUMBERS
}

/// The error in our words, if the headers of an answer have one that was made before a request came to us: of a message that is too large,
/// that is none, or for what there is not.
pub(crate) fn unexplained(core: &Core, headers: &HeaderMap) -> Option<ApiError> {
    if headers.contains_key("grpc-status-details-bin") {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    match status.code() {
        Code::OutOfRange => Some(core.too_large("message")),
        Code::Unimplemented => Some(ApiError::new(
            ErrorCode::Unsupported,
            match status.message() {
                "" => "there is no such call",
                why => why,
            },
        )),
        Code::Internal => Some(ApiError::bad_request(status.message())),
        _ => None,
    }
}

#[tonic::async_trait]
impl Kv for Services {
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        self.counted("put", self.core.put(request.into_inner()))
            .await
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        self.counted("get", self.core.get(request.into_inner()))
            .await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        self.counted("delete", self.core.delete(request.into_inner()))
            .await
    }

    type RangeStream = BoxStream<'static, Result<v1::RangeResponse, Status>>;

    /// A page is read when the client has room for it: one that does not read on holds no pages, and no place among the requests.
    async fn range(
        &self,
        request: Request<v1::RangeRequest>,
    ) -> Result<Response<Self::RangeStream>, Status> {
        let all = Rest::of(request.into_inner());
        let services = self.clone();
        let pages = stream::unfold(Some(all), move |rest: Option<Rest>| {
            let services = services.clone();
            async move {
                let page = rest?.next_page(&services.core);
                Some(match services.counted("range", page).await {
                    Ok(page) => {
                        let (page, rest) = page.into_inner();
                        (Ok(page), rest)
                    }
                    Err(status) => (Err(status), None),
                })
            }
        });
        Ok(Response::new(pages.boxed()))
    }

    async fn txn(
        &self,
        request: Request<v1::TxnRequest>,
    ) -> Result<Response<v1::TxnResponse>, Status> {
        self.counted("txn", self.core.txn(request.into_inner()))
            .await
    }
}

#[tonic::async_trait]
impl Cluster for Services {
    async fn status(
        &self,
        _request: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatusResponse>, Status> {
        Ok(Response::new(status::cluster(&self.core)))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let request = request.into_inner();
        let transfer = async {
            let deadline = self.core.deadline(request.timeout_ms)?;
            let leader = self.core.transfer_to(&request.to, deadline).await?;
            Ok(v1::TransferLeadershipResponse { leader })
        };
        self.counted("transfer_leadership", transfer).await
    }

    async fn elections(
        &self,
        _request: Request<v1::ElectionsRequest>,
    ) -> Result<Response<v1::ElectionsResponse>, Status> {
        let answer = async {
            let deadline = self.core.deadline(0)?;
            elections::elections(&self.core, deadline).await
        };
        self.counted("elections", answer).await
    }
}

#[tonic::async_trait]
impl Node for Services {
    async fn status(
        &self,
        _request: Request<v1::NodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatusResponse>, Status> {
        status::node(&self.core, &self.boards)
            .map(Response::new)
            .map_err(Status::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::Bed;
    use bytes::Bytes;
    use futures::poll;
    use mareedb_config::Config;
    use mareedb_ipc::wire::gateway::ToConsensus;
    use std::pin::pin;

    #[tokio::test]
    async fn the_next_page_of_a_stream_is_read_when_there_is_room_for_it() {
        let mut bed = Bed::new(Config::default());
        bed.led_by(1, 1);
        let core = bed.core.clone();
        let rest = |timeout_ms, before| Rest {
            request: v1::RangeRequest {
                start: Bytes::from_static(b"k"),
                timeout_ms,
                ..v1::RangeRequest::default()
            },
            left: u64::MAX,
            before,
        };
        let max = core.answers.max();
        assert!(core.answers.take(max, max));
        let before = Some(1 << 20);
        let late = rest(1, before).next_page(&core).await;
        let code = late.err().map(|late| late.code);
        assert_eq!(code, Some(ErrorCode::Overloaded));
        let mut page = pin!(rest(60_000, before).next_page(&core));
        assert!(poll!(page.as_mut()).is_pending());
        assert!(bed.unasked(), "nothing is read before");
        core.answers.give_back(max);
        let asked = bed.asked(page.as_mut()).await;
        assert!(matches!(asked, ToConsensus::ReadIndex { .. }), "{asked:?}");
        // The gate has let the first one in.
        assert!(core.answers.take(max - (2 << 20), max));
        let mut first = pin!(rest(60_000, None).next_page(&core));
        let asked = bed.asked(first.as_mut()).await;
        assert!(matches!(asked, ToConsensus::ReadIndex { .. }), "{asked:?}");
    }
}
