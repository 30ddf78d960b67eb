//! Keys in their order, which is that of their bytes.

use bytes::Bytes;

/// The first key after every key with this prefix; empty: there is none.
pub fn after_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff);
    kept.map_or_else(Bytes::new, |at| {
        let mut end = prefix[..=at].to_vec();
        end[at] += 1;
        end.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_ends_where_no_key_has_it() {
        assert_eq!(&after_prefix(b"ab")[..], b"ac");
        assert_eq!(&after_prefix(b"a\xff\xff")[..], b"b");
        assert_eq!(&after_prefix(b"\xff")[..], b"");
        assert_eq!(&after_prefix(b"")[..], b"");
    }

    /// Of bytes between which little lies, so that keys and prefixes often meet.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop::sample::select(vec![0u8, 1, 0x7f, 0xfe, 0xff]);
        prop::collection::vec(byte, 0..5)
    }

    proptest! {
        #[test]
        fn the_range_of_a_prefix_has_the_keys_with_it_and_no_others(prefix in bytes(), key in bytes()) {
            let end = after_prefix(&prefix);
            let within = key >= prefix && (end.is_empty() || key[..] < end[..]);
            prop_assert_eq!(within, key.starts_with(&prefix));
        }
    }
}
