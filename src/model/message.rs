//! A message as it travels: body, properties and headers, and what a copy of it may and may not carry.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::cause::{Cause, cut};
use crate::model::header_room::{drop_large_headers, is_of_broker, is_of_producer};
use crate::model::headers::{HeaderValue, Headers, entry_bytes, header};
use crate::model::ids::{Timestamp, TxHash};
use crate::model::request::Generation;

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
    /// Empty where the operator gave none.
    pub reason: &'a str,
}

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

    /// Returns how many bytes its headers take in a copy, without those of ours.
    pub fn header_bytes(&self) -> usize {
        let counted = self.headers.iter().filter(|(name, _)| is_of_producer(name));
        counted.map(|(name, value)| entry_bytes(name, value)).sum()
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
            (header::WORKER, cut(note.worker.to_owned(), Cause::MAX_DETAIL_BYTES).into()),
        ];
        copy.headers.extend(explained.into_iter().map(|(name, value)| (name.to_owned(), value)));
        copy
    }

    /// Returns a copy of a dead letter for the work queue: a new replay, its attempts counted from zero, without the headers
    /// about the failure.
    #[must_use]
    pub fn replayed(&self, note: &ReplayNote<'_>) -> Message {
        const OF_THE_FAILURE: [&str; 14] = [
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
            header::DEAD_LETTER_USER_ID,
            header::RAW_PROPERTIES,
            header::UNREADABLE,
            header::TOO_LARGE,
        ];
        // Intake has taken its headers as they are, so none is too large.
        let mut copy = self.copied(&BTreeSet::new());
        for name in OF_THE_FAILURE {
            copy.headers.remove(name);
        }
        copy.headers.remove(header::REPLAY_COUNT);
        let said = [
            (header::REPLAYED_BY, cut(note.by.to_owned(), Cause::MAX_DETAIL_BYTES)),
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
