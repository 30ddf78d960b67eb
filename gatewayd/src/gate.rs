//! Refuses requests for keys before anything of them is decoded, while as many are in flight as may be: a refusal must cost a small part of
//! what a request costs, or refusing does not help.
//!
//! This is only the cheap look. What is let through takes its place once it is decoded, and may still be refused there.

use crate::core::Core;
use crate::rest;
use axum::Router;
use axum::body::Body;
use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use mareedb_api::ErrorCode;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// Routes with the look before them.
#[derive(Clone)]
pub struct Gate {
    core: Arc<Core>,
    routes: TowerToHyperService<Router>,
    /// The headers of the refusal over gRPC, which are the same each time.
    refused: Arc<HeaderMap>,
}

impl Gate {
    /// A gate before `routes`.
    pub fn before(routes: Router, core: Arc<Core>) -> Gate {
        let refused = core.full().to_status().into_http::<Body>();
        Gate {
            core,
            routes: TowerToHyperService::new(routes),
            refused: Arc::new(refused.headers().clone()),
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
        TowerToHyperServiceFuture<Router, Request<Incoming>>,
    >;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if self.core.admission.is_full()
            && let Some((api, what)) = operation(request.method(), request.uri().path())
        {
            let code = ErrorCode::Overloaded.as_str();
            self.core.metrics.count(what, code, Duration::ZERO);
            return Either::Left(ready(Ok(self.refusal(api))));
        }
        Either::Right(self.routes.call(request))
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
    if path == "/v1/txn" {
        return (method == Method::POST).then_some((Api::Rest, "txn"));
    }
    let what = match path.strip_prefix("/v1/kv")? {
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
