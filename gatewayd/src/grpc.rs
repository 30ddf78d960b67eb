//! The gRPC services.

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

/// A range, and how many items it may still have.
type Rest = (v1::RangeRequest, u64);

impl Services {
    /// One page of a range, and what is left of it.
    async fn next_page(
        &self,
        mut request: v1::RangeRequest,
        left: u64,
    ) -> Result<(v1::RangeResponse, Option<Rest>), Status> {
        let limit = self.core.page_items(left);
        let page = self.core.page(&request, limit);
        let page = self.counted("range", page).await?.into_inner();
        let left = left.saturating_sub(page.items.len() as u64);
        let rest = page.next.filter(|_| left > 0).map(|next| {
            crate::kv::go_on(&mut request, page.revision, next);
            (request, left)
        });
        let response = v1::RangeResponse {
            items: page.items,
            revision: page.revision,
        };
        Ok((response, rest))
    }
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
        let request = request.into_inner();
        let left = match request.limit {
            0 => u64::MAX,
            limit => limit,
        };
        let services = self.clone();
        let pages = stream::unfold(Some((request, left)), move |state| {
            let services = services.clone();
            async move {
                let (request, left) = state?;
                Some(match services.next_page(request, left).await {
                    Ok((page, rest)) => (Ok(page), rest),
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
