//! Converts messages between AMQP's types and ours.

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use serde::{Deserialize, Serialize};

use crate::model::headers::header;
use crate::model::{HeaderValue, Headers, Message, Origin, Properties};
use crate::policy::replies::PSEUDO_QUEUE;

/// Delivery mode of every copy, whatever the producer chose.
pub(super) const PERSISTENT: u8 = 2;

/// Returns a delivery's message, as far as its producer is believed. The body moves, so it is not copied.
pub(super) fn message_of(delivery: &mut Delivery) -> Message {
    let body = Bytes::from(std::mem::take(&mut delivery.data));
    let origin = Origin { exchange: delivery.exchange.to_string(), routing_key: delivery.routing_key.to_string() };
    let mut message = message_with(&delivery.properties, origin, body).believed();
    // The broker counts from the second delivery on: what a first one says is its producer's.
    if !delivery.redelivered {
        message.headers.remove(header::DELIVERY_COUNT);
    }
    message
}

pub(super) fn message_with(properties: &BasicProperties, origin: Origin, body: Bytes) -> Message {
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    Message {
        properties: Properties {
            content_type: text(properties.content_type()),
            content_encoding: text(properties.content_encoding()),
            priority: *properties.priority(),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            expiration: text(properties.expiration()),
            message_id: text(properties.message_id()),
            timestamp: *properties.timestamp(),
            kind: text(properties.kind()),
            app_id: text(properties.app_id()),
            user_id: text(properties.user_id()),
        },
        headers: properties.headers().as_ref().map(headers_of).unwrap_or_default(),
        origin,
        body,
    }
}

/// Returns the properties of an outgoing message. `user_id` and `cluster_id` are never set: the broker refuses a foreign user.
pub(super) fn properties_of(message: &Message) -> BasicProperties {
    let from = &message.properties;
    let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
    // A text beyond 255 bytes cannot have come in a property; one from elsewhere stays behind.
    let short = |text: &Option<String>| text.as_ref().and_then(|text| ShortString::try_new(text.clone()).ok());
    macro_rules! set {
        ($($field:ident => $with:ident),*) => {
            $(if let Some(value) = short(&from.$field) { properties = properties.$with(value); })*
        };
    }
    set!(
        content_type => with_content_type, content_encoding => with_content_encoding,
        correlation_id => with_correlation_id, expiration => with_expiration, message_id => with_message_id,
        kind => with_type, app_id => with_app_id
    );
    if let Some(queue) = short(&published_reply_to(from.reply_to.clone())) {
        properties = properties.with_reply_to(queue);
    }
    if let Some(priority) = from.priority {
        properties = properties.with_priority(priority);
    }
    if let Some(timestamp) = from.timestamp {
        properties = properties.with_timestamp(timestamp);
    }
    if !message.headers.is_empty() {
        properties = properties.with_headers(table_of(&message.headers));
    }
    properties
}

/// Returns the `reply_to` of a copy. The broker closes the channel over the bare name of direct replies.
pub(super) fn published_reply_to(reply_to: Option<String>) -> Option<String> {
    reply_to.filter(|queue| queue != PSEUDO_QUEUE)
}

macro_rules! fields {
    (texts { $($text:ident => $with_text:ident,)* } numbers { $($number:ident: $type:ty => $with:ident,)* }) => {
        /// All properties but the headers, in Rust's own types.
        #[derive(Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct PlainProperties {
            $(#[serde(default, skip_serializing_if = "Option::is_none")] pub(super) $text: Option<String>,)*
            $(#[serde(default, skip_serializing_if = "Option::is_none")] pub(super) $number: Option<$type>,)*
        }

        impl PlainProperties {
            pub(super) fn of(properties: &BasicProperties) -> Self {
                Self {
                    $($text: properties.$text().clone().map(String::from),)*
                    $($number: *properties.$number(),)*
                }
            }

            /// Fails with the name of a text that is too long for a property.
            pub(super) fn into_properties(self) -> Result<BasicProperties, &'static str> {
                let mut properties = BasicProperties::default();
                $(if let Some(text) = self.$text {
                    let text = ShortString::try_new(text).map_err(|_| stringify!($text))?;
                    properties = properties.$with_text(text);
                })*
                $(if let Some(number) = self.$number {
                    properties = properties.$with(number);
                })*
                Ok(properties)
            }
        }
    };
}

fields! {
    texts {
        content_type => with_content_type, content_encoding => with_content_encoding,
        correlation_id => with_correlation_id, reply_to => with_reply_to, expiration => with_expiration,
        message_id => with_message_id, kind => with_type, user_id => with_user_id, app_id => with_app_id,
        cluster_id => with_cluster_id,
    }
    numbers {
        delivery_mode: u8 => with_delivery_mode, priority: u8 => with_priority, timestamp: u64 => with_timestamp,
    }
}

fn headers_of(table: &FieldTable) -> Headers {
    table.inner().iter().map(|(name, value)| (name.to_string(), value_of(value))).collect()
}

fn value_of(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        AMQPValue::ShortShortInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortShortUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongLongInt(value) => HeaderValue::Int(*value),
        AMQPValue::Float(value) => HeaderValue::Float((*value).into()),
        AMQPValue::Double(value) => HeaderValue::Float(*value),
        AMQPValue::DecimalValue(value) => HeaderValue::Decimal { scale: value.scale, value: value.value },
        AMQPValue::ShortString(text) => HeaderValue::Text(text.to_string()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => HeaderValue::Bytes(text.as_bytes().to_vec()),
        },
        AMQPValue::FieldArray(values) => HeaderValue::Array(values.as_slice().iter().map(value_of).collect()),
        AMQPValue::Timestamp(seconds) => HeaderValue::Time(*seconds),
        AMQPValue::FieldTable(table) => HeaderValue::Table(headers_of(table)),
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(bytes.as_slice().to_vec()),
        AMQPValue::Void => HeaderValue::Void,
    }
}

pub(super) fn table_of(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        if let Ok(name) = ShortString::try_new(name.clone()) {
            table.insert(name, amqp_value(value));
        }
    }
    table
}

fn amqp_value(value: &HeaderValue) -> AMQPValue {
    match value {
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Int(value) => AMQPValue::LongLongInt(*value),
        HeaderValue::Float(value) => AMQPValue::Double(*value),
        HeaderValue::Decimal { scale, value } => AMQPValue::DecimalValue(DecimalValue { scale: *scale, value: *value }),
        HeaderValue::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        HeaderValue::Bytes(bytes) => AMQPValue::LongString(LongString::from(bytes.clone())),
        HeaderValue::Time(seconds) => AMQPValue::Timestamp(*seconds),
        HeaderValue::Array(values) => {
            AMQPValue::FieldArray(FieldArray::from(values.iter().map(amqp_value).collect::<Vec<_>>()))
        }
        HeaderValue::Table(table) => AMQPValue::FieldTable(table_of(table)),
        HeaderValue::Void => AMQPValue::Void,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_went() {
        let nested = Headers::from([("deep".to_owned(), HeaderValue::Array(vec![HeaderValue::Int(1), "a".into()]))]);
        let headers = Headers::from([
            ("bool".to_owned(), HeaderValue::Bool(true)),
            ("int".to_owned(), HeaderValue::Int(i64::MIN)),
            ("float".to_owned(), HeaderValue::Float(0.5)),
            ("decimal".to_owned(), HeaderValue::Decimal { scale: 2, value: 314 }),
            ("text".to_owned(), "traceparent".into()),
            ("bytes".to_owned(), HeaderValue::Bytes(vec![0xff, 0xfe])),
            ("time".to_owned(), HeaderValue::Time(1_700_000_000)),
            ("table".to_owned(), HeaderValue::Table(nested)),
            ("void".to_owned(), HeaderValue::Void),
        ]);
        assert_eq!(headers_of(&table_of(&headers)), headers);
    }

    #[test]
    fn a_copy_keeps_an_address_of_direct_replies_and_not_their_bare_name() {
        for (reply_to, kept) in
            [("amq.rabbitmq.reply-to", false), ("amq.rabbitmq.reply-to.g1h2", true), ("answers", true)]
        {
            let properties = Properties { reply_to: Some(reply_to.to_owned()), ..Properties::default() };
            let made = properties_of(&Message { properties, ..Message::default() });
            assert_eq!(made.reply_to().as_ref().map(|queue| queue.as_str()), kept.then_some(reply_to));
        }
    }

    #[test]
    fn every_copy_is_persistent() {
        assert_eq!(*properties_of(&Message::default()).delivery_mode(), Some(2));
    }
}
