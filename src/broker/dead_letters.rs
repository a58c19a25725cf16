//! The dead-letter queue for operators: a browse holds letters, and each is then left or removed.
//!
//! A queue can only be read by taking. Letters are taken by consumers and kept unacked; when the channel closes, or
//! whatever ends before it does (process, connection, broker), the queue has them back in their places. This holds for
//! channels that close, and not for `basic.nack`; for consumers, and not for `basic.get`; and for 32 consumers whose tags
//! have the order of their deliveries, and not for more: RabbitMQ 3.10 goes through a map of them, which Erlang keeps
//! sorted up to there. A browse adds one to each letter's delivery count, and RabbitMQ drops letters that go past the queue's
//! delivery limit. The queue's own limit is a million, but a policy may set a lower one, and wins. So a letter that was
//! browsed often is not given back but renewed: published again, then acked, which counts from zero.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Queue};

use crate::broker::connection::{BrokerSettings, Connected, refusal};
use crate::broker::convert::{PERSISTENT, PlainProperties, message_with, published_reply_to};
use crate::broker::publisher::PublishSession;
use crate::broker::{BrokerError, Outgoing, PublishError, WorkQueue};
use crate::model::headers::header;
use crate::model::{Message, Origin};

/// Returns after which a letter is renewed. Below 10, the lowest delivery limit that the documentation allows.
const RENEW_AT: i64 = 8;
/// Limits the wait for others that hold letters; also the interval between checks.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(3);
const CHECK_OTHERS: Duration = Duration::from_millis(50);
/// Consumers of one browse at most, and the lowest and highest prefetch of each: what one holds is in memory at once.
const CONSUMERS: u64 = 32;
const WINDOW: (u64, u64) = (64, 1024);
/// Letters of one browse at most.
pub const MOST_LETTERS: u64 = CONSUMERS * WINDOW.1;
/// Limits the wait for a letter. One that does not come is held by another consumer.
const PATIENCE_WITH_LETTER: Duration = Duration::from_secs(1);
/// Limits the wait until returned letters show in the queue: the broker returns them after its answer.
const PATIENCE_WITH_QUEUE: Duration = Duration::from_secs(1);
/// Copies are published one after the other.
const PUBLISH_CHANNELS: usize = 1;

/// A letter as the broker has it, with properties and types that a [`Message`] leaves out.
#[derive(Debug, Clone, PartialEq)]
pub struct RawLetter {
    pub(super) exchange: String,
    /// `class.reason`: the first one, where a command has put the letter into the queue since.
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl RawLetter {
    #[cfg(test)]
    pub fn of(message: &Message) -> Self {
        let Origin { exchange, routing_key } = message.origin.clone();
        let properties = crate::broker::convert::properties_of(message);
        Self { exchange, routing_key, properties, body: message.body.clone() }
    }

    pub fn message(&self) -> Message {
        let origin = Origin { exchange: self.exchange.clone(), routing_key: self.routing_key.clone() };
        message_with(&self.properties, origin, self.body.clone())
    }

    /// Returns how often the letter was given back; 0 where the broker does not count.
    fn returns(&self) -> i64 {
        let count = self.headers().and_then(|headers| headers.inner().get(header::DELIVERY_COUNT).cloned());
        count.and_then(|count| count.as_long_long_int()).unwrap_or(0)
    }

    fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    /// Drops the count of returns: the broker counts from the second delivery on, and a first one has it from its producer.
    fn without_count(mut self) -> Self {
        if let Some(headers) = self.headers() {
            let mut kept = headers.inner().clone();
            if kept.remove(header::DELIVERY_COUNT).is_some() {
                self.properties = self.properties.with_headers(kept.into());
            }
        }
        self
    }

    /// Gives a letter that a command has put into the queue back its routing key, and the user that the broker had vouched for.
    /// A letter that the broker put here itself comes by the exchange, and its headers may be a producer's.
    fn restored(mut self) -> Self {
        let text = |name| match self.headers().and_then(|headers| headers.inner().get(name)) {
            Some(AMQPValue::LongString(text)) if self.exchange.is_empty() => Some(text.to_string()),
            _ => None,
        };
        let Some(key) = text(header::DEAD_LETTER_KEY) else { return self };
        if let Some(user_id) = text(header::DEAD_LETTER_USER_ID).and_then(|user| ShortString::try_new(user).ok()) {
            self.properties = self.properties.with_user_id(user_id);
        }
        self.routing_key = key;
        self
    }

    /// Drops the headers that the broker writes at each delivery, and those that would send the letter elsewhere too.
    pub(super) fn without_broker_headers(mut self) -> Self {
        const DROPPED: [&str; 4] = [header::DELIVERY_COUNT, "x-acquired-count", "CC", "BCC"];
        if let Some(headers) = self.headers() {
            let mut kept = headers.inner().clone();
            kept.retain(|name, _| !DROPPED.contains(&name.as_str()));
            self.properties = self.properties.with_headers(kept.into());
        }
        self
    }

    /// Returns the properties to publish to the queue itself. The exchange may have other queues, which have the letter already.
    fn for_the_queue(&self) -> BasicProperties {
        let letter = self.clone().without_broker_headers();
        let mut headers = letter.headers().map(|headers| headers.inner().clone()).unwrap_or_default();
        let key = AMQPValue::LongString(LongString::from(self.routing_key.as_str()));
        headers.insert(header::DEAD_LETTER_KEY.into(), key);
        headers.remove(header::DEAD_LETTER_USER_ID);
        if let Some(user_id) = letter.properties.user_id() {
            let user_id = AMQPValue::LongString(LongString::from(user_id.as_str()));
            headers.insert(header::DEAD_LETTER_USER_ID.into(), user_id);
        }
        // Dropped: the id of another user, which the broker refuses, and an expiration, with which the letter would vanish.
        let plain = PlainProperties::of(&letter.properties);
        let kept = PlainProperties {
            reply_to: published_reply_to(plain.reply_to.clone()),
            user_id: None,
            cluster_id: None,
            expiration: None,
            ..plain
        };
        let kept = kept.into_properties().expect("texts that came in properties fit into properties");
        kept.with_delivery_mode(PERSISTENT).with_headers(headers.into())
    }
}

/// The dead-letter queue and the way back to the work queue.
pub struct DeadLetters {
    reading: Connected,
    publishing: PublishSession,
    work: String,
    dead: String,
}

impl DeadLetters {
    /// Connects twice: a memory alarm blocks a publishing connection whole, also its acks.
    pub async fn connect(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let reading = settings.connect("dead-letters").await?;
        let publishing = settings.connect("dead-letters-publish").await?;
        let publishing = PublishSession::new(publishing, PUBLISH_CHANNELS, settings.confirm_timeout);
        let names = &settings.topology.names;
        Ok(Self { reading, publishing, work: names.work.clone(), dead: names.dead.clone() })
    }

    pub fn name(&self) -> &str {
        &self.dead
    }

    /// Begins a browse of the oldest `most` letters, and never more than [`MOST_LETTERS`].
    pub async fn browse(&self, most: u64) -> Result<Browse<'_>, BrokerError> {
        let mut waited = Duration::ZERO;
        let mut queue = self.queue().await?;
        // RabbitMQ also counts each message that was got and is not acked as a consumer.
        while queue.consumer_count() > 0 && waited < PATIENCE_WITH_OTHERS {
            tokio::time::sleep(CHECK_OTHERS).await;
            waited += CHECK_OTHERS;
            queue = self.queue().await?;
        }
        let channel = self.reading.channel().await?;
        let ready = u64::from(queue.message_count());
        let room = ready.min(most).min(MOST_LETTERS);
        let window = room.div_ceil(CONSUMERS).clamp(WINDOW.0, WINDOW.1);
        let others_hold = queue.consumer_count() > 0;
        let seen = Seen { letters: 0, left: ready.saturating_sub(room), renewed: 0, worn: 0, others_hold };
        Ok(Browse {
            queue: self,
            channel,
            room,
            window,
            consumers: 0,
            taken: VecDeque::new(),
            held: 0,
            renews: false,
            seen,
        })
    }

    /// Puts a letter at the end of the dead-letter queue. `Ok` proves that the queue has it.
    ///
    /// # Errors
    /// Unless the error says so, it is unknown whether the queue has it.
    pub async fn put(&self, letter: &RawLetter) -> Result<(), PublishError> {
        let message = Message { body: letter.body.clone(), ..Message::default() };
        let outgoing = Outgoing { exchange: String::new(), routing_key: self.dead.clone(), message };
        self.publishing.publish_as(&outgoing, letter.for_the_queue()).await
    }

    pub async fn close(self) {
        self.reading.close().await;
        self.publishing.connected.close().await;
    }

    /// Returns the number of letters that no consumer holds.
    pub async fn count(&self) -> Result<u64, BrokerError> {
        Ok(self.queue().await?.message_count().into())
    }

    async fn queue(&self) -> Result<Queue, BrokerError> {
        let found = self.reading.queue(&self.dead).await?;
        found.map_err(|error| self.reading.failed("read the state of the dead-letter queue", refusal(&error, "read")))
    }
}

#[async_trait]
impl WorkQueue for DeadLetters {
    async fn send_back(&self, message: Message) -> Result<(), PublishError> {
        let outgoing = Outgoing { exchange: String::new(), routing_key: self.work.clone(), message };
        self.publishing.publish(&outgoing).await
    }
}

/// Holds letters until its end. When it is dropped, the broker gives them back once the connection closes.
pub struct Browse<'q> {
    queue: &'q DeadLetters,
    channel: Channel,
    /// Letters that may still be taken. Renewed ones stand behind them.
    room: u64,
    /// The prefetch of each consumer.
    window: u64,
    consumers: u64,
    /// Taken, and not returned by `next` yet.
    taken: VecDeque<Held>,
    held: u64,
    renews: bool,
    seen: Seen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub letters: u64,
    /// Letters behind them that were not seen.
    pub left: u64,
    /// Letters that were published again because they had been browsed often.
    pub renewed: u64,
    /// Letters for which that failed: they were given back, and their count goes on.
    pub worn: u64,
    /// Set where another consumer held letters, which were not seen.
    pub others_hold: bool,
}

/// A held letter. When it is dropped, it is given back at the end of the browse.
#[derive(Debug)]
pub struct Held {
    pub letter: RawLetter,
    pub ticket: Ticket,
}

/// The right to remove a letter, once, within its browse.
#[derive(Debug)]
pub struct Ticket(u64);

impl Browse<'_> {
    /// Returns how many letters may still come.
    pub fn room(&self) -> u64 {
        self.room
    }

    pub async fn next(&mut self) -> Result<Option<Held>, BrokerError> {
        if self.taken.is_empty() && self.room > 0 {
            self.take().await?;
        }
        let next = self.taken.pop_front();
        self.seen.letters += u64::from(next.is_some());
        Ok(next)
    }

    /// Takes as many letters as one consumer may hold. The consumer is cancelled before any ack: the broker would give it more.
    async fn take(&mut self) -> Result<(), BrokerError> {
        let queue = self.queue;
        let wanted = self.room.min(self.window);
        self.consumers += 1;
        let tag = format!("browse-{:02}", self.consumers);
        let prefetch = u16::try_from(wanted).unwrap_or(u16::MAX);
        let mut consumer = queue.reading.consume(&self.channel, &queue.dead, &tag, prefetch).await?;
        let mut came = 0;
        while came < wanted
            && let Ok(next) = tokio::time::timeout(PATIENCE_WITH_LETTER, consumer.next()).await
        {
            let failed = |detail| queue.reading.failed("take dead letters", detail);
            let delivery = next.ok_or_else(|| failed("the broker cancelled it".to_owned()))?;
            self.keep(delivery.map_err(|error| failed(refusal(&error, "read")))?);
            came += 1;
        }
        queue.reading.cancel(&self.channel, &tag).await?;
        // Deliveries that came after the timeout.
        while let Some(Ok(delivery)) = consumer.next().await {
            self.keep(delivery);
            came += 1;
        }
        self.room -= came.min(self.room);
        if came < wanted {
            (self.room, self.seen.others_hold) = (0, true);
        }
        Ok(())
    }

    fn keep(&mut self, mut delivery: Delivery) {
        let mut letter = RawLetter {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            body: Bytes::from(std::mem::take(&mut delivery.data)),
            properties: delivery.properties,
        };
        if !delivery.redelivered {
            letter = letter.without_count();
        }
        letter = letter.restored();
        self.held += 1;
        self.taken.push_back(Held { letter, ticket: Ticket(delivery.delivery_tag) });
    }

    /// Leaves the letter in the queue. Once one needs to be renewed, all behind it are too, so that a browse of the whole queue
    /// keeps the order; after a browse of a part, that part stands behind the rest. Crash between the copy and the ack: the
    /// letter is in the queue twice, with the same key.
    pub async fn leave(&mut self, held: Held) -> Result<(), BrokerError> {
        self.renews |= held.letter.returns() >= RENEW_AT;
        // A broker that takes nothing now, as with a memory alarm, is asked once: each answer may take long.
        if !self.renews || self.seen.worn > 0 {
            self.seen.worn += u64::from(self.renews && held.letter.returns() >= RENEW_AT);
            return Ok(());
        }
        if self.queue.put(&held.letter).await.is_err() {
            self.seen.worn += 1;
            return Ok(());
        }
        self.seen.renewed += 1;
        self.remove(held.ticket).await
    }

    /// Removes the letter from the queue. Only for a letter that is safe elsewhere.
    ///
    /// # Errors
    /// When the connection fails: the letter may still be in the queue.
    pub async fn remove(&mut self, ticket: Ticket) -> Result<(), BrokerError> {
        let acked = self.channel.basic_ack(ticket.0, BasicAckOptions::default());
        self.queue.reading.ask("remove a dead letter", acked).await?;
        self.held -= 1;
        Ok(())
    }

    /// Gives back all letters that were neither renewed nor removed, and returns when the queue has them.
    pub async fn end(mut self) -> Result<Seen, BrokerError> {
        self.seen.left += self.room + self.taken.len() as u64;
        while let Some(held) = self.taken.pop_front() {
            self.leave(held).await?;
        }
        let queue = self.queue;
        queue.reading.close_channel(&self.channel).await?;
        let mut waited = Duration::ZERO;
        while self.held > 0 && waited < PATIENCE_WITH_QUEUE && queue.count().await? < self.held {
            tokio::time::sleep(CHECK_OTHERS).await;
            waited += CHECK_OTHERS;
        }
        Ok(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Properties;
    use crate::policy::admission::{AdmissionRules, Scope};
    use crate::policy::letters::Letter;
    use crate::policy::letters::origin::tests::death;
    use crate::policy::letters::tests::rules;

    /// A letter that the broker made of a message by this user, which made up a header too.
    fn of_broker(user_id: Option<&str>) -> RawLetter {
        let headers = [
            ("x-death".to_owned(), crate::model::HeaderValue::Array(vec![death("q", "orders", "pay.now", 1)])),
            (header::ORIGINAL_USER_ID.to_owned(), "victim".into()),
            (header::DEAD_LETTER_USER_ID.to_owned(), "victim".into()),
        ];
        let letter = RawLetter::of(&Message {
            properties: Properties { message_id: Some("a".to_owned()), ..Properties::default() },
            headers: headers.into(),
            origin: Origin { exchange: "q.dead".to_owned(), routing_key: "broker.undeliverable".to_owned() },
            ..Message::default()
        });
        let properties = match user_id {
            Some(user_id) => letter.properties.clone().with_user_id(user_id.into()),
            None => letter.properties.clone(),
        };
        RawLetter { properties, ..letter }
    }

    #[test]
    fn a_letter_keeps_the_user_of_its_message_however_often_it_is_renewed_and_replayed() {
        let rules = AdmissionRules { scope: Scope::UserId, ..rules() };
        for (user_id, id) in [(Some("eve"), "eve/a"), (None, "/a")] {
            let mut letter = of_broker(user_id).restored();
            for renewals in 0..3 {
                let read = Letter::read(&rules, &letter.message());
                assert_eq!(read.id.as_ref().map(|id| id.as_str()), Some(id), "{renewals} renewals");
                let note = crate::model::message::ReplayNote {
                    replay: 1,
                    by: "ops",
                    at: crate::model::Timestamp(0),
                    reason: "",
                };
                let copy = read.as_published(letter.message()).replayed(&note);
                assert!(!copy.headers.contains_key(header::DEAD_LETTER_USER_ID));
                let copy = Message { origin: Origin { exchange: String::new(), routing_key: "q".to_owned() }, ..copy };
                let again = crate::policy::admission::admit(&rules, &copy.believed()).unwrap();
                assert_eq!(again.id.as_str(), id, "replayed after {renewals} renewals");
                let properties = letter.for_the_queue();
                assert!(properties.user_id().is_none(), "the broker would refuse it");
                let renewed = RawLetter {
                    exchange: String::new(),
                    routing_key: "q.dead".to_owned(),
                    properties,
                    ..letter.clone()
                };
                letter = renewed.restored();
                assert_eq!(letter.routing_key, "broker.undeliverable");
            }
        }
    }
}
