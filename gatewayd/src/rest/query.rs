//! Query strings: every parameter is looked at, and one that nobody knows is an error.
//!
//! `timeout_ms` and `encoding` belong to every request. They are read before the others, so that no request can forget to take them.

use super::App;
use super::reply::Failure;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use mareedb_api::ApiError;
use mareedb_api::rest::{Encoding, decode_key};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// The parameters of a request.
#[derive(Debug)]
pub struct Params {
    timeout_ms: u64,
    encoding: Encoding,
    values: BTreeMap<String, bytes::Bytes>,
    seen: Mutex<Vec<&'static str>>,
}

impl Params {
    /// Parses a query string.
    ///
    /// # Errors
    /// Bad percent-encoding, a parameter twice, or no value of a parameter that every request has.
    pub fn parse(query: &str) -> Result<Params, ApiError> {
        let mut values = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // In query strings a plus is a space, by an old custom of forms.
            let value = value.replace('+', "%20");
            let decoded = decode_key(&value)
                .map_err(|error| ApiError::bad_request(format!("parameter {name}: {error}")))?;
            if values.insert(name.to_owned(), decoded).is_some() {
                return Err(ApiError::bad_request(format!(
                    "parameter {name} stands there twice"
                )));
            }
        }
        let mut params = Params {
            timeout_ms: 0,
            encoding: Encoding::default(),
            values,
            seen: Mutex::default(),
        };
        params.timeout_ms = match params.number("timeout_ms")? {
            Some(0) => {
                return Err(ApiError::bad_request(
                    "timeout_ms is 0, at least 1 is wanted",
                ));
            }
            given => given.unwrap_or(0),
        };
        if let Some(text) = params.text("encoding") {
            params.encoding = text
                .parse()
                .map_err(|error| ApiError::bad_request(format!("encoding is '{text}', {error}")))?;
        }
        Ok(params)
    }

    /// The bytes of a parameter.
    pub fn bytes(&self, name: &'static str) -> Option<bytes::Bytes> {
        self.seen.lock().push(name);
        self.values.get(name).cloned()
    }

    /// The text of a parameter; bytes that are no UTF-8 are replaced, since no text parameter has any.
    pub fn text(&self, name: &'static str) -> Option<String> {
        self.bytes(name)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A number.
    pub fn number(&self, name: &'static str) -> Result<Option<u64>, ApiError> {
        match self.text(name) {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!("{name} is '{text}', a whole number is wanted"))
            }),
        }
    }

    /// A yes or no.
    pub fn flag(&self, name: &'static str) -> Result<bool, ApiError> {
        match self.text(name).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!(
                "{name} is '{other}': true or false"
            ))),
        }
    }

    /// `timeout_ms`; 0 when it is not given.
    pub fn timeout_ms(&self) -> u64 {
        self.timeout_ms
    }

    /// `encoding`; base64 when it is not given.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// `revision`; 0 when it is not given.
    pub fn revision(&self) -> Result<u64, ApiError> {
        match self.number("revision")? {
            Some(0) => Err(ApiError::bad_request(
                "revision is 0; leave it out to read the present",
            )),
            given => Ok(given.unwrap_or(0)),
        }
    }

    /// `consistency`, as the contract's number.
    pub fn consistency(&self) -> Result<i32, ApiError> {
        use mareedb_api::v1::Consistency;
        match self.text("consistency").as_deref() {
            None | Some("linearizable") => Ok(Consistency::Linearizable.into()),
            Some("stale") => Ok(Consistency::Stale.into()),
            Some(other) => Err(ApiError::bad_request(format!(
                "consistency is '{other}': linearizable or stale"
            ))),
        }
    }

    /// Refuses what nobody has looked at.
    ///
    /// # Errors
    /// An unknown parameter.
    pub fn finish(&self) -> Result<(), ApiError> {
        let seen = self.seen.lock();
        match self
            .values
            .keys()
            .find(|name| !seen.contains(&name.as_str()))
        {
            None => Ok(()),
            Some(name) => {
                let mut known = seen.clone();
                known.sort_unstable();
                Err(ApiError::bad_request(format!(
                    "parameter {name} is not known here; known: {}",
                    known.join(", ")
                )))
            }
        }
    }
}

impl FromRequestParts<App> for Params {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Params, Failure> {
        let params = Params::parse(parts.uri.query().unwrap_or_default())?;
        // Also where nothing waits so long: more than may be asked for is an error everywhere.
        app.core.deadline(params.timeout_ms)?;
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unknown_repeated_and_malformed_parameters_are_errors() {
        let params = Params::parse("prefix=a%2Fb&limit=5").unwrap();
        assert_eq!(params.bytes("prefix").as_deref(), Some(&b"a/b"[..]));
        assert_eq!(params.number("limit").unwrap(), Some(5));
        assert!(params.finish().is_ok());
        assert!(Params::parse("a=1&a=2").is_err());
        assert!(Params::parse("a=%zz").is_err());
        let params = Params::parse("colour=red").unwrap();
        assert!(params.finish().is_err());
        assert!(
            Params::parse("limit=many")
                .unwrap()
                .number("limit")
                .is_err()
        );
    }

    #[test]
    fn what_every_request_may_say_is_known_without_being_asked_for() {
        let params = Params::parse("timeout_ms=7&encoding=utf8").unwrap();
        assert!(params.finish().is_ok());
        assert_eq!(
            (params.timeout_ms(), params.encoding()),
            (7, Encoding::Utf8)
        );
        let none = Params::parse("").unwrap();
        assert_eq!((none.timeout_ms(), none.encoding()), (0, Encoding::Base64));
        for wrong in ["timeout_ms=0", "timeout_ms=soon", "encoding=UTF8"] {
            assert!(Params::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn hostile_queries_never_panic(query in ".{0,80}") {
            if let Ok(params) = Params::parse(&query) {
                let _ = (params.timeout_ms(), params.revision(), params.encoding(), params.flag("keys_only"));
                let _ = params.finish();
            }
        }
    }
}
