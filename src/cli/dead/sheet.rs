//! A letter as a text that a person can edit, and back: its properties, the producer's headers, the body.

use std::fmt::Write;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;

use crate::model::cause::cut;
use crate::model::headers::header;
use crate::model::{HeaderValue, Headers, Message, Properties};

const TEXT_BODY: &str = "----- the body follows as it is -----";
const HEX_BODY: &str = "----- the body follows in hexadecimal, it is no UTF-8 -----";
/// As many bytes as AMQP has room for in a property or a header's name.
const LONGEST_SHORT: usize = 255;
/// A line of the comparison is cut here.
const SHOWN_LINE_BYTES: usize = 512;

/// Returns the properties that may be edited.
fn editable(properties: &mut Properties) -> [(&'static str, &mut Option<String>); 7] {
    [
        ("message_id", &mut properties.message_id),
        ("type", &mut properties.kind),
        ("content_type", &mut properties.content_type),
        ("content_encoding", &mut properties.content_encoding),
        ("correlation_id", &mut properties.correlation_id),
        ("reply_to", &mut properties.reply_to),
        ("app_id", &mut properties.app_id),
    ]
}

/// Returns whether a header is the producer's: neither chainwriter's nor the broker's.
pub(super) fn is_editable(name: &str) -> bool {
    let is_producers = [header::NOT_BEFORE, header::NOT_AFTER].contains(&name);
    is_producers || (!name.starts_with(header::PREFIX) && !name.starts_with("x-"))
}

/// Returns the letter as a text.
pub(crate) fn written(message: &Message) -> String {
    let mut text = String::new();
    let mut properties = message.properties.clone();
    // Writing to a text cannot fail.
    for (name, value) in editable(&mut properties) {
        if let Some(value) = value {
            let _ = writeln!(text, "property {name} = {}", quoted(value));
        }
    }
    for (name, value) in message.headers.iter().filter(|(name, _)| is_editable(name)) {
        let _ = writeln!(text, "header {} = {}", quoted(name), json_of(value));
    }
    // The line feed at the end is the editor's, and is taken away again.
    let _ = match std::str::from_utf8(&message.body) {
        Ok(body) => writeln!(text, "{TEXT_BODY}\n{body}"),
        Err(_) => writeln!(text, "{HEX_BODY}\n{}", hex::encode(&message.body)),
    };
    text
}

/// Returns the letter as an edited text has it.
pub(crate) fn read(original: &Message, text: &str) -> anyhow::Result<Message> {
    let mut message = original.clone();
    editable(&mut message.properties).into_iter().for_each(|(_, value)| *value = None);
    message.headers.retain(|name, _| !is_editable(name));
    let mut rest = text;
    loop {
        let (line, behind) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = behind;
        match line.trim_end_matches('\r') {
            TEXT_BODY => {
                message.body = Bytes::from(rest.strip_suffix('\n').unwrap_or(rest).to_owned());
                return Ok(message);
            }
            HEX_BODY => {
                let digits: String = rest.split_whitespace().collect();
                message.body = Bytes::from(hex::decode(digits).context("the body is not hexadecimal")?);
                return Ok(message);
            }
            line if line.trim().is_empty() || line.starts_with('#') => {
                ensure!(!rest.is_empty(), "the line before the body is gone: {TEXT_BODY}");
            }
            line => read_line(&mut message, line).with_context(|| format!("in the line {line:?}"))?,
        }
        ensure!(!rest.is_empty(), "the line before the body is gone: {TEXT_BODY}");
    }
}

fn read_line(message: &mut Message, line: &str) -> anyhow::Result<()> {
    let (kind, rest) = line.split_once(' ').context("expected `property NAME = VALUE` or `header NAME = VALUE`")?;
    let mut names = serde_json::Deserializer::from_str(rest).into_iter::<String>();
    let (name, rest) = if rest.starts_with('"') {
        let name = names.next().context("a name is missing")??;
        (name, rest.get(names.byte_offset()..).unwrap_or_default())
    } else {
        let (name, _) = rest.split_once(" = ").context("expected ` = ` behind the name")?;
        (name.to_owned(), rest.get(name.len()..).unwrap_or_default())
    };
    let value = rest.trim_start().strip_prefix('=').context("expected ` = ` behind the name")?;
    let value: serde_json::Value = serde_json::from_str(value).context("expected a text in quotes, or other JSON")?;
    match kind {
        "property" => set_property(message, &name, value.as_str().context("a property is a text in quotes")?),
        "header" => set_header(message, &name, header_of(value)?),
        _ => bail!("expected `property` or `header`"),
    }
}

pub(super) fn set_property(message: &mut Message, name: &str, value: &str) -> anyhow::Result<()> {
    ensure!(value.len() <= LONGEST_SHORT, "{name} is longer than {LONGEST_SHORT} bytes");
    let found = editable(&mut message.properties).into_iter().find(|(known, _)| *known == name);
    let (_, property) = found.with_context(|| format!("there is no property {name} that may be edited"))?;
    *property = Some(value.to_owned());
    Ok(())
}

pub(super) fn set_header(message: &mut Message, name: &str, value: HeaderValue) -> anyhow::Result<()> {
    ensure!(is_editable(name), "{name} is chainwriter's or the broker's own, and not for editing");
    ensure!(!name.is_empty() && name.len() <= LONGEST_SHORT, "a header's name has 1 to {LONGEST_SHORT} bytes");
    message.headers.insert(name.to_owned(), value);
    Ok(())
}

/// Returns a text from the command line as the value of a header: of the type that the header has, where it fits.
pub(super) fn like(before: Option<&HeaderValue>, text: &str) -> HeaderValue {
    let same = match before {
        Some(HeaderValue::Int(_)) => text.parse().ok().map(HeaderValue::Int),
        Some(HeaderValue::Bool(_)) => text.parse().ok().map(HeaderValue::Bool),
        Some(HeaderValue::Float(_)) => text.parse().ok().map(HeaderValue::Float),
        Some(HeaderValue::Time(_)) => text.parse().ok().map(HeaderValue::Time),
        _ => None,
    };
    same.unwrap_or_else(|| text.into())
}

/// Quotes a text that is not a plain word.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Returns texts, whole numbers and truth values as JSON has them; all others say their type.
fn json_of(value: &HeaderValue) -> String {
    match value {
        HeaderValue::Text(text) => quoted(text),
        HeaderValue::Int(number) => number.to_string(),
        HeaderValue::Bool(truth) => truth.to_string(),
        HeaderValue::Void => "null".to_owned(),
        HeaderValue::Float(_)
        | HeaderValue::Decimal { .. }
        | HeaderValue::Bytes(_)
        | HeaderValue::Time(_)
        | HeaderValue::Array(_)
        | HeaderValue::Table(_) => serde_json::to_string(value).unwrap_or_default(),
    }
}

fn header_of(value: serde_json::Value) -> anyhow::Result<HeaderValue> {
    Ok(match value {
        serde_json::Value::String(text) => HeaderValue::Text(text),
        serde_json::Value::Bool(truth) => HeaderValue::Bool(truth),
        serde_json::Value::Null => HeaderValue::Void,
        serde_json::Value::Number(number) => {
            let number = number.as_i64().with_context(|| format!("{number} is no whole number of 64 bits"));
            HeaderValue::Int(number.context("write other numbers as {\"float\":\"1.5\"}")?)
        }
        serde_json::Value::Object(_) | serde_json::Value::Array(_) => {
            serde_json::from_value(value).context("a value that says its type looks like {\"float\":\"1.5\"}")?
        }
    })
}

/// Returns what differs, line by line: "-" is gone, "+" is new.
pub(super) fn difference(before: &Message, after: &Message) -> Vec<String> {
    let (before, after) = (written(before), written(after));
    let ((head_before, body_before), (head_after, body_after)) = (parts(&before), parts(&after));
    let mut lines = changed(head_before, head_after);
    lines.extend(changed(body_before, body_after));
    // The line feed that ends the sheet is not the body's.
    for (sign, one, other) in [('-', body_before, body_after), ('+', body_after, body_before)] {
        if one.ends_with("\n\n") && !other.ends_with("\n\n") {
            lines.push(format!("{sign} (a line feed at the end)"));
        }
    }
    lines
}

/// Returns what stands above the body, and the body.
fn parts(sheet: &str) -> (&str, &str) {
    let at = [TEXT_BODY, HEX_BODY].into_iter().filter_map(|line| sheet.find(line)).min().unwrap_or(sheet.len());
    let (head, rest) = sheet.split_at(at);
    (head, rest.split_once('\n').map_or("", |(_, body)| body))
}

fn changed(before: &str, after: &str) -> Vec<String> {
    let (before, after): (Vec<_>, Vec<_>) = (before.trim_end().lines().collect(), after.trim_end().lines().collect());
    let same_head = before.iter().zip(&after).take_while(|(one, other)| one == other).count();
    let rest = before.len().min(after.len()) - same_head;
    let same_tail =
        before.iter().rev().zip(after.iter().rev()).take(rest).take_while(|(one, other)| one == other).count();
    let signed = |lines: &[&str], sign: char| -> Vec<String> {
        let lines = lines.get(same_head..lines.len() - same_tail).unwrap_or_default();
        lines.iter().map(|line| format!("{sign} {}", cut((*line).to_owned(), SHOWN_LINE_BYTES))).collect()
    };
    [signed(&before, '-'), signed(&after, '+')].concat()
}

/// Returns whether nothing that may be edited has changed.
pub(crate) fn is_same(before: &Message, after: &Message) -> bool {
    let own = |headers: &Headers| -> Headers {
        headers
            .iter()
            .filter(|(name, _)| is_editable(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    before.body == after.body && before.properties == after.properties && own(&before.headers) == own(&after.headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &'static [u8]) -> Message {
        let headers = Headers::from([
            ("tenant".to_owned(), "nor\"th\nend".into()),
            ("a = b".to_owned(), HeaderValue::Int(-3)),
            ("cw-not-after".to_owned(), HeaderValue::Time(7)),
            ("truth".to_owned(), HeaderValue::Bool(true)),
            ("nothing".to_owned(), HeaderValue::Void),
            ("weight".to_owned(), HeaderValue::Float(1.5)),
            ("list".to_owned(), HeaderValue::Array(vec!["a".into(), HeaderValue::Int(1)])),
            ("cw-attempt".to_owned(), HeaderValue::Int(5)),
            ("x-death".to_owned(), "stale".into()),
        ]);
        let properties = Properties {
            message_id: Some("order-1".to_owned()),
            reply_to: Some("answers".to_owned()),
            timestamp: Some(7),
            ..Properties::default()
        };
        Message { body: Bytes::from_static(body), properties, headers, ..Message::default() }
    }

    #[test]
    fn what_is_not_edited_comes_back_byte_for_byte() {
        for body in [&b"{\"a\": 1}"[..], b"", b"\n", b"line\n", b"two\r\nlines", b"# no comment", b"\x00\xff"] {
            let message = message(body);
            let again = read(&message, &written(&message)).unwrap();
            assert_eq!(again, message, "{}", written(&message));
            assert!(is_same(&message, &again));
        }
    }

    #[test]
    fn an_edited_text_is_read_and_its_difference_told() {
        let before = message(b"{\"a\": 1}");
        let text = written(&before).replace("\"a\": 1", "\"a\": 2").replace("header \"truth\" = true\n", "# gone\n\n");
        let after = read(&before, &text).unwrap();
        assert_eq!(&after.body[..], b"{\"a\": 2}");
        assert!(!after.headers.contains_key("truth") && after.headers.contains_key("cw-attempt"));
        assert!(!is_same(&before, &after));
        let expected = ["- header \"truth\" = true", "- {\"a\": 1}", "+ {\"a\": 2}"];
        assert_eq!(difference(&before, &after), expected);
        let longer = Message { body: Bytes::from_static(b"{\"a\": 1}\n"), ..before.clone() };
        assert_eq!(difference(&before, &longer), ["+ (a line feed at the end)"]);
        let unended = read(&before, written(&before).trim_end_matches('\n')).unwrap();
        assert_eq!(unended.body, before.body, "an editor that writes no last line feed");
    }

    #[test]
    fn a_text_that_cannot_be_read_is_refused_with_the_line() {
        let before = message(b"body");
        for (text, part) in [
            ("header a = \"b\"\n", "the line before the body is gone"),
            ("", "the line before the body is gone"),
            ("nonsense\n-----\n", "expected `property"),
            ("header a = b\nx", "header a = b"),
            ("header cw-attempt = 0\nx", "not for editing"),
            ("header x = 1.5\nx", "float"),
            ("property nobody = \"x\"\nx", "no property nobody"),
            (&format!("{HEX_BODY}\nzz\n"), "not hexadecimal"),
        ] {
            let error = format!("{:#}", read(&before, text).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_value_from_the_command_line_keeps_the_type_where_it_fits() {
        assert_eq!(like(Some(&HeaderValue::Int(1)), "2"), HeaderValue::Int(2));
        assert_eq!(like(Some(&HeaderValue::Int(1)), "two"), "two".into());
        assert_eq!(like(None, "2"), "2".into());
    }
}
