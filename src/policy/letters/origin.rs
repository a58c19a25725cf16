//! How a dead letter's message came into the work queue. Routes go by the exchange and the routing key that its producer chose,
//! and the letter itself has those of the dead-letter exchange.

use crate::model::headers::header;
use crate::model::{HeaderValue, Headers, Message, Origin};

/// Returns by which exchange and key the message came into the work queue; `None` where the letter does not say. A copy of the
/// worker's own came by the default exchange and has the first ones in its headers.
pub(super) fn origin_in(message: &Message, queue: &str, is_of_broker: bool) -> Option<Origin> {
    if is_of_broker {
        return given_up(message, queue);
    }
    let is_told = matches!(message.headers.get(header::ORIGINAL_ROUTING_KEY), Some(HeaderValue::Text(_)));
    is_told.then(|| by_default_exchange(queue))
}

pub(super) fn by_default_exchange(queue: &str) -> Origin {
    Origin { exchange: String::new(), routing_key: queue.to_owned() }
}

/// Reads the entry of `x-death` that the broker wrote when the message left the work queue. RabbitMQ up to 3.13 counts on in an
/// entry that is there already, and keeps its key: whose key that is, nothing says.
fn given_up(message: &Message, queue: &str) -> Option<Origin> {
    let entry = deaths(message).find(|death| text(death, "queue") == Some(queue))?;
    if !matches!(entry.get("count"), None | Some(HeaderValue::Int(1))) {
        return None;
    }
    let Some(HeaderValue::Array(keys)) = entry.get("routing-keys") else { return None };
    let Some(HeaderValue::Text(routing_key)) = keys.first() else { return None };
    Some(Origin { exchange: text(entry, "exchange")?.to_owned(), routing_key: routing_key.clone() })
}

/// Returns the entries of `x-death`, the newest first.
pub(super) fn deaths(message: &Message) -> impl Iterator<Item = &Headers> {
    let entries = match message.headers.get("x-death") {
        Some(HeaderValue::Array(entries)) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().filter_map(|entry| if let HeaderValue::Table(entry) = entry { Some(entry) } else { None })
}

/// Returns whether the message left the work queue last because its time to live was over.
pub(super) fn has_expired(message: &Message, queue: &str) -> bool {
    let newest = deaths(message).next();
    newest.is_some_and(|death| text(death, "queue") == Some(queue) && text(death, "reason") == Some("expired"))
}

fn text<'h>(table: &'h Headers, name: &str) -> Option<&'h str> {
    if let Some(HeaderValue::Text(text)) = table.get(name) { Some(text) } else { None }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns an entry of `x-death` as the broker writes it.
    pub(crate) fn death(queue: &str, exchange: &str, key: &str, count: i64) -> HeaderValue {
        let keys = HeaderValue::Array(vec![key.into()]);
        let entry = [
            ("queue", queue.into()),
            ("reason", "delivery_limit".into()),
            ("exchange", exchange.into()),
            ("routing-keys", keys),
            ("count", HeaderValue::Int(count)),
            ("time", HeaderValue::Time(7)),
        ];
        HeaderValue::Table(entry.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn origin(exchange: &str, routing_key: &str) -> Option<Origin> {
        Some(Origin { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() })
    }

    #[test]
    fn a_letter_of_the_brokers_own_came_as_its_newest_death_in_the_work_queue_says() {
        let cases = [
            (vec![death("q", "orders", "pay.now", 1)], origin("orders", "pay.now")),
            // A retry that the broker gave up on had been in a wait queue before.
            (vec![death("q", "", "q", 1), death("q.wait.5s", "q.retry", "q.wait.5s", 3)], origin("", "q")),
            (vec![death("other", "orders", "pay.now", 1)], None),
            // The broker has counted on in an entry that was there.
            (vec![death("q", "orders", "pay.now", 2)], None),
            (vec![HeaderValue::Void], None),
            (vec![], None),
        ];
        for (deaths, expected) in cases {
            let headers = Headers::from([
                ("x-death".to_owned(), HeaderValue::Array(deaths.clone())),
                (header::ORIGINAL_ROUTING_KEY.to_owned(), "forged".into()),
            ]);
            let message = Message { headers, ..Message::default() };
            assert_eq!(origin_in(&message, "q", true), expected, "{deaths:?}");
        }
    }

    #[test]
    fn a_letter_of_the_workers_came_as_a_copy_that_says_where_from() {
        let mut message = Message::default();
        assert_eq!(origin_in(&message, "q", false), None);
        message.headers.insert(header::ORIGINAL_ROUTING_KEY.to_owned(), "pay.now".into());
        assert_eq!(origin_in(&message, "q", false), origin("", "q"));
    }
}
