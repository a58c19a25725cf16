//! What goes well: order, mixed sizes, ack only after finality, one write for a repeated message, events.

use std::time::Duration;

use crate::stage::{BINARY, EVENTS, LONG, QUEUE, Stage, calldata, wait_log};
use crate::support::{AnvilConfig, WorkerHome, next_event, with_id};

#[tokio::test]
async fn a_message_becomes_a_transaction_and_is_acked_when_that_is_final() {
    let slow_blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(slow_blocks).await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut events = stage.amqp.listen(EVENTS).await;
    stage.amqp.declare("answers").await;
    let properties = with_id("order-1").with_reply_to("answers".into()).with_correlation_id("c-1".into());
    stage.amqp.publish(QUEUE, properties, b"hello chain").await;
    let worker = home.start(BINARY);
    wait_log(&worker, "signed").await;
    stage.wait_nonce(0, 1).await;
    assert_eq!(stage.depth(QUEUE).await, (0, 1), "it is in a block, but not final: unacked");
    let (kind, event) = next_event(&mut events, LONG).await;
    assert_eq!(kind, "final");
    assert_eq!(event["subject"], "order-1");
    let included = event["data"]["transaction"]["block_number"].as_u64().unwrap();
    assert!(stage.anvil.block_number().await.unwrap() >= included + 2, "two blocks stand on top of it");
    stage.wait_empty(QUEUE).await;
    let answer = stage.amqp.wait_for("answers", LONG).await;
    assert_eq!(answer.properties.correlation_id().as_ref().map(ToString::to_string).as_deref(), Some("c-1"));
    assert_eq!(answer.json()["id"], event["id"], "the same event, for the one who asked");
    assert_eq!(stage.transactions_of(0).await, [(0, calldata(b"hello chain"), crate::stage::SINK.to_owned())]);
    let status = stage.status(&home, "order-1").await;
    assert_eq!(status["state"], "final");
    assert_eq!(status["transactions"][0]["attempts"].as_array().unwrap().len(), 1);
}
