//! Properties of messages: which of them the client library can read, and what takes the place of those that it cannot.
//! Format: AMQP 0-9-1, 4.2.5 and 4.2.6, and RabbitMQ's own types of values.

use lapin::protocol::basic::parse_properties;
use lapin::types::parsing::parse_field_table;

use crate::model::cause::cut;
use crate::model::headers::header;

/// Bytes of the original that are kept at most: with all else they fit into one frame, as hexadecimal digits.
const KEPT_BYTES: usize = 24 * 1024;
/// Longest part of what cannot be read in the sentence about it, and longest sentence.
const SHOWN_BYTES: usize = 64;
const LONGEST_TEXT_BYTES: usize = 1000;

const SHORT: char = 's';
const TABLE: char = 't';
const BYTE: char = 'b';
const LONG: char = 'l';
/// The properties in the order of their flags, the highest first, each with how it is written.
const FIELDS: [(&str, char); 14] = [
    ("content_type", SHORT),
    ("content_encoding", SHORT),
    ("headers", TABLE),
    ("delivery_mode", BYTE),
    ("priority", BYTE),
    ("correlation_id", SHORT),
    ("reply_to", SHORT),
    ("expiration", SHORT),
    ("message_id", SHORT),
    ("timestamp", LONG),
    ("type", SHORT),
    ("user_id", SHORT),
    ("app_id", SHORT),
    ("cluster_id", SHORT),
];
const HEADERS: usize = 2;

/// A part of a message that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    name: String,
    bytes: Vec<u8>,
}

impl Part {
    pub(super) fn new(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self { name: name.into(), bytes: bytes.get(..SHOWN_BYTES).unwrap_or(bytes).to_vec() }
    }
}

/// Returns whether the library reads these properties.
pub(super) fn is_readable(properties: &[u8]) -> bool {
    matches!(parse_properties(properties), Ok((rest, _)) if rest.is_empty())
}

/// Returns properties that can be read in place of these, of at most `most` bytes: those of them that can, and two headers with
/// what cannot. `unreadable` is what was found of the message before.
pub(super) fn replaced(properties: &[u8], unreadable: Vec<Part>, most: usize) -> Vec<u8> {
    let mut kept = Kept::of(properties, unreadable);
    let text = kept.text();
    let wanted = properties.len().min(KEPT_BYTES) * 2;
    let own = |digits: usize| entry_bytes(header::UNREADABLE, text.len()) + entry_bytes(header::RAW_PROPERTIES, digits);
    if kept.bytes() + own(wanted) > most {
        kept.entries.clear();
    }
    if kept.bytes() + own(wanted) > most && kept.bytes() + own(0) > most {
        kept.fields.clear();
    }
    let room = most.saturating_sub(kept.bytes() + own(0));
    let shown = (wanted.min(room) / 2).min(properties.len());
    let raw = hex::encode(properties.get(..shown).unwrap_or_default());
    push_entry(&mut kept.entries, header::UNREADABLE, &text);
    push_entry(&mut kept.entries, header::RAW_PROPERTIES, &raw);
    kept.written()
}

/// Returns these properties, which can be read, within `most` bytes: without their largest headers, and with one that names them.
/// Those that say which way the message took go last.
pub(super) fn shortened(properties: &[u8], most: usize) -> Vec<u8> {
    let mut kept = Kept::of(properties, Vec::new());
    let mut entries: Vec<(bool, String, Vec<u8>)> = Vec::new();
    let mut rest = &std::mem::take(&mut kept.entries)[..];
    while let Some((name, whole, behind)) = entry(rest) {
        let name = String::from_utf8_lossy(name).into_owned();
        let is_of_way = name == "x-death" || header::READ.contains(&name.as_str());
        entries.push((!is_of_way, name, whole.to_vec()));
        rest = behind;
    }
    entries.sort_by_key(|(may_go, _, whole)| (*may_go, whole.len()));
    let bytes = properties.len();
    let room = most.saturating_sub(kept.bytes() + entry_bytes(header::TOO_LARGE, LONGEST_TEXT_BYTES));
    let mut size = entries.iter().map(|(_, _, whole)| whole.len()).sum::<usize>();
    let mut left_out = Vec::new();
    while size > room
        && let Some((_, name, whole)) = entries.pop()
    {
        size -= whole.len();
        left_out.push(name);
    }
    for (_, _, whole) in entries {
        kept.entries.extend(whole);
    }
    let text = format!(
        "the headers and properties have {bytes} bytes with what the broker adds, and a frame has room for {most}; left out: {}",
        left_out.join(", ")
    );
    push_entry(&mut kept.entries, header::TOO_LARGE, &cut(text, LONGEST_TEXT_BYTES));
    kept.written()
}

/// Holds the readable part of a message's properties.
#[derive(Debug, Default)]
struct Kept {
    /// By the index of the property, as it was written.
    fields: Vec<(usize, Vec<u8>)>,
    /// Of the table of headers, as they were written.
    entries: Vec<u8>,
    unreadable: Vec<Part>,
}

impl Kept {
    fn of(properties: &[u8], unreadable: Vec<Part>) -> Self {
        let mut kept = Self { unreadable, ..Self::default() };
        let Some((flags, mut rest)) = properties.split_first_chunk::<2>() else {
            kept.unreadable.push(Part::new("its properties", properties));
            return kept;
        };
        let flags = u16::from_be_bytes(*flags);
        for (index, (name, kind)) in FIELDS.into_iter().enumerate() {
            if flags & (1 << (15 - index)) == 0 {
                continue;
            }
            let Some((field, behind)) = field(kind, rest) else {
                kept.unreadable.push(Part::new(format!("{name} and what follows it"), rest));
                return kept;
            };
            rest = behind;
            match (kind, field) {
                (TABLE, table) => kept.take_entries(table.get(4..).unwrap_or_default()),
                (SHORT, [_, text @ ..]) if std::str::from_utf8(text).is_err() => {
                    kept.unreadable.push(Part::new(name, text));
                }
                _ => kept.fields.push((index, field.to_vec())),
            }
        }
        if !rest.is_empty() {
            kept.unreadable.push(Part::new("what follows its properties", rest));
        }
        kept
    }

    /// Keeps the headers that can be read, one by one.
    fn take_entries(&mut self, mut entries: &[u8]) {
        while !entries.is_empty() {
            let Some((name, entry, behind)) = entry(entries) else {
                self.unreadable.push(Part::new("its headers from here on", entries));
                return;
            };
            entries = behind;
            let table = [&length(entry), entry].concat();
            if matches!(parse_field_table(&table[..]), Ok((rest, _)) if rest.is_empty()) {
                self.entries.extend_from_slice(entry);
            } else if std::str::from_utf8(name).is_err() {
                self.unreadable.push(Part::new("the name of a header", name));
            } else {
                let name = String::from_utf8_lossy(name);
                self.unreadable
                    .push(Part::new(format!("header {name:?}"), entry.get(1 + name.len()..).unwrap_or_default()));
            }
        }
    }

    /// Returns a sentence about what cannot be read.
    fn text(&self) -> String {
        let parts = self.unreadable.iter().map(|part| format!("{} is 0x{}", part.name, hex::encode(&part.bytes)));
        let parts = parts.collect::<Vec<_>>().join("; ");
        cut(format!("what AMQP does not allow, such as a text that is not UTF-8: {parts}"), LONGEST_TEXT_BYTES)
    }

    /// Returns how long it is as it would be written.
    fn bytes(&self) -> usize {
        2 + 4 + self.entries.len() + self.fields.iter().map(|(_, field)| field.len()).sum::<usize>()
    }

    fn written(self) -> Vec<u8> {
        let mut fields = self.fields;
        fields.push((HEADERS, [&length(&self.entries)[..], &self.entries].concat()));
        fields.sort_by_key(|(index, _)| *index);
        let flags = fields.iter().fold(0_u16, |flags, (index, _)| flags | 1 << (15 - index));
        let written = fields.into_iter().flat_map(|(_, field)| field);
        flags.to_be_bytes().into_iter().chain(written).collect()
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// Returns how many bytes a header with a text takes.
fn entry_bytes(name: &str, text: usize) -> usize {
    1 + name.len() + 1 + 4 + text
}

fn push_entry(entries: &mut Vec<u8>, name: &str, text: &str) {
    entries.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    entries.extend_from_slice(name.as_bytes());
    entries.push(b'S');
    entries.extend_from_slice(&length(text.as_bytes()));
    entries.extend_from_slice(text.as_bytes());
}

/// Splits a property off.
fn field(kind: char, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let size = match kind {
        SHORT => 1 + usize::from(*bytes.first()?),
        TABLE => long_size(bytes)?,
        BYTE => 1,
        _ => 8,
    };
    bytes.split_at_checked(size)
}

/// Returns how long something is that begins with its length in four bytes.
fn long_size(bytes: &[u8]) -> Option<usize> {
    let size = usize::try_from(u32::from_be_bytes(*bytes.first_chunk::<4>()?)).ok()?;
    size.checked_add(4)
}

/// Splits a header off: its name, all of it, and what follows.
fn entry(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, value) = rest.split_at_checked(usize::from(*length))?;
    let size = value_size(value)?;
    let (entry, behind) = bytes.split_at_checked(1 + name.len() + size)?;
    Some((name, entry, behind))
}

/// Returns how long a value is, with the letter of its type; `None` for a type that there is not.
fn value_size(value: &[u8]) -> Option<usize> {
    let (kind, rest) = value.split_first()?;
    let size = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        b'S' | b'x' | b'A' | b'F' => long_size(rest)?,
        _ => return None,
    };
    size.checked_add(1)
}

#[cfg(test)]
pub(super) mod tests {
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};
    use proptest::prelude::*;

    use super::*;

    /// Returns these properties as they are written.
    pub(crate) fn properties(set: impl FnOnce(BasicProperties) -> BasicProperties) -> Vec<u8> {
        let all = set(BasicProperties::default());
        let mut written = Vec::new();
        let mut fields: Vec<(usize, Vec<u8>)> = Vec::new();
        let short = |text: &str| [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
        if let Some(headers) = all.headers() {
            let mut entries = Vec::new();
            for (name, value) in headers.inner() {
                let AMQPValue::LongString(text) = value else { panic!("{value:?}") };
                push_entry(&mut entries, name.as_str(), &text.to_string());
            }
            fields.push((HEADERS, [&length(&entries)[..], &entries].concat()));
        }
        fields.extend(all.delivery_mode().map(|mode| (3, vec![mode])));
        fields.extend(all.message_id().as_ref().map(|id| (8, short(id.as_str()))));
        fields.extend(all.timestamp().map(|seconds| (9, seconds.to_be_bytes().to_vec())));
        fields.extend(all.kind().as_ref().map(|kind| (10, short(kind.as_str()))));
        let flags = fields.iter().fold(0_u16, |flags, (index, _)| flags | 1 << (15 - index));
        written.extend(flags.to_be_bytes());
        fields.into_iter().for_each(|(_, field)| written.extend(field));
        written
    }

    /// Reads properties as the library does.
    pub(crate) fn read(properties: &[u8]) -> BasicProperties {
        let (rest, read) = parse_properties(properties).unwrap();
        assert!(rest.is_empty());
        read
    }

    fn text(properties: &BasicProperties, name: &str) -> String {
        match properties.headers().as_ref().and_then(|headers| headers.inner().get(name)) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            found => panic!("{name}: {found:?}"),
        }
    }

    /// Returns properties with these flags, behind which these bytes stand.
    fn raw(flags: u16, fields: &[&[u8]]) -> Vec<u8> {
        [&flags.to_be_bytes()[..], &fields.concat()].concat()
    }

    fn table(entries: &[&[u8]]) -> Vec<u8> {
        let entries = entries.concat();
        [&length(&entries)[..], &entries].concat()
    }

    fn flag(name: &str) -> u16 {
        1 << (15 - FIELDS.iter().position(|(known, _)| *known == name).unwrap())
    }

    #[test]
    fn each_text_that_is_no_utf_8_is_named_and_the_rest_is_kept() {
        let bad = [2, 0xff, b'x'];
        for (name, kind) in FIELDS {
            if kind != SHORT {
                continue;
            }
            let written = raw(
                flag(name) | flag("delivery_mode"),
                &if name.starts_with("content") { [&bad[..], &[2]] } else { [&[2][..], &bad] },
            );
            assert!(!is_readable(&written), "{name}");
            let read = read(&replaced(&written, Vec::new(), usize::MAX));
            assert_eq!(*read.delivery_mode(), Some(2), "{name}");
            let said = text(&read, header::UNREADABLE);
            assert!(said.contains(&format!("{name} is 0xff78")), "{said}");
            assert_eq!(text(&read, header::RAW_PROPERTIES), hex::encode(&written));
        }
    }

    #[test]
    fn headers_that_can_be_read_are_kept_beside_those_that_cannot() {
        let written = raw(
            flag("headers") | flag("message_id"),
            &[&table(&[b"\x05orderS\0\0\0\x01a", b"\x02\xfcxS\0\0\0\x01b", b"\x01z?", b"\x05afterV"]), b"\x02id"],
        );
        let found = read(&replaced(&written, Vec::new(), usize::MAX));
        assert_eq!(found.message_id().as_ref().map(|id| id.as_str()), Some("id"));
        assert_eq!(text(&found, "order"), "a");
        let said = text(&found, header::UNREADABLE);
        assert!(
            said.contains("the name of a header is 0xfc78") && said.contains("headers from here on is 0x017a3f"),
            "{said}"
        );
        // A value that the library has no type for, in a table of a header.
        let inner = table(&[b"\x01z?"]);
        let written = raw(flag("headers"), &[&table(&[&[b"\x01hF", &inner[..]].concat(), b"\x01vV"])]);
        let found = read(&replaced(&written, Vec::new(), usize::MAX));
        assert!(text(&found, header::UNREADABLE).contains("header \"h\" is 0x46"));
        assert!(found.headers().as_ref().unwrap().inner().contains_key("v"));
    }

    #[test]
    fn properties_that_are_cut_or_no_properties_are_kept_as_far_as_they_go() {
        for (written, part) in [
            (Vec::new(), "its properties"),
            (vec![0x80], "its properties"),
            (raw(flag("message_id"), &[b"\x09id"]), "message_id and what follows it"),
            (raw(flag("delivery_mode") | flag("timestamp"), &[b"\x02", b"\0\0"]), "timestamp and what follows it"),
            (raw(flag("headers"), &[b"\xff\xff\xff\xff"]), "headers and what follows it"),
            (raw(flag("delivery_mode"), &[b"\x02more"]), "what follows its properties"),
        ] {
            assert!(!is_readable(&written), "{written:02x?}");
            let found = read(&replaced(&written, Vec::new(), usize::MAX));
            assert!(text(&found, header::UNREADABLE).contains(part), "{written:02x?}");
        }
    }

    #[test]
    fn what_takes_the_place_is_within_its_limit() {
        let long = [&b"\x01hS"[..], &length(&[b'x'; 30_000]), &[b'x'; 30_000]].concat();
        let written =
            raw(flag("headers") | flag("message_id") | flag("type"), &[&table(&[&long]), b"\x02id", b"\x01\xff"]);
        for most in [4000, 4001, 20_000, 60_000, 80_000, 131_000] {
            let replaced = replaced(&written, Vec::new(), most);
            assert!(replaced.len() <= most, "{} of {most}", replaced.len());
            let found = read(&replaced);
            assert!(found.message_id().is_some() && text(&found, header::UNREADABLE).contains("type is 0xff"));
            let digits = text(&found, header::RAW_PROPERTIES);
            assert!(
                hex::encode(&written).starts_with(&digits) && digits.len() >= (most.min(48_000) - 2000) / 2,
                "{most}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_what_takes_its_place_can_be_read(
            flags in any::<u16>(),
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0_u8..4, Just(b'S'), Just(b'F'), Just(b'A')], 0..80),
            most in 4000_usize..9000,
        ) {
            let written = raw(flags, &[&bytes]);
            let replaced = replaced(&written, vec![Part::new("its routing key", b"\xff")], most);
            prop_assert!(is_readable(&replaced) && replaced.len() <= most);
            let found = read(&replaced);
            prop_assert_eq!(text(&found, header::RAW_PROPERTIES), hex::encode(&written));
            if is_readable(&written) {
                let before = read(&written);
                prop_assert_eq!(before.message_id(), found.message_id());
                prop_assert_eq!(before.kind(), found.kind());
                for name in before.headers().as_ref().map(FieldTable::inner).into_iter().flatten().map(|(name, _)| name) {
                    prop_assert!(found.headers().as_ref().unwrap().inner().contains_key(name));
                }
            }
        }
    }
}
