//! Refuses requests for keys before anything of them is decoded, while as many are in flight as may be: a refusal must cost a small part of
//! what a request costs, or refusing does not help.
//!
//! This is only the cheap look. What is let through takes its place once it is decoded, and may still be refused there. Until then its
//! body takes room as it arrives, and has the longest time that a request may ask for. Its answer takes room until the client has read it;
//! while there is none for answers, what may have a long one is refused, too.

use crate::answers::{self, Answer, Tells};
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

    /// No place: it is said so often that it is made once.
    fn no_place(&self, api: Api) -> Response<Answer> {
        match api {
            Api::Rest => refusal(self.core.full(), api),
            Api::Grpc => {
                let mut response = Response::new(Answer::small(Body::empty()));
                *response.headers_mut() = (*self.refused).clone();
                response
            }
        }
    }
}

/// What is said instead of an answer.
fn refusal(error: ApiError, api: Api) -> Response<Answer> {
    let answer = match api {
        Api::Rest => rest::failure(error),
        Api::Grpc => error.to_status().into_http(),
    };
    answer.map(Answer::small)
}

impl Service<Request<Incoming>> for Gate {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Either<
        Ready<Result<Response<Answer>, Infallible>>,
        BoxFuture<'static, Result<Response<Answer>, Infallible>>,
    >;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let path = request.uri().path();
        let operation = operation(request.method(), path);
        let api = if path.starts_with(grpc::PATHS) {
            Api::Grpc
        } else {
            Api::Rest
        };
        if self.core.admission.is_full() && operation.is_some() {
            count(&self.core, operation);
            return Either::Left(ready(Ok(self.no_place(api))));
        }
        if operation.is_some_and(may_be_long) && self.core.answers.is_full() {
            count(&self.core, operation);
            return Either::Left(ready(Ok(refusal(answers::full(), api))));
        }
        let mut room = None;
        if !request.body().is_end_stream() {
            room = self.core.bodies.admit();
            if room.is_none() {
                count(&self.core, operation);
                return Either::Left(ready(Ok(refusal(bodies::full(), api))));
            }
        }
        Either::Right(Box::pin(self.serve(request, room, api, operation)))
    }
}

/// Counts the refusal of an operation.
fn count(core: &Core, operation: Option<&'static str>) {
    let code = ErrorCode::Overloaded.as_str();
    if let Some(what) = operation {
        core.metrics.count(what, code, Duration::ZERO);
    }
}

/// Whether an operation may give what is stored.
fn may_be_long(what: &str) -> bool {
    matches!(what, "get" | "range" | "txn")
}

/// The answer as it goes out, or that there is no room for it.
fn given(
    core: &Core,
    answer: Response<Body>,
    api: Api,
    operation: Option<&'static str>,
) -> Response<Answer> {
    let tells = match operation {
        Some("get" | "range") => Tells::Read,
        Some(_) => Tells::Done,
        None => Tells::State,
    };
    let (head, body) = answer.into_parts();
    let Some(body) = Answer::held(body, &core.answers, tells) else {
        count(core, operation);
        return refusal(answers::full(), api);
    };
    Response::from_parts(head, body)
}

impl Gate {
    /// `room` is taken until the request is answered.
    fn serve(
        &self,
        request: Request<Incoming>,
        room: Option<Arc<Room>>,
        api: Api,
        operation: Option<&'static str>,
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> + use<> {
        let until = Instant::now() + self.body_limit;
        let body_room = room.clone();
        let asked = request.map(|body| Metered::new(body, body_room, until));
        let answer = self.routes.call(asked);
        let core = self.core.clone();
        async move {
            let mut response = answer.await?;
            drop(room);
            if api == Api::Grpc
                && let Some(error) = grpc::unexplained(&core, response.headers())
            {
                response = ApiError::to_status(&error).into_http();
            }
            Ok(given(&core, response, api, operation))
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Rest,
    Grpc,
}

/// As what it is counted what takes a place among the requests in flight.
fn operation(method: &Method, path: &str) -> Option<&'static str> {
    if let Some(call) = path.strip_prefix("/mareedb.v1.Kv/") {
        return match call {
            "Put" => Some("put"),
            "Get" => Some("get"),
            "Delete" => Some("delete"),
            "Range" => Some("range"),
            "Txn" => Some("txn"),
            _ => None,
        };
    }
    if path == rest::TXN {
        return (method == Method::POST).then_some("txn");
    }
    match path.strip_prefix(rest::KEYS)? {
        "" | "/" if method == Method::GET => Some("range"),
        key if !key.starts_with('/') => None,
        _ if method == Method::GET => Some("get"),
        _ if method == Method::PUT => Some("put"),
        _ if method == Method::DELETE => Some("delete"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_for_keys_are_refused() {
        let cases = [
            (Method::PUT, "/v1/kv/a", Some("put")),
            (Method::GET, "/v1/kv/a/b", Some("get")),
            (Method::DELETE, "/v1/kv/%2F", Some("delete")),
            (Method::GET, "/v1/kv", Some("range")),
            (Method::GET, "/v1/kv/", Some("range")),
            (Method::POST, "/v1/txn", Some("txn")),
            (Method::POST, "/mareedb.v1.Kv/Range", Some("range")),
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
