//! Reads JSON from a body: UTF-8, with or without a byte order mark, each key of an object once (RFC 8259 leaves it open what a
//! second one means, and of two amounts either could be paid).

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::model::cause::cut;
use crate::model::text::placed_json_fault;
use crate::policy::body::fault::SHOWN_BYTES;

const MARK: &[u8] = b"\xef\xbb\xbf";
/// Byte order marks of UTF-16, with the byte order that they show.
const OTHER_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Returns the bytes behind a byte order mark of UTF-8, if they have one.
pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(MARK).unwrap_or(bytes)
}

/// Reads a JSON document in which no object has a key twice.
///
/// # Errors
/// Says what is wrong, and where.
pub(super) fn read(bytes: &[u8]) -> Result<Value, String> {
    if OTHER_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        return Err("it begins with a byte order mark of UTF-16; expected UTF-8".to_owned());
    }
    let mut reader = serde_json::Deserializer::from_slice(without_mark(bytes));
    let value = Strict.deserialize(&mut reader).map_err(|error| placed_json_fault(&error))?;
    reader.end().map_err(|error| placed_json_fault(&error))?;
    Ok(value)
}

/// Checks that a `content_type` leaves room for JSON in UTF-8.
///
/// # Errors
/// Says what it is, and what it may be.
pub(super) fn check_type(content_type: Option<&str>) -> Result<(), String> {
    let Some(content_type) = content_type else { return Ok(()) };
    let mut parts = content_type.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    let is_json = matches!(
        kind.as_str(),
        "" | "application/json"
            | "application/x-json"
            | "text/json"
            | "text/x-json"
            | "text/plain"
            | "application/octet-stream"
            | "binary/octet-stream"
    ) || kind.ends_with("+json");
    if !is_json {
        let shown = cut(content_type.to_owned(), SHOWN_BYTES);
        return Err(format!(
            "content_type is {shown:?}, and the body is read as JSON; expected application/json, one that ends with +json, \
             text/plain, application/octet-stream or none"
        ));
    }
    let charset =
        parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let Some((_, charset)) = charset else { return Ok(()) };
    match charset.trim().trim_matches('"').to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" | "us-ascii" | "ascii" => Ok(()),
        other => {
            let shown = cut(other.to_owned(), SHOWN_BYTES);
            Err(format!(
                "content_type has the charset {shown:?}, and JSON is UTF-8; send it as UTF-8, and say so or nothing"
            ))
        }
    }
}

/// Reads a value whose objects have each key once.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = members.next_element_seed(Strict)? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            let value = members.next_value_seed(Strict)?;
            if all.contains_key(&key) {
                return Err(de::Error::custom(format_args!(
                    "the key {:?} stands twice in one object",
                    cut(key, SHOWN_BYTES)
                )));
            }
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_byte_order_mark_is_passed_over_and_one_of_another_encoding_named() {
        assert_eq!(read(b"\xef\xbb\xbf{\"a\":1}").unwrap(), json!({"a": 1}));
        assert!(read(b"\xef\xbb\xbf\xef\xbb\xbf{}").is_err(), "one mark");
        for marked in [&b"\xff\xfe{\x00}\x00"[..], b"\xfe\xff\x00{\x00}"] {
            assert!(read(marked).unwrap_err().contains("UTF-16"));
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_at_every_depth() {
        for (text, key) in [
            (r#"{"value":"1","value":"2"}"#, "value"),
            (r#"{"value":1,"value":1}"#, "value"),
            (r#"{"a":{"b":[{"c":1,"d":2,"c":3}]}}"#, "c"),
            (r#"{"a":1,"\u0061":2}"#, "a"),
            (r#"[[{"":1,"":2}]]"#, ""),
        ] {
            let fault = read(text.as_bytes()).unwrap_err();
            assert!(fault.contains(&format!("the key {key:?} stands twice")), "{fault}");
        }
        for text in [r#"{"a":{"a":1},"b":{"a":2}}"#, r#"{"a":1,"A":2}"#] {
            assert!(read(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn types_that_say_something_else_than_json_are_refused() {
        for good in [
            "",
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "text/json",
            "application/cloudevents+json",
            "application/vnd.masstransit+json",
            "text/plain",
            "text/plain; charset=us-ascii",
            "application/octet-stream",
            "application/json; profile=\"x\"",
        ] {
            assert_eq!(check_type(Some(good)), Ok(()), "{good}");
        }
        assert_eq!(check_type(None), Ok(()));
        for (bad, part) in [
            ("application/xml", "application/xml"),
            ("text/html", "read as JSON"),
            ("application/x-python-serialize", "read as JSON"),
            ("application/x-msgpack", "read as JSON"),
            ("application/json-seq", "read as JSON"),
            ("json", "read as JSON"),
            ("application/json; charset=utf-16", "charset \"utf-16\""),
            ("text/plain; format=flowed; charset=ISO-8859-1", "charset \"iso-8859-1\""),
        ] {
            assert!(check_type(Some(bad)).unwrap_err().contains(part), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_serde_json_reads_is_read_alike_unless_a_key_stands_twice(text in "[-0-9eE.\\[\\]{},:\"\\\\ uabtrfnls]{0,40}") {
            let strict = read(text.as_bytes());
            match serde_json::from_slice::<Value>(text.as_bytes()) {
                Ok(value) => match strict {
                    Ok(strict) => prop_assert_eq!(strict, value),
                    Err(fault) => prop_assert!(fault.contains("stands twice"), "{}", fault),
                },
                Err(_) => prop_assert!(strict.is_err()),
            }
        }
    }
}
