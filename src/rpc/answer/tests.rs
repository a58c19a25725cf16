//! Answers in the shapes that nodes give, and in shapes drawn around them.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const ID: u64 = 7;

fn read(text: &str) -> Result<Option<u8>, NoResult> {
    single(ID, IdRule::MayLack, text.as_bytes())
}

#[test]
fn an_answer_counts_only_for_its_own_call() {
    assert_eq!(read(r#"{"jsonrpc":"2.0","id":7,"result":3}"#).unwrap(), Some(3));
    assert_eq!(read(r#"{"id":7,"result":null}"#).unwrap(), None, "null is a result");
    let refused = read(r#"{"id":7,"error":{"code":-32000,"message":"no"}}"#).unwrap_err();
    assert!(matches!(refused, NoResult::Refused(NodeError { code: -32000, text, .. }) if text == "no"));
    for (text, problem) in [
        (r#"{"id":8,"result":3}"#, "another request"),
        (r#"{"id":8,"error":{"code":1,"message":"no"}}"#, "another request"),
        (r#"{"id":{"n":7},"result":3}"#, "another request"),
        (r#"{"id":"seven","result":3}"#, "another request"),
        (r#"{"id":7}"#, "neither a result nor an error"),
        (r#"{"id":7,"error":null}"#, "neither a result nor an error"),
        (r#"{"id":7,"result":"three"}"#, "no JSON-RPC answer"),
        (r#"{"id":7,"result":3"#, "no JSON-RPC answer"),
        (r#"[{"id":7,"result":3},{"id":7,"result":4}]"#, "a list of 2"),
        ("[]", "a list of 0"),
        ("<html>", "no JSON-RPC answer"),
        ("7", "no JSON-RPC answer"),
    ] {
        match read(text).unwrap_err() {
            NoResult::Nonsense(said) | NoResult::Neither(said) => assert!(said.contains(problem), "{text}: {said}"),
            other @ NoResult::Refused(_) => panic!("{text}: {other:?}"),
        }
    }
}

/// Without an id an answer is for the one call that it can be for; but no refusal of a transaction is taken from it.
#[test]
fn an_answer_without_an_id_is_for_the_only_call_and_refuses_no_transaction() {
    for id in [r#""id":null,"#, ""] {
        let result = format!(r#"{{{id}"jsonrpc":"2.0","result":3}}"#);
        let error = format!(r#"{{{id}"error":{{"code":-32601,"message":"limit"}}}}"#);
        for rule in [IdRule::MayLack, IdRule::OnErrors] {
            assert_eq!(single::<u8>(ID, rule, result.as_bytes()), Ok(3));
        }
        assert!(matches!(read(&error), Err(NoResult::Refused(error)) if error.text == "limit"));
        let strict = single::<u8>(ID, IdRule::OnErrors, error.as_bytes());
        assert!(matches!(strict, Err(NoResult::Nonsense(said)) if said.contains("without an id: limit")));
    }
}

/// Errors as Ganache, the relay of Hedera, gateways and old servers write them: code, text, data.
#[test]
fn errors_are_read_in_every_shape() {
    let table = [
        (json!({"code": -32000, "message": "no"}), -32000, "no", None),
        (json!({"code": -32000, "message": "no", "stack": "Error: no\n at x", "name": "Oops"}), -32000, "no", None),
        (json!({"code": "-32601", "message": "no"}), -32601, "no", None),
        (json!({"code": -32601.0, "message": "no"}), -32601, "no", None),
        (json!({"code": null, "message": "no", "data": null}), 0, "no", None),
        (json!({"message": "no", "data": "0x08c3"}), 0, "no", Some(json!("0x08c3"))),
        (json!({"code": 3, "message": "no", "data": {"data": "0x08c3"}}), 3, "no", Some(json!({"data": "0x08c3"}))),
        (json!({"code": -32000, "message": {"message": "no"}}), -32000, "no", None),
        (json!({"code": -32000, "reason": "no"}), -32000, "no", None),
        (
            json!({"code": -32000, "message": "", "data": {"message": "no"}}),
            -32000,
            "no",
            Some(json!({"message": "no"})),
        ),
        (json!({"error": "no"}), 0, "no", None),
        (json!({"code": 5, "odd": [1]}), 5, r#"{"code":5,"odd":[1]}"#, None),
        (json!("no"), 0, "no", None),
        (json!(-32601), -32601, "-32601", None),
        (json!(["no"]), 0, r#"["no"]"#, None),
        (json!(true), 0, "true", None),
        (json!({"code": "1e99", "message": "no"}), 0, "no", None),
        (json!({"code": 1e99, "message": "no"}), 0, "no", None),
    ];
    for (error, code, text, data) in table {
        let read = NodeError::read(error.clone()).unwrap();
        assert_eq!((read.code, read.text.as_str(), read.data), (code, text, data), "{error}");
    }
    assert_eq!((NodeError::read(Value::Null), NodeError::read(json!(false))), (None, None));
}

#[test]
fn an_error_that_says_nothing_beside_a_result_is_none() {
    for error in ["null", "false", "{}", "\"\"", r#"{"code":0,"message":""}"#, r#"{"code":null}"#] {
        let text = format!(r#"{{"error":{error},"id":"7","result":3}}"#);
        assert_eq!(read(&text), Ok(Some(3)), "{error}");
        let null = format!(r#"{{"error":{error},"id":7,"result":null}}"#);
        assert_eq!(read(&null), Ok(None), "{error}: null is a result");
        assert!(read(&format!(r#"{{"error":{error},"id":7}}"#)).is_err(), "{error}: alone it counts");
    }
    assert!(read(r#"{"id":7,"result":3,"error":"no"}"#).is_err());
}

#[test]
fn a_list_is_read_by_its_ids_and_only_where_they_fit() {
    let each = |text: Value| many(&[1, 2, 3], text.to_string().as_bytes());
    let result = |id: Value| json!({"id": id, "result": id});
    let (one, two, three) = (result(json!(1)), result(json!("2")), result(json!(3.0)));
    let all = Many::Each(vec![Some(Ok(json!(1))), Some(Ok(json!("2"))), Some(Ok(json!(3.0)))]);
    assert_eq!(each(json!([three, one, two])), all);
    assert_eq!(
        each(json!([three, one, two, {"id": null, "error": "a warning"}, "odd"])),
        all,
        "what is nobody's is left"
    );
    assert_eq!(each(json!([one, three])), Many::Each(vec![Some(Ok(json!(1))), None, Some(Ok(json!(3.0)))]));
    assert_eq!(each(json!([])), Many::Each(vec![None, None, None]));
    for unfitting in [json!([one, one, two]), json!([one, two, result(json!(9))]), json!([one, result(json!({}))])] {
        assert!(matches!(each(unfitting.clone()), Many::Unfitting(_)), "{unfitting}");
    }
    let refusals = [
        json!([{"id": 1, "error": {"code": -32600, "message": "no"}}]),
        json!([{"id": null, "error": {"code": -32600, "message": "no"}}]),
        json!({"id": null, "error": {"code": -32600, "message": "no"}}),
        json!([one, two, {"id": 3, "error": {"code": 1, "message": "batch limit"}}]),
        json!([{"error": "no"}, {"error": "no"}, {"error": "no"}]),
    ];
    for refusal in refusals {
        assert!(matches!(each(refusal.clone()), Many::Refused(_)), "{refusal}");
    }
    assert!(matches!(many(&[1, 2], b"[{\"id\":1"), Many::Unfitting(_)), "cut off");
    assert!(matches!(each(json!({"id": 1, "result": 1})), Many::OneResult));
    assert!(matches!(many(&[1], b"<html>"), Many::Nonsense(_)));
}

#[test]
fn a_text_that_is_no_utf_8_hides_no_answer() {
    let body =
        [br#"{"id":7,"error":{"code":-32000,"message":"nonce too low: "#.as_slice(), &[0xff, 0xfe], b"\"}}"].concat();
    let refused = single::<u8>(ID, IdRule::OnErrors, &body).unwrap_err();
    assert!(matches!(refused, NoResult::Refused(error) if error.text.starts_with("nonce too low")));
}

/// Any JSON, for members that nothing depends on.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i16>().prop_map(|number| json!(f64::from(number) / 4.0)),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,6}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

fn written(number: i64, how: u8) -> Value {
    match how % 3 {
        0 => json!(number),
        1 => json!(number.to_string()),
        _ => json!(number as f64),
    }
}

/// Puts members around those of an answer, none of which is one that counts.
fn with_others(mut answer: Value, others: Vec<(String, Value)>) -> Value {
    for (name, value) in others {
        answer[format!("x{name}")] = value;
    }
    answer
}

proptest! {
    #[test]
    fn a_result_is_found_among_whatever_stands_beside_it(
        result in any_json(), how in any::<u8>(), others in proptest::collection::vec(("[a-z]{1,5}", any_json()), 0..4),
    ) {
        prop_assume!(!result.is_null());
        let blank = [json!({"id": 0}), json!({"id": 0, "error": null}), json!({"id": 0, "error": {}})];
        for mut answer in blank {
            answer["id"] = written(7, how);
            answer["result"] = result.clone();
            let answer = with_others(answer, others.clone());
            let read = single::<Value>(ID, IdRule::OnErrors, answer.to_string().as_bytes());
            prop_assert_eq!(read.unwrap().to_string(), result.to_string());
        }
    }

    #[test]
    fn an_error_is_found_among_whatever_stands_beside_it(
        code in -40_000..40_000_i64, text in "[a-z]{1,20}", how in any::<u8>(), data in any_json(),
        others in proptest::collection::vec(("[a-z]{1,5}", any_json()), 0..4),
    ) {
        let error = with_others(json!({"code": written(code, how), "message": text, "data": data}), others.clone());
        let answer = with_others(json!({"id": written(7, how / 3), "error": error, "result": null}), others);
        match single::<Value>(ID, IdRule::OnErrors, answer.to_string().as_bytes()) {
            Err(NoResult::Refused(error)) => prop_assert_eq!((error.code, error.text), (code, text)),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// Reading comes to an end for any answer too.
    #[test]
    fn no_answer_of_another_is_taken(answer in any_json(), id in 8..1000_u64, result in any_json()) {
        let text = answer.to_string();
        let _ = single::<Value>(ID, IdRule::MayLack, text.as_bytes());
        let _ = many(&[1, 2, 3], text.as_bytes());
        let other = json!({"id": id, "result": result});
        prop_assert!(single::<Value>(ID, IdRule::MayLack, other.to_string().as_bytes()).is_err());
        let list = json!([other, {"id": 1, "result": 1}, {"id": 2, "result": 2}]);
        prop_assert!(matches!(many(&[1, 2, 3], list.to_string().as_bytes()), Many::Unfitting(_)));
    }
}
