//! Publishes with proof. What must reach a queue goes out one at a time per channel: the client library attaches a returned
//! message to whichever confirm comes next, so with two in flight a message that no queue took could count as taken.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{Semaphore, watch};

use crate::broker::connection::{Connected, broker_detail, refusal};
use crate::broker::convert::properties_of;
use crate::broker::{BrokerError, Outgoing, PublishError, Publisher};
use crate::observe::metrics::{Confirm, Publication, PublishMeter};

/// Messages of one channel that wait for their publisher confirms, where no queue has to take them.
const UNROUTED_IN_FLIGHT: usize = 256;

pub(super) struct PublishSession {
    pub(super) connected: Connected,
    confirm_timeout: Duration,
    places: Semaphore,
    idle: Mutex<Vec<Channel>>,
}

impl PublishSession {
    pub(super) fn new(connected: Connected, channels: usize, confirm_timeout: Duration) -> Self {
        Self { connected, confirm_timeout, places: Semaphore::new(channels.max(1)), idle: Mutex::default() }
    }

    async fn channel(&self) -> Result<Channel, PublishError> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(channel) = kept {
            return Ok(channel);
        }
        let open = async {
            let channel = self.connected.channel().await?;
            let selected = channel.confirm_select(ConfirmSelectOptions::default());
            self.connected.ask("ask for confirms", selected).await.map(|()| channel)
        };
        open.await.map_err(|error: BrokerError| PublishError::Channel(error.to_string()))
    }

    fn keep(&self, channel: Channel) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
    }

    pub(super) async fn publish(&self, outgoing: &Outgoing) -> Result<(), PublishError> {
        self.publish_as(outgoing, properties_of(&outgoing.message)).await
    }

    /// Publishes with these properties instead of the message's own.
    pub(super) async fn publish_as(
        &self,
        outgoing: &Outgoing,
        properties: BasicProperties,
    ) -> Result<(), PublishError> {
        let _place = self.places.acquire().await.map_err(|_| PublishError::NotConnected)?;
        let channel = self.channel().await?;
        let published = async {
            let waiting = send(&channel, outgoing, properties, true).await?;
            proof_of(outgoing, waiting.await)
        };
        let result = tokio::time::timeout(self.confirm_timeout, published).await.map_err(|_| PublishError::Timeout)?;
        // After an error the channel's pending answers are in doubt, so it is dropped, which closes it.
        if result.is_ok() {
            self.keep(channel);
        }
        result
    }

    async fn publish_unrouted(&self, outgoing: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::with_capacity(outgoing.len());
        for piece in outgoing.chunks(UNROUTED_IN_FLIGHT) {
            results.extend(self.publish_piece(piece, false).await);
        }
        results
    }

    /// Publishes over one channel, so that the queue has them in this order. With several mandatory messages in flight a
    /// return may be attached to a neighbour's confirm, so one of them fails all.
    async fn publish_in_order(&self, outgoing: &[Outgoing]) -> Result<(), PublishError> {
        for piece in outgoing.chunks(UNROUTED_IN_FLIGHT) {
            for result in self.publish_piece(piece, true).await {
                result?;
            }
        }
        Ok(())
    }

    async fn publish_piece(&self, piece: &[Outgoing], mandatory: bool) -> Vec<Result<(), PublishError>> {
        let mut results = Vec::with_capacity(piece.len());
        let published = async {
            let _place = self.places.acquire().await.map_err(|_| PublishError::NotConnected)?;
            let channel = self.channel().await?;
            let mut waiting = Vec::with_capacity(piece.len());
            for outgoing in piece {
                waiting.push(send(&channel, outgoing, properties_of(&outgoing.message), mandatory).await?);
            }
            for (outgoing, confirm) in piece.iter().zip(waiting) {
                results.push(proof_of(outgoing, confirm.await));
            }
            Ok(channel)
        };
        let end = match tokio::time::timeout(self.confirm_timeout, published).await {
            Ok(Ok(channel)) => {
                if results.iter().all(Result::is_ok) {
                    self.keep(channel);
                }
                return results;
            }
            Ok(Err(error)) => error,
            Err(_) => PublishError::Timeout,
        };
        let without_answer = piece.len() - results.len();
        results.extend((0..without_answer).map(|_| Err(PublishError::Channel(end.to_string()))));
        results
    }
}

async fn send(
    channel: &Channel,
    outgoing: &Outgoing,
    properties: BasicProperties,
    mandatory: bool,
) -> Result<lapin::PublisherConfirm, PublishError> {
    channel
        .basic_publish(
            outgoing.exchange.as_str().into(),
            outgoing.routing_key.as_str().into(),
            BasicPublishOptions { mandatory, ..BasicPublishOptions::default() },
            &outgoing.message.body,
            properties,
        )
        .await
        .map_err(|error| PublishError::Channel(broker_detail(&error)))
}

/// Reads a confirm. An ack alone is no proof: a message that no queue took is returned and then acked.
fn proof_of(outgoing: &Outgoing, confirm: lapin::Result<Confirmation>) -> Result<(), PublishError> {
    let (exchange, routing_key) = (outgoing.exchange.clone(), outgoing.routing_key.clone());
    match confirm {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(Confirmation::Ack(Some(returned))) => {
            let detail = returned.reply_text.to_string();
            Err(PublishError::Returned { exchange, routing_key, detail })
        }
        Ok(Confirmation::Nack(_)) => Err(PublishError::Refused { exchange, routing_key }),
        Ok(Confirmation::NotRequested) => Err(PublishError::Channel("publisher confirms are off".to_owned())),
        Err(error) => Err(PublishError::Channel(refusal(&error, "write"))),
    }
}

#[derive(Clone)]
pub struct SessionPublisher {
    pub(super) session: watch::Receiver<Option<Arc<PublishSession>>>,
    /// How long to wait for a session.
    pub(super) patience: Duration,
    pub(super) meter: PublishMeter,
}

impl SessionPublisher {
    /// Publishes messages that some queue must take, in their order. After an error any of them may be missing: publish all of
    /// them again; consumers recognise repeats by their ids.
    pub async fn publish_in_order(&self, outgoing: &[Outgoing]) -> Result<(), PublishError> {
        self.session().await?.publish_in_order(outgoing).await
    }

    async fn session(&self) -> Result<Arc<PublishSession>, PublishError> {
        let mut sessions = self.session.clone();
        let session = tokio::time::timeout(self.patience, sessions.wait_for(Option::is_some)).await;
        session.ok().and_then(Result::ok).and_then(|session| session.clone()).ok_or(PublishError::NotConnected)
    }
}

#[async_trait]
impl Publisher for SessionPublisher {
    async fn publish(&self, outgoing: &Outgoing) -> Result<(), PublishError> {
        let published = async { self.session().await?.publish(outgoing).await }.await;
        self.meter.published.count((Publication::Copy, confirm_of(&published)));
        published
    }

    async fn publish_unrouted(&self, outgoing: &[Outgoing]) -> Vec<Result<(), PublishError>> {
        let published = match self.session().await {
            Ok(session) => session.publish_unrouted(outgoing).await,
            Err(_) => outgoing.iter().map(|_| Err(PublishError::NotConnected)).collect(),
        };
        for one in &published {
            self.meter.published.count((Publication::Event, confirm_of(one)));
        }
        published
    }
}

fn confirm_of(published: &Result<(), PublishError>) -> Confirm {
    match published {
        Ok(()) => Confirm::Confirmed,
        Err(PublishError::NotConnected) => Confirm::NotConnected,
        Err(PublishError::Timeout) => Confirm::Timeout,
        Err(PublishError::Returned { .. }) => Confirm::Returned,
        Err(PublishError::Refused { .. }) => Confirm::Refused,
        Err(PublishError::Channel(_)) => Confirm::Failed,
    }
}
