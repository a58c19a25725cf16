//! The marker of the journal that serves the work queue: one message in a queue of its own, read and replaced at each start.
//!
//! A queue can only be read by taking. The reader is an exclusive consumer: another instance that starts in the same moment
//! waits, and then sees what this one has left. A probe that follows all that is in the queue shows its end. The new marker
//! is published and confirmed before the old one is acked, on one channel: when the connection is lost, nothing of it comes
//! later. So nothing is given back, which would count against a delivery limit, and nothing is held.

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
/// For another instance that holds the queue, and the interval between tries. Its heartbeats end its connection before.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(40);
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// Messages that are held at once. There is one, or a few after crashes.
const WINDOW: u16 = 256;
/// Messages that are passed over: an operator has to empty a queue with more.
const MOST_STRANGERS: usize = 10_000;

/// The marker's queue over the current session.
#[derive(Clone)]
pub struct SessionMarkers {
    pub(super) session: watch::Receiver<Option<Arc<PublishSession>>>,
    /// How long to wait for a session.
    pub(super) patience: Duration,
    /// The exchange that leads to the queue.
    pub(super) exchange: String,
    pub(super) queue: String,
}

/// The channel that holds the queue. Its end gives back what is not acked.
struct Hold {
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
        let (channel, consumer) = self.consume_alone(session.connected()).await?;
        let (exchange, queue) = (self.exchange.clone(), self.queue.clone());
        let mut hold = Hold { session, channel, consumer, exchange, queue, found: Vec::new(), tags: Vec::new() };
        hold.read().await?;
        Ok(Box::new(hold))
    }
}

impl SessionMarkers {
    async fn session(&self) -> Result<Arc<PublishSession>, BrokerError> {
        let mut sessions = self.session.clone();
        let there = tokio::time::timeout(self.patience, sessions.wait_for(Option::is_some)).await;
        let session = there.ok().and_then(Result::ok).and_then(|session| session.clone());
        session.ok_or(BrokerError::NotConnected)
    }

    /// Starts the exclusive consumer once no other instance has one.
    async fn consume_alone(&self, connected: &Connected) -> Result<(Channel, Consumer), BrokerError> {
        let until = tokio::time::Instant::now() + PATIENCE_WITH_OTHERS;
        loop {
            let channel = connected.channel().await?;
            let selected = channel.confirm_select(ConfirmSelectOptions::default());
            let selected = connected.within("ask for confirms", selected).await?;
            selected.map_err(|error| connected.failed("ask for confirms", broker_detail(&error)))?;
            let qos = channel.basic_qos(WINDOW, BasicQosOptions::default());
            let qos = connected.within("set the prefetch", qos).await?;
            qos.map_err(|error| connected.failed("set the prefetch", broker_detail(&error)))?;
            let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
            let consumer =
                channel.basic_consume(self.queue.as_str().into(), TAG.into(), options, FieldTable::default());
            match connected.within("read the journal's marker", consumer).await? {
                Ok(consumer) => return Ok((channel, consumer)),
                Err(error) => {
                    let is_taken = broker_detail(&error).contains("exclusive");
                    if !is_taken || tokio::time::Instant::now() >= until {
                        return Err(connected.failed("read the journal's marker", refusal(&error, "read")));
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }
}

impl Hold {
    /// Reads the queue up to a probe, and takes out what is no marker.
    async fn read(&mut self) -> Result<(), BrokerError> {
        let probe = ids::unique();
        self.publish(PROBE, &probe, &[]).await?;
        let mut strangers = 0;
        loop {
            let connected = self.session.connected();
            let failed = |detail: String| connected.failed("read the journal's marker", detail);
            let next = async { Ok(self.consumer.next().await) };
            let delivery = match connected.within("read the journal's marker", next).await? {
                Ok(Some(Ok(delivery))) => delivery,
                Ok(Some(Err(error))) | Err(error) => return Err(failed(broker_detail(&error))),
                Ok(None) => return Err(failed("the broker cancelled the consumer".to_owned())),
            };
            let kind = text(delivery.properties.kind());
            if kind == PROBE {
                self.ack(&delivery).await?;
                if text(delivery.properties.message_id()) == probe {
                    return Ok(());
                }
            } else if let Some(marker) =
                Marker::read(&delivery.data).filter(|_| self.tags.len() < usize::from(WINDOW / 2))
            {
                self.found.push(marker);
                self.tags.push(delivery.delivery_tag);
            } else {
                strangers += 1;
                if strangers > MOST_STRANGERS {
                    let queue = &self.queue;
                    return Err(failed(format!("{queue} is full of messages that are no markers; purge it")));
                }
                if strangers == 1 {
                    warn!(queue = self.queue, "a message that is no marker is in the journal's queue; it is removed");
                }
                self.ack(&delivery).await?;
            }
        }
    }

    async fn ack(&self, delivery: &Delivery) -> Result<(), BrokerError> {
        let connected = self.session.connected();
        let acked = self.channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
        let acked = connected.within("ack a marker", acked).await?;
        acked.map_err(|error| connected.failed("ack a marker", broker_detail(&error)))
    }

    /// Publishes to the queue. `Ok` proves that it has the message.
    async fn publish(&self, kind: &str, id: &str, body: &[u8]) -> Result<(), BrokerError> {
        const DOING: &str = "leave the journal's marker";
        let connected = self.session.connected();
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
    fn found(&self) -> &[Marker] {
        &self.found
    }

    /// Crash between the two: both are in the queue, and the next start takes both.
    async fn replace(self: Box<Self>, by: &Marker) -> Result<(), BrokerError> {
        self.publish(MARKER, &ids::unique(), &by.body()).await?;
        let connected = self.session.connected();
        for tag in &self.tags {
            let acked = self.channel.basic_ack(*tag, BasicAckOptions::default());
            let acked = connected.within("ack a marker", acked).await?;
            acked.map_err(|error| connected.failed("ack a marker", broker_detail(&error)))?;
        }
        // Its answer comes after the broker has processed the acks. The new marker was delivered here too, and goes back.
        let _ = connected.within("close the channel", self.channel.close(200, "".into())).await;
        Ok(())
    }
}

fn text(text: &Option<ShortString>) -> &str {
    text.as_ref().map_or("", ShortString::as_str)
}
