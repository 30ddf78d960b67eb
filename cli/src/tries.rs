//! What the tries of one request have come to: whether it may be sent again, and what its failure means in the end.

use crate::failure::Failure;
use mareedb_api::{ApiError, ErrorCode};

/// What may be done with a request that was sent and not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat<'a> {
    /// A read: sent again, and never of unknown outcome.
    Read,
    /// A write under this idempotency key: sent again, it takes effect once.
    Keyed(&'a str),
    /// It would take effect once more: never sent again when it may have been taken.
    Never,
}

impl Repeat<'_> {
    /// Whether it may be sent again at all.
    pub fn allowed(self) -> bool {
        self != Repeat::Never
    }
}

/// What was tried so far.
pub struct Tries<'a> {
    repeat: Repeat<'a>,
    /// Endpoints that gave no answer, with the reason.
    unanswered: Vec<(String, String)>,
    /// The last answer that was an error.
    error: Option<ApiError>,
    /// Something else that went wrong, and ends it.
    other: Option<Failure>,
    /// A try may have been taken, or may still be.
    open: bool,
    refused_in_a_row: usize,
}

impl<'a> Tries<'a> {
    /// Nothing was tried.
    pub fn new(repeat: Repeat<'a>) -> Tries<'a> {
        Tries {
            repeat,
            unanswered: Vec::new(),
            error: None,
            other: None,
            open: false,
            refused_in_a_row: 0,
        }
    }

    /// Nothing was sent, as there was no connection. How many times in a row it has been so.
    pub fn refused(&mut self, endpoint: &str, why: String) -> usize {
        self.unanswered.push((endpoint.to_owned(), why));
        self.refused_in_a_row += 1;
        self.refused_in_a_row
    }

    /// A try failed after it was sent; `more`: there are endpoints that have not been asked. Whether to go on.
    pub fn goes_on(&mut self, failure: Failure, more: bool) -> bool {
        self.refused_in_a_row = 0;
        match failure {
            Failure::NoConnection(tried) => {
                self.unanswered.extend(tried);
                self.open = true;
                self.repeat.allowed()
            }
            Failure::Api(error) => {
                self.open |= error.code == ErrorCode::OutcomeUnknown;
                // Another node may have what this one lacks: a leader, or the way to it.
                let lacks = matches!(
                    error.code,
                    ErrorCode::NoQuorum | ErrorCode::NotReady | ErrorCode::OutcomeUnknown
                );
                self.error = Some(error);
                lacks && more && self.repeat.allowed()
            }
            other => {
                self.other = Some(other);
                false
            }
        }
    }

    /// Why there is no answer.
    pub fn end(self) -> Failure {
        let unknown = self.open && self.repeat != Repeat::Read;
        match self.error {
            // An earlier try may yet be taken: what a later one was refused for is not the outcome, unless it is the
            // one that the key stands for.
            Some(error) if !unknown || is_outcome(error.code) => {
                if error.code == ErrorCode::OutcomeUnknown {
                    let why = (String::from("a node"), error.message);
                    return Failure::NoConnection(vec![why]);
                }
                Failure::Api(error)
            }
            error if unknown => unknown_outcome(self.repeat, &self.unanswered, error),
            _ => self.other.unwrap_or(Failure::NoConnection(self.unanswered)),
        }
    }
}

/// Whether an error is the outcome of the request, whichever of its tries it answers.
fn is_outcome(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::PreconditionFailed | ErrorCode::IdempotencyKeyReused
    )
}

fn unknown_outcome(
    repeat: Repeat<'_>,
    unanswered: &[(String, String)],
    error: Option<ApiError>,
) -> Failure {
    let mut told: Vec<String> = unanswered
        .iter()
        .map(|(endpoint, why)| format!("{endpoint}: {why}"))
        .collect();
    told.extend(error.map(|error| match error.code {
        ErrorCode::OutcomeUnknown => error.message,
        code => format!("{code}: {}", error.message),
    }));
    told.push("the request may or may not take effect".into());
    let remedy = match repeat {
        Repeat::Keyed(key) => format!(
            "Send the same command again, with --idempotency-key {key}\n       \
             It takes effect once: if it already did, you get the answer and the revision of that time. The key is kept for 5 minutes \
             from then on, or what limits.idempotency_ttl_ms says; after that, read the key to see what it holds."
        ),
        Repeat::Read | Repeat::Never => {
            "See who leads (maree-db-cli cluster status) before you ask again.".into()
        }
    };
    ApiError::new(ErrorCode::OutcomeUnknown, told.join("; "))
        .with_remedy(remedy)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Failure {
        Failure::NoConnection(vec![("n1:7001".into(), "no answer within 10 ms".into())])
    }

    fn said(code: ErrorCode) -> Failure {
        ApiError::new(code, "as the node says").into()
    }

    /// The code that it ends with, if it ends with an answer, after these tries.
    fn end(repeat: Repeat<'_>, tries: Vec<Failure>) -> Option<ErrorCode> {
        let mut all = Tries::new(repeat);
        for failure in tries {
            all.goes_on(failure, true);
        }
        match all.end() {
            Failure::Api(error) => Some(error.code),
            Failure::NoConnection(_) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_read_is_never_of_unknown_outcome() {
        let read = |tries| end(Repeat::Read, tries);
        assert_eq!(read(vec![lost()]), None);
        assert_eq!(read(vec![said(ErrorCode::OutcomeUnknown)]), None);
        let tries = vec![lost(), said(ErrorCode::NoQuorum)];
        assert_eq!(read(tries), Some(ErrorCode::NoQuorum));
    }

    #[test]
    fn a_refusal_after_an_unanswered_write_is_not_its_outcome() {
        let unknown = Some(ErrorCode::OutcomeUnknown);
        for code in [
            ErrorCode::NoQuorum,
            ErrorCode::NotReady,
            ErrorCode::Overloaded,
            ErrorCode::QuotaExceeded,
        ] {
            let alone = end(Repeat::Keyed("k"), vec![said(code)]);
            assert_eq!(alone, Some(code), "it was the only one");
            let after = end(Repeat::Keyed("k"), vec![lost(), said(code)]);
            assert_eq!(after, unknown, "{code}");
        }
        // The key stands for one outcome, whichever try had it.
        for code in [
            ErrorCode::PreconditionFailed,
            ErrorCode::IdempotencyKeyReused,
        ] {
            let after = end(Repeat::Keyed("k"), vec![lost(), said(code)]);
            assert_eq!(after, Some(code));
        }
        let nothing_sent = Tries::new(Repeat::Keyed("k")).end();
        assert!(matches!(nothing_sent, Failure::NoConnection(_)));
    }

    #[test]
    fn what_takes_effect_each_time_is_not_sent_again() {
        for failure in [lost(), said(ErrorCode::OutcomeUnknown)] {
            let mut tries = Tries::new(Repeat::Never);
            assert!(!tries.goes_on(failure, true));
            let Failure::Api(error) = tries.end() else {
                panic!("not an answer");
            };
            assert_eq!(error.code, ErrorCode::OutcomeUnknown);
            assert!(error.remedy.contains("cluster status"), "{error:?}");
        }
    }

    #[test]
    fn only_what_another_node_may_have_is_asked_of_it() {
        let goes_on = |code, more| Tries::new(Repeat::Read).goes_on(said(code), more);
        assert!(goes_on(ErrorCode::NoQuorum, true));
        assert!(!goes_on(ErrorCode::NoQuorum, false));
        assert!(!goes_on(ErrorCode::BadRequest, true));
        assert!(!goes_on(ErrorCode::Overloaded, true));
    }
}
