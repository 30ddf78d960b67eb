//! Integers in JSON: beyond 2^53 many readers lose digits, so that large ones are decimal strings.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;

/// A 64-bit integer that is written as a decimal string, and read from a string or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Decimal(pub u64);

impl From<u64> for Decimal {
    fn from(n: u64) -> Self {
        Decimal(n)
    }
}
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient_u64(deserializer).map(Decimal)
    }
}

/// Reads a 64-bit integer from a decimal string or a number; for `#[serde(deserialize_with)]`.
pub fn lenient_u64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Scalar::deserialize(deserializer)? {
        Scalar::Number(n) => Ok(n),
        Scalar::Text(text) => parse_decimal(&text).ok_or_else(|| {
            de::Error::invalid_value(de::Unexpected::Str(&text), &"an integer below 2^64")
        }),
    }
}

/// Digits only: no sign, no space, no empty text.
pub(super) fn parse_decimal(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A text or a number, where only the context tells which is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A JSON string.
    Text(String),
    /// A JSON number.
    Number(u64),
}

impl Serialize for Scalar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Scalar::Text(text) => serializer.serialize_str(text),
            Scalar::Number(n) => serializer.serialize_u64(*n),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an integer from 0 to 2^64 - 1")
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Scalar, E> {
                Ok(Scalar::Number(n))
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Scalar, E> {
                u64::try_from(n)
                    .map(Scalar::Number)
                    .map_err(|_| de::Error::invalid_value(de::Unexpected::Signed(n), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Scalar, E> {
                Ok(Scalar::Text(text))
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn strings_and_numbers_are_read(n: u64) {
            let json = serde_json::to_string(&Decimal(n)).unwrap();
            prop_assert_eq!(&json, &format!("\"{n}\""));
            prop_assert_eq!(serde_json::from_str::<Decimal>(&json).unwrap(), Decimal(n));
            prop_assert_eq!(serde_json::from_str::<Decimal>(&n.to_string()).unwrap(), Decimal(n));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for hostile in [
            "-1",
            "1.5",
            "1e3",
            "\"\"",
            "\" 1\"",
            "\"+1\"",
            "\"-1\"",
            "\"1e3\"",
            "\"0x10\"",
            "18446744073709551616",
            "\"18446744073709551616\"",
            "null",
            "true",
            "[]",
            "{}",
            "\"१\"",
        ] {
            assert!(
                serde_json::from_str::<Decimal>(hostile).is_err(),
                "{hostile}"
            );
        }
    }
}
