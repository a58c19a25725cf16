//! Publishes with proof. What must reach a queue goes out one at a time per channel: the client library attaches a returned
//! message to whichever confirm comes next, so with two in flight a message that no queue took could count as taken.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::broker::connection::{Connected, LONGEST_DETAIL_BYTES, broker_detail, refusal};
use crate::broker::convert::properties_of;
use crate::broker::fit::fitted;
use crate::broker::{BrokerError, Outgoing, PublishError, Publisher};
use crate::model::text::cleaned;
use crate::observe::metrics::{Confirm, Publication, PublishMeter};

/// Messages of one channel that wait for their publisher confirms, where no queue has to take them.
const UNROUTED_IN_FLIGHT: usize = 256;

/// Channels at most for what no queue has to take: as many as the outbox has batches on their way.
const CHANNELS_FOR_EVENTS: usize = 20;

pub(super) struct PublishSession {
    pub(super) connected: Connected,
    confirm_timeout: Duration,
    places: Semaphore,
    /// Apart, since queues that never answer hold these for long, and producers name some of those queues.
    places_for_events: Semaphore,
    idle: Mutex<Vec<Channel>>,
}

impl PublishSession {
    pub(super) fn new(connected: Connected, channels: usize, confirm_timeout: Duration) -> Self {
        let (places, places_for_events) = (Semaphore::new(channels.max(1)), Semaphore::new(CHANNELS_FOR_EVENTS));
        Self { connected, confirm_timeout, places, places_for_events, idle: Mutex::default() }
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
            let waiting = self.send(&channel, outgoing, properties, true).await?;
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
        let until = Instant::now() + self.confirm_timeout;
        let sent = tokio::time::timeout_at(until, async {
            let places = if mandatory { &self.places } else { &self.places_for_events };
            let place = places.acquire().await.map_err(|_| PublishError::NotConnected)?;
            let channel = self.channel().await?;
            let mut waiting = Vec::with_capacity(piece.len());
            for outgoing in piece {
                waiting.push(self.send(&channel, outgoing, properties_of(&outgoing.message), mandatory).await?);
            }
            Ok((place, channel, waiting))
        });
        let (_place, channel, waiting) = match sent.await.unwrap_or(Err(PublishError::Timeout)) {
            Ok(sent) => sent,
            Err(error) => return piece.iter().map(|_| Err(PublishError::Channel(error.to_string()))).collect(),
        };
        // One that is never confirmed says nothing about those behind it.
        let confirms = piece.iter().zip(waiting).map(|(outgoing, confirm)| async {
            let confirm = tokio::time::timeout_at(until, confirm).await;
            confirm.map_or(Err(PublishError::Timeout), |confirm| proof_of(outgoing, confirm))
        });
        let results: Vec<_> = join_all(confirms).await;
        // A refusal leaves nothing in doubt where nothing can be returned.
        let is_sure = |result: &Result<_, _>| {
            result.is_ok() || (!mandatory && matches!(result, Err(PublishError::Refused { .. })))
        };
        if results.iter().all(is_sure) {
            self.keep(channel);
        }
        results
    }

    /// Publishes on a channel. Headers that no frame holds are left out.
    async fn send(
        &self,
        channel: &Channel,
        outgoing: &Outgoing,
        properties: BasicProperties,
        mandatory: bool,
    ) -> Result<lapin::PublisherConfirm, PublishError> {
        let properties = fitted(properties, self.connected.connection.configuration().frame_max());
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
}

/// Reads a confirm. An ack alone is no proof: a message that no queue took is returned and then acked.
fn proof_of(outgoing: &Outgoing, confirm: lapin::Result<Confirmation>) -> Result<(), PublishError> {
    let (exchange, routing_key) = (outgoing.exchange.clone(), outgoing.routing_key.clone());
    match confirm {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(Confirmation::Ack(Some(returned))) => {
            let detail = cleaned(&returned.reply_text.to_string(), LONGEST_DETAIL_BYTES);
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
    /// Limits the wait for a session.
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
        Err(PublishError::NotConnected | PublishError::NotServing) => Confirm::NotConnected,
        Err(PublishError::Timeout) => Confirm::Timeout,
        Err(PublishError::Returned { .. }) => Confirm::Returned,
        Err(PublishError::Refused { .. }) => Confirm::Refused,
        Err(PublishError::Channel(_)) => Confirm::Failed,
    }
}
