//! The gRPC services.

use crate::core::Core;
use crate::elections;
use crate::status::{self, Boards};
use mareedb_api::v1::cluster_server::{Cluster, ClusterServer};
use mareedb_api::v1::kv_server::{Kv, KvServer};
use mareedb_api::v1::node_server::{Node, NodeServer};
use mareedb_api::{ApiError, v1};
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Request, Response, Status};

/// Pages of a range that wait for a slow client.
const PAGES_WAITING: usize = 2;

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
    let limit = usize::try_from(core.config.limits.request_bytes_max)
        .unwrap_or(usize::MAX)
        .saturating_add(64 << 10);
    let (reporter, health) = tonic_health::server::health_reporter();
    let core = core.clone();
    tokio::spawn(async move {
        let mut view = core.calls().view();
        loop {
            let ready = view
                .borrow_and_update()
                .as_ref()
                .is_some_and(|view| view.ready);
            if ready {
                reporter.set_serving::<KvServer<Services>>().await;
            } else {
                reporter.set_not_serving::<KvServer<Services>>().await;
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
    async fn counted<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<Response<T>, Status> {
        let began = Instant::now();
        let answer = answer.await;
        let code = match &answer {
            Ok(_) => "OK",
            Err(error) => error.code.as_str(),
        };
        self.core.metrics.count(what, code, began.elapsed());
        answer.map(Response::new).map_err(Status::from)
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

    type RangeStream = ReceiverStream<Result<v1::RangeResponse, Status>>;

    async fn range(
        &self,
        request: Request<v1::RangeRequest>,
    ) -> Result<Response<Self::RangeStream>, Status> {
        let (pages, stream) = mpsc::channel(PAGES_WAITING);
        let mut request = request.into_inner();
        let services = self.clone();
        tokio::spawn(async move {
            let mut left = if request.limit == 0 {
                u64::MAX
            } else {
                request.limit
            };
            loop {
                let limit = services.core.page_items(left);
                let page = services
                    .counted("range", services.core.page(&request, limit))
                    .await;
                let page = match page {
                    Ok(page) => page.into_inner(),
                    Err(status) => {
                        let _ = pages.send(Err(status)).await;
                        return;
                    }
                };
                left = left.saturating_sub(page.items.len() as u64);
                let response = v1::RangeResponse {
                    items: page.items,
                    revision: page.revision,
                };
                // A client that went away ends the scan.
                if pages.send(Ok(response)).await.is_err() {
                    return;
                }
                let Some(next) = page.next.filter(|_| left > 0) else {
                    return;
                };
                if let Some(prefix) = request.prefix.take() {
                    request.end = crate::kv::after_prefix(&prefix);
                }
                request.start = next;
                // All pages show one moment.
                request.revision = page.revision;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
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
        self.counted("elections", elections::elections(&self.core))
            .await
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
