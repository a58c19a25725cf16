//! Reads bodies: what of a message counts as its body, and how it is read. Decided here, for every mode and every command.
//!
//! Three steps, each on what the one before has left, and each done only if somebody asks for it:
//!
//! 1. The content: what the producer handed over. It is the body as it is, unless the broker has put AMQP 1.0 around it
//!    (`sections`). `mode = "data"` and `"record"` take this, byte for byte.
//! 2. The plain content: the content with its `content_encoding` undone (`coding`), within `broker.max_body`. Hexadecimal text
//!    is read from this.
//! 3. The JSON in it (`json`): where `content_type` does not say that it is something else, behind a byte order mark, with each
//!    key once.

use std::cell::OnceCell;

use bytes::Bytes;
use serde_json::Value;

use crate::model::Message;
use crate::model::cause::cut;
use crate::policy::body::fault::SHOWN_BYTES;

mod coding;
mod fault;
mod json;
mod sections;

pub use fault::Fault;

/// A text of fewer digits without `0x` may be anything.
const FEWEST_HEX_DIGITS: usize = 8;

/// A message's body. Each step of reading it is done once.
pub struct Body<'m> {
    message: &'m Message,
    most_bytes: u64,
    content: OnceCell<Result<Bytes, Fault>>,
    plain: OnceCell<Result<Bytes, Fault>>,
    json: OnceCell<Result<Value, Fault>>,
}

impl<'m> Body<'m> {
    /// Reads nothing yet. What is decoded may have `most_bytes`.
    pub fn new(message: &'m Message, most_bytes: u64) -> Self {
        Self { message, most_bytes, content: OnceCell::new(), plain: OnceCell::new(), json: OnceCell::new() }
    }

    /// Returns what the producer handed over, byte for byte.
    ///
    /// # Errors
    /// Where the broker has put AMQP 1.0 around it, and it is not one text or one binary.
    pub fn content(&self) -> Result<&Bytes, &Fault> {
        let read = || match self.message.properties.kind.as_deref() {
            Some(sections::KIND) => sections::content(&self.message.body).map_err(Fault::Encoding),
            _ => Ok(self.message.body.clone()),
        };
        self.content.get_or_init(read).as_ref()
    }

    /// Returns whether the content is the body as it is.
    pub fn is_bare(&self) -> bool {
        self.message.properties.kind.as_deref() != Some(sections::KIND)
    }

    /// Returns the content with its `content_encoding` undone.
    fn plain(&self) -> Result<&Bytes, &Fault> {
        let read = || {
            let content = self.content().map_err(Clone::clone)?;
            let encoding = self.message.properties.content_encoding.as_deref();
            coding::decoded(encoding, content, self.most_bytes)
        };
        self.plain.get_or_init(read).as_ref()
    }

    /// Returns the JSON that the body is.
    ///
    /// # Errors
    /// Where its `content_type` says that it is something else, where its encoding cannot be undone, and where it is no JSON
    /// or has a key twice.
    pub fn json(&self) -> Result<&Value, &Fault> {
        let read = || {
            json::check_type(self.message.properties.content_type.as_deref()).map_err(Fault::Encoding)?;
            json::read(self.plain().map_err(Clone::clone)?).map_err(Fault::NotJson)
        };
        self.json.get_or_init(read).as_ref()
    }

    /// Returns the bytes that the body has as hexadecimal text, with `0x` or without.
    ///
    /// # Errors
    /// Where its encoding cannot be undone, and where it is no such text.
    pub fn hex(&self) -> Result<Bytes, Fault> {
        let plain = self.plain().map_err(Clone::clone)?;
        let text = std::str::from_utf8(json::without_mark(plain)).unwrap_or("bytes that are no text").trim();
        let digits = text.strip_prefix("0x").unwrap_or(text);
        hex::decode(digits).map(Bytes::from).map_err(|error| {
            let found = cut(text.to_owned(), SHOWN_BYTES);
            Fault::Encoding(format!(
                "body_encoding is \"hex\", and the body is no hexadecimal text: {error}: {found:?}"
            ))
        })
    }

    /// Returns whether the content is hexadecimal text, where it is to be bytes: its producer may have meant those.
    pub fn is_hex_text(&self) -> bool {
        self.content().is_ok_and(|content| is_hex_text(content))
    }

    /// Returns what its producer may not have meant, where the content goes into the chain as it is.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let encoding = self.message.properties.content_encoding.as_deref();
        if let Some(encoding) = encoding.filter(|encoding| !coding::is_plain(encoding)) {
            let encoding = cut(encoding.to_owned(), SHOWN_BYTES);
            notes.push(format!(
                "content_encoding is {encoding:?}, and this mode keeps the bytes as they are: nothing is decoded"
            ));
        }
        notes
    }
}

fn is_hex_text(content: &[u8]) -> bool {
    let text = content.trim_ascii();
    let (digits, fewest) = match text.strip_prefix(b"0x") {
        Some(digits) => (digits, 2),
        None => (text, FEWEST_HEX_DIGITS),
    };
    digits.len() >= fewest && digits.len().is_multiple_of(2) && digits.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Properties;

    fn message(body: &[u8], set: impl FnOnce(&mut Properties)) -> Message {
        let mut properties = Properties::default();
        set(&mut properties);
        Message { body: Bytes::copy_from_slice(body), properties, ..Message::default() }
    }

    #[test]
    fn the_content_is_the_body_and_stays_as_it_is_whatever_the_properties_say() {
        for (content_type, content_encoding) in
            [(None, None), (Some("text/xml"), Some("gzip")), (Some("application/json"), Some("made up"))]
        {
            let message = message(b"\xef\xbb\xbf\xff raw \n", |properties| {
                properties.content_type = content_type.map(str::to_owned);
                properties.content_encoding = content_encoding.map(str::to_owned);
            });
            let body = Body::new(&message, 99);
            assert_eq!(body.content().unwrap(), &message.body);
            assert_eq!(body.notes().len(), usize::from(content_encoding.is_some()), "{content_encoding:?}");
        }
    }

    #[test]
    fn each_fault_says_which_route_needs_the_body_and_has_its_reason() {
        for (fault, key) in [
            (Fault::Encoding("e".into()), "invalid.encoding"),
            (Fault::TooLarge("t".into()), "invalid.too_large"),
            (Fault::NotJson("n".into()), "invalid.undecodable"),
        ] {
            assert_eq!(fault.cause(None).routing_key(), key);
            assert!(fault.cause(Some("pay")).detail.contains("pay"), "{fault:?}");
        }
    }

    #[test]
    fn bytes_are_read_from_hexadecimal_text_and_from_nothing_else() {
        let of = |text: &[u8]| Body::new(&message(text, |_| {}), 99).hex();
        for (text, expected) in [
            (&b"0x0102"[..], &[1, 2][..]),
            (b"0102", &[1, 2]),
            (b" 0xFFaa\n", &[0xff, 0xaa]),
            (b"\xef\xbb\xbf0x01", &[1]),
            (b"0x", &[]),
            (b"", &[]),
        ] {
            assert_eq!(&of(text).unwrap()[..], expected, "{text:?}");
        }
        for text in [&b"0x012"[..], b"0xzz", b"\"0x01\"", b"0x01 02", b"\xff\xff", b"0x0x01", b"0X01"] {
            let Err(Fault::Encoding(detail)) = of(text) else { panic!("{text:?}") };
            assert!(detail.contains("no hexadecimal text"), "{detail}");
        }
    }

    #[test]
    fn a_body_that_looks_like_hexadecimal_text_is_noticed() {
        for (text, is_hex) in [
            (&b"0xa9059cbb"[..], true),
            (b"0xA9059CBB\n", true),
            (b"a9059cbb", true),
            (b"0x01", true),
            (b"0x", false),
            (b"cafe", false),
            (b"0xa9059cb", false),
            (b"{\"a\":1}", false),
            (b"\xa9\x05\x9c\xbb", false),
            (b"", false),
        ] {
            assert_eq!(Body::new(&message(text, |_| {}), 99).is_hex_text(), is_hex, "{text:?}");
        }
    }

    #[test]
    fn what_is_compressed_text_of_hexadecimal_digits_is_read_as_bytes() {
        let gzipped = coding::tests::gzipped(b"0x0a0b");
        let message = message(&gzipped, |properties| properties.content_encoding = Some("gzip".to_owned()));
        assert_eq!(&Body::new(&message, 99).hex().unwrap()[..], [10, 11]);
    }
}
