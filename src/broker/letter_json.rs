//! Writes a dead letter as one line of JSON and reads it back, with its body, its properties and its headers' types.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use lapin::types::{AMQPValue, DecimalValue, FieldTable, LongString, ShortString};
use serde::{Deserialize, Serialize};

use crate::broker::convert::PlainProperties;
use crate::broker::dead_letters::RawLetter;

const FORMAT: u32 = 1;
/// Highest depth of nested tables and arrays: JSON readers refuse more than 128 levels, and each of these takes two.
const MAX_LEVELS: usize = 48;

/// Why a letter cannot be written as JSON, or a line cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LetterJsonError {
    #[error("a header is nested more than {MAX_LEVELS} deep, which JSON cannot hold")]
    TooDeep,
    #[error("it is no exported dead letter: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("it has format {0}, this version reads {FORMAT}")]
    Format(u32),
    #[error("its {0} cannot be read")]
    Value(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Line {
    format: u32,
    exchange: String,
    routing_key: String,
    #[serde(default)]
    properties: PlainProperties,
    /// Absent where the message has no header table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<String, Typed>>,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    #[serde(rename = "body")]
    Text(String),
    #[serde(rename = "body_base64")]
    Base64(String),
}

/// A header's value with its AMQP type. Floats are texts, since JSON has neither infinities nor NaN.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Typed {
    Boolean(bool),
    Int8(i8),
    Uint8(u8),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Float(String),
    Double(String),
    Decimal { scale: u8, value: u32 },
    ShortString(String),
    Text(String),
    TextBase64(String),
    Array(Vec<Typed>),
    Timestamp(u64),
    Table(BTreeMap<String, Typed>),
    BytesBase64(String),
    Void,
}

impl RawLetter {
    /// Returns one line, without the headers that the broker writes at each delivery.
    pub fn to_json(&self) -> Result<String, LetterJsonError> {
        let letter = self.clone().without_broker_headers();
        let headers = letter.properties.headers().as_ref().map(|headers| table(headers, 0)).transpose()?;
        let body = match std::str::from_utf8(&letter.body) {
            Ok(text) => Body::Text(text.to_owned()),
            Err(_) => Body::Base64(BASE64_STANDARD.encode(&letter.body)),
        };
        let properties = PlainProperties::of(&letter.properties);
        let RawLetter { exchange, routing_key, .. } = letter;
        Ok(serde_json::to_string(&Line { format: FORMAT, exchange, routing_key, properties, headers, body })?)
    }

    /// # Errors
    /// When the line is not one that `to_json` returns.
    pub fn from_json(line: &str) -> Result<Self, LetterJsonError> {
        let Line { format, exchange, routing_key, properties, headers, body } = serde_json::from_str(line)?;
        if format != FORMAT {
            return Err(LetterJsonError::Format(format));
        }
        let mut properties = properties.into_properties().map_err(LetterJsonError::Value)?;
        if let Some(headers) = headers {
            properties = properties.with_headers(untyped_table(headers)?);
        }
        let body = match body {
            Body::Text(text) => text.into_bytes(),
            Body::Base64(text) => bytes_of(&text, "body_base64")?,
        };
        Ok(Self { exchange, routing_key, properties, body: Bytes::from(body) })
    }
}

fn table(table: &FieldTable, level: usize) -> Result<BTreeMap<String, Typed>, LetterJsonError> {
    table.inner().iter().map(|(name, value)| Ok((name.to_string(), typed(value, level)?))).collect()
}

fn typed(value: &AMQPValue, level: usize) -> Result<Typed, LetterJsonError> {
    if level >= MAX_LEVELS {
        return Err(LetterJsonError::TooDeep);
    }
    Ok(match value {
        AMQPValue::Boolean(value) => Typed::Boolean(*value),
        AMQPValue::ShortShortInt(value) => Typed::Int8(*value),
        AMQPValue::ShortShortUInt(value) => Typed::Uint8(*value),
        AMQPValue::ShortInt(value) => Typed::Int16(*value),
        AMQPValue::ShortUInt(value) => Typed::Uint16(*value),
        AMQPValue::LongInt(value) => Typed::Int32(*value),
        AMQPValue::LongUInt(value) => Typed::Uint32(*value),
        AMQPValue::LongLongInt(value) => Typed::Int64(*value),
        AMQPValue::Float(value) => Typed::Float(value.to_string()),
        AMQPValue::Double(value) => Typed::Double(value.to_string()),
        AMQPValue::DecimalValue(value) => Typed::Decimal { scale: value.scale, value: value.value },
        AMQPValue::ShortString(text) => Typed::ShortString(text.to_string()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => Typed::Text(text.to_owned()),
            Err(_) => Typed::TextBase64(BASE64_STANDARD.encode(text.as_bytes())),
        },
        AMQPValue::FieldArray(values) => {
            Typed::Array(values.as_slice().iter().map(|value| typed(value, level + 1)).collect::<Result<_, _>>()?)
        }
        AMQPValue::Timestamp(seconds) => Typed::Timestamp(*seconds),
        AMQPValue::FieldTable(inner) => Typed::Table(table(inner, level + 1)?),
        AMQPValue::ByteArray(bytes) => Typed::BytesBase64(BASE64_STANDARD.encode(bytes.as_slice())),
        AMQPValue::Void => Typed::Void,
    })
}

fn untyped_table(table: BTreeMap<String, Typed>) -> Result<FieldTable, LetterJsonError> {
    let mut fields = FieldTable::default();
    for (name, value) in table {
        fields.insert(short(name)?, untyped(value)?);
    }
    Ok(fields)
}

fn untyped(value: Typed) -> Result<AMQPValue, LetterJsonError> {
    Ok(match value {
        Typed::Boolean(value) => AMQPValue::Boolean(value),
        Typed::Int8(value) => AMQPValue::ShortShortInt(value),
        Typed::Uint8(value) => AMQPValue::ShortShortUInt(value),
        Typed::Int16(value) => AMQPValue::ShortInt(value),
        Typed::Uint16(value) => AMQPValue::ShortUInt(value),
        Typed::Int32(value) => AMQPValue::LongInt(value),
        Typed::Uint32(value) => AMQPValue::LongUInt(value),
        Typed::Int64(value) => AMQPValue::LongLongInt(value),
        Typed::Float(text) => AMQPValue::Float(text.parse().map_err(|_| LetterJsonError::Value("float"))?),
        Typed::Double(text) => AMQPValue::Double(text.parse().map_err(|_| LetterJsonError::Value("double"))?),
        Typed::Decimal { scale, value } => AMQPValue::DecimalValue(DecimalValue { scale, value }),
        Typed::ShortString(text) => AMQPValue::ShortString(short(text)?),
        Typed::Text(text) => AMQPValue::LongString(LongString::from(text)),
        Typed::TextBase64(text) => AMQPValue::LongString(LongString::from(bytes_of(&text, "text_base64")?)),
        Typed::Array(values) => {
            AMQPValue::FieldArray(values.into_iter().map(untyped).collect::<Result<Vec<_>, _>>()?.into())
        }
        Typed::Timestamp(seconds) => AMQPValue::Timestamp(seconds),
        Typed::Table(table) => AMQPValue::FieldTable(untyped_table(table)?),
        Typed::BytesBase64(text) => AMQPValue::ByteArray(bytes_of(&text, "bytes_base64")?.into()),
        Typed::Void => AMQPValue::Void,
    })
}

fn short(text: String) -> Result<ShortString, LetterJsonError> {
    ShortString::try_new(text).map_err(|_| LetterJsonError::Value("short text"))
}

fn bytes_of(text: &str, what: &'static str) -> Result<Vec<u8>, LetterJsonError> {
    BASE64_STANDARD.decode(text).map_err(|_| LetterJsonError::Value(what))
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;

    fn letter(headers: Vec<(&str, AMQPValue)>, body: &'static [u8]) -> RawLetter {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.into(), value);
        }
        let properties = BasicProperties::default()
            .with_message_id("order-1".into())
            .with_delivery_mode(2)
            .with_priority(3)
            .with_timestamp(1_700_000_000)
            .with_type("kind".into())
            .with_user_id("guest".into())
            .with_expiration("500".into())
            .with_headers(table);
        RawLetter {
            exchange: "q.dead".to_owned(),
            routing_key: "rejected.reverted".to_owned(),
            properties,
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn every_type_comes_back_as_it_was() {
        let mut inner = FieldTable::default();
        inner.insert("a".into(), AMQPValue::Void);
        let headers = vec![
            ("boolean", AMQPValue::Boolean(true)),
            ("int8", AMQPValue::ShortShortInt(-8)),
            ("uint8", AMQPValue::ShortShortUInt(250)),
            ("int16", AMQPValue::ShortInt(-16)),
            ("uint16", AMQPValue::ShortUInt(60_000)),
            ("int32", AMQPValue::LongInt(-32)),
            ("uint32", AMQPValue::LongUInt(4_000_000_000)),
            ("int64", AMQPValue::LongLongInt(i64::MIN)),
            ("float", AMQPValue::Float(f32::INFINITY)),
            ("double", AMQPValue::Double(0.1 + 0.2)),
            ("decimal", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
            ("short", AMQPValue::ShortString("short".into())),
            ("text", AMQPValue::LongString("text".into())),
            ("binary", AMQPValue::LongString(vec![0xff, 0xfe].into())),
            ("array", AMQPValue::FieldArray(vec![AMQPValue::LongInt(1), AMQPValue::Void].into())),
            ("time", AMQPValue::Timestamp(7)),
            ("table", AMQPValue::FieldTable(inner)),
            ("bytes", AMQPValue::ByteArray(vec![1, 2, 3].into())),
            ("void", AMQPValue::Void),
        ];
        for body in [&b"{\"text\": \"\xc3\xbc\"}\n"[..], b"\x00\xff", b""] {
            let letter = letter(headers.clone(), body);
            let line = letter.to_json().unwrap();
            assert!(!line.contains('\n'), "one line: {line}");
            assert_eq!(RawLetter::from_json(&line).unwrap(), letter, "{line}");
        }
        let bare = RawLetter { properties: BasicProperties::default(), ..letter(Vec::new(), b"") };
        assert_eq!(RawLetter::from_json(&bare.to_json().unwrap()).unwrap(), bare, "no header table at all");
    }

    #[test]
    fn what_the_broker_writes_at_a_delivery_stays_out() {
        let seen = letter(vec![("x-delivery-count", AMQPValue::LongLongInt(3))], b"");
        assert!(!seen.to_json().unwrap().contains("x-delivery-count"));
    }

    #[test]
    fn headers_that_json_cannot_hold_are_refused_and_those_below_can_be_read_again() {
        let nested =
            |levels: usize| (0..levels).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(vec![inner].into()));
        let deep = letter(vec![("h", nested(MAX_LEVELS - 1))], b"");
        assert_eq!(RawLetter::from_json(&deep.to_json().unwrap()).unwrap(), deep);
        let deeper = letter(vec![("h", nested(MAX_LEVELS))], b"");
        assert!(matches!(deeper.to_json(), Err(LetterJsonError::TooDeep)));
    }

    #[test]
    fn lines_that_are_no_letters_are_refused_with_the_reason() {
        for (line, part) in [
            ("nonsense", "no exported dead letter"),
            ("{}", "missing field"),
            (r#"{"format":2,"exchange":"","routing_key":"a.b","body":""}"#, "format 2"),
            (r#"{"format":1,"exchange":"","routing_key":"a.b","body_base64":"*"}"#, "body_base64"),
            (r#"{"format":1,"exchange":"","routing_key":"a.b","body":"","headers":{"h":{"float":"x"}}}"#, "float"),
        ] {
            let error = RawLetter::from_json(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
