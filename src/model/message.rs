//! A message as it travels: body, properties and headers, and what a copy of it may and may not carry.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::cause::{Cause, cut};
use crate::model::ids::{Timestamp, TxHash};
use crate::model::request::Generation;

/// The headers that chainwriter itself sets. They do not begin with `x-`: those become annotations from RabbitMQ 4 on.
pub mod header {
    /// How many retries came before this copy; none means zero. The only count of attempts that is believed.
    pub const ATTEMPT: &str = "cw-attempt";
    /// How often an operator sent the request back.
    pub const REPLAY_COUNT: &str = "cw-replay-count";
    /// The request is for this time or later: RFC 3339, or an AMQP timestamp. The producer sets it.
    pub const NOT_BEFORE: &str = "cw-not-before";
    /// Nothing is to be signed for the request from this time on: as `cw-not-before`. The producer sets it.
    pub const NOT_AFTER: &str = "cw-not-after";
    /// The class of the failure that led to this copy.
    pub const ERROR_CLASS: &str = "cw-error-class";
    pub const ERROR_REASON: &str = "cw-error-reason";
    /// Its detail, 1 KiB at most.
    pub const ERROR_DETAIL: &str = "cw-error-detail";
    /// When the request failed for the first time, RFC 3339.
    pub const FIRST_FAILED_AT: &str = "cw-first-failed-at";
    pub const ORIGINAL_EXCHANGE: &str = "cw-original-exchange";
    pub const ORIGINAL_ROUTING_KEY: &str = "cw-original-routing-key";
    /// The producer's `user_id`: the broker refuses a copy that has another user's.
    pub const ORIGINAL_USER_ID: &str = "cw-original-user-id";
    /// Every hash ever signed for the request, as an array of texts.
    pub const TX_HASH: &str = "cw-tx-hash";
    /// The producer's `expiration`, kept where it cannot make the copy vanish.
    pub const ORIGINAL_EXPIRATION: &str = "cw-original-expiration";
    /// The id under which `status` knows a message that was refused; made up where it has none of its own.
    pub const REQUEST_ID: &str = "cw-request-id";
    /// Names of headers that were too large to copy.
    pub const DROPPED_HEADERS: &str = "cw-dropped-headers";
    /// The organisation and instance that made the copy.
    pub const WORKER: &str = "cw-worker";
    /// When a dead letter became one, RFC 3339.
    pub const DEAD_AT: &str = "cw-dead-at";
    /// The routing key that a dead letter had before an operator's command put it into its queue anew.
    pub const DEAD_LETTER_KEY: &str = "cw-dead-letter-key";
    /// The token of a passage: a message of our own that shows what has come out of the work queue.
    pub const PASSAGE: &str = "cw-passage";
    pub const REPLAYED_BY: &str = "cw-replayed-by";
    pub const REPLAYED_AT: &str = "cw-replayed-at";
    pub const REPLAY_REASON: &str = "cw-replay-reason";
    /// The properties and headers of a message that AMQP does not allow, as they came: hexadecimal digits. Set on arrival.
    pub const RAW_PROPERTIES: &str = "cw-raw-properties";
    /// Names the parts of them that cannot be read, with their bytes.
    pub const UNREADABLE: &str = "cw-unreadable";
    /// Begins the name of every header of ours.
    pub const PREFIX: &str = "cw-";
    /// Headers of ours that a copy keeps whatever its size: intake reads them.
    pub const READ: [&str; 7] =
        [NOT_BEFORE, NOT_AFTER, ATTEMPT, REPLAY_COUNT, ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, ORIGINAL_USER_ID];
    /// Headers of ours that are believed of every message. A producer may set the first two; the others only keep its own
    /// message from being a request.
    pub const BELIEVED: [&str; 4] = [NOT_BEFORE, NOT_AFTER, RAW_PROPERTIES, UNREADABLE];
    /// Of the broker: how often it took this delivery back, because a consumer died or gave it back. No copy has it.
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
}

pub type Headers = BTreeMap<String, HeaderValue>;

/// A value in a header table. Integers of every width become 64 bits wide and floats double.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeaderValue {
    Bool(bool),
    Int(i64),
    Float(#[serde(with = "float_text")] f64),
    /// `value` with the decimal point moved left by `scale` places.
    Decimal {
        scale: u8,
        value: u32,
    },
    Text(String),
    /// Bytes that are not UTF-8.
    Bytes(Vec<u8>),
    /// Seconds since 1970.
    Time(u64),
    Array(Vec<HeaderValue>),
    Table(Headers),
    Void,
}

/// Floats as texts: JSON's numbers have no infinities and no NaN, and its readers may change the last digit.
mod float_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Journals of the first schema hold numbers.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Text(String),
        Number(f64),
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Stored::deserialize(deserializer)? {
            Stored::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Stored::Number(number) => Ok(number),
        }
    }
}

impl HeaderValue {
    /// Returns a word for the type, for error messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "boolean",
            Self::Int(_) => "integer",
            Self::Float(_) => "float",
            Self::Decimal { .. } => "decimal",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Time(_) => "timestamp",
            Self::Array(_) => "array",
            Self::Table(_) => "table",
            Self::Void => "void",
        }
    }

    /// Returns how deep arrays and tables are nested; 0 without any.
    pub fn levels(&self) -> usize {
        match self {
            Self::Array(values) => 1 + values.iter().map(Self::levels).max().unwrap_or(0),
            Self::Table(table) => 1 + table.values().map(Self::levels).max().unwrap_or(0),
            Self::Text(_) | Self::Bytes(_) => 0,
            Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Decimal { .. } | Self::Time(_) | Self::Void => 0,
        }
    }

    /// Returns about how many bytes the value takes in a frame.
    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len() + 5,
            Self::Bytes(bytes) => bytes.len() + 5,
            Self::Array(values) => values.iter().map(Self::size).sum::<usize>() + 5,
            Self::Table(table) => table.iter().map(|(name, value)| name.len() + 1 + value.size()).sum::<usize>() + 5,
            Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Decimal { .. } | Self::Time(_) | Self::Void => 9,
        }
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// The AMQP 0-9-1 basic properties that a copy keeps, and `expiration`, which it does not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Properties {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Goes into the outcome sent to `reply_to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// A queue that wants the outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Milliseconds to live, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
    /// The broker's user that published it, where the producer says so: the broker lets nobody name another. Copies keep it in a
    /// header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Empty for the default exchange.
    pub exchange: String,
    pub routing_key: String,
}

/// A message with all that a copy of it must keep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Never logged. The journal keeps it beside the rest.
    #[serde(skip)]
    pub body: Bytes,
    #[serde(default)]
    pub properties: Properties,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    pub headers: Headers,
    pub origin: Origin,
}

/// Explains the failure behind a copy for a wait queue or the dead-letter queue.
#[derive(Debug, Clone)]
pub struct FailureNote<'a> {
    pub cause: &'a Cause,
    pub first_failed_at: Timestamp,
    pub tx_hashes: &'a [TxHash],
    pub worker: &'a str,
}

/// Explains the copy of a dead letter that an operator sends back.
#[derive(Debug, Clone)]
pub struct ReplayNote<'a> {
    /// `cw-replay-count` of the copy; nothing for a message that begins anew under an id of its own.
    pub replay: u32,
    pub by: &'a str,
    pub at: Timestamp,
    /// May be empty.
    pub reason: &'a str,
}

/// The most that a message's headers may take, about, without those of ours. Header frames are not split: one that is too large
/// ends the whole connection, so intake refuses more, and a copy leaves the largest behind.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The most that one header of ours takes.
const MAX_OWN_HEADER_BYTES: usize = 8 * 1024;
/// The most that headers may take in a copy which intake reads.
const MAX_READ_HEADER_BYTES: usize = 64 * 1024;
/// At most this many hashes go into the header; the journal has them all.
const MAX_TX_HASHES: usize = 64;

impl Message {
    /// Returns the message without what its producer may not say. Copies of ours come by the default exchange; what comes by
    /// another is a producer's, and of our headers it may set `cw-not-before` and `cw-not-after`.
    #[must_use]
    pub fn believed(mut self) -> Message {
        if !self.origin.exchange.is_empty() {
            let is_believed = |name: &str| !name.starts_with(header::PREFIX) || header::BELIEVED.contains(&name);
            self.headers.retain(|name, _| is_believed(name));
        }
        self
    }

    /// Returns the exchange to which its producer published it: copies come by the default exchange, and what comes by another
    /// is no copy.
    pub fn first_exchange(&self) -> &str {
        self.first(header::ORIGINAL_EXCHANGE).unwrap_or(&self.origin.exchange)
    }

    /// Returns the routing key with which its producer published it. A producer that may publish to one exchange alone cannot
    /// choose another key than that exchange saw.
    pub fn first_routing_key(&self) -> &str {
        self.first(header::ORIGINAL_ROUTING_KEY).unwrap_or(&self.origin.routing_key)
    }

    /// Returns the broker's user that published it, if that said who it is.
    pub fn first_user_id(&self) -> Option<&str> {
        self.properties.user_id.as_deref().or_else(|| self.first(header::ORIGINAL_USER_ID))
    }

    /// Returns what a copy of ours says of the message that it was made of.
    fn first(&self, name: &str) -> Option<&str> {
        match self.headers.get(name) {
            Some(HeaderValue::Text(text)) if self.origin.exchange.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Returns about how many bytes its headers take in a copy, without those of ours.
    pub fn header_bytes(&self) -> usize {
        let is_counted = |name: &str| !is_of_broker(name) && !name.starts_with(header::PREFIX);
        self.headers.iter().filter(|(name, _)| is_counted(name)).map(|(name, value)| name.len() + value.size()).sum()
    }

    /// Returns a copy that carries the request on unchanged: to park it. If its headers are too large, those stay that are `read`
    /// by intake.
    #[must_use]
    pub fn copied(&self, read: &BTreeSet<String>) -> Message {
        let mut copy = self.clone();
        copy.headers.retain(|name, _| !is_of_broker(name));
        drop_large_headers(&mut copy.headers, read);
        if let Some(expiration) = copy.properties.expiration.take() {
            copy.headers.insert(header::ORIGINAL_EXPIRATION.to_owned(), expiration.into());
        }
        // The broker vouches for the property, and for no header.
        if let Some(user_id) = copy.properties.user_id.take() {
            copy.headers.insert(header::ORIGINAL_USER_ID.to_owned(), user_id.into());
        }
        let origin = [
            (header::ORIGINAL_EXCHANGE, &self.origin.exchange),
            (header::ORIGINAL_ROUTING_KEY, &self.origin.routing_key),
        ];
        for (name, value) in origin {
            copy.headers.entry(name.to_owned()).or_insert_with(|| value.as_str().into());
        }
        copy
    }

    /// Returns a copy for a wait queue or the dead-letter queue: counted as `generation`, explained by `note`.
    #[must_use]
    pub fn failed(&self, generation: Generation, note: &FailureNote<'_>, read: &BTreeSet<String>) -> Message {
        let mut copy = self.copied(read);
        // It is on the letter of a refused message alone.
        copy.headers.remove(header::REQUEST_ID);
        generation.write_to(&mut copy.headers);
        let hashes = note.tx_hashes.iter().rev().take(MAX_TX_HASHES).map(|hash| hash.to_string().into()).collect();
        let explained = [
            (header::ERROR_CLASS, note.cause.class().as_str().into()),
            (header::ERROR_REASON, note.cause.reason.as_str().into()),
            (header::ERROR_DETAIL, cut(note.cause.detail.clone(), Cause::MAX_DETAIL_BYTES).into()),
            (header::FIRST_FAILED_AT, note.first_failed_at.to_string().into()),
            (header::TX_HASH, HeaderValue::Array(hashes)),
            (header::WORKER, note.worker.into()),
        ];
        copy.headers.extend(explained.into_iter().map(|(name, value)| (name.to_owned(), value)));
        copy
    }

    /// Returns a copy of a dead letter for the work queue: a new replay, its attempts counted from zero, without the headers
    /// about the failure.
    #[must_use]
    pub fn replayed(&self, note: &ReplayNote<'_>) -> Message {
        const OF_THE_FAILURE: [&str; 12] = [
            header::ATTEMPT,
            header::ERROR_CLASS,
            header::ERROR_REASON,
            header::ERROR_DETAIL,
            header::FIRST_FAILED_AT,
            header::TX_HASH,
            header::WORKER,
            header::REQUEST_ID,
            header::DEAD_AT,
            header::DEAD_LETTER_KEY,
            header::RAW_PROPERTIES,
            header::UNREADABLE,
        ];
        // Intake has taken its headers as they are, so none is too large.
        let mut copy = self.copied(&BTreeSet::new());
        for name in OF_THE_FAILURE {
            copy.headers.remove(name);
        }
        copy.headers.remove(header::REPLAY_COUNT);
        let said = [
            (header::REPLAYED_BY, note.by.to_owned()),
            (header::REPLAYED_AT, note.at.to_string()),
            (header::REPLAY_REASON, cut(note.reason.to_owned(), Cause::MAX_DETAIL_BYTES)),
        ];
        copy.headers.extend(said.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        if note.replay > 0 {
            copy.headers.insert(header::REPLAY_COUNT.to_owned(), HeaderValue::Int(note.replay.into()));
        }
        copy
    }
}

/// Returns whether the broker or its clients write this header about a journey. No copy has it: a stale `x-death` makes RabbitMQ up
/// to 3.13 drop the copy when it leaves the wait queue, and a copied `CC` would fan it out again.
fn is_of_broker(name: &str) -> bool {
    const STRIPPED: [&str; 5] = ["x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC"];
    const STRIPPED_PREFIXES: [&str; 3] = ["x-first-death-", "x-last-death-", "x-opt-"];
    STRIPPED.contains(&name) || STRIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Drops the largest headers until the others fit, and names them. What intake reads goes last, and only where a frame would
/// not hold it.
fn drop_large_headers(headers: &mut Headers, read: &BTreeSet<String>) {
    let is_read = |name: &str| header::READ.contains(&name) || read.contains(name);
    let mut dropped: Vec<String> = Vec::new();
    // The header that is made on arrival has a limit of its own.
    let is_too_large = |name: &str, value: &HeaderValue| {
        let is_ours = name.starts_with(header::PREFIX) && name != header::RAW_PROPERTIES;
        is_ours && name.len() + value.size() > MAX_OWN_HEADER_BYTES
    };
    dropped.extend(headers.iter().filter(|(name, value)| is_too_large(name, value)).map(|(name, _)| name.clone()));
    let sized = |is_wanted: &dyn Fn(&str) -> bool| {
        let wanted = headers.iter().filter(|(name, _)| !name.starts_with(header::PREFIX) && is_wanted(name));
        let mut sizes: Vec<_> = wanted.map(|(name, value)| (name.len() + value.size(), name.clone())).collect();
        sizes.sort_unstable();
        sizes
    };
    let (mut others, mut read) = (sized(&|name| !is_read(name)), sized(&is_read));
    let sum = |sizes: &[(usize, String)]| sizes.iter().map(|(size, _)| size).sum::<usize>();
    while sum(&others) + sum(&read) > MAX_HEADER_BYTES
        && let Some((_, name)) = others.pop()
    {
        dropped.push(name);
    }
    while sum(&read) > MAX_READ_HEADER_BYTES
        && let Some((_, name)) = read.pop()
    {
        dropped.push(name);
    }
    if dropped.is_empty() {
        return;
    }
    for name in &dropped {
        headers.remove(name);
    }
    let earlier = match headers.get(header::DROPPED_HEADERS) {
        Some(HeaderValue::Text(earlier)) => Some(earlier.clone()),
        _ => None,
    };
    let all: Vec<_> = earlier.into_iter().chain(dropped).collect();
    headers.insert(header::DROPPED_HEADERS.to_owned(), cut(all.join(", "), Cause::MAX_DETAIL_BYTES).into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::reasons::Reason;

    fn message() -> Message {
        let mut headers = Headers::new();
        for name in
            ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "x-opt-a", "CC", "BCC"]
        {
            headers.insert(name.to_owned(), "stale".into());
        }
        headers.insert("traceparent".to_owned(), "00-1-2-01".into());
        Message {
            body: Bytes::from_static(b"body"),
            properties: Properties {
                message_id: Some("a".into()),
                expiration: Some("500".into()),
                reply_to: Some("answers".into()),
                ..Properties::default()
            },
            headers,
            origin: Origin { exchange: "in".into(), routing_key: "orders".into() },
        }
    }

    #[test]
    fn a_copy_keeps_ids_body_and_trace_and_drops_what_the_broker_wrote() {
        let copy = message().copied(&BTreeSet::new());
        let names: Vec<_> = copy.headers.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [header::ORIGINAL_EXCHANGE, header::ORIGINAL_EXPIRATION, header::ORIGINAL_ROUTING_KEY, "traceparent"]
        );
        assert_eq!(copy.body, message().body);
        assert_eq!(copy.properties.message_id.as_deref(), Some("a"));
        assert_eq!(copy.properties.reply_to.as_deref(), Some("answers"));
        assert_eq!(copy.properties.expiration, None);
    }

    #[test]
    fn headers_too_large_for_a_frame_stay_behind_and_are_named() {
        let mut large = message();
        large.headers.insert("blob".to_owned(), "x".repeat(1 << 20).into());
        let copy = large.copied(&BTreeSet::new());
        assert_eq!(copy.headers[header::DROPPED_HEADERS], "blob".into());
        assert!(!copy.headers.contains_key("blob"));
        assert!(copy.headers.contains_key("traceparent"));
        assert_eq!(copy.copied(&BTreeSet::new()).headers[header::DROPPED_HEADERS], "blob".into(), "a copy of the copy");
    }

    fn with(headers: &[(&str, usize)]) -> Message {
        let headers = headers.iter().map(|(name, bytes)| ((*name).to_owned(), "x".repeat(*bytes).into()));
        Message { headers: headers.collect(), ..Message::default() }
    }

    #[test]
    fn what_intake_reads_is_kept_and_what_does_not_fit_is_named() {
        let read = BTreeSet::from(["id".to_owned(), "key".to_owned()]);
        let cases: [(&[(&str, usize)], &str); 6] = [
            (&[("id", 40_000), ("a", 10), ("b", 5)], "a, b"),
            (&[("id", 20_000), ("a", 20_000), ("b", 5)], "a"),
            (&[("id", 20_000), ("key", 20_000)], ""),
            (&[("id", 40_000), ("key", 60_000), ("a", 1)], "a, key"),
            (&[("cw-error-detail", 100_000), ("a", 1)], "cw-error-detail"),
            (&[("cw-error-detail", 8_000), ("cw-worker", 8_000), ("a", 32_000)], ""),
        ];
        for (headers, expected) in cases {
            let copy = with(headers).copied(&read);
            let dropped = match copy.headers.get(header::DROPPED_HEADERS) {
                Some(HeaderValue::Text(names)) => names.as_str(),
                found => found.map_or("", |_| "no text"),
            };
            assert_eq!(dropped, expected, "{headers:?}");
            let kept = headers.iter().filter(|(name, _)| copy.headers.contains_key(*name)).count();
            assert_eq!(
                kept,
                headers.len() - expected.split(", ").filter(|name| !name.is_empty()).count(),
                "{headers:?}"
            );
        }
    }

    #[test]
    fn a_producer_may_say_when_and_nothing_else_in_a_header_of_ours() {
        let headers = |message: &Message| message.headers.keys().cloned().collect::<Vec<_>>();
        let all = [
            header::NOT_AFTER,
            header::NOT_BEFORE,
            header::ATTEMPT,
            header::REPLAY_COUNT,
            header::REQUEST_ID,
            header::PASSAGE,
            "tenant",
        ];
        let said = |exchange: &str| {
            let origin = Origin { exchange: exchange.to_owned(), routing_key: "k".to_owned() };
            Message { origin, ..with(&all.map(|name| (name, 1))) }.believed()
        };
        assert_eq!(headers(&said("orders")), [header::NOT_AFTER, header::NOT_BEFORE, "tenant"]);
        assert_eq!(headers(&said("")).len(), all.len(), "a copy of ours");
    }

    #[test]
    fn the_letter_of_a_request_has_no_id_of_a_refused_message() {
        let cause = Cause::new(Reason::Reverted, "no");
        let note = FailureNote { cause: &cause, first_failed_at: Timestamp(0), tx_hashes: &[], worker: "acme/host" };
        let dead = with(&[(header::REQUEST_ID, 5)]).failed(Generation::default(), &note, &BTreeSet::new());
        assert_eq!(dead.headers.get(header::REQUEST_ID), None);
    }

    #[test]
    fn every_float_can_be_written_and_read_again() {
        for float in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE, f64::MAX, 0.1 + 0.2] {
            let text = serde_json::to_string(&HeaderValue::Float(float)).unwrap();
            let HeaderValue::Float(again) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
            assert_eq!(format!("{again:?}"), format!("{float:?}"), "{text}");
        }
        assert_eq!(serde_json::from_str::<HeaderValue>(r#"{"float":0.5}"#).unwrap(), HeaderValue::Float(0.5));
    }

    #[test]
    fn a_dead_letter_sent_back_counts_from_zero_and_forgets_its_failure() {
        let cause = Cause::new(Reason::Reverted, "no");
        let note = FailureNote { cause: &cause, first_failed_at: Timestamp(0), tx_hashes: &[], worker: "acme/host" };
        let dead = message().failed(Generation { replay: 1, retry: 5 }, &note, &BTreeSet::new());
        let note = ReplayNote { replay: 2, by: "eve@host", at: Timestamp(0), reason: "contract mended" };
        let copy = dead.replayed(&note);
        assert_eq!(Generation::read_from(&copy.headers), Ok(Generation { replay: 2, retry: 0 }));
        let names: Vec<_> = copy.headers.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                header::ORIGINAL_EXCHANGE,
                header::ORIGINAL_EXPIRATION,
                header::ORIGINAL_ROUTING_KEY,
                header::REPLAY_COUNT,
                header::REPLAY_REASON,
                header::REPLAYED_AT,
                header::REPLAYED_BY,
                "traceparent"
            ]
        );
        assert_eq!(copy.body, dead.body);
        assert_eq!(
            copy.headers[header::ORIGINAL_ROUTING_KEY],
            "orders".into(),
            "the producer's, not the dead letter's"
        );
    }

    #[test]
    fn a_failed_copy_says_why_and_keeps_the_first_origin() {
        let cause = Cause::new(Reason::Reverted, "x".repeat(5000));
        let hash = TxHash([7; 32]);
        let note =
            FailureNote { cause: &cause, first_failed_at: Timestamp(0), tx_hashes: &[hash], worker: "acme/host" };
        let first = message().failed(Generation { replay: 0, retry: 1 }, &note, &BTreeSet::new());
        let mut returned = first.clone();
        returned.origin = Origin { exchange: String::new(), routing_key: "wait".into() };
        let second = returned.failed(Generation { replay: 0, retry: 2 }, &note, &BTreeSet::new());
        assert_eq!(second.headers[header::ATTEMPT], HeaderValue::Int(2));
        assert_eq!(second.headers[header::ORIGINAL_ROUTING_KEY], "orders".into());
        assert_eq!(second.headers[header::ERROR_CLASS], "rejected".into());
        assert_eq!(second.headers[header::TX_HASH], HeaderValue::Array(vec![hash.to_string().into()]));
        let HeaderValue::Text(detail) = &second.headers[header::ERROR_DETAIL] else { panic!("not a text") };
        assert!(detail.len() <= 1024);
    }
}
