//! Makes the headers of a message fit into one frame of its connection, whatever they are: a frame that is too large ends the
//! connection, and the message would be published again and again. Copies are made to fit where RabbitMQ's default holds
//! (`model/header_room.rs`); this is for smaller frames, and for letters that are put back as they came.

use std::cmp::Reverse;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};

use crate::model::cause::Cause;
use crate::model::header_room::dropped_text;
use crate::model::headers::header;

/// A frame's head and end, and what comes before the properties: class, weight, size of the body.
const BESIDE_PROPERTIES: usize = 7 + 1 + 12;
/// The smallest frame that peers may agree on: AMQP 0-9-1, 4.2.3.
const LEAST_FRAME_MAX: u32 = 4096;

/// Returns the properties without the largest headers that a frame has no room for, and with a header that names them. What the
/// worker reads in its own copies goes last.
pub(super) fn fitted(properties: BasicProperties, frame_max: u32) -> BasicProperties {
    let frame_max = if frame_max == 0 { u32::MAX } else { frame_max.max(LEAST_FRAME_MAX) };
    let most = usize::try_from(frame_max).unwrap_or(usize::MAX) - BESIDE_PROPERTIES;
    let Some(headers) = properties.headers() else { return properties };
    let beside = bytes_beside_headers(&properties);
    let bytes = table_bytes(headers);
    if beside + bytes <= most {
        return properties;
    }
    let room = most.saturating_sub(beside + entry_bytes(header::DROPPED_HEADERS, 5 + Cause::MAX_DETAIL_BYTES));
    let mut kept = headers.inner().clone();
    let earlier = match kept.remove(header::DROPPED_HEADERS) {
        Some(AMQPValue::LongString(text)) => std::str::from_utf8(text.as_bytes()).ok().map(str::to_owned),
        _ => None,
    };
    let mut sizes: Vec<_> =
        kept.iter().map(|(name, value)| (entry_bytes(name.as_str(), value_bytes(value)), name.clone())).collect();
    let mut size = 4 + sizes.iter().map(|(size, _)| size).sum::<usize>();
    sizes.sort_by_key(|(size, name)| (Reverse(header::READ.contains(&name.as_str())), *size));
    let mut dropped = Vec::new();
    while size > room
        && let Some((bytes, name)) = sizes.pop()
    {
        size -= bytes;
        kept.remove(&name);
        dropped.push(name.to_string());
    }
    let names = LongString::from(dropped_text(earlier, dropped));
    kept.insert(header::DROPPED_HEADERS.into(), AMQPValue::LongString(names));
    properties.with_headers(kept.into())
}

/// Returns how many bytes the properties take, with their headers.
pub(super) fn bytes_of(properties: &BasicProperties) -> usize {
    bytes_beside_headers(properties) + properties.headers().as_ref().map_or(0, table_bytes)
}

/// Returns how many bytes the properties take without their headers, with the flags that say which there are: AMQP 0-9-1, 4.2.6.
fn bytes_beside_headers(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum::<usize>();
    let numbers = [(properties.delivery_mode().is_some(), 1), (properties.priority().is_some(), 1)];
    let numbers = numbers.into_iter().chain([(properties.timestamp().is_some(), 8)]);
    2 + texts + numbers.filter(|(is_set, _)| *is_set).map(|(_, bytes)| bytes).sum::<usize>()
}

fn table_bytes(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| entry_bytes(name.as_str(), value_bytes(value))).sum::<usize>()
}

fn entry_bytes(name: &str, value: usize) -> usize {
    1 + name.len() + value
}

/// Returns how many bytes a value takes with the letter of its type, at most: AMQP 0-9-1, 4.2.5, and RabbitMQ's own types.
fn value_bytes(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 4 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_bytes).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_bytes(table),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lapin::protocol::basic::parse_properties;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::convert::properties_of;
    use crate::model::message::{FailureNote, ReplayNote};
    use crate::model::{Cause, Generation, HeaderValue, Headers, Message, Properties, Reason, Timestamp, TxHash};

    /// RabbitMQ's default, and the room that the broker's own headers need.
    const FRAME_MAX: usize = 131_072;
    const OF_BROKER: usize = 8 * 1024;

    fn frame_bytes(properties: &BasicProperties) -> usize {
        BESIDE_PROPERTIES + bytes_of(properties)
    }

    fn dropped(properties: &BasicProperties) -> String {
        match properties.headers().as_ref().and_then(|headers| headers.inner().get(header::DROPPED_HEADERS)) {
            Some(AMQPValue::LongString(names)) => names.to_string(),
            found => format!("{found:?}"),
        }
    }

    /// Reads what the client library would, so that sizes are those of the wire.
    #[test]
    fn sizes_are_those_of_the_wire() {
        let nested = Headers::from([("t".to_owned(), HeaderValue::Array(vec![HeaderValue::Void, "x".into()]))]);
        let headers = Headers::from([
            ("bool".to_owned(), HeaderValue::Bool(true)),
            ("int".to_owned(), HeaderValue::Int(7)),
            ("float".to_owned(), HeaderValue::Float(0.5)),
            ("decimal".to_owned(), HeaderValue::Decimal { scale: 1, value: 2 }),
            ("text".to_owned(), "text".into()),
            ("bytes".to_owned(), HeaderValue::Bytes(vec![0xff])),
            ("time".to_owned(), HeaderValue::Time(7)),
            ("table".to_owned(), HeaderValue::Table(nested)),
        ]);
        let of_values: usize =
            headers.iter().map(|(name, value)| crate::model::headers::entry_bytes(name, value)).sum();
        let properties = properties_of(&Message { headers, ..Message::default() });
        // Hand-made: the flags, and a table whose length is the one that is claimed.
        assert_eq!(table_bytes(properties.headers().as_ref().unwrap()), 4 + of_values);
        // A bool and a text as the standard writes them.
        let written = [&[0x20, 0][..], &15_u32.to_be_bytes(), b"\x01bt\x01\x01tS\0\0\0\x04text"].concat();
        let (rest, read) = parse_properties(&written[..]).unwrap();
        assert!(rest.is_empty());
        assert_eq!(frame_bytes(&read) - BESIDE_PROPERTIES, written.len());
    }

    #[test]
    fn what_fits_stays_as_it_is_and_of_the_rest_the_largest_go() {
        type Sizes<'s> = &'s [(&'s str, usize)];
        let headers = |sizes: Sizes<'_>| {
            let headers = sizes.iter().map(|(name, bytes)| ((*name).to_owned(), "x".repeat(*bytes).into()));
            properties_of(&Message { headers: headers.collect(), ..Message::default() })
        };
        let small = headers(&[("a", 3000)]);
        assert_eq!(fitted(small.clone(), 4096), small);
        let cases: [(Sizes<'_>, u32, &str); 4] = [
            (&[("a", 2000), ("b", 3000)], 4096, "b"),
            (&[("a", 2000), ("b", 2100), ("c", 10)], 4096, "b"),
            (&[("cw-attempt", 2500), ("b", 2100)], 4096, "b"),
            (&[("a", 131_060), ("cw-dropped-headers", 3)], 131_072, "xxx, a"),
        ];
        for (sizes, frame_max, names) in cases {
            let fitted = fitted(headers(sizes), frame_max);
            assert!(frame_bytes(&fitted) <= frame_max as usize);
            assert_eq!(dropped(&fitted), names);
        }
    }

    fn value() -> impl Strategy<Value = HeaderValue> {
        let size = prop_oneof![0_usize..40, 900_usize..1100, 7_000_usize..34_000, Just(66_000), Just(126_000)];
        let text = size.prop_map(|bytes| HeaderValue::Text("x".repeat(bytes)));
        prop_oneof![
            8 => text,
            1 => (0_usize..3000).prop_map(|count| HeaderValue::Array(vec![HeaderValue::Int(7); count])),
            1 => Just(HeaderValue::Void),
        ]
    }

    fn name() -> impl Strategy<Value = String> {
        let ours = proptest::sample::select(header::OWN.to_vec()).prop_map(str::to_owned);
        prop_oneof![
            2 => ours,
            1 => "cw-[a-z]{1,9}",
            3 => "[a-z]{1,12}",
            1 => (200_usize..256).prop_map(|bytes| "n".repeat(bytes)),
            1 => Just("id".to_owned()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn every_copy_fits_into_a_frame_and_names_what_it_leaves_out(
            headers in proptest::collection::btree_map(name(), value(), 0..60),
            many in prop_oneof![Just(0_usize), 0_usize..9000],
            texts in 0_usize..256,
            frame_max in prop_oneof![Just(4096_u32), 4096_u32..200_000, Just(131_072)],
        ) {
            let mut headers: Headers = headers;
            headers.extend((0..many).map(|number| (format!("m{number}"), HeaderValue::Text("0123456789".to_owned()))));
            let text = || Some("p".repeat(texts));
            let properties = Properties {
                content_type: text(), content_encoding: text(), correlation_id: text(), reply_to: text(),
                expiration: text(), message_id: text(), kind: text(), app_id: text(), user_id: text(),
                priority: Some(1), timestamp: Some(1),
            };
            let origin = crate::model::Origin { exchange: "e".repeat(texts), routing_key: "k".repeat(texts) };
            let message = Message { headers, properties, origin, ..Message::default() };
            let read = BTreeSet::from(["id".to_owned()]);
            let long = "l".repeat(5000);
            let cause = Cause { reason: Reason::Reverted, detail: long.clone() };
            let hashes = vec![TxHash([7; 32]); 200];
            let note = FailureNote { cause: &cause, first_failed_at: Timestamp(0), tx_hashes: &hashes, worker: &long };
            let replay = ReplayNote { replay: 1, by: &long, at: Timestamp(0), reason: &long };
            let failed = message.failed(Generation { replay: 1, retry: 1 }, &note, &read);
            for copy in [message.copied(&read), failed.clone(), failed.replayed(&replay), message.replayed(&replay)] {
                let made = properties_of(&copy);
                prop_assert!(frame_bytes(&made) + OF_BROKER <= FRAME_MAX, "{}", frame_bytes(&made));
                let fits = fitted(made.clone(), frame_max);
                prop_assert!(frame_bytes(&fits) <= frame_max as usize);
                if frame_bytes(&made) <= frame_max as usize {
                    prop_assert_eq!(&fits, &made);
                } else {
                    prop_assert!(!dropped(&fits).is_empty());
                }
            }
            // A copy names the headers that it leaves out, as far as there is room for names.
            let copy = message.copied(&read);
            let said = dropped(&properties_of(&copy));
            for name in message.headers.keys().filter(|name| !copy.headers.contains_key(*name)) {
                prop_assert!(said.ends_with('…') || said.split(", ").any(|it| it == name), "{name}: {said}");
            }
        }
    }
}
