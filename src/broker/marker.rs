//! The marker of the journal that serves the work queue: one message in a queue of its own, read and replaced at each start.
//!
//! A queue can only be read by taking. The broker gives its messages to one consumer at a time (`x-single-active-consumer`;
//! quorum queues do not keep to an exclusive consumer, seen on RabbitMQ 3.10). So another instance that starts in the same
//! moment waits, and then sees what this one has left. AMQP does not say when a consumer's turn comes: a probe of its own
//! that it gets says so, and a second one, published then, shows the end of the queue. The new marker is published and
//! confirmed before the old one is acked, on one channel: when the connection is lost, nothing of it comes later. So nothing
//! is given back, which would count against a delivery limit, and nothing is held.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::broker::connection::{Connected, broker_detail, refusal};
use crate::broker::convert::PERSISTENT;
use crate::broker::publisher::PublishSession;
use crate::broker::{BrokerError, HeldMarkers, MarkerQueue};
use crate::model::{Marker, ids};

/// Tag of the consumer.
const TAG: &str = "chainwriter.journal";
/// The type of a message that shows the end of the queue.
const PROBE: &str = "chainwriter.probe";
/// The type of the marker's message.
const MARKER: &str = "chainwriter.journal";
/// The call in errors.
const READ: &str = "read the journal's marker";
/// For another instance that reads the queue, and the interval between probes. Heartbeats end the connection of a dead one
/// before.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(40);
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Messages that are held at once, and markers among them. There is one, or a few after crashes.
const WINDOW: u16 = 256;
const MOST_MARKERS: usize = 128;
/// Messages that are passed over: an operator has to empty a queue with more.
const MOST_STRANGERS: usize = 10_000;

/// The marker's queue over the current session.
#[derive(Clone)]
pub struct SessionMarkers {
    pub(super) session: watch::Receiver<Option<Arc<PublishSession>>>,
    /// Limits the wait for a session.
    pub(super) patience: Duration,
    /// The exchange that leads to the queue.
    pub(super) exchange: String,
    pub(super) queue: String,
    pub(super) numbers: SessionNumbers,
}

/// Counts sessions, and says which of them may have deliveries.
#[derive(Clone)]
pub struct SessionNumbers {
    newest: watch::Sender<u64>,
    admitted: watch::Sender<u64>,
}

impl Default for SessionNumbers {
    fn default() -> Self {
        Self { newest: watch::Sender::new(0), admitted: watch::Sender::new(0) }
    }
}

impl SessionNumbers {
    /// Counts one more session and returns its number.
    pub(super) fn begin(&self) -> u64 {
        self.newest.send_modify(|newest| *newest += 1);
        *self.newest.borrow()
    }

    pub(super) fn admitted(&self) -> watch::Receiver<u64> {
        self.admitted.subscribe()
    }

    pub(super) fn admit(&self, session: u64) {
        self.admitted.send_if_modified(|admitted| {
            let is_newer = session > *admitted;
            *admitted = session.max(*admitted);
            is_newer
        });
    }
}

/// The channel that holds the queue. Its end gives back what is not acked.
struct Hold {
    number: u64,
    session: Arc<PublishSession>,
    channel: Channel,
    consumer: Consumer,
    exchange: String,
    queue: String,
    found: Vec<Marker>,
    tags: Vec<u64>,
}

#[async_trait]
impl MarkerQueue for SessionMarkers {
    async fn hold(&self) -> Result<Box<dyn HeldMarkers>, BrokerError> {
        let session = self.session().await?;
        let number = *self.numbers.newest.borrow();
        let (channel, consumer) = self.consume(&session.connected).await?;
        let (exchange, queue) = (self.exchange.clone(), self.queue.clone());
        let mut hold =
            Hold { number, session, channel, consumer, exchange, queue, found: Vec::new(), tags: Vec::new() };
        hold.read().await?;
        Ok(Box::new(hold))
    }

    fn sessions(&self) -> watch::Receiver<u64> {
        self.numbers.newest.subscribe()
    }

    fn admit(&self, session: u64) {
        self.numbers.admit(session);
    }
}

impl SessionMarkers {
    async fn session(&self) -> Result<Arc<PublishSession>, BrokerError> {
        let mut sessions = self.session.clone();
        let there = tokio::time::timeout(self.patience, sessions.wait_for(Option::is_some)).await;
        let session = there.ok().and_then(Result::ok).and_then(|session| session.clone());
        session.ok_or(BrokerError::NotConnected)
    }

    async fn consume(&self, connected: &Connected) -> Result<(Channel, Consumer), BrokerError> {
        let channel = connected.channel().await?;
        connected.ask("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        connected.ask("set the prefetch", channel.basic_qos(WINDOW, BasicQosOptions::default())).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel.basic_consume(self.queue.as_str().into(), TAG.into(), options, arguments);
        let consumer = connected.ask(READ, consumer).await?;
        Ok((channel, consumer))
    }
}

impl Hold {
    /// Waits until it is this consumer's turn, reads the queue up to a probe, and takes out what is no marker.
    async fn read(&mut self) -> Result<(), BrokerError> {
        let end = ids::unique();
        let until = Instant::now() + PATIENCE_WITH_OTHERS;
        let (mut has_turn, mut strangers) = (false, 0);
        self.publish(PROBE, &ids::unique(), &[]).await?;
        loop {
            let failed = |detail: &str| self.session.connected.failed(READ, detail.to_owned());
            if Instant::now() >= until {
                return Err(failed("another instance reads it"));
            }
            let delivery = match tokio::time::timeout(TRY_AGAIN, self.consumer.next()).await {
                Ok(Some(Ok(delivery))) => delivery,
                Ok(Some(Err(error))) => return Err(failed(&broker_detail(&error))),
                Ok(None) => return Err(failed("the broker cancelled the consumer")),
                // The instance before may have taken the probe away.
                Err(_) if !has_turn => {
                    self.publish(PROBE, &ids::unique(), &[]).await?;
                    continue;
                }
                Err(_) => continue,
            };
            // The broker delivers to the consumer alone whose turn it is, probes of others too.
            if !std::mem::replace(&mut has_turn, true) {
                self.publish(PROBE, &end, &[]).await?;
            }
            if text(delivery.properties.kind()) == PROBE {
                self.ack(&delivery).await?;
                if text(delivery.properties.message_id()) == end {
                    return Ok(());
                }
            } else if let Some(marker) = Marker::read(&delivery.data).filter(|_| self.tags.len() < MOST_MARKERS) {
                self.found.push(marker);
                self.tags.push(delivery.delivery_tag);
            } else {
                strangers += 1;
                if strangers > MOST_STRANGERS {
                    return Err(failed("its queue is full of messages that are no markers; purge it"));
                }
                if strangers == 1 {
                    warn!(queue = self.queue, "a message that is no marker is in the journal's queue; it is removed");
                }
                self.ack(&delivery).await?;
            }
        }
    }

    async fn ack(&self, delivery: &Delivery) -> Result<(), BrokerError> {
        let connected = &self.session.connected;
        connected.ask("ack a marker", self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default())).await
    }

    /// Publishes to the queue. `Ok` proves that it has the message.
    async fn publish(&self, kind: &str, id: &str, body: &[u8]) -> Result<(), BrokerError> {
        const DOING: &str = "leave the journal's marker";
        let connected = &self.session.connected;
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_app_id("chainwriter".into())
            .with_type(kind.into())
            .with_message_id(id.into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published = async {
            let (exchange, key) = (self.exchange.as_str().into(), self.queue.as_str().into());
            self.channel.basic_publish(exchange, key, options, body, properties).await?.await
        };
        let failed = |detail| connected.failed(DOING, detail);
        match connected.within(DOING, published).await?.map_err(|error| failed(refusal(&error, "write")))? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => {
                let Self { exchange, queue, .. } = self;
                Err(failed(format!(
                    "exchange {exchange} has no binding to queue {queue}; make it with `chainwriter topology apply`"
                )))
            }
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(failed("the broker refused it".to_owned())),
        }
    }
}

#[async_trait]
impl HeldMarkers for Hold {
    fn session(&self) -> u64 {
        self.number
    }

    fn found(&self) -> &[Marker] {
        &self.found
    }

    /// Crash between the two: both are in the queue, and the next start takes both.
    async fn replace(self: Box<Self>, by: &Marker) -> Result<(), BrokerError> {
        self.publish(MARKER, &ids::unique(), &by.body()).await?;
        let connected = &self.session.connected;
        for tag in &self.tags {
            connected.ask("ack a marker", self.channel.basic_ack(*tag, BasicAckOptions::default())).await?;
        }
        // Its answer comes after the broker has processed the acks. The new marker was delivered here too, and goes back.
        let _ = connected.within("close the channel", self.channel.close(200, "".into())).await;
        Ok(())
    }
}

fn text(text: &Option<ShortString>) -> &str {
    text.as_ref().map_or("", ShortString::as_str)
}
