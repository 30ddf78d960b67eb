//! Keys in URL paths: percent-encoded bytes.

use bytes::Bytes;
use std::fmt::Write;

/// A path segment that is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broken percent-encoding at byte {at} of the key: '%' needs two hexadecimal digits")]
pub struct PathError {
    /// Offset of the `%`.
    pub at: usize,
}

/// Writes a key: everything but unreserved characters (RFC 3986) becomes `%XX`, slashes too.
pub fn encode_key(key: &[u8]) -> String {
    let mut out = String::with_capacity(key.len());
    for &byte in key {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a string");
        }
    }
    out
}

/// Reads a key from the raw, still encoded path after `/v1/kv/`. Everything that is no escape stands for itself: `+`
/// is a plus, an unencoded slash a slash.
pub fn decode_key(raw: &str) -> Result<Bytes, PathError> {
    let raw = raw.as_bytes();
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        if byte != b'%' {
            out.push(byte);
            at += 1;
            continue;
        }
        let digit = |i: usize| raw.get(at + i).and_then(|&b| hex_value(b));
        let (Some(high), Some(low)) = (digit(1), digit(2)) else {
            return Err(PathError { at });
        };
        out.push(high << 4 | low);
        at += 3;
    }
    Ok(Bytes::from(out))
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_survive(key: Vec<u8>) {
            let path = encode_key(&key);
            prop_assert!(!path.contains('/') && path.is_ascii());
            prop_assert_eq!(decode_key(&path).unwrap(), key);
        }
        #[test]
        fn hostile_paths_never_panic(raw: String) {
            let _ = decode_key(&raw);
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(decode_key("a%2fb/c+d").unwrap(), "a/b/c+d");
        assert_eq!(decode_key("ab%"), Err(PathError { at: 2 }));
        assert_eq!(decode_key("%4"), Err(PathError { at: 0 }));
        assert_eq!(decode_key("%+1"), Err(PathError { at: 0 }));
    }
}
