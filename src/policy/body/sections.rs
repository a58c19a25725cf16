//! Bodies of AMQP 1.0 messages as RabbitMQ 4 gives them to an AMQP 0-9-1 consumer. Data sections come as their bytes, one after
//! the other. All else comes as the sections themselves, encoded, with the type `amqp-1.0`: those are read here. Encoding: OASIS
//! AMQP 1.0, part 1.2 to 1.6 and part 3.2.

use bytes::Bytes;

/// The AMQP type that RabbitMQ gives to a message whose body it could not take out of its sections.
pub(super) const KIND: &str = "amqp-1.0";

/// Descriptors of the sections of a body: AMQP 1.0, 3.2.6 to 3.2.8.
const DATA: u64 = 0x75;
const SEQUENCE: u64 = 0x76;
const VALUE: u64 = 0x77;

/// Returns the content of a body that is one section with one text or one binary.
///
/// # Errors
/// Says what the body is instead.
pub(super) fn content(body: &Bytes) -> Result<Bytes, String> {
    let found = |what: &str| {
        format!(
            "the body is an AMQP 1.0 message (type \"{KIND}\") with {what}; expected one amqp-value with a text or a binary, or \
             one data section"
        )
    };
    let broken = || found("sections that cannot be read");
    let (descriptor, rest) = described(body).ok_or_else(broken)?;
    let value = match descriptor {
        DATA | VALUE => Value::read(rest).ok_or_else(broken)?,
        SEQUENCE => return Err(found("an amqp-sequence")),
        other => return Err(found(&format!("a section of the kind 0x{other:x}"))),
    };
    if !value.behind.is_empty() {
        return Err(found(if described(value.behind).is_some() {
            "several sections"
        } else {
            "bytes behind its section"
        }));
    }
    match (descriptor, value.kind) {
        (DATA, Kind::Binary) | (VALUE, Kind::Binary) => Ok(body.slice_ref(value.bytes)),
        (VALUE, Kind::Text) if std::str::from_utf8(value.bytes).is_ok() => Ok(body.slice_ref(value.bytes)),
        (VALUE, Kind::Text) => Err(found("a text that is not UTF-8")),
        (_, kind) => Err(found(&format!("an amqp-value that is {}", kind.word()))),
    }
}

/// Reads the descriptor of a section. Returns it, and what follows.
fn described(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match bytes.strip_prefix(&[0x00])? {
        [0x53, descriptor, rest @ ..] => Some(((*descriptor).into(), rest)),
        [0x80, rest @ ..] => {
            let (descriptor, rest) = rest.split_first_chunk::<8>()?;
            Some((u64::from_be_bytes(*descriptor), rest))
        }
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
    Null,
    Boolean,
    Number,
    Character,
    Time,
    Uuid,
    Symbol,
    List,
    Map,
    Array,
    Described,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Binary => "a binary",
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Number => "a number",
            Self::Character => "a character",
            Self::Time => "a timestamp",
            Self::Uuid => "a UUID",
            Self::Symbol => "a symbol",
            Self::List => "a list",
            Self::Map => "a map",
            Self::Array => "an array",
            Self::Described => "a described type",
        }
    }
}

/// A value, and what follows it.
struct Value<'b> {
    kind: Kind,
    /// Without its constructor and size.
    bytes: &'b [u8],
    behind: &'b [u8],
}

impl<'b> Value<'b> {
    /// Reads one value. Of compound ones the members are not read.
    fn read(bytes: &'b [u8]) -> Option<Self> {
        let (code, rest) = bytes.split_first()?;
        let kind = kind_of(*code)?;
        if kind == Kind::Described {
            return Some(Self { kind, bytes: rest, behind: &[] });
        }
        // The upper half of a constructor says how long the value is.
        let (size, rest) = match code >> 4 {
            0x4 => (0, rest),
            0x5 => (1, rest),
            0x6 => (2, rest),
            0x7 => (4, rest),
            0x8 => (8, rest),
            0x9 => (16, rest),
            0xa | 0xc | 0xe => {
                let (size, rest) = rest.split_first()?;
                (usize::from(*size), rest)
            }
            0xb | 0xd | 0xf => {
                let (size, rest) = rest.split_first_chunk::<4>()?;
                (usize::try_from(u32::from_be_bytes(*size)).ok()?, rest)
            }
            _ => return None,
        };
        let (bytes, behind) = rest.split_at_checked(size)?;
        Some(Self { kind, bytes, behind })
    }
}

/// Returns what a constructor begins; `None` for one that is not in the standard.
fn kind_of(code: u8) -> Option<Kind> {
    Some(match code {
        0x00 => Kind::Described,
        0x40 => Kind::Null,
        0x41 | 0x42 | 0x56 => Kind::Boolean,
        0x43 | 0x44 | 0x50..=0x55 | 0x60 | 0x61 | 0x70..=0x72 | 0x74 | 0x80..=0x82 | 0x84 | 0x94 => Kind::Number,
        0x73 => Kind::Character,
        0x83 => Kind::Time,
        0x98 => Kind::Uuid,
        0xa0 | 0xb0 => Kind::Binary,
        0xa1 | 0xb1 => Kind::Text,
        0xa3 | 0xb3 => Kind::Symbol,
        0x45 | 0xc0 | 0xd0 => Kind::List,
        0xc1 | 0xd1 => Kind::Map,
        0xe0 | 0xf0 => Kind::Array,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn section(descriptor: u8, value: &[u8]) -> Vec<u8> {
        [&[0x00, 0x53, descriptor][..], value].concat()
    }

    /// Returns a value of this constructor with a size of one or of four bytes.
    fn sized(code: u8, bytes: &[u8]) -> Vec<u8> {
        let size = u32::try_from(bytes.len()).unwrap();
        match code >> 4 {
            0xa => [&[code, u8::try_from(size).unwrap()][..], bytes].concat(),
            _ => [&[code][..], &size.to_be_bytes(), bytes].concat(),
        }
    }

    #[test]
    fn one_text_or_one_binary_is_taken_out_of_its_section() {
        let long = "x".repeat(300);
        let far = [&[0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x77][..], &sized(0xa1, b"far")].concat();
        for (body, expected) in [
            (section(0x77, &sized(0xa1, b"{\"a\":1}")), &b"{\"a\":1}"[..]),
            (section(0x77, &sized(0xb1, long.as_bytes())), long.as_bytes()),
            (section(0x77, &sized(0xa0, &[0xff, 0])), &[0xff, 0]),
            (section(0x77, &sized(0xb0, b"")), b""),
            (section(0x75, &sized(0xa0, b"data")), b"data"),
            (section(0x75, &sized(0xb0, b"data")), b"data"),
            (far, b"far"),
        ] {
            assert_eq!(content(&Bytes::from(body.clone())).unwrap(), expected, "{body:02x?}");
        }
    }

    #[test]
    fn all_else_is_refused_and_named() {
        let text = || section(0x77, &sized(0xa1, b"a"));
        let data = || section(0x75, &sized(0xa0, b"a"));
        for (body, what) in [
            (b"{}".to_vec(), "sections that cannot be read"),
            (Vec::new(), "sections that cannot be read"),
            (section(0x77, &[0xa1, 5, b'a']), "sections that cannot be read"),
            (section(0x77, &[0x3f]), "sections that cannot be read"),
            (section(0x77, &[0xd1, 0xff, 0xff, 0xff, 0xff]), "sections that cannot be read"),
            (section(0x77, &[0x40]), "an amqp-value that is null"),
            (section(0x77, &[0x41]), "an amqp-value that is a boolean"),
            (section(0x77, &[0x54, 7]), "an amqp-value that is a number"),
            (section(0x77, &[0x45]), "an amqp-value that is a list"),
            (section(0x77, &[0xc1, 1, 0]), "an amqp-value that is a map"),
            (section(0x77, &sized(0xa3, b"a")), "an amqp-value that is a symbol"),
            (section(0x77, &text()), "an amqp-value that is a described type"),
            (section(0x77, &sized(0xa1, &[0xff])), "a text that is not UTF-8"),
            (section(0x76, &[0x45]), "an amqp-sequence"),
            (section(0x74, &[0x45]), "a section of the kind 0x74"),
            ([data(), data()].concat(), "several sections"),
            ([text(), text()].concat(), "several sections"),
            ([text(), vec![1, 2]].concat(), "bytes behind its section"),
        ] {
            let fault = content(&Bytes::from(body.clone())).unwrap_err();
            assert!(fault.contains(&format!("with {what};")), "{body:02x?}: {fault}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = content(&Bytes::from(bytes.clone()));
            let _ = content(&Bytes::from([&[0x00, 0x53, 0x77][..], &bytes].concat()));
        }
    }
}
