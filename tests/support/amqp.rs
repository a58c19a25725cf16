//! The producer's and the operator's side of the broker: publish, inspect, take.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use serde_json::Value;

/// A connection with one channel.
pub struct Amqp {
    _connection: Connection,
    pub channel: Channel,
}

/// A message taken from a queue.
#[derive(Debug)]
pub struct Taken {
    pub body: Vec<u8>,
    pub routing_key: String,
    pub exchange: String,
    pub properties: BasicProperties,
}

impl Taken {
    pub fn id(&self) -> String {
        self.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(name)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    /// The texts in a header that is an array.
    pub fn texts(&self, name: &str) -> Vec<String> {
        match self.properties.headers().as_ref().and_then(|headers| headers.inner().get(name)) {
            Some(AMQPValue::FieldArray(values)) => values
                .as_slice()
                .iter()
                .map(|value| match value {
                    AMQPValue::LongString(text) => text.to_string(),
                    other => panic!("no text: {other:?}"),
                })
                .collect(),
            other => panic!("{name} is no array: {other:?}"),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Properties of a persistent message with this id.
pub fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2).with_message_id(id.into())
}

/// Headers of texts.
pub fn headers(pairs: &[(&str, &str)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), AMQPValue::LongString(LongString::from(*value)));
    }
    table
}

impl Amqp {
    pub async fn connect(uri: &str) -> Self {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel }
    }

    /// Publishes to a queue and waits for the publisher confirm.
    pub async fn publish(&self, queue: &str, properties: BasicProperties, body: &[u8]) {
        self.publish_to("", queue, properties, body).await;
    }

    pub async fn publish_to(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
        assert_eq!(sent.await.unwrap(), Confirmation::Ack(None), "published to {exchange:?} {key:?}");
    }

    /// Takes one message, acked, if there is one.
    pub async fn take(&self, queue: &str) -> Option<Taken> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()?;
        Some(taken(got.delivery))
    }

    /// Takes all messages that are in the queue now.
    pub async fn take_all(&self, queue: &str) -> Vec<Taken> {
        let mut all = Vec::new();
        while let Some(taken) = self.take(queue).await {
            all.push(taken);
        }
        all
    }

    /// Waits for a message in the queue and takes it.
    pub async fn wait_for(&self, queue: &str, limit: Duration) -> Taken {
        let started = std::time::Instant::now();
        loop {
            if let Some(taken) = self.take(queue).await {
                return taken;
            }
            assert!(started.elapsed() < limit, "no message in {queue} within {limit:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A queue of the test's own that gets all events from now on. The exchange must be there.
    pub async fn listen(&self, events_exchange: &str) -> Consumer {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(ShortString::from(""), options, FieldTable::default()).await.unwrap();
        let name = queue.name().clone();
        let (exchange, bind) = (events_exchange.into(), QueueBindOptions::default());
        self.channel.queue_bind(name.clone(), exchange, "#".into(), bind, FieldTable::default()).await.unwrap();
        let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        self.channel.basic_consume(name, "listener".into(), consume, FieldTable::default()).await.unwrap()
    }

    /// Sees from now on, in order, what goes through these exchanges with these routing keys.
    pub async fn watch(&self, sources: &[(&str, &str)]) -> Watch {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(ShortString::from(""), options, FieldTable::default()).await.unwrap();
        let name = queue.name().to_string();
        for (exchange, key) in sources {
            self.bind(&name, exchange, key).await;
        }
        let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer =
            self.channel.basic_consume(name.as_str().into(), "".into(), consume, FieldTable::default()).await;
        Watch(consumer.unwrap())
    }

    /// Receives direct replies: to what this channel publishes from now on with `amq.rabbitmq.reply-to`.
    pub async fn watch_direct_replies(&self) -> Watch {
        let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let queue = ShortString::from("amq.rabbitmq.reply-to");
        Watch(self.channel.basic_consume(queue, "".into(), consume, FieldTable::default()).await.unwrap())
    }

    /// Makes a durable topic exchange.
    pub async fn declare_topic(&self, exchange: &str) {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared =
            self.channel.exchange_declare(exchange.into(), ExchangeKind::Topic, durable, FieldTable::default());
        declared.await.unwrap();
    }

    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let options = QueueBindOptions::default();
        let bound = self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
        bound.await.unwrap();
    }

    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        self.channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default()).await.unwrap();
    }

    pub async fn declare(&self, queue: &str) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
    }

    /// Makes a queue that the members of a cluster keep together.
    pub async fn declare_quorum(&self, queue: &str) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let arguments = headers(&[("x-queue-type", "quorum")]);
        self.channel.queue_declare(queue.into(), options, arguments).await.unwrap();
    }

    pub async fn delete(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

/// The messages that [`Amqp::watch`] sees.
pub struct Watch(Consumer);

impl Watch {
    /// The next message, when it comes.
    pub async fn next(&mut self, limit: Duration) -> Taken {
        let delivery = tokio::time::timeout(limit, self.0.next()).await.expect("a message in time");
        taken(delivery.unwrap().unwrap())
    }
}

fn taken(delivery: Delivery) -> Taken {
    Taken {
        body: delivery.data,
        routing_key: delivery.routing_key.to_string(),
        exchange: delivery.exchange.to_string(),
        properties: delivery.properties,
    }
}

/// The next event, as (routing key, document).
pub async fn next_event(events: &mut Consumer, limit: Duration) -> (String, Value) {
    let delivery = tokio::time::timeout(limit, events.next()).await.expect("an event in time").unwrap().unwrap();
    (delivery.routing_key.to_string(), serde_json::from_slice(&delivery.data).unwrap())
}
