//! The producer: publishes until it has the broker's word for each message; comes back after whatever ends its connection.

use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::link::{Link, PAUSE};
use crate::messages::{Message, Messages, Next};
use crate::record::Record;

/// Publishes at an even pace until the run stops it; then everything that it began has its publisher confirm.
pub(crate) async fn produce(
    uris: Vec<String>,
    queue: &'static str,
    pace: Duration,
    seed: u64,
    record: Arc<Record>,
    stop: CancellationToken,
) {
    let mut messages = Messages::new(seed);
    let mut link = None;
    let mut tick = interval(pace);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while !stop.is_cancelled() {
        tick.tick().await;
        let message = match record.with_published(|published| messages.next(published)) {
            Next::New(message) => {
                record.publish(message.clone());
                message
            }
            Next::Again(place) => match record.with_published(|published| published.get(place).cloned()) {
                Some(message) => {
                    record.published_again();
                    message
                }
                None => continue,
            },
        };
        while let Err(error) = publish(&mut link, &uris, queue, &message).await {
            record.say(&format!("the producer publishes {:?} again: {error:#}", message.id));
            if let Some(link) = link.take() {
                Link::close(link);
            }
            sleep(PAUSE).await;
        }
    }
    if let Some(link) = link {
        link.close();
    }
}

async fn publish(link: &mut Option<Link>, uris: &[String], queue: &str, message: &Message) -> anyhow::Result<()> {
    let link = match link {
        Some(link) => link,
        none => none.insert(Link::open(uris).await?),
    };
    let properties = BasicProperties::default().with_delivery_mode(2);
    let properties = match &message.id {
        Some(id) => properties.with_message_id(id.as_str().into()),
        None => properties,
    };
    let properties = match message.kind.amqp_type() {
        Some(kind) => properties.with_type(kind.into()),
        None => properties,
    };
    link.publish("", queue, properties, &message.body).await
}
