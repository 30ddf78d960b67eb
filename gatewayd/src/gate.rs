//! Refuses requests for keys before anything of them is decoded, while as many are in flight as may be: a refusal must cost a small part of
//! what a request costs, or refusing does not help.
//!
//! This is only the cheap look. What is let through takes its place once it is decoded, and may still be refused there. Until then its
//! body takes room as it arrives, and has the longest time that a request may ask for. Its answer takes room until the client has read it;
//! while there is none for the largest answer, what gives as much as it finds is refused, too. The value of one key is read all the same:
//! as a rule it is small, and there is room for small answers longer.

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
        let tells = tells(operation, path);
        let api = if path.starts_with(grpc::PATHS) {
            Api::Grpc
        } else {
            Api::Rest
        };
        if self.core.admission.is_full() && operation.is_some() {
            count(&self.core, operation);
            return Either::Left(ready(Ok(self.no_place(api))));
        }
        if operation.is_some_and(gives_what_it_finds) && self.core.answers_are_full() {
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
        Either::Right(Box::pin(self.serve(request, room, api, tells)))
    }
}

/// Counts the refusal of an operation.
fn count(core: &Core, operation: Option<&'static str>) {
    let code = ErrorCode::Overloaded.as_str();
    if let Some(what) = operation {
        core.metrics.count(what, code, Duration::ZERO);
    }
}

/// Whether an operation gives as much as it finds.
fn gives_what_it_finds(what: &str) -> bool {
    matches!(what, "range" | "txn")
}

/// What the answer to a request tells.
fn tells(operation: Option<&'static str>, path: &str) -> Tells {
    match operation {
        Some("get" | "range") => Tells::Read,
        Some(_) => Tells::Done,
        // It has moved what others rely on, though it takes no place.
        None if [rest::TRANSFER, grpc::TRANSFER].contains(&path) => Tells::Done,
        None => Tells::State,
    }
}

/// The answer as it goes out, or that there is no room for it. The request was counted when it was carried out.
fn given(core: &Core, answer: Response<Body>, api: Api, tells: Tells) -> Response<Answer> {
    let (head, body) = answer.into_parts();
    match Answer::held(body, &core.answers, tells) {
        Some(body) => Response::from_parts(head, body),
        None => refusal(answers::full(), api),
    }
}

impl Gate {
    /// `room` is taken until the request is answered.
    fn serve(
        &self,
        request: Request<Incoming>,
        room: Option<Arc<Room>>,
        api: Api,
        tells: Tells,
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
            Ok(given(&core, response, api, tells))
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
    use crate::core::tests::Bed;
    use http::StatusCode;
    use mareedb_config::Config;

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

    #[test]
    fn only_what_was_read_is_refused_once_it_is_there() {
        let cases = [
            (Method::GET, "/v1/kv/a", Tells::Read),
            (Method::GET, "/v1/kv", Tells::Read),
            (Method::POST, "/mareedb.v1.Kv/Range", Tells::Read),
            (Method::PUT, "/v1/kv/a", Tells::Done),
            (Method::DELETE, "/v1/kv/a", Tells::Done),
            (Method::POST, "/mareedb.v1.Kv/Txn", Tells::Done),
            (Method::POST, "/v1/cluster/transfer-leadership", Tells::Done),
            (
                Method::POST,
                "/mareedb.v1.Cluster/TransferLeadership",
                Tells::Done,
            ),
            (Method::GET, "/v1/cluster", Tells::State),
            (Method::GET, "/v1/cluster/elections", Tells::State),
            (Method::POST, "/mareedb.v1.Cluster/Status", Tells::State),
            (Method::GET, "/metrics", Tells::State),
        ];
        for (method, path, expected) in cases {
            let told = tells(operation(&method, path), path);
            assert_eq!(told, expected, "{method} {path}");
        }
    }

    #[test]
    fn a_key_is_read_though_there_is_no_room_for_the_largest_answer() {
        let core = Bed::new(Config::default()).core;
        let max = core.answers.max();
        assert!(!core.answers_are_full());
        assert!(core.answers.take(max - core.body_bytes_max(), max));
        assert!(core.answers_are_full());
        for (what, refused) in [
            ("get", false),
            ("range", true),
            ("txn", true),
            ("put", false),
        ] {
            assert_eq!(gives_what_it_finds(what), refused, "{what}");
        }
        let answer = || Response::new(Body::from("v"));
        assert!(core.answers.take(core.body_bytes_max(), max));
        let given_to = |tells| given(&core, answer(), Api::Rest, tells).status();
        assert_eq!(given_to(Tells::Read), StatusCode::OK);
        assert!(core.answers.take(max, max.saturating_mul(2)));
        assert_eq!(given_to(Tells::Read), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(given_to(Tells::Done), StatusCode::OK);
        assert_eq!(core.answers.refused(), 1);
    }
}
