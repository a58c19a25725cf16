//! Retries and dead letters that the broker does not take: nothing is acked that is not safe somewhere else.

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, kinds_of, wait_log, wait_log_times};
use crate::support::contracts::ALWAYS_REVERTS;
use crate::support::{WorkerConfig, WorkerHome, with_id};

const RETRY: &str = "acme.writes.retry";
const WAIT: &str = "acme.writes.wait.1s";
/// How often a publish must have failed before the delivery is looked at: the second try was not a slip.
const FAILURES: usize = 3;

fn tries(config: WorkerConfig, max_attempts: u32) -> WorkerConfig {
    config
        .with("retry", format!("max_attempts = {max_attempts}"))
        .with("retry", "initial_delay = \"1s\"\nmultiplier = 1.0\nmax_delay = \"1s\"")
}

/// What RabbitMQ writes into a message that it dead-letters.
fn x_death(reason: &str) -> AMQPValue {
    let mut entry = FieldTable::default();
    entry.insert("count".into(), AMQPValue::LongLongInt(1));
    entry.insert("reason".into(), AMQPValue::LongString(reason.into()));
    entry.insert("queue".into(), AMQPValue::LongString(QUEUE.into()));
    entry.insert("exchange".into(), AMQPValue::LongString("".into()));
    entry.insert("time".into(), AMQPValue::Timestamp(1_700_000_000));
    let keys = vec![AMQPValue::LongString(QUEUE.into())];
    entry.insert("routing-keys".into(), AMQPValue::FieldArray(FieldArray::from(keys)));
    AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(entry)]))
}

/// Covers B16: RabbitMQ up to 3.13 believes the header and drops the copy as a cycle when it leaves the wait queue.
#[tokio::test]
async fn a_stale_x_death_header_does_not_make_a_retry_vanish() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 2));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    let reasons = ["expired", "delivery_limit", "maxlen", "rejected"];
    for reason in reasons {
        let mut table = FieldTable::default();
        table.insert("x-death".into(), x_death(reason));
        table.insert("x-first-death-queue".into(), AMQPValue::LongString(QUEUE.into()));
        table.insert("x-first-death-reason".into(), AMQPValue::LongString(reason.into()));
        stage.amqp.publish(QUEUE, with_id(reason).with_headers(table), b"again").await;
    }
    let mut came_back = Vec::new();
    for _ in reasons {
        let dead = stage.amqp.wait_for(DEAD, LONG).await;
        assert_eq!(dead.header("cw-attempt").as_deref(), Some("1"), "it has been in the wait queue");
        assert_eq!(dead.header("x-death"), None);
        came_back.push(dead.id());
    }
    came_back.sort();
    assert_eq!(came_back, ["delivery_limit", "expired", "maxlen", "rejected"]);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let events = stage.kept_events().await;
    for reason in reasons {
        assert_eq!(kinds_of(&events, reason), ["retry", "dead"]);
    }
}

/// Covers B12, C42: a retry that no queue takes leaves its delivery with the broker.
#[tokio::test]
async fn a_retry_that_no_queue_takes_is_never_acked_and_goes_on_when_one_does() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 2));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.unbind(WAIT, RETRY, WAIT).await;
    for id in ["order-1", "order-2"] {
        stage.amqp.publish(QUEUE, with_id(id), b"").await;
    }
    wait_log_times(&worker, "no queue takes messages", 2 * FAILURES).await;
    assert_eq!(stage.depth(QUEUE).await, (0, 2), "neither is acked");
    assert_eq!(stage.status(&home, "order-1").await["state"], "retry_pending");
    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    let mut dead = [stage.amqp.wait_for(DEAD, LONG).await.id(), stage.amqp.wait_for(DEAD, LONG).await.id()];
    dead.sort();
    assert_eq!(dead, ["order-1", "order-2"]);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["retry", "dead"]);
}

/// Covers B4, and B12 together with a crash: what was not confirmed is published by the next process.
#[tokio::test]
async fn a_retry_without_a_confirm_is_published_again_after_a_kill() {
    let Some(stage) = Stage::set().await else { return };
    let config = tries(stage.config_for(ALWAYS_REVERTS).await, 2).with("broker", "topology = \"verify\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.amqp.unbind(WAIT, RETRY, WAIT).await;
    let mut first = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    wait_log(&first, "no queue takes messages").await;
    first.kill().await;
    let mut second = home.start(BINARY);
    wait_log(&second, "no queue takes messages").await;
    assert_eq!(stage.depth(QUEUE).await, (0, 1));
    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.header("cw-attempt").as_deref()), ("order-1", Some("1")));
    stage.wait_empty(QUEUE).await;
    assert_eq!(second.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (0, 0), "one dead letter, no more");
}

/// Covers B14, C41c: a dead-letter queue that refuses. Both kinds of dead letter: a request's and a refused message's.
#[tokio::test]
async fn a_refused_dead_letter_is_never_acked_and_settles_when_there_is_room() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 1));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.delete(DEAD).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    stage.amqp.channel.queue_declare(DEAD.into(), durable, arguments).await.unwrap();
    stage.amqp.bind(DEAD, DEAD, "#").await;
    stage.amqp.publish(DEAD, with_id("earlier"), b"").await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    stage.amqp.publish(QUEUE, lapin::BasicProperties::default(), b"no id").await;
    wait_log_times(&worker, "the broker refused a message", 2 * FAILURES).await;
    assert_eq!(stage.depth(QUEUE).await, (0, 2), "neither is acked");
    assert_eq!(stage.depth(DEAD).await, (1, 0));
    assert_eq!(stage.status(&home, "order-1").await["state"], "dead_pending");
    // Room for one, and then for the other.
    assert_eq!(stage.amqp.take(DEAD).await.unwrap().id(), "earlier");
    let mut keys = Vec::new();
    for _ in 0..2 {
        keys.push(stage.amqp.wait_for(DEAD, LONG).await.routing_key);
    }
    keys.sort();
    assert_eq!(keys, ["invalid.missing_id", "rejected.reverted"]);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (0, 0), "each dead letter came once");
    assert_eq!(stage.kept_events().await.len(), 2);
}

/// Covers B11 for the dead-letter exchange: without it nothing is acked, and the daemon goes on when it is back.
#[tokio::test]
async fn a_missing_dead_letter_exchange_holds_deliveries_until_it_is_back() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = tries(stage.config(), 1).with("broker", "topology = \"verify\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.channel.exchange_delete(DEAD.into(), ExchangeDeleteOptions::default()).await.unwrap();
    stage.amqp.publish(QUEUE, lapin::BasicProperties::default(), b"no id").await;
    wait_log_times(&worker, "NOT_FOUND", FAILURES).await;
    assert!(worker.is_running());
    let (ready, unacked) = stage.depth(QUEUE).await;
    assert_eq!(ready + unacked, 1, "it is still the broker's");
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let exchange =
        stage.amqp.channel.exchange_declare(DEAD.into(), ExchangeKind::Topic, durable, FieldTable::default());
    exchange.await.unwrap();
    stage.amqp.bind(DEAD, DEAD, "#").await;
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.routing_key, "invalid.missing_id");
    // And it writes again.
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// Covers B41: an event that nobody wants is no error; it is kept for a look.
#[tokio::test]
async fn events_that_nobody_wants_go_to_the_unrouted_queue() {
    const UNROUTED: &str = "acme.writes.events.unrouted";
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.amqp.channel.queue_purge(UNROUTED.into(), QueuePurgeOptions::default()).await.unwrap();
    let mut worker = home.start(BINARY);
    // A queue for answers that is not there is no error either.
    stage.amqp.publish(QUEUE, with_id("order-1").with_reply_to("nowhere".into()), b"good").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let events = stage.amqp.take_all(UNROUTED).await;
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].routing_key.as_str(), events[0].json()["subject"].as_str()), ("final", Some("order-1")));
}
