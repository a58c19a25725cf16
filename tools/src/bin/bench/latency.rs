//! How long one message takes at half of the highest rate: from its publish to the node's answer, and from the block that
//! makes it final to the event about it (which comes after the ack).

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::MissedTickBehavior;

use crate::forwarder::Forwarder;
use crate::report::{Report, percentile};
use crate::stage::{self, FINALITY, Stage};
use crate::support::{Amqp, Rabbit, RabbitConfig};

const BYTES: usize = 256;
const LASTS: Duration = Duration::from_secs(20);
/// The first blocks find connections and caches cold.
const WARM_UP: Duration = Duration::from_secs(4);
/// Published together: a tick of the clock is not finer.
const TICK: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(per_second: f64) {
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain().await;
    let began = Instant::now();
    let forwarder = Forwarder::start(chain.address(), began).await;
    let stage = Stage::set(&rabbit, &forwarder.url(), BYTES, &[]).await;
    let (_link, mut events): (Amqp, _) = stage.events().await;
    let mut worker = stage.home.start(&stage.binary);
    // The first message shows that it runs.
    stage.publish(0, stage::stamped(0, Duration::ZERO, BYTES)).await.unwrap();
    tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
    let messages = (per_second * (LASTS + WARM_UP).as_secs_f64()) as usize;
    let publish = publish(&stage, messages, per_second, began);
    let hear = async {
        let mut told = Vec::with_capacity(messages);
        while told.len() < messages {
            let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("all become final");
            let event: Value = serde_json::from_slice(&event.unwrap().unwrap().data).unwrap();
            told.push((Instant::now(), event["data"]["transaction"]["block_number"].as_u64().unwrap()));
        }
        told
    };
    let ((), told) = tokio::join!(publish, hear);
    assert_eq!(worker.stop().await.code(), Some(0), "{}", worker.log());
    let seen = forwarder.seen.lock().unwrap();
    let warm = (per_second * WARM_UP.as_secs_f64()) as usize;
    let mut accepted: Vec<_> = seen.accepted_ms.iter().copied().skip(warm).collect();
    let to_end = |(at, block): &(Instant, u64)| {
        Some(at.duration_since(*seen.heads.get(&(block + FINALITY))?).as_secs_f64() * 1e3)
    };
    let mut ended: Vec<_> = told.iter().skip(warm).filter_map(to_end).collect();
    assert!(accepted.len() * 10 > messages * 7 && ended.len() * 10 > messages * 7, "nearly all are measured");
    Report::new("latency")
        .figure("per_s", per_second, 0, "1/s")
        .figure("messages", ended.len() as f64, 0, "")
        .figure("publish_to_node_p50_ms", percentile(&mut accepted, 50.0), 1, "ms")
        .figure("publish_to_node_p99_ms", percentile(&mut accepted, 99.0), 1, "ms")
        .figure("block_to_event_p50_ms", percentile(&mut ended, 50.0), 1, "ms")
        .figure("block_to_event_p99_ms", percentile(&mut ended, 99.0), 1, "ms")
        .print();
}

/// At an even pace, without waiting for confirms one by one.
async fn publish(stage: &Stage, messages: usize, per_second: f64, began: Instant) {
    let start = Instant::now();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut sent = 0;
    while sent < messages {
        tick.tick().await;
        let due = ((start.elapsed().as_secs_f64() * per_second) as usize).min(messages);
        let bodies = (sent..due).map(|number| {
            let body = stage::stamped(number + 1, began.elapsed(), BYTES);
            stage.publish(number + 1, body)
        });
        futures_util::future::try_join_all(bodies).await.unwrap();
        sent = due;
    }
}
