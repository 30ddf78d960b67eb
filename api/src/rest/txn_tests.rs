//! Tests of the transaction documents.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn parse(text: &str) -> Result<TxnBody, serde_json::Error> {
    serde_json::from_str(text)
}

#[test]
fn a_whole_transaction() {
    let body = parse(
        r#"{"compare": [
              {"key": "a", "target": "value", "op": "==", "value": "old"},
              {"key": "a", "target": "version", "op": "!=", "value": 3},
              {"key": "a", "target": "create_revision", "op": "<", "value": "18446744073709551615"},
              {"key": "a", "target": "mod_revision", "op": ">", "value": "0"}],
            "success": [{"put": {"key": "a", "value": "new"}}, {"get": {"key": "a"}}, {"delete": {"key": "b"}},
              {"range": {"prefix": "c", "limit": "10"}}],
            "failure": [{"range": {"start": "c", "end": "d"}}]}"#,
    )
    .unwrap();
    let message = body.to_proto(Encoding::Utf8).unwrap();
    use v1::compare::{Operator, Target};
    let compare: Vec<_> = message
        .compare
        .iter()
        .map(|c| (c.op(), c.target.clone().unwrap()))
        .collect();
    assert_eq!(
        compare,
        [
            (Operator::Equal, Target::Value("old".into())),
            (Operator::NotEqual, Target::Version(3)),
            (Operator::Less, Target::CreateRevision(u64::MAX)),
            (Operator::Greater, Target::ModRevision(0)),
        ]
    );
    assert_eq!(message.success.len(), 4);
    assert_eq!(
        message.success[3].op,
        Some(v1::op::Op::Range(v1::op::Range {
            prefix: Some("c".into()),
            limit: 10,
            ..Default::default()
        }))
    );
    assert_eq!(
        message.failure[0].op,
        Some(v1::op::Op::Range(v1::op::Range {
            start: "c".into(),
            end: "d".into(),
            ..Default::default()
        }))
    );
    // And the document survives being written.
    let again: TxnBody = serde_json::from_value(serde_json::to_value(&body).unwrap()).unwrap();
    assert_eq!(again, body);
}

#[test]
fn faults_are_named_with_their_place() {
    let at = |text: &str, encoding| {
        parse(text)
            .unwrap()
            .to_proto(encoding)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        at(
            r#"{"success": [{"get": {"key": "YQ=="}}, {"put": {"key": "YQ==", "value": "?"}}]}"#,
            Encoding::Base64
        ),
        "success[1].put.value: the text is not base64; for plain text add ?encoding=utf8"
    );
    assert_eq!(
        at(
            r#"{"compare": [{"key": "a", "target": "version", "op": "==", "value": "x"}]}"#,
            Encoding::Utf8
        ),
        "compare[0].value: must be an integer below 2^64, as a decimal string or a number"
    );
    assert_eq!(
        at(
            r#"{"compare": [{"key": "a", "target": "value", "op": "==", "value": 1}]}"#,
            Encoding::Utf8
        ),
        "compare[0].value: must be a string, as the target is the value"
    );
    assert_eq!(
        at(
            r#"{"failure": [{"range": {"prefix": "a", "end": "b"}}]}"#,
            Encoding::Utf8
        ),
        "failure[0].range: give either prefix, or start and end"
    );
}

#[test]
fn hostile_documents_are_refused() {
    for hostile in [
        "",
        "null",
        "7",
        "[",
        r#"{"sucess": []}"#,
        r#"{"success": {}}"#,
        r#"{"success": [{}]}"#,
        r#"{"success": [{"put": {"key": "a"}}]}"#,
        r#"{"success": [{"put": {"key": "a", "value": "b", "ttl": 1}}]}"#,
        r#"{"success": [{"put": {"key": "a", "value": "b"}, "get": {"key": "a"}}]}"#,
        r#"{"success": [{"drop": {"key": "a"}}]}"#,
        r#"{"success": ["put"]}"#,
        r#"{"success": [{"range": {"limit": -1}}]}"#,
        r#"{"success": [{"range": {"limit": 1.5}}]}"#,
        r#"{"compare": [{"key": "a", "target": "size", "op": "==", "value": 1}]}"#,
        r#"{"compare": [{"key": "a", "target": "version", "op": "=", "value": 1}]}"#,
        r#"{"compare": [{"key": "a", "target": "version", "op": "==", "value": -1}]}"#,
        r#"{"compare": [{"key": "a", "target": "version", "op": "==", "value": null}]}"#,
        r#"{"compare": [{"key": "a", "target": "version", "op": "=="}]}"#,
        r#"{"compare": [], "compare": []}"#,
    ] {
        assert!(parse(hostile).is_err(), "{hostile}");
    }
    // Depth is bounded by the parser, not by the stack.
    assert!(parse(&"[".repeat(100_000)).is_err());
}

#[test]
fn an_answer_has_the_shape_of_the_contract() {
    use v1::op_result::{Delete, Get, Put, Range, Result as Kind};
    let result = |kind| v1::OpResult { result: Some(kind) };
    let item = v1::Item {
        key: "k".into(),
        value: "v".into(),
        create_revision: 1,
        mod_revision: 2,
        version: 2,
    };
    let answer = v1::TxnResponse {
        succeeded: true,
        revision: 1 << 60,
        results: vec![
            result(Kind::Put(Put {})),
            result(Kind::Get(Get { item: None })),
            result(Kind::Delete(Delete { deleted: true })),
            result(Kind::Range(Range {
                items: vec![item],
                more: true,
            })),
        ],
    };
    let document = TxnAnswer::from_proto(&answer, Encoding::Utf8).unwrap();
    let json = serde_json::to_value(&document).unwrap();
    assert_eq!(
        json,
        json!({"succeeded": true, "revision": "1152921504606846976", "results": [
            {"put": {}}, {"get": {"item": null}}, {"delete": {"deleted": true}},
            {"range": {"items": [{"key": "k", "value": "v", "create_revision": "1", "mod_revision": "2",
                "version": 2}], "more": true}}]})
    );
    assert_eq!(serde_json::from_value::<TxnAnswer>(json).unwrap(), document);
}

proptest! {
    #[test]
    fn hostile_text_never_panics(text in r#"[\[\]{}",:a-z0-9\\ ]{0,80}"#) {
        if let Ok(body) = parse(&text) {
            let _ = body.to_proto(Encoding::Base64);
        }
    }
}
