//! Refuses requests for keys before anything of them is decoded, while as many are in flight as may be: a refusal must cost a small part of
//! what a request costs, or refusing does not help.
//!
//! This is only the cheap look. What is let through takes its place once it is decoded, and may still be refused there. Until then its
//! body takes room as it arrives, and has the longest time that a request may ask for.

use crate::bodies::{self, Metered, Room};
use crate::core::Core;
use crate::{grpc, rest};
use axum::Router;
use axum::body::Body;
use futures::future::{BoxFuture, Either, Ready, ready};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use mareedb_api::{ApiError, ErrorCode};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Routes with the look before them.
#[derive(Clone)]
pub struct Gate {
    core: Arc<Core>,
    routes: TowerToHyperService<Router>,
    /// The headers of a refusal over gRPC, which are the same each time.
    refused: Arc<HeaderMap>,
    /// How long the body of a request may take.
    body_limit: Duration,
}

impl Gate {
    /// A gate before `routes`.
    pub fn before(routes: Router, core: Arc<Core>) -> Gate {
        let refused = core.full().to_status().into_http::<Body>();
        let body_limit = Duration::from_millis(core.config.limits.timeout_ms_max);
        Gate {
            core,
            routes: TowerToHyperService::new(routes),
            refused: Arc::new(refused.headers().clone()),
            body_limit,
        }
    }

    fn refusal(&self, api: Api) -> Response<Body> {
        match api {
            Api::Rest => rest::failure(self.core.full()),
            Api::Grpc => {
                let mut response = Response::new(Body::empty());
                *response.headers_mut() = (*self.refused).clone();
                response
            }
        }
    }
}

impl Service<Request<Incoming>> for Gate {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        Ready<Result<Response<Body>, Infallible>>,
        BoxFuture<'static, Result<Response<Body>, Infallible>>,
    >;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if self.core.admission.is_full()
            && let Some((api, what)) = operation(request.method(), request.uri().path())
        {
            self.count(what);
            return Either::Left(ready(Ok(self.refusal(api))));
        }
        let ours = request.uri().path().starts_with(grpc::PATHS);
        let mut room = None;
        if !request.body().is_end_stream() {
            room = self.core.bodies.admit();
            if room.is_none() {
                if let Some((_, what)) = operation(request.method(), request.uri().path()) {
                    self.count(what);
                }
                let refused = bodies::full();
                return Either::Left(ready(Ok(if ours {
                    refused.to_status().into_http()
                } else {
                    rest::failure(refused)
                })));
            }
        }
        Either::Right(Box::pin(self.serve(request, room, ours)))
    }
}

impl Gate {
    /// Counts a refusal.
    fn count(&self, what: &'static str) {
        let code = ErrorCode::Overloaded.as_str();
        self.core.metrics.count(what, code, Duration::ZERO);
    }

    /// `room` is taken until the request is answered; `ours`: it is a call of our services.
    fn serve(
        &self,
        request: Request<Incoming>,
        room: Option<Arc<Room>>,
        ours: bool,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
        let until = Instant::now() + self.body_limit;
        let body_room = room.clone();
        let asked = request.map(|body| Metered::new(body, body_room, until));
        let answer = self.routes.call(asked);
        let core = self.core.clone();
        async move {
            let mut response = answer.await?;
            drop(room);
            if ours && let Some(error) = grpc::unexplained(&core, response.headers()) {
                response = ApiError::to_status(&error).into_http();
            }
            Ok(response)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Rest,
    Grpc,
}

/// What takes a place among the requests in flight, and as what it is counted.
fn operation(method: &Method, path: &str) -> Option<(Api, &'static str)> {
    if let Some(call) = path.strip_prefix("/mareedb.v1.Kv/") {
        let what = match call {
            "Put" => "put",
            "Get" => "get",
            "Delete" => "delete",
            "Range" => "range",
            "Txn" => "txn",
            _ => return None,
        };
        return Some((Api::Grpc, what));
    }
    if path == rest::TXN {
        return (method == Method::POST).then_some((Api::Rest, "txn"));
    }
    let what = match path.strip_prefix(rest::KEYS)? {
        "" | "/" if method == Method::GET => "range",
        key if !key.starts_with('/') => return None,
        _ if method == Method::GET => "get",
        _ if method == Method::PUT => "put",
        _ if method == Method::DELETE => "delete",
        _ => return None,
    };
    Some((Api::Rest, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_for_keys_are_refused() {
        let rest = |what| Some((Api::Rest, what));
        let cases = [
            (Method::PUT, "/v1/kv/a", rest("put")),
            (Method::GET, "/v1/kv/a/b", rest("get")),
            (Method::DELETE, "/v1/kv/%2F", rest("delete")),
            (Method::GET, "/v1/kv", rest("range")),
            (Method::GET, "/v1/kv/", rest("range")),
            (Method::POST, "/v1/txn", rest("txn")),
            (
                Method::POST,
                "/mareedb.v1.Kv/Range",
                Some((Api::Grpc, "range")),
            ),
            // Nothing, or what an operator needs most under overload.
            (Method::POST, "/v1/kv/a", None),
            (Method::GET, "/v1/txn", None),
            (Method::GET, "/v1/kvx", None),
            (Method::GET, "/v1/cluster", None),
            (Method::GET, "/metrics", None),
            (Method::POST, "/mareedb.v1.Kv/Nothing", None),
            (Method::POST, "/mareedb.v1.Cluster/Status", None),
            (Method::POST, "/grpc.health.v1.Health/Check", None),
        ];
        for (method, path, expected) in cases {
            assert_eq!(operation(&method, path), expected, "{method} {path}");
        }
    }
}
