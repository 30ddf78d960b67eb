//! Page tokens: a revision, the next key, a checksum, as base64 of bytes that clients must not read.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use mareedb_api::ApiError;
use xxhash_rust::xxh3::xxh3_64;

/// The token of a page that goes on at this revision with this key, which is not empty.
pub fn write(revision: u64, next: &[u8]) -> String {
    let mut bytes = revision.to_le_bytes().to_vec();
    bytes.extend_from_slice(next);
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// What [`write()`] was given.
///
/// # Errors
/// BAD_REQUEST: the text is none of its.
pub fn read(text: &str) -> Result<(u64, Bytes), ApiError> {
    let parse = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (body, sum) = bytes.split_last_chunk::<8>()?;
        let (revision, next) = body.split_first_chunk::<8>()?;
        let valid = u64::from_le_bytes(*sum) == xxh3_64(body) && !next.is_empty();
        valid.then(|| (u64::from_le_bytes(*revision), Bytes::copy_from_slice(next)))
    };
    parse().ok_or_else(|| ApiError::bad_request("page_token is none that a page has given"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tokens_come_back_and_others_are_refused(revision: u64, next in prop::collection::vec(any::<u8>(), 1..20), hostile in ".{0,60}") {
            let token = write(revision, &next);
            prop_assert_eq!(read(&token).unwrap(), (revision, Bytes::from(next)));
            let _ = read(&hostile);
            let mut cut = token;
            cut.pop();
            prop_assert!(read(&cut).is_err());
        }
    }
}
