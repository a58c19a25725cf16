//! Listens to the events from the start; comes back after whatever ends its connection.

use std::sync::Arc;

use anyhow::Context;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::checker::FinalEvent;
use crate::link::{LIMIT, Link, PAUSE};
use crate::record::Record;

/// Events taken at once.
const PREFETCH: u16 = 500;

/// Takes events out of their durable queue and notes them, until its task is aborted.
pub(crate) async fn listen(uris: Vec<String>, queue: &'static str, record: Arc<Record>) {
    loop {
        if let Err(error) = listen_once(&uris, queue, &record).await {
            record.say(&format!("the listener connects again: {error:#}"));
        }
        sleep(PAUSE).await;
    }
}

async fn listen_once(uris: &[String], queue: &str, record: &Record) -> anyhow::Result<()> {
    let link = Link::open(uris).await?;
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
