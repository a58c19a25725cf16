//! The dead-letter queue under an operator's hands: letters are held for a look, and each is then left or taken away.
//!
//! A queue can only be looked into by taking. Letters are taken by consumers and kept unacked; when the channel closes, or
//! whatever ends before it does (process, connection, broker), the queue has them back in their places. This holds for
//! channels that close, and not for `basic.nack`; for consumers, and not for `basic.get`; and for 32 consumers whose tags
//! have the order of their deliveries, and not for more: RabbitMQ 3.10 goes through a map of them, which Erlang keeps
//! sorted up to there. What a look costs is one on each letter's delivery count, and RabbitMQ drops what goes past the
//! queue's delivery limit. The queue's own is a million, but a policy may set a lower one, and wins. So a letter that was
//! looked at often is not given back but renewed: published anew, then acked, which counts from zero.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{BasicProperties, Channel, Consumer};

use crate::broker::connection::{BrokerSettings, Connected, broker_detail, refusal};
use crate::broker::convert::{PERSISTENT, message_with};
use crate::broker::publisher::PublishSession;
use crate::broker::{BrokerError, Outgoing, PublishError};
use crate::model::message::header;
use crate::model::{Message, Origin};

/// A letter that came back so often is renewed. Below 10, the least delivery limit that the README allows.
const RENEW_AT: i64 = 8;
/// How long to wait for others who hold letters, and how often to look whether they still do.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(3);
const LOOK_FOR_OTHERS: Duration = Duration::from_millis(50);
/// Consumers of one look at most, and the least and the most that each may hold: what one holds is in memory at once.
const CONSUMERS: u64 = 32;
const WINDOW: (u64, u64) = (64, 1024);
/// Letters of one look at most.
pub const MOST_LETTERS: u64 = CONSUMERS * WINDOW.1;
/// A letter that does not come for so long is somebody else's at this moment.
const PATIENCE_WITH_LETTER: Duration = Duration::from_secs(1);
/// How long what was given back may take to be seen in the queue again: the broker does that behind its answer.
const PATIENCE_WITH_QUEUE: Duration = Duration::from_secs(1);
/// Copies are published one after the other.
const PUBLISH_CHANNELS: usize = 1;

/// A letter as the broker has it, with every property and type that our own values leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct RawLetter {
    pub(super) exchange: String,
    /// `class.reason`: the one that it had first, where a command has put it into the queue since.
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

impl RawLetter {
    /// In our own values.
    pub fn message(&self) -> Message {
        let origin = Origin { exchange: self.exchange.clone(), routing_key: self.routing_key.clone() };
        message_with(&self.properties, origin, self.body.clone())
    }

    /// How often it was given back; 0 where the broker does not say.
    fn returns(&self) -> i64 {
        let count = self.headers().and_then(|headers| headers.inner().get(header::DELIVERY_COUNT).cloned());
        count.and_then(|count| count.as_long_long_int()).unwrap_or(0)
    }

    fn headers(&self) -> Option<&FieldTable> {
        self.properties.headers().as_ref()
    }

    /// Without what the broker writes at each delivery, and what it would not take or would send elsewhere too.
    pub(super) fn without_broker_headers(mut self) -> Self {
        const DROPPED: [&str; 4] = [header::DELIVERY_COUNT, "x-acquired-count", "CC", "BCC"];
        if let Some(headers) = self.headers() {
            let mut kept = headers.inner().clone();
            kept.retain(|name, _| !DROPPED.contains(&name.as_str()));
            self.properties = self.properties.with_headers(kept.into());
        }
        self
    }

    /// For its way into the queue past the exchange: that may have other queues, which have had it.
    fn for_the_queue(&self) -> BasicProperties {
        let letter = self.clone().without_broker_headers();
        let mut headers = letter.headers().map(|headers| headers.inner().clone()).unwrap_or_default();
        let key = AMQPValue::LongString(LongString::from(self.routing_key.as_str()));
        headers.insert(header::DEAD_LETTER_KEY.into(), key);
        let from = &letter.properties;
        // Not kept: the id of another user, which the broker refuses, and an expiration, with which it would vanish.
        let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers.into());
        macro_rules! keep {
            ($($field:ident => $with:ident),*) => {
                $(if let Some(value) = from.$field().clone() { properties = properties.$with(value); })*
            };
        }
        keep!(
            content_type => with_content_type, content_encoding => with_content_encoding, priority => with_priority,
            correlation_id => with_correlation_id, reply_to => with_reply_to, message_id => with_message_id,
            timestamp => with_timestamp, kind => with_type, app_id => with_app_id
        );
        properties
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
    /// Connects: one connection takes and acks, one publishes, since a memory alarm blocks the latter whole.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn connect(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let reading = settings.connect("dead-letters").await?;
        let publishing = settings.connect("dead-letters-publish").await?;
        let publishing = PublishSession::new(publishing, PUBLISH_CHANNELS, settings.confirm_timeout);
        let names = settings.topology.names();
        Ok(Self { reading, publishing, work: names.work.clone(), dead: names.dead.clone() })
    }

    /// The name of the dead-letter queue.
    pub fn name(&self) -> &str {
        &self.dead
    }

    /// Begins a look at the letters from the oldest on, `most` of them, and never more than [`MOST_LETTERS`].
    ///
    /// # Errors
    /// When the queue is not there, or the connection fails.
    pub async fn look(&self, most: u64) -> Result<Look<'_>, BrokerError> {
        let mut waited = Duration::ZERO;
        let mut state = self.state().await?;
        while state.holders > 0 && waited < PATIENCE_WITH_OTHERS {
            tokio::time::sleep(LOOK_FOR_OTHERS).await;
            waited += LOOK_FOR_OTHERS;
            state = self.state().await?;
        }
        let channel = self.reading.channel().await?;
        let room = state.ready.min(most).min(MOST_LETTERS);
        let window = room.div_ceil(CONSUMERS).clamp(WINDOW.0, WINDOW.1);
        let left = state.ready.saturating_sub(room);
        let seen = Seen { letters: 0, left, renewed: 0, worn: 0, others_hold: state.holders > 0 };
        Ok(Look {
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

    /// Publishes a copy to the work queue. `Ok` is the proof that the queue has it.
    ///
    /// # Errors
    /// Whether the queue has it is not known then, unless the error says so.
    pub async fn send_back(&self, message: Message) -> Result<(), PublishError> {
        let outgoing = Outgoing { exchange: String::new(), routing_key: self.work.clone(), message };
        self.publishing.publish(&outgoing).await
    }

    /// Puts a letter at the end of the dead-letter queue. `Ok` is the proof that the queue has it.
    ///
    /// # Errors
    /// Whether the queue has it is not known then, unless the error says so.
    pub async fn put(&self, letter: &RawLetter) -> Result<(), PublishError> {
        let message = Message { body: letter.body.clone(), ..Message::default() };
        let outgoing = Outgoing { exchange: String::new(), routing_key: self.dead.clone(), message };
        self.publishing.publish_as(&outgoing, letter.for_the_queue()).await
    }

    pub async fn close(self) {
        self.reading.close().await;
        self.publishing.connected().close().await;
    }

    /// How many letters are there that nobody holds.
    ///
    /// # Errors
    /// When the queue is not there, or the connection fails.
    pub async fn count(&self) -> Result<u64, BrokerError> {
        Ok(self.state().await?.ready)
    }

    async fn state(&self) -> Result<State, BrokerError> {
        let channel = self.reading.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(self.dead.as_str().into(), options, FieldTable::default());
        let declared = self.reading.within("look at the dead-letter queue", declared).await?;
        let queue = declared.map_err(|error| self.failed("look at the dead-letter queue", &error))?;
        Ok(State { ready: queue.message_count().into(), holders: queue.consumer_count().into() })
    }

    fn failed(&self, doing: &'static str, error: &lapin::Error) -> BrokerError {
        self.reading.failed(doing, refusal(error, "read"))
    }
}

struct State {
    ready: u64,
    /// Consumers. RabbitMQ counts each message that was got and not acked as one, too.
    holders: u64,
}

/// Letters held, until it ends. Dropped, the broker gives them back when the connection closes.
pub struct Look<'q> {
    queue: &'q DeadLetters,
    channel: Channel,
    /// Letters that may still be taken: what is renewed meanwhile stands behind them.
    room: u64,
    /// So many for each consumer.
    window: u64,
    consumers: u64,
    /// Taken, and not handed out yet.
    taken: VecDeque<Held>,
    held: u64,
    renews: bool,
    seen: Seen,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub letters: u64,
    /// Letters behind them that were not.
    pub left: u64,
    /// Letters that were published anew because they had been looked at often.
    pub renewed: u64,
    /// Letters for which that failed: they were given back, and count on.
    pub worn: u64,
    /// Somebody else held letters, which were not seen.
    pub others_hold: bool,
}

/// A letter in hand. Dropped, it is given back when the look ends.
#[derive(Debug)]
pub struct Held {
    pub letter: RawLetter,
    /// The right to take it away.
    pub ticket: Ticket,
}

/// The right to take a letter away, once, within the look that gave it.
#[derive(Debug)]
pub struct Ticket(u64);

impl Look<'_> {
    /// How many letters it may still come to.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// The next letter, if there is one within the look's limit.
    ///
    /// # Errors
    /// When the connection fails: the broker then gives back all that was held.
    pub async fn next(&mut self) -> Result<Option<Held>, BrokerError> {
        if self.taken.is_empty() && self.room > 0 {
            self.take().await?;
        }
        let next = self.taken.pop_front();
        self.seen.letters += u64::from(next.is_some());
        Ok(next)
    }

    /// Takes as many as one consumer may hold. It is cancelled before any is acked: the broker would give it others then.
    async fn take(&mut self) -> Result<(), BrokerError> {
        let queue = self.queue;
        let wanted = self.room.min(self.window);
        self.consumers += 1;
        let tag = format!("look-{:02}", self.consumers);
        let mut consumer = self.consume(&tag, u16::try_from(wanted).unwrap_or(u16::MAX)).await?;
        let mut came = 0;
        while came < wanted {
            match tokio::time::timeout(PATIENCE_WITH_LETTER, consumer.next()).await {
                Ok(Some(delivery)) => {
                    self.keep(delivery.map_err(|error| queue.failed("take dead letters", &error))?);
                    came += 1;
                }
                Ok(None) => {
                    return Err(queue.reading.failed("take dead letters", "the broker cancelled it".to_owned()));
                }
                Err(_) => break,
            }
        }
        let cancelled = self.channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default());
        let cancelled = queue.reading.within("stop taking dead letters", cancelled).await?;
        cancelled.map_err(|error| queue.failed("stop taking dead letters", &error))?;
        // What came after the patience had ended.
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

    async fn consume(&self, tag: &str, prefetch: u16) -> Result<Consumer, BrokerError> {
        let queue = self.queue;
        let qos = self.channel.basic_qos(prefetch, BasicQosOptions::default());
        let qos = queue.reading.within("set the prefetch", qos).await?;
        qos.map_err(|error| queue.failed("set the prefetch", &error))?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = self.channel.basic_consume(queue.dead.as_str().into(), tag.into(), options, arguments);
        let consumer = queue.reading.within("take dead letters", consumer).await?;
        consumer.map_err(|error| queue.failed("take dead letters", &error))
    }

    fn keep(&mut self, mut delivery: Delivery) {
        let mut letter = RawLetter {
            exchange: delivery.exchange.to_string(),
            routing_key: delivery.routing_key.to_string(),
            body: Bytes::from(std::mem::take(&mut delivery.data)),
            properties: delivery.properties,
        };
        if let Some(AMQPValue::LongString(key)) =
            letter.headers().and_then(|headers| headers.inner().get(header::DEAD_LETTER_KEY))
        {
            letter.routing_key = key.to_string();
        }
        self.held += 1;
        self.taken.push_back(Held { letter, ticket: Ticket(delivery.delivery_tag) });
    }

    /// The letter stays in the queue. Once one needs to be renewed, those behind it are too, so that a look at all of them
    /// leaves their order as it was; after a look at a part, that part stands behind the rest. Crash between the copy and
    /// the ack: the letter is there twice, with the same key.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn leave(&mut self, held: Held) -> Result<(), BrokerError> {
        self.renews |= held.letter.returns() >= RENEW_AT;
        // A broker that takes nothing now, as under a memory alarm, is asked once: each answer may take long.
        if !self.renews || self.seen.worn > 0 {
            self.seen.worn += u64::from(self.renews && held.letter.returns() >= RENEW_AT);
            return Ok(());
        }
        match self.queue.put(&held.letter).await {
            Ok(()) => {
                self.seen.renewed += 1;
                self.remove(held.ticket).await
            }
            Err(_) => {
                self.seen.worn += 1;
                Ok(())
            }
        }
    }

    /// The letter leaves the queue. Only for what is safe elsewhere.
    ///
    /// # Errors
    /// When the connection fails: the letter may be there still.
    pub async fn remove(&mut self, ticket: Ticket) -> Result<(), BrokerError> {
        let acked = self.channel.basic_ack(ticket.0, BasicAckOptions::default());
        let acked = self.queue.reading.within("take a dead letter away", acked).await?;
        acked.map_err(|error| self.queue.failed("take a dead letter away", &error))?;
        self.held -= 1;
        Ok(())
    }

    /// Gives back all that was neither renewed nor removed, and returns when the queue has it. The channel's close is
    /// answered after the broker has processed the acks before it.
    ///
    /// # Errors
    /// When the connection fails: the broker then gives back what is held.
    pub async fn end(mut self) -> Result<Seen, BrokerError> {
        self.seen.left += self.room + self.taken.len() as u64;
        while let Some(held) = self.taken.pop_front() {
            self.leave(held).await?;
        }
        let queue = self.queue;
        let closed = queue.reading.within("close the channel", self.channel.close(200, "".into())).await?;
        closed.map_err(|error| queue.reading.failed("close the channel", broker_detail(&error)))?;
        let mut waited = Duration::ZERO;
        while self.held > 0 && waited < PATIENCE_WITH_QUEUE && queue.count().await? < self.held {
            tokio::time::sleep(LOOK_FOR_OTHERS).await;
            waited += LOOK_FOR_OTHERS;
        }
        Ok(self.seen)
    }
}
