//! The producer and the listener, each with a connection of its own straight to the broker. Both come back after whatever
//! ends it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::checker::FinalEvent;
use crate::messages::{Message, Messages, Next};
use crate::record::Record;

/// For one answer of the broker. A memory alarm holds answers back for longer; then it is tried anew.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);
/// Events taken at once.
const PREFETCH: u16 = 500;

struct Link {
    channel: Channel,
    connection: Connection,
}

impl Link {
    async fn open(uri: &str) -> anyhow::Result<Self> {
        let connection = timeout(LIMIT, Connection::connect(uri, ConnectionProperties::default())).await??;
        let channel = timeout(LIMIT, connection.create_channel()).await??;
        timeout(LIMIT, channel.confirm_select(ConfirmSelectOptions::default())).await??;
        Ok(Self { channel, connection })
    }

    /// In the background: a blocked connection may take long to close.
    fn close(self) {
        tokio::spawn(async move { timeout(LIMIT, self.connection.close(200, "done".into())).await });
    }
}

/// Publishes at an even pace until it is told to stop; then everything that it began has its publisher confirm.
pub(crate) async fn produce(
    uri: String,
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
        while let Err(error) = publish(&mut link, &uri, queue, &message).await {
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

async fn publish(link: &mut Option<Link>, uri: &str, queue: &str, message: &Message) -> anyhow::Result<()> {
    let link = match link {
        Some(link) => link,
        none => none.insert(Link::open(uri).await?),
    };
    let properties = BasicProperties::default().with_delivery_mode(2);
    let properties = match &message.id {
        Some(id) => properties.with_message_id(id.as_str().into()),
        None => properties,
    };
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = link.channel.basic_publish("".into(), queue.into(), options, &message.body, properties);
    let confirm = timeout(LIMIT, async { sent.await?.await }).await.context("no publisher confirm")??;
    ensure!(confirm == Confirmation::Ack(None), "the broker answers {confirm:?}");
    Ok(())
}

/// Takes events out of their durable queue and notes them, until its task is aborted.
pub(crate) async fn listen(uri: String, queue: &'static str, record: Arc<Record>) {
    loop {
        if let Err(error) = listen_once(&uri, queue, &record).await {
            record.say(&format!("the listener connects again: {error:#}"));
        }
        sleep(PAUSE).await;
    }
}

async fn listen_once(uri: &str, queue: &str, record: &Record) -> anyhow::Result<()> {
    let link = Link::open(uri).await?;
    let channel = &link.channel;
    timeout(LIMIT, channel.basic_qos(PREFETCH, BasicQosOptions::default())).await??;
    let consume = channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let mut events = timeout(LIMIT, consume).await??;
    while let Some(delivery) = events.next().await {
        let delivery = delivery?;
        note(&delivery, record)?;
        timeout(LIMIT, delivery.ack(BasicAckOptions::default())).await??;
    }
    Ok(())
}

fn note(delivery: &Delivery, record: &Record) -> anyhow::Result<()> {
    let event: Value = serde_json::from_slice(&delivery.data).context("an event is not JSON")?;
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    match delivery.routing_key.as_str() {
        "final" => record.note_final(FinalEvent {
            event_id: text("/id"),
            request_id: text("/subject"),
            tx_hash: text("/data/transaction/tx_hash"),
        }),
        "retry" => record.note_retry(),
        _ => {}
    }
    Ok(())
}
