//! Headers as large as a frame, or larger with what the broker adds. A header frame is never split: one that is too large ends the
//! connection, so no copy may be that large, and what comes must be read all the same.

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::BasicConsumeOptions;
use lapin::types::{AMQPValue, FieldTable, LongString};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, wait_log};
use crate::support::contracts::{ALWAYS_REVERTS, SINK};
use crate::support::{Amqp, WorkerHome, wait_until, with_id};

/// On which RabbitMQ and the client library agree.
const FRAME_MAX: usize = 131_072;
/// A frame's head and end, class, weight and size of the body, the flags, the delivery mode, the length of the table.
const BESIDE: usize = 7 + 1 + 12 + 2 + 1 + 4;

fn text(bytes: usize) -> AMQPValue {
    AMQPValue::LongString(LongString::from("x".repeat(bytes)))
}

fn with_headers(id: &str, headers: impl IntoIterator<Item = (String, AMQPValue)>) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), value);
    }
    with_id(id).with_headers(table)
}

/// Returns properties whose frame has this many bytes, all in one header.
fn of_frame(id: &str, bytes: usize) -> BasicProperties {
    let entry = 1 + "blob".len() + 1 + 4;
    with_headers(id, [("blob".to_owned(), text(bytes - BESIDE - 1 - id.len() - entry))])
}

fn small(id: &str, count: usize) -> BasicProperties {
    with_headers(id, (0..count).map(|number| (format!("h{number}"), text(10))))
}

fn long_names(id: &str, count: usize) -> BasicProperties {
    with_headers(id, (0..count).map(|number| (format!("{number:0>255}"), AMQPValue::Void)))
}

/// Covers B22: each becomes a dead letter that names what it leaves out, or goes through retries and a replay as it came. Nothing ends a
/// connection.
#[tokio::test]
async fn headers_of_every_size_become_copies_that_fit_into_a_frame() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config_for(ALWAYS_REVERTS).await;
    let home = WorkerHome::new(
        &config.with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"".to_owned()),
    );
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    let taken = [
        ("small", of_frame("small", 31 << 10), "blob"),
        ("small-many", small("small-many", 1500), "h7"),
        ("small-names", long_names("small-names", 120), ""),
    ];
    for (id, properties, name) in taken {
        stage.amqp.publish(QUEUE, properties, id.as_bytes()).await;
        let dead = stage.amqp.wait_for(DEAD, LONG).await;
        assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), (id, "rejected.reverted"));
        assert_eq!(dead.header("cw-dropped-headers"), None, "{id}");
        assert!(name.is_empty() || dead.header(name).is_some(), "{id}");
    }
    let refused = [
        ("hundred", of_frame("hundred", 100 << 10), "blob"),
        ("nearly", of_frame("nearly", 126 << 10), "blob"),
        ("exactly", of_frame("exactly", FRAME_MAX), "blob"),
        ("many", small("many", 6000), "h59"),
        ("names", long_names("names", 500), "000"),
        // Made up, and none of ours.
        ("ours", with_headers("ours", (0..14).map(|number| (format!("cw-{number}"), text(8000)))), "cw-"),
    ];
    for (id, properties, name) in refused {
        stage.amqp.publish(QUEUE, properties, id.as_bytes()).await;
        let dead = stage.amqp.wait_for(DEAD, LONG).await;
        assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), (id, "invalid.too_large"));
        let names = dead.header("cw-dropped-headers").unwrap_or_default();
        assert!(names.contains(name), "{id}: {names}");
    }
    // Ours, forged, and as large as a frame: the worker believes none of them.
    let ours =
        ["cw-error-detail", "cw-worker", "cw-tx-hash", "cw-raw-properties", "cw-request-id", "cw-dropped-headers"];
    let forged = with_headers("forged", ours.iter().map(|name| ((*name).to_owned(), text(20_000))));
    stage.amqp.publish(QUEUE, forged, b"forged").await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("forged", "rejected.reverted"));
    assert_eq!(worker.log().matches("deliveries flow").count(), 1, "no connection was lost");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// Covers B22: the broker adds `x-delivery-count` to a message that it delivers again, and `x-death` to its own dead letters.
#[tokio::test]
async fn what_is_larger_than_a_frame_with_the_brokers_own_headers_can_be_read() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config_for(SINK).await);
    stage.topology(&home).await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    // One is too old at once, the other is taken and comes back with the end of its consumer.
    let expiring = of_frame("letter", FRAME_MAX - 2).with_expiration("1".into());
    stage.amqp.publish(QUEUE, expiring, b"letter").await;
    wait_until("it has expired", LONG, async || stage.depth(DEAD).await.0 == 1).await;
    stage.amqp.publish(QUEUE, of_frame("again", FRAME_MAX), b"again").await;
    let holder = Amqp::connect(&stage.rabbit.uri(&stage.vhost)).await;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = holder.channel.basic_consume(QUEUE.into(), "holder".into(), options, arguments).await.unwrap();
    consumer.next().await.unwrap().unwrap();
    drop(holder.channel.close(200, "".into()).await);
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("good"), b"good").await;
    stage.wait_state(&home, "good", "final").await;
    stage.wait_state(&home, "again", "dead").await;
    assert_eq!(worker.log().matches("deliveries flow").count(), 1, "no connection was lost");
    let (code, text) = home.command(BINARY, &["dead", "list"]).await;
    assert!(code == 0 && text.contains("broker.expired") && text.contains("invalid.too_large"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["dead", "show", "letter"]).await;
    assert!(code == 0 && text.contains("blob") && text.contains("a frame has room for"), "{code} {text}");
    // A letter that is read often is published again.
    for _ in 0..10 {
        assert_eq!(home.command(BINARY, &["dead", "list"]).await.0, 0);
    }
    assert_eq!(stage.depth(DEAD).await.0, 2);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written = stage.transactions_of(0).await;
    assert_eq!(written.iter().map(|(_, data, _)| data.clone()).collect::<Vec<_>>(), [calldata(b"good")]);
}
