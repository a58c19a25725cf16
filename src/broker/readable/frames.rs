//! Finds frames in the bytes that come, and replaces those that the client library could not read. Format: AMQP 0-9-1, 2.3
//! and 4.2.

use std::collections::BTreeMap;

use crate::broker::readable::properties::{Part, is_readable, replaced, shortened};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Type, channel and size.
const HEAD_BYTES: usize = 7;
const FRAME_END: u8 = 0xce;
/// Every peer takes a frame of this size.
const LEAST_FRAME_MAX: u32 = 4096;
/// A longer frame is none that is read here.
const LARGEST: usize = 16 << 20;

/// Class and method, with which the payload of a method frame begins.
const TUNE: [u8; 4] = [0, 10, 0, 30];
const DELIVER: [u8; 4] = [0, 60, 0, 60];
const GET_OK: [u8; 4] = [0, 60, 0, 71];
/// Class of messages, with which the payload of a header frame begins.
const BASIC: [u8; 2] = [0, 60];

/// Holds a frame that has not come whole yet, and what is known of those before.
#[derive(Debug)]
pub(super) struct Filter {
    input: Vec<u8>,
    /// Bytes of the frame at hand that pass as they are.
    passing: usize,
    /// Set where this is not AMQP: everything passes, and the library says so.
    is_off: bool,
    /// The largest frame that both sides take; `None` until the broker has said so.
    frame_max: Option<u32>,
    /// Exchange and routing key of a delivery that cannot be read, by channel, until its properties come.
    keys: BTreeMap<[u8; 2], Vec<Part>>,
}

impl Filter {
    /// `frame_max` is what the client asks for, if it does.
    pub(super) fn new(frame_max: Option<u32>) -> Self {
        let frame_max = frame_max.filter(|most| *most > 0);
        Self { input: Vec::new(), passing: 0, is_off: false, frame_max, keys: BTreeMap::new() }
    }

    /// Takes what has come, and gives what the library can read.
    pub(super) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.is_off {
                out.extend_from_slice(rest);
                return;
            }
            let passing = self.passing.min(rest.len());
            if let Some((pass, behind)) = rest.split_at_checked(passing).filter(|_| passing > 0) {
                out.extend_from_slice(pass);
                self.passing -= passing;
                rest = behind;
                continue;
            }
            let missing = self.missing().min(rest.len());
            let (taken, behind) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
            self.input.extend_from_slice(taken);
            rest = behind;
            if self.missing() == 0 {
                self.forward(out);
            }
        }
    }

    /// Gives what is left when nothing more comes.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.input);
    }

    /// Returns how many bytes are needed to go on with the frame at hand: those of its head, then, where it is read here, all.
    fn missing(&self) -> usize {
        let wanted = match self.head() {
            Some(Head { kind: METHOD | HEADER, size, .. }) if size <= LARGEST => HEAD_BYTES + size + 1,
            _ => HEAD_BYTES,
        };
        wanted.saturating_sub(self.input.len())
    }

    fn head(&self) -> Option<Head> {
        let [kind, channel_high, channel_low, size @ ..] = self.input.first_chunk::<HEAD_BYTES>()?;
        let size = usize::try_from(u32::from_be_bytes(*size)).unwrap_or(usize::MAX);
        Some(Head { kind: *kind, channel: [*channel_high, *channel_low], size })
    }

    /// Forwards what has gathered: a whole frame, or the head of one that passes.
    fn forward(&mut self, out: &mut Vec<u8>) {
        let Some(Head { kind, channel, size }) = self.head() else { return };
        let frame = std::mem::take(&mut self.input);
        let payload = match (frame.get(HEAD_BYTES..), kind) {
            (Some([payload @ .., FRAME_END]), METHOD | HEADER) if payload.len() == size => Some(payload),
            _ => None,
        };
        let replaced = match (kind, payload) {
            (METHOD, Some(payload)) => self.method(channel, payload),
            (HEADER, Some(payload)) => self.header(channel, payload),
            (METHOD | HEADER | BODY | HEARTBEAT, None) if frame.len() == HEAD_BYTES => {
                self.passing = size.saturating_add(1);
                None
            }
            _ => {
                self.is_off = true;
                None
            }
        };
        match replaced {
            None => out.extend_from_slice(&frame),
            Some(payload) => {
                let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                out.push(kind);
                out.extend_from_slice(&channel);
                out.extend_from_slice(&size.to_be_bytes());
                out.extend_from_slice(&payload);
                out.push(FRAME_END);
            }
        }
        // Its buffer serves for the next one.
        self.input = frame;
        self.input.clear();
    }

    /// Returns the method in place of one with an exchange or a routing key that cannot be read.
    fn method(&mut self, channel: [u8; 2], payload: &[u8]) -> Option<Vec<u8>> {
        let (method, arguments) = payload.split_first_chunk::<4>()?;
        let names_at = match *method {
            TUNE => {
                let of_broker = u32::from_be_bytes(<[u8; 4]>::try_from(arguments.get(2..6)?).ok()?);
                let both = self.frame_max.into_iter().chain([of_broker].into_iter().filter(|most| *most > 0));
                self.frame_max = both.min();
                return None;
            }
            // Behind the consumer's tag, the delivery's tag and the flag of a redelivery.
            DELIVER => 4 + 1 + usize::from(*arguments.first()?) + 8 + 1,
            GET_OK => 4 + 8 + 1,
            _ => return None,
        };
        self.keys.remove(&channel);
        let mut replaced = payload.to_vec();
        let mut at = names_at;
        let mut unreadable = Vec::new();
        for name in ["its exchange", "its routing key"] {
            let length = usize::from(*replaced.get(at)?);
            let text = replaced.get_mut(at + 1..at + 1 + length)?;
            if std::str::from_utf8(text).is_err() {
                unreadable.push(Part::new(name, text));
                text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
            }
            at += 1 + length;
        }
        if unreadable.is_empty() {
            return None;
        }
        self.keys.insert(channel, unreadable);
        Some(replaced)
    }

    /// Returns the header in place of one that cannot be read, that belongs to such a delivery, or that is larger than a frame may
    /// be: the broker checks that when a message comes in, and adds headers of its own when it hands it out.
    fn header(&mut self, channel: [u8; 2], payload: &[u8]) -> Option<Vec<u8>> {
        // Class, weight and the size of the body.
        let (fixed, properties) = payload.split_first_chunk::<12>()?;
        let unreadable = self.keys.remove(&channel).unwrap_or_default();
        if !fixed.starts_with(&BASIC) {
            return None;
        }
        let frame_max = usize::try_from(self.frame_max.map_or(u32::MAX, |most| most.max(LEAST_FRAME_MAX)));
        let most = frame_max.unwrap_or(usize::MAX) - HEAD_BYTES - 1 - fixed.len();
        if !unreadable.is_empty() || !is_readable(properties) {
            return Some([&fixed[..], &replaced(properties, unreadable, most)].concat());
        }
        (properties.len() > most).then(|| [&fixed[..], &shortened(properties, most)].concat())
    }
}

#[derive(Debug, Clone, Copy)]
struct Head {
    kind: u8,
    channel: [u8; 2],
    size: usize,
}

/// Returns what the library gets of these bytes when they come in pieces of this length.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn filtered(bytes: &[u8], pieces: usize) -> Vec<u8> {
    let (mut filter, mut out) = (Filter::new(None), Vec::new());
    bytes.chunks(pieces.max(1)).for_each(|piece| filter.take(piece, &mut out));
    filter.end(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, FieldTable};
    use proptest::prelude::*;

    use super::*;
    use crate::broker::readable::properties::tests::{properties, read};
    use crate::model::headers::header;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap();
        [&[kind][..], &channel.to_be_bytes(), &size.to_be_bytes(), payload, &[FRAME_END]].concat()
    }

    fn deliver(channel: u16, exchange: &[u8], key: &[u8]) -> Vec<u8> {
        let short = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()][..], text].concat();
        let method = [&DELIVER[..], &short(b"tag"), &7_u64.to_be_bytes(), &[0], &short(exchange), &short(key)].concat();
        frame(METHOD, channel, &method)
    }

    fn header_of(channel: u16, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, channel, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4][..], properties].concat())
    }

    /// Returns the properties of the first header frame.
    fn table(bytes: &[u8]) -> FieldTable {
        let mut rest = bytes;
        while let [kind, _, _, size @ ..] = rest {
            let size = u32::from_be_bytes(size[..4].try_into().unwrap()) as usize;
            if *kind == HEADER {
                return read(&rest[HEAD_BYTES + 12..HEAD_BYTES + size]).headers().clone().unwrap_or_default();
            }
            rest = &rest[HEAD_BYTES + size + 1..];
        }
        panic!("no header");
    }

    #[test]
    fn what_can_be_read_passes_byte_for_byte_however_it_is_cut() {
        let good = [
            deliver(1, b"orders", "naïve.key".as_bytes()),
            header_of(1, &properties(|all| all.with_message_id("a".into()))),
            frame(BODY, 1, &[0xce, 2, 0, 1, 0xff, 0xff]),
            frame(HEARTBEAT, 0, b""),
            frame(METHOD, 2, &[0, 60, 0, 31]),
            frame(METHOD, 2, &[]),
        ]
        .concat();
        for pieces in 1..good.len() {
            assert_eq!(filtered(&good, pieces), good, "{pieces}");
        }
        for other in [&b"AMQP\0\0\x09\x01"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01\x00"] {
            assert_eq!(filtered(other, 3), other);
        }
    }

    #[test]
    fn only_the_message_that_cannot_be_read_is_replaced() {
        let bad = [&[0x00, 0x80][..], &[3, 0xf6, b'l', 0xfc]].concat();
        let good = header_of(2, &properties(|all| all.with_message_id("b".into())));
        let bytes = [header_of(1, &bad), frame(BODY, 1, b"body"), good.clone(), frame(BODY, 2, b"more")].concat();
        for pieces in 1..bytes.len() {
            let out = filtered(&bytes, pieces);
            let table = table(&out);
            let text = |name: &str| match table.inner().get(name) {
                Some(AMQPValue::LongString(text)) => text.to_string(),
                found => panic!("{found:?}"),
            };
            assert_eq!(text(header::RAW_PROPERTIES), hex::encode(&bad));
            assert!(text(header::UNREADABLE).contains("message_id is 0xf66cfc"), "{}", text(header::UNREADABLE));
            let rest = [frame(BODY, 1, b"body"), good.clone(), frame(BODY, 2, b"more")].concat();
            assert!(out.ends_with(&rest));
        }
    }

    #[test]
    fn a_routing_key_that_cannot_be_read_marks_its_own_message() {
        let good = properties(|all| all.with_message_id("a".into()));
        let bytes = [
            deliver(1, b"orders", b"caf\xe9.x"),
            deliver(2, b"orders", b"tea"),
            header_of(2, &good),
            frame(BODY, 2, b"two!"),
            header_of(1, &good),
            frame(BODY, 1, b"one!"),
            deliver(1, b"orders", b"tea"),
            header_of(1, &good),
        ]
        .concat();
        let out = filtered(&bytes, bytes.len());
        assert!(out.starts_with(&deliver(1, b"orders", b"caf?.x")));
        let replaced = [deliver(2, b"orders", b"tea"), header_of(2, &good), frame(BODY, 2, b"two!")].concat();
        let behind = &out[deliver(1, b"orders", b"caf?.x").len()..];
        assert!(behind.starts_with(&replaced), "another channel's message");
        let marked = table(&behind[replaced.len()..]);
        let Some(AMQPValue::LongString(text)) = marked.inner().get(header::UNREADABLE) else { panic!("{marked:?}") };
        assert!(text.to_string().contains("routing key is 0x636166e92e78"), "{text}");
        assert!(
            out.ends_with(&[deliver(1, b"orders", b"tea"), header_of(1, &good)].concat()),
            "the next of its channel"
        );
    }

    #[test]
    fn a_replaced_frame_is_no_longer_than_both_sides_allow() {
        let tune = |most: u32| frame(METHOD, 0, &[&TUNE[..], &[0, 0], &most.to_be_bytes(), &[0, 0]].concat());
        let long =
            [&[0x20, 0x80][..], &40_007_u32.to_be_bytes(), b"\x01hS", &40_000_u32.to_be_bytes(), &[b'x'; 40_000]];
        let bad = [&long.concat()[..], &[2, 0xff, 0xff]].concat();
        for (of_client, of_broker, most) in
            [(None, 131_072, 131_072), (Some(65_536), 131_072, 65_536), (None, 50_000, 50_000), (Some(8192), 0, 8192)]
        {
            let (mut filter, mut out) = (Filter::new(of_client), Vec::new());
            filter.take(&tune(of_broker), &mut out);
            let before = out.len();
            filter.take(&header_of(1, &bad), &mut out);
            let replaced = &out[before..];
            assert!(replaced.len() <= most, "{} of {most}", replaced.len());
            let table = table(replaced);
            assert!(table.inner().contains_key(header::UNREADABLE));
            assert_eq!(table.inner().contains_key("h"), most > 100_000, "kept where there is room");
        }
    }

    /// The broker adds headers to what came in a frame of its own size.
    #[test]
    fn a_header_that_is_larger_than_a_frame_loses_its_largest_headers_and_says_so() {
        let tune = frame(METHOD, 0, &[&TUNE[..], &[0, 0], &131_072_u32.to_be_bytes(), &[0, 0]].concat());
        let small: Vec<_> = (0..9000).map(|number| (format!("h{number}"), "0123456789".to_owned())).collect();
        let cases = [
            (vec![("id".to_owned(), "i".repeat(2000)), ("blob".to_owned(), "x".repeat(130_000))], "blob", 2000),
            (vec![("id".to_owned(), "i".repeat(2000)), ("blob".to_owned(), "x".repeat(120_000))], "", 122_000),
            (small, "h89", 129_000),
        ];
        for (headers, name, least) in cases {
            let given = properties(|all| {
                let mut table = FieldTable::default();
                for (name, value) in headers {
                    table.insert(name.into(), AMQPValue::LongString(value.into()));
                }
                all.with_message_id("a".into()).with_headers(table)
            });
            let (mut filter, mut out) = (Filter::new(None), Vec::new());
            filter.take(&tune, &mut out);
            let before = out.len();
            filter.take(&header_of(1, &given), &mut out);
            let passed = &out[before..];
            assert!(passed.len() <= 131_072, "{}", passed.len());
            let table = table(passed);
            let said = match table.inner().get(header::TOO_LARGE) {
                Some(AMQPValue::LongString(text)) => Some(text.to_string()),
                _ => None,
            };
            assert_eq!(said.is_some(), !name.is_empty(), "{name}");
            assert!(said.is_none_or(|said| said.contains(name)), "{name}");
            assert!(name != "blob" || table.inner().contains_key("id"));
            assert!(passed.len() > least, "no more is left out than has to be");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_filter_panic_and_what_it_gives_does_not_depend_on_the_pieces(
            mut frames in proptest::collection::vec((1_u8..4, 0_u16..3, proptest::collection::vec(any::<u8>(), 0..40)), 1..5),
            pieces in 1_usize..20,
        ) {
            for (kind, _, payload) in &mut frames {
                let head: &[u8] = match (*kind, payload.len() % 3) {
                    (METHOD, 0) => &DELIVER,
                    (METHOD, 1) => &GET_OK,
                    (HEADER, _) => &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0x20, 0x80],
                    _ => &[],
                };
                *payload = [head, payload].concat();
            }
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, channel, payload)| frame(*kind, *channel, payload)).collect();
            let out = filtered(&bytes, bytes.len());
            prop_assert_eq!(&filtered(&bytes, pieces), &out);
            prop_assert_eq!(&filtered(&out, pieces), &out, "what was replaced can be read");
        }
    }
}
