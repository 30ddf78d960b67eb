//! Byte strings in JSON.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use std::str::FromStr;

/// How a document writes byte strings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Base64 (RFC 4648, standard alphabet); padding is written, and not required.
    #[default]
    Base64,
    /// Plain text; an error where the bytes are not UTF-8.
    Utf8,
}

/// A byte string that has no form in the document's encoding, or the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The text is not base64.
    #[error("the text is not base64; for plain text add ?encoding=utf8")]
    NotBase64,
    /// The bytes are not UTF-8.
    #[error("the bytes are not UTF-8; leave ?encoding=utf8 out to get base64")]
    NotUtf8,
    /// The name of the encoding.
    #[error("no encoding of this version: base64 or utf8")]
    UnknownEncoding,
}

const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Encoding {
    /// Writes a byte string.
    pub fn write(self, bytes: &[u8]) -> Result<String, TextError> {
        match self {
            Encoding::Base64 => Ok(ENGINE.encode(bytes)),
            Encoding::Utf8 => std::str::from_utf8(bytes)
                .map(str::to_owned)
                .map_err(|_| TextError::NotUtf8),
        }
    }

    /// Reads a byte string.
    pub fn read(self, text: &str) -> Result<Bytes, TextError> {
        match self {
            Encoding::Base64 => ENGINE
                .decode(text)
                .map(Bytes::from)
                .map_err(|_| TextError::NotBase64),
            Encoding::Utf8 => Ok(Bytes::copy_from_slice(text.as_bytes())),
        }
    }
}

/// The value of `?encoding=`.
impl FromStr for Encoding {
    type Err = TextError;
    fn from_str(text: &str) -> Result<Self, TextError> {
        match text {
            "base64" => Ok(Encoding::Base64),
            "utf8" => Ok(Encoding::Utf8),
            _ => Err(TextError::UnknownEncoding),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn base64_carries_all_bytes(bytes: Vec<u8>) {
            let text = Encoding::Base64.write(&bytes).unwrap();
            prop_assert_eq!(Encoding::Base64.read(&text).unwrap(), bytes.clone());
            let unpadded = text.trim_end_matches('=');
            prop_assert_eq!(Encoding::Base64.read(unpadded).unwrap(), bytes);
        }
        #[test]
        fn utf8_carries_all_text(text: String) {
            let bytes = Encoding::Utf8.read(&text).unwrap();
            prop_assert_eq!(Encoding::Utf8.write(&bytes).unwrap(), text);
        }
        #[test]
        fn hostile_text_never_panics(text: String) {
            let _ = Encoding::Base64.read(&text);
        }
    }

    #[test]
    fn what_has_no_form_is_an_error() {
        assert_eq!(Encoding::Utf8.write(&[0xff]), Err(TextError::NotUtf8));
        for text in ["a", "a-_b", "YQ=a", "Y Q", "é"] {
            assert_eq!(
                Encoding::Base64.read(text),
                Err(TextError::NotBase64),
                "{text}"
            );
        }
        assert_eq!("UTF8".parse::<Encoding>(), Err(TextError::UnknownEncoding));
    }
}
