//! Headers of messages: the names of ours, and values of every type.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    /// Names of headers that were too large for a copy.
    pub const DROPPED_HEADERS: &str = "cw-dropped-headers";
    /// The organisation and instance that made the copy.
    pub const WORKER: &str = "cw-worker";
    /// When a dead letter became one, RFC 3339.
    pub const DEAD_AT: &str = "cw-dead-at";
    /// The routing key that a dead letter had before an operator's command put it into its queue anew.
    pub const DEAD_LETTER_KEY: &str = "cw-dead-letter-key";
    /// The `user_id` of a message that the broker dead-lettered, from before such a command: the broker refuses a copy with another's.
    pub const DEAD_LETTER_USER_ID: &str = "cw-dead-letter-user-id";
    /// The token of a passage: a message of our own that shows what has come out of the work queue.
    pub const PASSAGE: &str = "cw-passage";
    pub const REPLAYED_BY: &str = "cw-replayed-by";
    pub const REPLAYED_AT: &str = "cw-replayed-at";
    pub const REPLAY_REASON: &str = "cw-replay-reason";
    /// The properties and headers of a message that AMQP does not allow, as they came: hexadecimal digits. Set on arrival.
    pub const RAW_PROPERTIES: &str = "cw-raw-properties";
    /// Names the parts of them that cannot be read, with their bytes.
    pub const UNREADABLE: &str = "cw-unreadable";
    /// Says which headers of a message were left out on arrival, since no frame holds them with what the broker adds.
    pub const TOO_LARGE: &str = "cw-too-large";
    /// Begins the name of every header of ours.
    pub const PREFIX: &str = "cw-";
    /// Headers of ours that a copy keeps whatever its size: intake reads them.
    pub const READ: [&str; 7] =
        [NOT_BEFORE, NOT_AFTER, ATTEMPT, REPLAY_COUNT, ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, ORIGINAL_USER_ID];
    /// Headers of ours that are believed of every message. A producer may set the first two; the others only keep its own
    /// message from being a request.
    pub const BELIEVED: [&str; 5] = [NOT_BEFORE, NOT_AFTER, RAW_PROPERTIES, UNREADABLE, TOO_LARGE];
    /// All of ours. What else begins with `cw-` is a producer's.
    pub const OWN: [&str; 26] = [
        ATTEMPT,
        REPLAY_COUNT,
        NOT_BEFORE,
        NOT_AFTER,
        ERROR_CLASS,
        ERROR_REASON,
        ERROR_DETAIL,
        FIRST_FAILED_AT,
        ORIGINAL_EXCHANGE,
        ORIGINAL_ROUTING_KEY,
        ORIGINAL_USER_ID,
        TX_HASH,
        ORIGINAL_EXPIRATION,
        REQUEST_ID,
        DROPPED_HEADERS,
        WORKER,
        DEAD_AT,
        DEAD_LETTER_KEY,
        DEAD_LETTER_USER_ID,
        PASSAGE,
        REPLAYED_BY,
        REPLAYED_AT,
        REPLAY_REASON,
        RAW_PROPERTIES,
        UNREADABLE,
        TOO_LARGE,
    ];
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

    /// Returns how many bytes the value takes in a frame, with the letter of its type: AMQP 0-9-1, 4.2.1.
    pub fn size(&self) -> usize {
        match self {
            Self::Text(text) => 1 + 4 + text.len(),
            Self::Bytes(bytes) => 1 + 4 + bytes.len(),
            Self::Array(values) => 1 + 4 + values.iter().map(Self::size).sum::<usize>(),
            Self::Table(table) => 1 + 4 + table.iter().map(|(name, value)| entry_bytes(name, value)).sum::<usize>(),
            Self::Void => 1,
            Self::Bool(_) => 1 + 1,
            Self::Decimal { .. } => 1 + 5,
            Self::Int(_) | Self::Float(_) | Self::Time(_) => 1 + 8,
        }
    }
}

/// Returns how many bytes a header takes in a frame.
pub fn entry_bytes(name: &str, value: &HeaderValue) -> usize {
    1 + name.len() + value.size()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_can_be_written_and_read_again() {
        for float in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE, f64::MAX, 0.1 + 0.2] {
            let text = serde_json::to_string(&HeaderValue::Float(float)).unwrap();
            let HeaderValue::Float(again) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
            assert_eq!(format!("{again:?}"), format!("{float:?}"), "{text}");
        }
        assert_eq!(serde_json::from_str::<HeaderValue>(r#"{"float":0.5}"#).unwrap(), HeaderValue::Float(0.5));
    }
}
