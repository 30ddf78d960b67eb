//! Documents about keys.

use super::number::{Decimal, lenient_u64};
use super::text::{Encoding, TextError};
use crate::v1;
use serde::{Deserialize, Serialize};

/// A key with its value and history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The key, in the document's encoding.
    pub key: String,
    /// The value, in the document's encoding; empty when only keys were asked for.
    pub value: String,
    /// Revision that created the key.
    pub create_revision: Decimal,
    /// Revision that last wrote it.
    pub mod_revision: Decimal,
    /// Number of writes since its creation, from 1.
    #[serde(deserialize_with = "lenient_u64")]
    pub version: u64,
}

impl Item {
    /// The document of an item.
    pub fn from_proto(item: &v1::Item, encoding: Encoding) -> Result<Self, TextError> {
        Ok(Item {
            key: encoding.write(&item.key)?,
            value: encoding.write(&item.value)?,
            create_revision: Decimal(item.create_revision),
            mod_revision: Decimal(item.mod_revision),
            version: item.version,
        })
    }

    /// The item of a document.
    pub fn to_proto(&self, encoding: Encoding) -> Result<v1::Item, TextError> {
        Ok(v1::Item {
            key: encoding.read(&self.key)?,
            value: encoding.read(&self.value)?,
            create_revision: self.create_revision.0,
            mod_revision: self.mod_revision.0,
            version: self.version,
        })
    }
}

/// Answer to `PUT /v1/kv/{key}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAnswer {
    /// The key, in the document's encoding.
    pub key: String,
    /// Revision of the write.
    pub revision: Decimal,
}

/// Answer to `DELETE /v1/kv/{key}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAnswer {
    /// Whether the key was there.
    pub deleted: bool,
    /// Revision of the deletion; left out when the key was absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Decimal>,
}

impl From<&v1::DeleteResponse> for DeleteAnswer {
    fn from(answer: &v1::DeleteResponse) -> Self {
        DeleteAnswer {
            deleted: answer.deleted,
            revision: answer.revision.filter(|_| answer.deleted).map(Decimal),
        }
    }
}

/// Answer to `GET /v1/kv`: one page of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeAnswer {
    /// Items in key order.
    pub items: Vec<Item>,
    /// For `?page_token=`; null on the last page.
    pub next_page_token: Option<String>,
}

impl RangeAnswer {
    /// The document of a page.
    pub fn from_proto(
        items: &[v1::Item],
        next_page_token: Option<String>,
        encoding: Encoding,
    ) -> Result<Self, TextError> {
        Ok(RangeAnswer {
            items: items
                .iter()
                .map(|item| Item::from_proto(item, encoding))
                .collect::<Result<_, _>>()?,
            next_page_token,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn item() -> v1::Item {
        v1::Item {
            key: "k".into(),
            value: "v".into(),
            create_revision: u64::MAX,
            mod_revision: 1 << 60,
            version: 3,
        }
    }

    #[test]
    fn shapes_are_those_of_the_contract() {
        let page = RangeAnswer::from_proto(&[item()], Some("t".into()), Encoding::Base64).unwrap();
        assert_eq!(
            serde_json::to_value(page).unwrap(),
            json!({"items": [{"key": "aw==", "value": "dg==", "create_revision": "18446744073709551615",
                "mod_revision": "1152921504606846976", "version": 3}], "next_page_token": "t"})
        );
        let deleted = v1::DeleteResponse {
            deleted: true,
            revision: Some(7),
        };
        assert_eq!(
            serde_json::to_value(DeleteAnswer::from(&deleted)).unwrap(),
            json!({"deleted": true, "revision": "7"})
        );
        let absent = v1::DeleteResponse {
            deleted: false,
            revision: None,
        };
        assert_eq!(
            serde_json::to_value(DeleteAnswer::from(&absent)).unwrap(),
            json!({"deleted": false})
        );
    }

    #[test]
    fn utf8_is_plain_and_refuses_bytes() {
        let plain = Item::from_proto(&item(), Encoding::Utf8).unwrap();
        assert_eq!((plain.key.as_str(), plain.value.as_str()), ("k", "v"));
        let mut binary = item();
        binary.value = vec![0xff].into();
        assert_eq!(
            Item::from_proto(&binary, Encoding::Utf8),
            Err(TextError::NotUtf8)
        );
    }

    proptest! {
        #[test]
        fn items_survive(key: Vec<u8>, value: Vec<u8>, create: u64, modified: u64, version: u64) {
            let item = v1::Item {
                key: key.into(), value: value.into(), create_revision: create, mod_revision: modified, version,
            };
            let json = serde_json::to_string(&Item::from_proto(&item, Encoding::Base64).unwrap()).unwrap();
            let back: Item = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back.to_proto(Encoding::Base64).unwrap(), item);
        }
    }
}
