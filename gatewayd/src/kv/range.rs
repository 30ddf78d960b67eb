//! Bounds of ranges, and how a range goes on after a page.

use bytes::Bytes;
use mareedb_api::keys::after_prefix;
use mareedb_api::{ApiError, v1};
use std::fmt::Arguments;

/// Start and end of a range; an empty end is the end of the key space.
pub(super) fn bounds(
    at: Arguments<'_>,
    start: &Bytes,
    end: &Bytes,
    prefix: Option<&Bytes>,
) -> Result<(Bytes, Bytes), ApiError> {
    match prefix {
        None => Ok((start.clone(), end.clone())),
        Some(_) if !start.is_empty() || !end.is_empty() => Err(ApiError::bad_request(format!(
            "{at} has a prefix, and a start or an end: give one or the other"
        ))),
        Some(prefix) => Ok((prefix.clone(), after_prefix(prefix))),
    }
}

/// Makes a request ask for what follows a page that ended before `next`: within the same bounds, and at the page's revision, so that all
/// pages show one moment.
pub(crate) fn go_on(request: &mut v1::RangeRequest, revision: u64, next: Bytes) {
    if let Some(prefix) = request.prefix.take() {
        request.end = after_prefix(&prefix);
    }
    request.start = next;
    request.revision = revision;
}

/// The next key.
pub(super) fn after(key: &[u8]) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_goes_on_within_its_bounds_and_at_its_revision() {
        let mut request = v1::RangeRequest {
            prefix: Some(Bytes::from_static(b"a\xff")),
            ..v1::RangeRequest::default()
        };
        go_on(&mut request, 7, after(b"a\xff1"));
        let (start, end) = bounds(
            format_args!("it"),
            &request.start,
            &request.end,
            request.prefix.as_ref(),
        )
        .unwrap();
        assert_eq!((&start[..], &end[..]), (&b"a\xff1\0"[..], &b"b"[..]));
        assert_eq!(request.revision, 7);
    }
}
